"""The report is one file that needs no other, and says what the tables say."""

import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from gradnorm import plots
from gradnorm_studies.analysis.report import Figure, Report, Table


@pytest.fixture
def report(tmp_path: Path) -> Report:
    panel = plots.Curves("T=2", np.arange(3.0), {"equal": np.ones((2, 3)), "gradnorm": np.zeros((2, 3))}, "loss")
    ends = plots.Ends("T=2", {"equal": np.ones(2), "other": np.zeros(2)}, "loss")
    figures = [
        Figure(plots.over_time(tmp_path / "a.png", [panel]), "over time <1>"),
        Figure(plots.finals(tmp_path / "b.png", [ends, ends]), "ends"),
        Figure(plots.images(tmp_path / "c.png", {"row": [np.eye(4), np.eye(4)]}), "samples"),
    ]
    table = Table("Claims", ("claim", "verdict"), [("a < b & c", "holds"), ("|x|", "does not hold")], "a note")
    settings = Table("Settings", ("setting",), [("steps",)])
    return Report("Title", "gradnorm reproduce toy", ["Lead."], [table], figures, settings)


def test_html_refers_to_nothing_outside_itself(report: Report):
    page = report.html()
    assert re.findall(r"""(?:src|href)=["'](?!data:)""", page) == []
    assert "url(" not in page
    assert "http" not in page
    assert "<script" not in page
    assert page.count("data:image/png;base64,") == 3


def test_html_is_well_formed_and_escaped(report: Report):
    class Checker(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []

        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "img"):
                self.open.append(tag)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    checker = Checker()
    checker.feed(report.html())
    assert checker.open == []
    assert "a &lt; b &amp; c" in report.html()
    assert 'class="holds">holds' in report.html()
    assert 'class="fails">does not hold' in report.html()


def test_markdown_has_every_row_and_the_command(report: Report):
    text = report.markdown()
    assert "`gradnorm reproduce toy`" in text
    assert "| a < b & c | holds |" in text
    assert r"| \|x\| | does not hold |" in text
    assert "a note" in text


def test_figures_are_the_same_bytes_each_time(tmp_path: Path):
    ends = plots.Ends("T=2", {"equal": np.ones(2)}, "loss")
    first, second = (plots.finals(tmp_path / name, [ends]).read_bytes() for name in ("a.png", "b.png"))
    assert first == second


def test_names_beside_curves_neither_overlap_nor_leave_the_panel():
    figure, ax = plt.subplots()
    ax.set_ylim(0, 1)
    plots._label_ends(ax, [(value, str(value), "k") for value in (1.0, 0.995, 0.99, 0.0, 0.01, 0.5, float("nan"))])
    heights = {text.get_text(): text.get_position()[1] for text in ax.texts}
    plt.close(figure)
    assert set(heights) == {"1.0", "0.995", "0.99", "0.0", "0.01", "0.5"}
    assert heights["0.0"] == pytest.approx(0)
    assert heights["0.5"] == pytest.approx(0.5)
    ordered = sorted(heights.values())
    assert max(ordered) <= 1
    assert min(b - a for a, b in pairwise(ordered)) > 0.06
