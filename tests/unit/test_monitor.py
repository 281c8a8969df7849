"""`monitor` trains as the sum does, and says of the gradients what autograd does."""

import warnings

import pytest
import torch

import gradnorm
from gradnorm import GradNorm, plots

from .networks import Net, batch, train

NAMES = ["a", "b", "c"]


def watched(steps, seed=0, losses=lambda found: found, **kwargs):
    net = Net(seed=seed)
    monitor = gradnorm.monitor(NAMES, shared=net.last, **kwargs)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    monitor.attach(optimizer)
    for step in range(steps):
        optimizer.zero_grad()
        monitor(losses(net.losses(batch(step)))).backward()
        optimizer.step()
    return net, monitor


def never_stepped(steps):
    net = Net()
    monitor = gradnorm.monitor(NAMES, shared=net.last)
    optimizer = torch.optim.Adam(net.parameters())
    for step in range(steps):
        optimizer.zero_grad()
        monitor(net.losses(batch(step))).backward()
        optimizer.step()


def test_the_network_trains_as_by_the_sum():
    net, monitor = watched(25)
    plain = Net()
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-2)
    for step in range(25):
        optimizer.zero_grad()
        torch.stack([*plain.losses(batch(step)).values()]).sum().backward()
        optimizer.step()
    assert all(map(torch.equal, net.state_dict().values(), plain.state_dict().values()))
    assert monitor.weights.tolist() == [1.0, 1.0, 1.0]


def test_the_loss_is_the_sum():
    net = Net()
    monitor = gradnorm.monitor(NAMES, shared=net.last)
    losses = net.losses(batch())
    torch.testing.assert_close(monitor(losses), sum(losses.values()))
    torch.testing.assert_close(monitor.eval()(losses), sum(losses.values()))


def test_figures_are_those_of_autograd():
    net, monitor = Net(), None
    monitor = gradnorm.monitor(NAMES, shared=net.last)
    losses = net.losses(batch())
    rows = torch.stack(
        [torch.autograd.grad(loss, net.last, retain_graph=True)[0].flatten() for loss in losses.values()]
    )
    norms = rows.norm(dim=1)
    monitor(losses).backward()
    monitor.step()
    expected = {f"gradnorm/loss/{name}": loss.item() for name, loss in losses.items()}
    expected |= {f"gradnorm/norm/{name}": norm.item() for name, norm in zip(NAMES, norms, strict=True)}
    expected |= {f"gradnorm/share/{name}": (norm / norms.sum()).item() for name, norm in zip(NAMES, norms, strict=True)}
    for i, j in ((0, 1), (0, 2), (1, 2)):
        cosine = torch.cosine_similarity(rows[i], rows[j], dim=0).item()
        expected[f"gradnorm/cosine/{NAMES[i]}/{NAMES[j]}"] = cosine
    assert monitor.log_dict() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert all(type(value) is float for value in monitor.log_dict().values())
    assert {name.split("/")[0] for name in monitor.log_dict("")} == {"loss", "norm", "share", "cosine"}


@pytest.mark.parametrize(("kwargs", "steps"), [({}, [0, 10, 20]), ({"every": 7}, [0, 7, 14, 21])])
def test_it_measures_in_every_tenth_step_or_as_told(kwargs, steps):
    _, monitor = watched(25, **kwargs)
    assert monitor.history.steps == steps
    assert {row["step"] for row in monitor.history.cosines()} == {*steps}


def test_nothing_is_logged_before_the_first_step_and_absent_tasks_are_left_out():
    assert gradnorm.monitor(2).log_dict() == {}
    _, monitor = watched(1, losses=lambda found: {**found, "b": None})
    shares = {name: value for name, value in monitor.log_dict("").items() if name.startswith("share")}
    assert set(shares) == {"share/a", "share/c"}
    assert sum(shares.values()) == pytest.approx(1)


def test_losses_of_either_sign_are_measured():
    _, monitor = watched(3, every=1, losses=lambda found: {name: -loss for name, loss in found.items()})
    assert len(monitor.history) == 3
    assert monitor.log_dict()["gradnorm/loss/a"] < 0


def test_the_report_says_who_dominates_and_the_plot_is_drawn():
    _, monitor = watched(3, every=1)
    report = monitor.report()
    assert any(line.startswith("c's gradient is") for line in report.advice)
    assert not any("converged" in line or "frozen" in line or "No weight" in line for line in report.findings)
    assert len(plots.training(monitor).axes) == 4
    assert "Monitor(" in repr(monitor)


def test_bad_numbers_are_said_in_the_words_of_a_monitor():
    with pytest.warns(RuntimeWarning, match="^The monitor has met a loss of b, or its gradient norm, that is not") as w:
        _, monitor = watched(1, losses=lambda found: {**found, "b": found["b"] * torch.nan})
    assert len(w) == 1
    advice = monitor.report().advice
    assert "1 of 1 measurements cannot be used, since the loss of b or its gradient norm was not finite." in advice


@pytest.mark.filterwarnings("ignore:The monitor has met")
def test_no_share_is_logged_beside_a_norm_that_overflows():
    _, monitor = watched(1, losses=lambda found: {**found, "b": found["b"] * 1e25})
    logged = monitor.log_dict("")
    assert logged["norm/b"] == torch.inf
    assert not any(name.startswith("share/") or value != value for name, value in logged.items())


def test_a_monitor_that_measures_is_silent_and_one_that_does_not_says_why():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watched(150)
        watched(150, every=1, losses=lambda found: {"a": found["a"]})
    with pytest.warns(RuntimeWarning, match=r"has measured nothing: step\(\) was not called"):
        never_stepped(150)


def test_its_state_is_loaded_by_a_monitor_and_refused_by_a_balancer():
    _, monitor = watched(5)
    other = gradnorm.monitor(NAMES)
    other.load_state_dict(monitor.state_dict())
    assert other._steps == 5
    with pytest.raises(gradnorm.StateError, match="another update rule"):
        GradNorm(NAMES).load_state_dict(monitor.state_dict())


def test_it_is_a_balancer_where_one_is_asked_for():
    net = Net()
    monitor = gradnorm.monitor(NAMES, shared=net.last, every=1)
    assert isinstance(monitor, GradNorm)
    train(net, monitor, 3)
    assert len(monitor.history) == 3
