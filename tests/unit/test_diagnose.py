"""`diagnose` before training and `report` during it: the numbers, the advice, the graph left alone."""

import math
import pickle
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from gradnorm import ArgumentError, Descent, GradNorm, GraphError, Report, StateError, diagnose, plots

from .networks import Net, batch, cpu_only, train, trained

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
    rows = [torch.autograd.grad(loss, net.last, retain_graph=True)[0].flatten().cpu() for loss in losses.values()]
    found = diagnose(losses, model=net)
    assert found.tasks == tuple(NAMES)
    torch.testing.assert_close(found.losses, torch.stack(list(losses.values())).detach().cpu())
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
    losses = even(net)
    found = diagnose(losses)
    assert found.findings[0].startswith("All gradients are within a factor of 1: equal weights")
    assert not any("gradient" in line for line in found.advice if "conflict" not in line)
    assert "- All gradients are within a factor of 1" in str(found)
    some = diagnose({**losses, "a": 5 * losses["a"]})
    assert some.findings[0].startswith("a's gradient is 5 times that of ")
    assert "even this out" in some.findings[0]
    assert some.advice == found.advice
    assert diagnose({**losses, "a": 30 * losses["a"]}).findings == []
    assert diagnose({"up": losses["a"], "too": losses["a"]}).advice == []
    much = diagnose({**losses, "a": 30 * losses["a"]}).advice
    assert much[0].startswith("a's gradient is 30 times that of ")
    assert "for a almost alone" in much[0]
    assert not any("divide" in line for line in much)
    most = diagnose({**losses, "a": 400 * losses["a"]}).advice
    assert "about 0.004" in most[1]
    assert "divide a's loss by about 400 first" in most[1]
    tiny = diagnose({**losses, "a": losses["a"] / 1e5}).advice
    assert "or multiply a's loss by about " in tiny[1]


def test_tasks_that_pull_against_each_other_are_named():
    net = Net()
    y = net.heads[0](net.trunk(batch())).sum()
    assert "up and down conflict (cosine -1.00)" in diagnose({"up": 50 + y, "down": 50 - y}).advice[-1]
    assert not any("conflict" in line for line in diagnose({"up": 50 + y, "too": 50 + y}).advice)


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


@pytest.mark.filterwarnings("default")  # torch's own, while it compiles
def test_a_compiled_network_is_refused_with_the_remedy(tmp_path, monkeypatch):
    """A backward that was compiled for a single run, as torch does by default, cannot run once per task."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    net = Net()
    compiled = torch.compile(net.trunk)
    with torch._functorch.config.patch(donated_buffer=True):
        sum(head(compiled(batch())).square().mean() for head in net.heads).backward()  # compiles it
        features = compiled(batch())
        losses = [head(features).square().mean() for head in net.heads]
        with pytest.raises(GraphError, match=r"set its donated_buffer to False before compiling, or leave the block"):
            diagnose(losses, shared=net.last)


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


def test_a_report_is_its_text_and_its_figures():
    _, balancer = trained(5)
    report = balancer.report()
    logged = balancer.log_dict()
    assert isinstance(report, Report)
    assert report == str(report) == "" + report
    assert report.tasks == tuple(NAMES)
    assert report.steps == 5
    assert report.skipped == 0
    assert report.layer == "a parameter (8, 8)"
    torch.testing.assert_close(report.weights, balancer.weights.cpu())
    torch.testing.assert_close(report.averaged_weights, balancer.time_averaged_weights().cpu())
    for name, field in (("losses", "loss"), ("norms", "norm"), ("targets", "target"), ("rates", "rate")):
        assert getattr(report, name).tolist() == pytest.approx([logged[f"gradnorm/{field}/{t}"] for t in NAMES])
    torch.testing.assert_close(report.loss_ratios, report.losses / balancer.initial_losses.cpu())
    assert report.cosines.shape == (3, 3)
    again = pickle.loads(pickle.dumps(report))
    assert again == report
    assert again.advice == report.advice
    balancer.weights = [1.0, 1.0, 1.0]
    assert not torch.equal(report.weights, balancer.weights.cpu())


def constant(count=60, factors=None, update=None, **options):
    """A balancer that has seen the same gradients again and again, and losses `factors(step)` times the first."""
    W = torch.nn.Parameter(torch.ones(2, 2))
    balancer = GradNorm(NAMES, shared=W, update=update or Descent(0.01), **options)
    for step in range(count):
        W.grad = None
        z = W.sum() - W.sum().detach()
        values = factors(step) if factors else [1.0] * 3
        balancer([z + value for value in values]).backward()
        balancer.step()
    return balancer


def test_losses_are_compared_with_the_first_ones_not_with_the_oldest_recorded():
    balancer = constant(60, lambda step: [1 - step / 100] * 3, history=10, initial_losses=[2.0, 1.0, 1.0])
    assert balancer.report().loss_ratios.tolist() == pytest.approx([0.41 / 2, 0.41, 0.41])
    assert "20%" in balancer.report()
    given = constant(30, lambda step: [-1.0] * 3, alpha=0.0).report()
    assert given.loss_ratios.isnan().all()
    assert "–" in given
    assert "nan" not in given.split("cosine")[0]


def test_a_report_says_whether_the_weights_have_settled():
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last, update=Descent(0.1))
    train(net, balancer, 20)
    assert any("weights are still changing" in line for line in balancer.report().findings)
    still = GradNorm(NAMES, shared=net.last, update=Descent(1e-6))
    train(net, still, 40)
    assert "settled" not in still.report()
    assert any("weights hardly change, but" in line and "times its target" in line for line in still.report().advice)
    even = constant(factors=lambda step: [0.9**step] * 3, alpha=0.5).report()
    assert any("weights have converged" in line for line in even.findings)
    assert even.advice == []


@pytest.mark.parametrize("update", ["descent", "closed-form"])
def test_a_gradient_of_zero_is_named_and_nothing_else_advised_of_it(update):
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last, update=update, initial_weights=None)
    for step in range(40):
        losses = net.losses(batch(step))
        balancer({**losses, "b": 0 * losses["b"] + 1}).backward()
        balancer.step()
    report = balancer.report()
    assert any(line.startswith("b's gradient is zero at this layer") for line in report.advice)
    assert not any("b's gradient norm is 0" in line for line in report.advice)
    assert not any("have converged" in line for line in report.findings)


def test_a_slow_drift_is_no_convergence():
    drifting = constant(60, lambda step: [0.97**step, 1.0, 1.0], Descent(0.007), alpha=1.0)
    weights = [row["weight"] for row in drifting.history.rows() if row["task"] == "a"]
    assert 0.9 < sum(weights[-6:]) / sum(weights[-12:-6]) < 1, "a tenth does not show it"
    assert any("weights are still changing: a's by -" in line for line in drifting.report().findings)


def test_nothing_has_settled_before_it_was_balanced():
    waiting = constant(30, initial_losses=200, alpha=1.0).report()
    assert "settled" not in waiting
    assert waiting.findings == ["The weights are not updated until the first losses of a, b, c are known."]
    frozen = constant(30)
    assert "frozen" in frozen.freeze().report()
    assert "settled" not in frozen.report()
    alone = GradNorm(NAMES, shared=(net := Net()).last)
    for step in range(30):
        alone({"a": net.losses(batch(step))["a"]}).backward()
        alone.step()
    assert alone.report().advice[0].startswith("No weight has been updated: no task but a has been measured")
    assert "settled" not in alone.report()


@cpu_only
def test_a_report_names_a_weight_at_its_floor_and_skips():
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last, alpha=3.0, update=Descent(1.0, min_weight=0.01))
    train(net, balancer, 10)
    assert "is at min_weight" in balancer.report()

    skipping = GradNorm(NAMES, shared=net.last)
    for step in range(2):
        losses = net.losses(batch(step))
        skipping({**losses, "a": losses["a"] * (math.nan if step else 1)}).backward()
        with pytest.warns(RuntimeWarning, match="unchanged") if step else nullcontext():
            skipping.step()
        net.zero_grad()
    assert "1 of 2 updates were skipped, since the loss of a or" in " ".join(skipping.report().advice)
    skipping._steps = 1000
    assert "1 of 1,000 updates were skipped" in " ".join(skipping.report().findings)
    assert not any("skipped" in line for line in skipping.report().advice)


@pytest.mark.parametrize("history", [1000, 7])
def test_a_floor_that_was_touched_is_remembered(history):
    balancer = constant(10, history=history, update=Descent(0.01, min_weight=0.01))
    assert "min_weight" not in balancer.report()
    balancer.weights = [0.01, 1.0, 1.99]
    assert min(balancer.history.lowest_weights()) > 0.9
    run_on(balancer, 1)
    balancer.weights = [1.0, 1.0, 1.0]
    run_on(balancer, 20)
    assert "a was at min_weight" in " ".join(balancer.report().advice)
    assert not any(line.startswith(("b", "c")) for line in balancer.report().advice)


def run_on(balancer, count):
    (W,) = balancer.shared
    for _ in range(count):
        W.grad = None
        balancer([W.sum() - W.sum().detach() + 1] * 3).backward()
        balancer.step()


def test_losses_of_a_whole_model_are_refused():
    with pytest.raises(ArgumentError, match="Linear"):
        diagnose(torch.nn.Linear(1, 1))


def test_a_loss_that_has_risen_is_not_called_stuck():
    report = constant(factors=lambda step: [70.0 if step > 9 else 1.0, 0.95**step, 0.9**step]).report()
    (risen,) = [line for line in report.advice if "risen" in line]
    assert risen.startswith("a's loss has risen to 70 times its first.")
    assert "is stuck" not in report


def test_a_stuck_task_is_named_by_its_loss():
    for alpha in (0.0, 0.12):
        report = constant(
            factors=lambda step: [1.0, 0.95**step, 0.95**step], update="closed-form", alpha=alpha
        ).report()
        (stuck,) = [line for line in report.advice if "stuck" in line]
        assert stuck.startswith("a is stuck: its loss is at 100% of its first and ")
        assert ("lower alpha, call freeze(), or leave it out" in stuck) == (alpha > 0)
    nothing = constant().report()
    assert [line for line in nothing.advice if line.startswith("No loss has fallen")]
    assert "is stuck" not in nothing
    assert "stuck" not in trained(30)[1].report()


@pytest.mark.parametrize(("unit", "said"), [(1 / 50, "multiply far's loss by about 50"), (1 / 5, None)])
def test_weights_that_shrink_all_gradients_are_told_where_losses_fall_too(unit, said):
    W = torch.nn.Parameter(torch.ones(2, 2))
    balancer = GradNorm(["near", "far"], shared=W, update="closed-form")
    for step in range(40):
        z = W.sum() - W.sum().detach() + 0.95**step
        balancer({"near": z, "far": unit * z}).backward()
        balancer.step()
    report = balancer.report()
    assert report.advice == []
    told = [finding for finding in report.findings if "multiply" in finding]
    assert [said in finding for finding in told] == ([True] if said else [])


def test_weights_that_shrink_all_gradients_are_named_where_nothing_is_learned():
    def trained(unit):
        W = torch.nn.Parameter(torch.ones(2, 2))
        balancer = GradNorm(["near", "far"], shared=W, update="closed-form")
        for _ in range(40):
            z = W.sum() - W.sum().detach()
            balancer({"near": z + 1, "far": unit * (z + 1)}).backward()
            balancer.step()
        report = balancer.report()
        (line,) = [line for line in report.advice if line.startswith("No loss has fallen")]
        assert not any("multiply" in finding for finding in report.findings)
        return line

    assert "as small as far's, 4e-06, where the largest would be 2: multiply far's loss by about 1,000,000" in trained(
        1e-6
    )
    assert "multiply" not in trained(1.0) + trained(1e6)


def test_losses_of_either_sign_are_no_part_of_their_first():
    report = constant(factors=lambda step: [1.0, 0.55 - 0.1 * step, 1.0], update="closed-form", alpha=0.0).report()
    assert report.loss_ratios[1].isnan()
    assert report.splitlines()[5].endswith(" –")
    assert not any("stuck" in line or "fallen" in line for line in report.advice)


def test_a_report_needs_a_step():
    with pytest.raises(StateError, match=r"before training, gradnorm\.diagnose"):
        GradNorm(2).report()


def test_a_task_that_never_came_is_reported_too():
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last)
    losses = net.losses(batch())
    balancer({"a": losses["a"], "b": losses["b"]}).backward()
    balancer.step()
    (row,) = [line for line in balancer.report().splitlines() if line.startswith("c ")][:1]
    assert row.split()[3:] == ["–"] * 5


# ---------------------------------------------------------------------------------------------------------- pictures


def test_the_picture_of_a_diagnosis_says_what_the_text_says():
    found = diagnose(Net().losses(batch()))
    bars, table = plots.diagnosis(found).axes
    assert [bar.get_width() for bar in bars.patches] == found.norms.tolist()
    assert [text.get_text() for text in bars.texts] == [f"{norm:.3g}" for norm in found.norms.tolist()]
    assert [text.get_text() for text in table.texts] == [f"{value:.2f}" for value in found.cosines.flatten().tolist()]
    assert [text.get_text() for text in bars.get_yticklabels()] == NAMES
    assert found.layer in bars.get_xlabel()


@pytest.mark.parametrize("factor", [math.nan, math.inf, 0.0, -1.0])
@pytest.mark.parametrize("names", ["b", "abc"])
def test_bad_numbers_can_be_drawn(names, factor, tmp_path):
    found = diagnose(scaled(Net(), **dict.fromkeys(names, factor)))
    plots.diagnosis(found, tmp_path / "diagnosis.png")
    assert (tmp_path / "diagnosis.png").read_bytes()[:4] == b"\x89PNG"


def test_a_deep_network_is_described_in_a_line_or_two():
    trunk = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(30)))
    features = trunk(torch.randn(8, 4))
    found = diagnose([features[:, i].square().mean() for i in range(2)], model=trunk)
    assert found.others == tuple(f"{i}.weight (4, 4)" for i in range(28))
    assert "27.weight (4, 4) and 20 before" in str(found).replace("\n", " ")
