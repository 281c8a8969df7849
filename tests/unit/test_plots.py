"""Names beside curves can be read."""

from itertools import pairwise

import matplotlib.pyplot as plt
import pytest

from gradnorm import plots


def test_names_beside_curves_neither_overlap_nor_leave_the_panel():
    figure, ax = plt.subplots()
    ax.set_ylim(0, 1)
    plots.label_ends(ax, [(value, str(value), "k") for value in (1.0, 0.995, 0.99, 0.0, 0.01, 0.5, float("nan"))])
    heights = {text.get_text(): text.get_position()[1] for text in ax.texts}
    plt.close(figure)
    assert set(heights) == {"1.0", "0.995", "0.99", "0.0", "0.01", "0.5"}
    assert heights["0.0"] == pytest.approx(0)
    assert heights["0.5"] == pytest.approx(0.5)
    ordered = sorted(heights.values())
    assert max(ordered) <= 1
    assert min(b - a for a, b in pairwise(ordered)) > 0.06
