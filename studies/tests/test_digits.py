"""No scan is in both sets, and the canvas holds what the labels say."""

import torch

from gradnorm_studies.analysis.metrics import Metrics
from gradnorm_studies.digits import CANVAS, DigitsConfig, Pairs, _place, add_delta

CONFIG = DigitsConfig(test_size=32)


def test_no_scan_is_in_both_sets():
    pairs = Pairs(CONFIG, seed=0)
    train, test = set(pairs.train_scans.tolist()), set(pairs.test_scans.tolist())
    assert not train & test
    assert len(train) + len(test) == 1797


def test_scans_lie_where_they_were_put():
    scans = torch.arange(1, 129, dtype=torch.float32).view(2, 8, 8)
    canvas = _place(scans, torch.tensor([[0, 2], [5, 4]]))
    assert torch.equal(canvas[0, 0:8, 2:10], scans[0])
    assert torch.equal(canvas[1, 5:13, 4:12], scans[1])
    assert canvas.sum() == scans.sum()


def test_the_canvas_is_the_brighter_of_both_digits():
    test = Pairs(CONFIG, seed=0).test
    assert test.canvas.shape == test.alone.shape == (32, CANVAS, CANVAS)
    assert (test.canvas >= test.alone).all()
    assert test.alone[:, :3].sum() == 0
    assert test.canvas[:, :3].sum() > 0


def test_delta_is_the_mean_relative_gain_with_its_sign():
    def rows(first, second, error):
        return [(0, "accuracy 1 %", first), (0, "accuracy 2 %", second), (0, "RMSE", error)]

    runs = {("digits", "single", 0): rows(80, 50, 2.0), ("digits", "equal", 0): rows(88, 40, 1.0)}
    delta = add_delta(Metrics(runs))
    assert delta.final("digits", "single", "Δm") == [0.0]
    torch.testing.assert_close(delta.final("digits", "equal", "Δm")[0].item(), (10 - 20 + 50) / 3)
