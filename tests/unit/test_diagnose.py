"""`diagnose` before training and `report` during it: the numbers, the advice, the graph left alone."""

import math

import pytest
import torch
from torch import nn

from gradnorm import ArgumentError, Descent, GradNorm, GraphError, StateError, diagnose, plots

from .networks import Net, batch, train, trained

NAMES = ["a", "b", "c"]


def scaled(net, **factors):
    losses = net.losses(batch())
    return {name: loss * factors.get(name, 1.0) for name, loss in losses.items()}


def even(net):
    """Losses whose gradients at `W` have one norm."""
    losses = net.losses(batch())
    norms = [torch.autograd.grad(loss, net.last, retain_graph=True)[0].norm() for loss in losses.values()]
    return {name: loss / norm for (name, loss), norm in zip(losses.items(), norms, strict=True)}


def test_the_numbers_are_those_of_autograd():
    net = Net()
    losses = net.losses(batch())
    rows = [torch.autograd.grad(loss, net.last, retain_graph=True)[0].flatten() for loss in losses.values()]
    found = diagnose(losses, model=net)
    assert found.tasks == tuple(NAMES)
    torch.testing.assert_close(found.losses, torch.stack(list(losses.values())).detach())
    torch.testing.assert_close(found.norms, torch.stack([row.norm() for row in rows]))
    torch.testing.assert_close(found.cosines[0, 1], torch.cosine_similarity(rows[0], rows[1], 0))
    assert found.dominance == pytest.approx((found.norms.max() / found.norms.min()).item())
    assert found.layer == "trunk.2.weight (8, 8)"
    assert found.entries == 64
    assert found.others == ("trunk.0.weight (8, 6)",)


def test_the_graph_and_the_gradients_stay_as_they_are():
    net = Net()
    losses = net.losses(batch())
    diagnose(losses)
    assert all(p.grad is None for p in net.parameters())
    sum(losses.values()).backward()
    assert net.last.grad is not None


@pytest.mark.parametrize("shape", [dict, lambda d: list(d.values()), lambda d: torch.stack(list(d.values()))])
def test_all_forms_of_losses_are_one(shape):
    net = Net()
    found = diagnose(shape(net.losses(batch())))
    torch.testing.assert_close(found.norms, diagnose(net.losses(batch())).norms)
    assert found.layer == "a parameter (8, 8)"


def test_a_missing_task_is_passed_over():
    found = diagnose({**Net().losses(batch()), "b": None})
    assert found.tasks == ("a", "c")


def test_the_layer_may_be_named():
    net = Net()
    found = diagnose(net.losses(batch()), shared="trunk.0.*", model=net)
    assert found.layer == "trunk.0.weight (8, 6), trunk.0.bias (8,)"
    assert found.entries == 56
    assert found.others == ("trunk.2.weight (8, 8)",)


def test_a_half_precision_model_is_measured_in_float32():
    net = Net().to(torch.bfloat16)
    assert diagnose(net.losses(batch().to(torch.bfloat16))).norms.dtype is torch.float32


def test_even_gradients_need_no_balancer_and_a_dominant_task_is_named():
    net = Net()
    assert diagnose(even(net)).advice[0].startswith("All gradients are within a factor of 1: equal weights")
    losses = even(net)
    some = diagnose({**losses, "a": 5 * losses["a"]}).advice
    assert some[0].startswith("a's gradient is 5 times that of ")
    assert "even this out" in some[0]
    much = diagnose({**losses, "a": 30 * losses["a"]}).advice
    assert much[0].startswith("a's gradient is 30 times that of ")
    assert "for a almost alone" in much[0]
    assert not any("divide" in line for line in much)
    most = diagnose({**losses, "a": 400 * losses["a"]}).advice
    assert "about 0.004" in most[1]
    assert "divide a's loss by about 400 first" in most[1]


def test_tasks_that_pull_against_each_other_are_named():
    net = Net()
    y = net.heads[0](net.trunk(batch())).sum()
    assert "up and down pull against each other (cosine -1.00)" in diagnose({"up": 50 + y, "down": 50 - y}).advice[-1]
    assert not any("pull against" in line for line in diagnose({"up": 50 + y, "too": 50 + y}).advice)


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (math.nan, "b: the loss is nan"),
        (math.inf, "b: the loss is inf"),
        (-1.0, "b's loss is -"),
        (0.0, "b's gradient is zero"),
    ],
)
def test_bad_numbers_are_named(factor, message):
    advice = diagnose(scaled(Net(), b=factor)).advice
    assert any(line.startswith(message) for line in advice)
    assert not any(line.startswith(message) for line in diagnose(scaled(Net())).advice)


def test_the_text_is_narrow_and_holds_everything():
    found = diagnose(scaled(Net(), a=1e-6), model=Net())
    text = str(found)
    assert max(map(len, text.splitlines())) <= 100
    assert all(name in text for name in (*NAMES, "× smallest", "cosine", "- c's gradient is"))


def test_what_cannot_be_diagnosed_is_refused():
    net, other = Net(), nn.Linear(6, 1)
    losses = net.losses(batch())
    with pytest.raises(GraphError, match="no layer is shared"):
        diagnose([losses["a"], other(batch()).sum()])
    with pytest.raises(GraphError, match="the loss of task 'x' does not reach the shared layer"):
        diagnose({"a": losses["a"], "x": other(batch()).sum()}, shared=net.last)
    with pytest.raises(GraphError, match="has no graph"):
        diagnose([losses["a"], losses["b"].detach()])
    with pytest.raises(ArgumentError, match="two or more tasks"):
        diagnose([losses["a"]])
    with pytest.raises(ArgumentError, match="must be stacked"):
        diagnose(losses["a"])
    with pytest.raises(ArgumentError, match="must be a mapping"):
        diagnose("losses")


# ------------------------------------------------------------------------------------------------------------ report


def test_a_report_holds_what_was_measured():
    _, balancer = trained(5)
    text = balancer.report()
    assert "Shared layer: a parameter (8, 8)\n5 steps" in text
    table = {line.split()[0]: line.split() for line in text.split("\n\n")[1].splitlines()}
    logged = balancer.log_dict()
    for task, weight in zip(NAMES, balancer.weights.tolist(), strict=True):
        cells = dict(zip(table["task"], table[task], strict=False))
        assert float(cells["weight"]) == pytest.approx(weight, rel=1e-2)
        for field in ("loss", "norm", "target", "rate"):
            assert float(cells[field]) == pytest.approx(logged[f"gradnorm/{field}/{task}"], rel=1e-2)
    assert max(map(len, text.splitlines())) <= 100


def test_a_report_says_whether_the_weights_have_settled():
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last, update=Descent(0.1))
    train(net, balancer, 20)
    assert "weights are still moving" in balancer.report()
    still = GradNorm(NAMES, shared=net.last, update=Descent(1e-6))
    train(net, still, 40)
    assert "weights have settled" in still.report()


def test_a_report_names_a_weight_at_its_floor_skips_and_a_stuck_task():
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last, alpha=3.0, update=Descent(1.0, min_weight=0.01))
    train(net, balancer, 10)
    assert "sits at min_weight" in balancer.report()

    skipping = GradNorm(NAMES, shared=net.last)
    losses = net.losses(batch())
    skipping({**losses, "a": losses["a"] * math.nan}).backward()
    with pytest.warns(RuntimeWarning, match="unchanged"):
        skipping.step()
    net.zero_grad()
    assert "1 of 1 updates were skipped" in skipping.report()

    stuck = GradNorm(NAMES, shared=net.last)  # nothing trains: every loss stays
    for _ in range(60):
        stuck(net.losses(batch())).backward()
        stuck.step()
        net.zero_grad()
    assert "a's loss is at 100% of its first while its weight has gone from 1 to" in stuck.report()
    assert "stuck task" not in trained(30)[1].report()


def test_a_report_needs_a_step():
    with pytest.raises(StateError, match=r"before training, gradnorm\.diagnose"):
        GradNorm(2).report()


def test_a_task_that_never_came_is_reported_too():
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last)
    losses = net.losses(batch())
    balancer({"a": losses["a"], "b": losses["b"]}).backward()
    balancer.step()
    assert "nan" in balancer.report()


# ---------------------------------------------------------------------------------------------------------- pictures


def test_pictures_are_drawn(tmp_path):
    net, balancer = trained(30)
    for path in (
        plots.diagnosis(diagnose(net.losses(batch())), tmp_path / "diagnosis.png"),
        plots.training(balancer.history, str(tmp_path / "training.png")),
    ):
        assert path.read_bytes()[:4] == b"\x89PNG"


def test_the_picture_of_a_diagnosis_says_what_the_text_says(monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    found = diagnose(Net().losses(batch()))
    plots.diagnosis(found, "unused.png")
    bars, table = figures[0].axes
    assert [bar.get_width() for bar in bars.patches] == found.norms.tolist()
    assert [text.get_text() for text in bars.texts] == [f"{norm:.3g}" for norm in found.norms.tolist()]
    assert [text.get_text() for text in table.texts] == [f"{value:.2f}" for value in found.cosines.flatten().tolist()]
    assert [text.get_text() for text in bars.get_yticklabels()] == NAMES
    plots.plt.close(figures[0])


@pytest.mark.parametrize("factor", [math.nan, math.inf, 0.0, -1.0])
@pytest.mark.parametrize("names", ["b", "abc"])
def test_bad_numbers_can_be_drawn(names, factor, tmp_path):
    found = diagnose(scaled(Net(), **dict.fromkeys(names, factor)))
    assert plots.diagnosis(found, tmp_path / "diagnosis.png").exists()
