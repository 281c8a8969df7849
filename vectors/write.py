"""Writes the vectors, from the two updates as `tests/oracle/literal.py` writes them: without a line of the library.

Inputs are drawn by seed and rounded, so that they can be read. Run it as `python vectors/write.py`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

from tests.oracle.literal import Literal, LiteralClosedForm  # noqa: E402

from adapters._pytorch import batch_losses, layer, network_gradient  # noqa: E402

NEEDS = {"network-gradient": ["network_gradient"]}
"""What a report must have, beside the weights, to say anything about a vector."""
PAPER = "Algorithm 1"
OURS = "extension"
OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
DESCENT = {
    "update": "descent",
    "alpha": 0.0,
    "optimizer": "sgd",
    "lr": 0.025,
    "initial_losses": None,
    "priorities": None,
    "min_weight": 1e-4,
}
CLOSED_FORM = {
    "update": "closed-form",
    "alpha": 0.0,
    "smoothing": 0.9,
    "initial_weights": "balanced",
    "initial_losses": None,
    "priorities": None,
}


def drawn(seed: int, tasks: int, steps: int, sizes: tuple[int, ...] = (3,), batches: int = 1) -> list[Any]:
    """Steps of positive losses that fall, each task at its own rate, and of gradients of unlike scale."""
    generator = torch.Generator().manual_seed(seed)
    rates = 0.3 + 0.65 * torch.rand(tasks, generator=generator)
    scales = 10.0 ** (2 * torch.rand(tasks, generator=generator) - 1)
    starts = 0.5 + 2 * torch.rand(tasks, generator=generator)

    def batch(step: int) -> dict[str, Any]:
        losses = starts * rates**step * (0.8 + 0.4 * torch.rand(tasks, generator=generator))
        gradients = [[scale * torch.randn(size, generator=generator) for size in sizes] for scale in scales]
        return {
            "losses": [_rounded(loss) for loss in losses],
            "gradients": [[[_rounded(entry) for entry in part] for part in parts] for parts in gradients],
        }

    return [[batch(step) for _ in range(batches)] for step in range(steps)]


def without(steps: list[Any], absent: dict[int, tuple[int, ...]]) -> list[Any]:
    """The steps, in which these tasks are absent: step → tasks."""
    for step, tasks in absent.items():
        for batch in steps[step]:
            for name in ("losses", "gradients"):
                batch[name] = [None if task in tasks else value for task, value in enumerate(batch[name])]
    return steps


def plain(*rows: tuple[list[float], list[float]]) -> list[Any]:
    """Steps of losses and of gradients of one entry."""
    return [[{"losses": losses, "gradients": [[[g]] for g in gradients]}] for losses, gradients in rows]


def vectors() -> Iterator[tuple[str, str, str, dict[str, Any], list[Any]]]:
    """Name, what it is about, whether the paper has it, settings, steps."""
    yield (
        "first-step",
        "At the first step all rates are 1, so every target is the mean norm, whatever alpha.",
        PAPER,
        {**DESCENT, "alpha": 1.5},
        plain(([0.7, 2.0, 0.1], [3.0, 1.0, -0.5])),
    )
    yield (
        "lagging-task",
        "Equal gradients; the second task's loss has not fallen, so its target is larger and its weight rises.",
        PAPER,
        {**DESCENT, "alpha": 1.0, "initial_losses": [4.0, 1.0]},
        plain(([1.0, 1.0], [1.0, 1.0])),
    )
    yield ("alpha-zero", "With alpha = 0 the losses do not count.", PAPER, DESCENT, drawn(1, 3, 4))
    yield (
        "sum-over-tasks",
        "L_grad is a sum over the tasks: a mean would make steps of a fifth.",
        PAPER,
        {**DESCENT, "alpha": 0.12, "lr": 0.01},
        drawn(2, 5, 4),
    )
    yield (
        "sum-of-weights",
        "Weights are rescaled to sum T after each update.",
        PAPER,
        {**DESCENT, "alpha": 0.5, "lr": 0.02},
        drawn(3, 3, 6),
    )
    yield (
        "adam-keeps-its-state",
        "One optimizer of the weights throughout: an Adam created again in each step would step by the sign.",
        PAPER,
        {**DESCENT, "alpha": 0.5, "optimizer": "adam"},
        drawn(4, 3, 20),
    )
    yield (
        "initial-losses",
        "L(0) is the loss of the first step, of each task, and stays.",
        PAPER,
        {**DESCENT, "alpha": 1.5, "lr": 0.01},
        drawn(5, 2, 6),
    )
    yield (
        "two-parameters",
        "W is a layer's weight and bias: one norm over both.",
        PAPER,
        {**DESCENT, "alpha": 0.12, "lr": 0.01},
        drawn(6, 3, 3, sizes=(4, 2)),
    )
    yield (
        "network-gradient",
        "The network's gradient is that of the sum weighted by w(t), and of nothing else: losses are curved, so that "
        "a gradient of L_grad that reached the network would show.",
        PAPER,
        {**DESCENT, "alpha": 0.5, "lr": 0.02, "curvature": 1.0},
        drawn(7, 3, 4),
    )
    yield (
        "priorities",
        "Targets p_i times as large.",
        OURS,
        {**DESCENT, "alpha": 0.5, "lr": 0.01, "priorities": [1.0, 2.0, 0.5]},
        drawn(8, 3, 4),
    )
    yield (
        "floor",
        "A weight that an update takes below zero is set to min_weight before the sum is restored.",
        OURS,
        {**DESCENT, "lr": 0.5, "min_weight": 0.01},
        plain(([1.0, 1.0], [0.1, 5.0]), ([1.0, 1.0], [0.1, 5.0])),
    )
    yield (
        "missing-task",
        "Means and sums run over the tasks present, which keep their sum; the weight of an absent task stays.",
        OURS,
        {**DESCENT, "alpha": 0.5, "lr": 0.01},
        without(drawn(9, 3, 5), {1: (0,), 3: (1,)}),
    )
    yield (
        "accumulation",
        "Losses of a step are means over its batches, and norms those of the mean gradient: one update per step.",
        OURS,
        {**DESCENT, "alpha": 0.5, "lr": 0.01},
        drawn(10, 3, 3, batches=3),
    )
    yield ("closed-form", "Balanced from the first step.", OURS, {**CLOSED_FORM, "alpha": 0.12}, drawn(11, 3, 5))
    yield (
        "closed-form-alpha-zero",
        "The losses do not count.",
        OURS,
        {**CLOSED_FORM, "smoothing": 0.5},
        drawn(12, 4, 4),
    )
    yield (
        "closed-form-priorities",
        "Targets p_i times as large.",
        OURS,
        {**CLOSED_FORM, "alpha": 1.0, "priorities": [1.0, 2.0, 0.5]},
        drawn(13, 3, 3),
    )
    yield (
        "closed-form-missing-task",
        "An absent task keeps its averages, of which its weight is still made.",
        OURS,
        {**CLOSED_FORM, "alpha": 0.5},
        without(drawn(14, 3, 5), {1: (0,), 3: (1, 2)}),
    )
    yield (
        "closed-form-accumulation",
        "As accumulation; the first step trains with ones.",
        OURS,
        {**CLOSED_FORM, "alpha": 0.5, "initial_weights": None},
        drawn(15, 3, 3, batches=2),
    )


def expected(settings: dict[str, Any], steps: list[Any]) -> list[dict[str, Any]]:
    """What the literal update computes in each step."""
    W = layer(steps[0][0])
    literal = _literal(settings, len(steps[0][0]["losses"]), W)
    model = torch.optim.SGD(W, lr=0.0)
    found = []
    for batches in steps:
        each = [batch_losses(W, batch, settings.get("curvature", 0.0)) for batch in batches]
        literal.step([_mean(of_task) for of_task in zip(*each, strict=True)], model)
        values = {name: torch.as_tensor(value, dtype=torch.float64).tolist() for name, value in literal.found.items()}
        assert literal.w is not None
        found.append({**values, "weights": literal.w.tolist(), "network_gradient": network_gradient(W)})
    return found


def _literal(settings: dict[str, Any], count: int, W: Sequence[Tensor]) -> Literal | LiteralClosedForm:
    options = {name: settings[name] for name in ("alpha", "initial_losses", "priorities")}
    options["initial"] = options.pop("initial_losses")
    if settings["update"] == "closed-form":
        w = None if settings["initial_weights"] == "balanced" else torch.ones(count, dtype=torch.float64)
        return LiteralClosedForm(count, W, smoothing=settings["smoothing"], w=w, **options)
    if options["priorities"] is not None:
        options["priorities"] = torch.tensor(options["priorities"], dtype=torch.float64)
    optimizer = OPTIMIZERS[settings["optimizer"]]
    return Literal(count, W, lr=settings["lr"], optimizer=optimizer, min_weight=settings["min_weight"], **options)


def _mean(losses: tuple[Tensor | None, ...]) -> Tensor | None:
    return None if losses[0] is None else torch.stack([loss for loss in losses if loss is not None]).mean()


def _rounded(number: Tensor) -> float:
    return float(f"{number.item():.3g}")


def written() -> dict[str, dict[str, Any]]:
    """All vectors by name, as they are in their files."""
    return {
        name: {
            "about": about,
            "source": source,
            "needs": NEEDS.get(name, []),
            "settings": settings,
            "steps": [
                {"batches": batches, "expected": numbers}
                for batches, numbers in zip(steps, expected(settings, steps), strict=True)
            ],
        }
        for name, about, source, settings, steps in vectors()
    }


def main() -> None:
    """Write `NAME.json` for each vector, one line a step."""
    for name, vector in written().items():
        head = {key: vector[key] for key in ("about", "source", "needs", "settings")}
        lines = ",\n".join(f"    {json.dumps(step)}" for step in vector["steps"])
        text = json.dumps(head, indent=2)[:-2] + f',\n  "steps": [\n{lines}\n  ]\n}}\n'
        (FOLDER / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
