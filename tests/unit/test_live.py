"""`live` shows the weights of a run where it is seen: in a notebook, in a terminal, or piped into a file."""

import copy
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
    assert [line.split()[1] for line in lines] == ["0", "3", "6"]
    assert lines[0] == "step 0  a 1  b 1  c 1"
    for line in lines:
        step, *weights = map(float, re.findall(r"-?\d+(?:\.\d+)?", line))
        row = [r["weight"] for r in balancer.history.rows() if r["step"] == step]
        assert weights == pytest.approx(row, rel=1e-2)


@cpu_only
def test_nothing_is_shown_after_remove_in_eval_or_twice_in_one_step(capsys):
    net, balancer, view = trained(every=1, steps=1)
    capsys.readouterr()
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
def test_a_terminal_draws_bars_in_one_place(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    _, balancer, _ = trained(every=3)
    first, *others = re.split(r"\x1b\[4F", capsys.readouterr().out)
    assert len(others) == 2
    for drawn in (first, *others):
        title, *rows = drawn.splitlines()
        assert title.startswith("step ")
        assert [row.split()[0] for row in rows] == ["a", "b", "c"]
        assert all(row.endswith("\x1b[K") for row in (title, *rows))
    lengths = [row.count("█") for row in others[-1].splitlines()[1:]]
    assert max(lengths) == 30
    recorded = torch.tensor([row["weight"] for row in balancer.history.rows()[-3:]])
    assert lengths == (30 * recorded / recorded.max()).round().int().tolist()


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
    assert len(updated) == 4
    assert len(set(updated)) == 4
    assert capsys.readouterr().out == ""
    notebook.get_ipython = lambda: SimpleNamespace()  # IPython in a terminal
    trained(every=STEPS)
    assert capsys.readouterr().out.startswith("step 0")


def test_it_changes_nothing_of_the_run(capsys):
    one = trained(every=1)
    net = Net()
    other = GradNorm(["a", "b", "c"], shared=net.last)
    train(net, other, STEPS)
    assert torch.equal(one[1].weights, other.weights)
    assert all(map(torch.equal, one[0].state_dict().values(), net.state_dict().values()))


def test_every_must_be_a_positive_integer():
    with pytest.raises(ArgumentError, match="every must be"):
        gradnorm.live(GradNorm(2), every=0)
