"""`live` shows the weights of a run where it is seen: in a notebook, in a terminal, or piped into a file."""

import copy
import io
import pickle
import re
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

import gradnorm
from gradnorm import ArgumentError, GradNorm

from .networks import Net, batch, cpu_only, train

STEPS = 7


def trained(every, steps=STEPS, **kwargs):
    net = Net()
    balancer = GradNorm(["a", "b", "c"], shared=net.last, **kwargs)
    view = gradnorm.live(balancer, every=every)
    train(net, balancer, steps)
    return net, balancer, view


@cpu_only
def test_where_output_is_piped_it_is_a_line_each_time(capsys):
    _, balancer, _ = trained(every=3)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["1", "3", "6"]
    for line in lines:
        step, *weights = map(float, re.findall(r"-?\d+(?:\.\d+)?", line))
        row = [r["weight"] for r in balancer.history.rows() if r["step"] == step]
        assert weights == pytest.approx(row, rel=1e-2)


@cpu_only
def test_nothing_is_shown_after_remove_in_eval_or_twice_in_one_step(capsys):
    net, balancer, view = trained(every=1, steps=1)
    assert capsys.readouterr().out == ""
    for _ in range(3):  # accumulation: calls without a step
        balancer(net.losses(batch()))
    balancer.eval()(net.losses(batch()))
    assert len(capsys.readouterr().out.splitlines()) == 1
    view.remove()
    train(net, balancer.train(), 1)
    assert capsys.readouterr().out == ""


@cpu_only
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copy_is_not_shown(copied, capsys):
    net, balancer, _ = trained(every=1, steps=1)
    other, its = copied((net, balancer))
    capsys.readouterr()
    train(other, its, 2)
    assert capsys.readouterr().out == ""
    train(net, balancer, 1)
    assert capsys.readouterr().out.startswith("step 1")


@cpu_only
def test_the_first_line_shows_what_was_balanced_and_not_the_ones_before(capsys):
    _, balancer, _ = trained(every=50, steps=2, update="closed-form")
    (line,) = capsys.readouterr().out.splitlines()
    shown = [float(cell) for cell in line.split()[3::2]]
    assert shown != [1.0] * 3
    assert shown == pytest.approx([row["weight"] for row in balancer.history.rows()[-3:]], rel=1e-2)


@cpu_only
def test_of_several_processes_the_first_shows_them(capsys, monkeypatch):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("gradnorm._live.dist.get_rank", lambda: 1)
    view = gradnorm.live(balancer := GradNorm(2, shared=torch.nn.Linear(2, 2)), every=1)
    balancer._steps = 1
    (hook,) = balancer._forward_pre_hooks.values()
    hook(balancer, None)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr("gradnorm._live.dist.get_rank", lambda: 0)
    hook(balancer, None)
    assert capsys.readouterr().out.startswith("step 1")
    view.remove()


@cpu_only
def test_a_terminal_shows_bars_and_keeps_what_else_is_printed(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    trained(every=3)
    said = capsys.readouterr().out
    assert "\x1b" not in said
    for line in said.splitlines():
        found = re.findall(r"[abc] ([\d.]+) ([▁▂▃▄▅▆▇█])", line)
        heights = ["▁▂▃▄▅▆▇█".index(bar) for _, bar in found]
        largest = max(float(weight) for weight, _ in found)
        assert max(heights) == 7
        assert heights == pytest.approx([7 * float(weight) / largest for weight, _ in found], abs=0.6)


@cpu_only
def test_a_terminal_without_signs_for_bars_shows_the_weights(monkeypatch):
    written = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    written.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", written)
    trained(every=3)
    written.seek(0)
    assert re.search(r"step 3  a [\d.]+  b [\d.]+", written.read())


@cpu_only
def test_a_notebook_updates_one_display(capsys, monkeypatch):
    displayed, updated = [], []

    def display(shown, display_id):
        displayed.append((shown, display_id))
        return SimpleNamespace(update=lambda balancer: updated.append(balancer._repr_html_()))

    notebook, module = ModuleType("IPython"), ModuleType("IPython.display")
    notebook.get_ipython = lambda: SimpleNamespace(kernel=object())
    module.display = display
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    _, balancer, _ = trained(every=2)
    assert displayed == [(balancer, True)]
    assert len(updated) == 4  # after steps 1, 2, 4, 6
    assert len(set(updated)) == 4
    assert capsys.readouterr().out == ""
    notebook.get_ipython = lambda: SimpleNamespace()  # IPython in a terminal
    trained(every=STEPS)
    assert capsys.readouterr().out.startswith("step 1")


def test_it_changes_nothing_of_the_run(capsys):
    one = trained(every=1)
    net = Net()
    other = GradNorm(["a", "b", "c"], shared=net.last)
    train(net, other, STEPS)
    assert torch.equal(one[1].weights, other.weights)
    assert all(map(torch.equal, one[0].state_dict().values(), net.state_dict().values()))


def test_only_a_balancer_is_shown():
    with pytest.raises(ArgumentError, match="balancer must be a GradNorm, got Net"):
        gradnorm.live(Net())


def test_every_must_be_a_positive_integer():
    with pytest.raises(ArgumentError, match="every must be"):
        gradnorm.live(GradNorm(2), every=0)
