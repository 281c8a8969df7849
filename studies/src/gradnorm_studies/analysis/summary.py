"""The tables and figures that every study has: where methods end, their weights, and both over time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from gradnorm_studies.analysis.claims import spread, standard_error
from gradnorm_studies.analysis.metrics import Metrics, MissingRunError, Quantity
from gradnorm_studies.analysis.report import Figure, Table
from gradnorm_studies.weightings import MOVING

Rate = Callable[[str, str], float]
"""Called as `(problem, method)`; returns the method's learning rate."""
Shown = Mapping[str, Sequence[Quantity]]
"""By problem, the quantities to show; the first is what methods are compared by."""
BURN_IN = 0.1
"""This share of a run is left out of the curves: it spans the whole scale and would hide the rest."""
FEW = 12
"""With more methods than these, curves are unreadable: only those of `MOVING`, equal weights and `single` are drawn."""
MOST_IN_TERMINAL = 5
"""Quantities that a terminal has room for."""
COLORS = 4
"""More tasks than these are colored along a ramp, by their final weight."""


def ends(title: str, metrics: Metrics, shown: Shown, rate: Rate) -> list[Table]:
    """A table per problem, a row per method: its learning rate, its figures, its difference from equal weights.

    Args:
        title: The tables' title.
        metrics: The results.
        shown: The quantities, the columns.
        rate: The methods' learning rates.
    """
    return [_ends(f"{title}: {problem}", metrics, problem, shown[problem], rate) for problem in shown]


def _ends(title: str, metrics: Metrics, problem: str, shown: Sequence[Quantity], rate: Rate) -> Table:
    rows = []
    for method in metrics.methods(problem):
        values = [spread(metrics.final(problem, method, quantity.name)) for quantity in _known(metrics, problem, shown)]
        rows.append((method, f"{rate(problem, method):g}", *values, _difference(metrics, problem, method, shown[0])))
    names = [f"{quantity.name} {'↑' if quantity.largest else '↓'}" for quantity in _known(metrics, problem, shown)]
    difference = f"{shown[0].name}: less equal's"
    note = f"Mean ± standard deviation over seeds; ↓ lower is better. {difference}: paired, mean ± standard error."
    return Table(
        title, ("method", "lr", *names, difference), rows, note, terminal=("method", *names[:MOST_IN_TERMINAL])
    )


def _known(metrics: Metrics, problem: str, shown: Sequence[Quantity]) -> list[Quantity]:
    """Without those that need a run that was not made."""
    recorded = metrics.quantities(problem)
    return [quantity for quantity in shown if quantity.name in recorded]


def _difference(metrics: Metrics, problem: str, method: str, quantity: Quantity) -> str:
    if method == "equal":
        return ""
    try:
        found = metrics.final(problem, method, quantity.name) - metrics.final(problem, "equal", quantity.name)
    except (MissingRunError, ValueError):  # not run, or on other seeds
        return ""
    return f"{found.mean():+.3g} ± {standard_error(found):.1g}"


def weights(metrics: Metrics, problem: str, tasks: Sequence[str]) -> Table:
    """The weights at the end of a problem's runs: a row per method, a column per task."""
    rows = [
        (method, *(spread(metrics.final(problem, method, f"weight/{task}")) for task in tasks))
        for method in metrics.methods(problem)
    ]
    return Table(f"The weights at the end: {problem}", ("method", *tasks), rows, terminal=None)


def figures(metrics: Metrics, shown: Shown, tasks: Mapping[str, Sequence[str]], folder: Path) -> list[Figure]:
    """The quantities over time, at the end, and the weights over time, in `folder`."""
    from gradnorm_studies.analysis import figures as draw

    curves, last, weights = [], [], []
    for problem, quantities in shown.items():
        methods = metrics.methods(problem)
        drawn = methods if len(methods) <= FEW else [m for m in methods if m in (*MOVING, "equal", "single")]
        for quantity in _known(metrics, problem, quantities):
            title = f"{problem}: {quantity.name}" if len(shown) > 1 else quantity.name
            steps = metrics.steps(problem, methods[0], quantity.name)
            late = slice(round(BURN_IN * len(steps)), None)
            series = {m: metrics.series(problem, m, quantity.name)[:, late] for m in drawn}
            curves.append(draw.Curves(title, steps[late], series, quantity.name))
            finals = {m: metrics.final(problem, m, quantity.name) for m in methods}
            last.append(draw.Ends(title, finals, quantity.name))
        weights += [_weights(metrics, problem, method, tasks[problem]) for method in methods if method in MOVING]
    found = [
        Figure(
            draw.over_time(folder / "metric.png", curves, columns=2), "Test metrics: means over seeds, their range."
        ),
        Figure(
            draw.finals(folder / "finals.png", last, columns=2), "Where each method ends, seed by seed, and the mean."
        ),
    ]
    if weights:
        found.append(Figure(draw.over_time(folder / "weights.png", weights, columns=3), "The weights over time."))
    return found


def _weights(metrics: Metrics, problem: str, method: str, tasks: Sequence[str]):
    """A panel of a method's weights; colors go from the largest to the smallest final weight."""
    from gradnorm_studies.analysis import figures as draw

    traces = {task: metrics.series(problem, method, f"weight/{task}") for task in tasks}
    order = sorted(tasks, key=lambda task: -float(np.mean(traces[task][:, -1])))
    steps = metrics.steps(problem, method, f"weight/{tasks[0]}")
    colors = draw.ramp(order) if len(tasks) > COLORS else None
    return draw.Curves(
        f"{problem}: {method}", steps, {task: traces[task] for task in order}, "weight", log=True, colors=colors
    )
