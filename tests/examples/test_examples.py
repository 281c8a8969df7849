"""Each example with few steps: what it measures is there and finite, and its weights move the way its text says."""

import importlib
import math
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("[!_]*.py"))


@pytest.fixture
def example(monkeypatch):
    """Imports an example as `python examples/NAME.py` would."""
    monkeypatch.syspath_prepend(EXAMPLES)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield importlib.import_module
    torch.set_num_threads(threads)
    for name in [*NAMES, "_compare"]:
        sys.modules.pop(name, None)


# Example, the weight that must fall below 1 and the one that must rise above it.
MOVES = [
    ("transformer", "sum, weight", "order, weight"),
    ("physics", "Poisson: weight of residual", "Poisson: weight of boundary"),
    ("generator", None, None),  # which is lowest changes on the way
    ("tabular", "disease, weight", "health, weight"),
    ("missing_labels", "often, weight", None),
]


def test_every_example_is_tested():
    assert sorted(name for name, _, _ in MOVES) == NAMES


@pytest.mark.parametrize(("name", "falls", "rises"), MOVES)
def test_weights_move_as_told_and_equal_weights_stay(example, name, falls, rises):
    results = example(name).main(steps=200 if name == "missing_labels" else 120, seeds=1)
    for method, (metrics,) in results.items():
        assert all(math.isfinite(value) for value in metrics.values()), metrics
        weights = {key: value for key, value in metrics.items() if "weight" in key}
        if method.startswith("GradNorm"):
            low, high = weights.get(falls, min(weights.values())), weights.get(rises, max(weights.values()))
            assert low < 0.9 < 1.1 < high
        else:
            assert set(weights.values()) == {1.0}
    assert len({tuple(metrics) for (metrics,) in results.values()}) == 1


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("transformer", "mean error %"),
        ("physics", "heat: error of u, %"),
        ("tabular", "disease, RMSE"),
        ("missing_labels", "often, error %"),
        ("generator", "energy distance"),
    ],
)
@pytest.mark.parametrize("method", ["equal weights", "GradNorm"])
def test_errors_fall(example, name, error, method):
    run = example(name).run
    before, after = (_seeded(run, method, steps)[error] for steps in (1, 120))
    assert after < 0.95 * before


def _seeded(run, method, steps):
    torch.manual_seed(0)
    return run(method, steps)


def test_all_methods_of_a_seed_draw_the_same_numbers(example):
    drawn = example("_compare").compare(lambda _, steps: {"x": torch.rand(steps).sum().item()}, "ab", 3, seeds=2)
    assert drawn["a"] == drawn["b"]
    assert drawn["a"][0] != drawn["a"][1]


def test_the_generators_losses_leave_the_discriminators_alone(example, monkeypatch):
    """They are trained by their own optimizer and their own losses: the weights make no difference to a first step."""
    generator = example("generator")
    made = []
    monkeypatch.setattr(generator, "mlp", lambda *sizes, mlp=generator.mlp: made.append(mlp(*sizes)) or made[-1])
    ends = []
    for method in ("equal weights", "GradNorm"):
        made.clear()
        _seeded(generator.run, method, 2)  # the second step of the discriminators meets gradients the generator left
        ends.append([p.detach().clone() for d in made[1:] for p in d.parameters()])
    # Adam's first update is the same for any weights to the rounding, so both see the same samples.
    torch.testing.assert_close(*ends, rtol=1e-3, atol=1e-4)


def test_labels_missing_from_a_batch_leave_the_task_out(example):
    module = example("missing_labels")
    labels = {"often": torch.ones(4), "rarely": torch.full((4,), torch.nan)}
    labels["often"][1:] = torch.nan
    predicted = {task: torch.zeros(4, requires_grad=True) for task in labels}
    losses = module.task_losses(predicted, labels)
    assert losses["rarely"] is None
    assert losses["often"] == 1  # one row, not a quarter of it
    losses["often"].backward()
    assert predicted["often"].grad.tolist() == [-2, 0, 0, 0]


def test_the_groups_of_the_table_keep_like_records_together(example):
    x, wanted, group = example("tabular").records()
    first = (group == group[0]).nonzero().squeeze(1)
    assert len(x) == 20_190
    assert len(first) > 1
    assert (x[first] == x[first[0]]).all()
    assert (wanted["disease"][first] == wanted["disease"][first[0]]).all()
    assert set(wanted["health"].tolist()) == {0, 1, 2, 3}


def test_the_table_gives_mean_and_spread(example, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["example.py", "--steps", "7"])
    example("_compare").show(lambda steps: {"one": [{"steps": steps}], "two": [{"steps": 1.0}, {"steps": 3.0}]}, "")
    header, line = capsys.readouterr().out.splitlines()
    assert header.split() == ["one", "two"]
    assert line.split() == ["steps", "7", "2", "±", "1.4"]
