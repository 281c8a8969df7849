"""The tables and figures that every study has: where methods end, their weights, and both over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradnorm_studies.analysis.claims import paired, spread, standard_error
from gradnorm_studies.analysis.metrics import Metrics, MissingRunError, Quantity
from gradnorm_studies.analysis.report import Figure, Table
from gradnorm_studies.weightings import MOVING

Rates = Mapping[str, Mapping[str, float]]
"""Learning rates by problem and method."""
Shown = Mapping[str, Sequence[Quantity]]
"""By problem, the quantities to show; the first is what methods are compared by."""
BURN_IN = 0.1
"""This share of a run is left out of the curves: it spans the whole scale and would hide the rest."""
FEW = 12
"""With more methods than these, curves are unreadable: only those of `MOVING`, equal weights and `single` are drawn."""
MOST_IN_TERMINAL = 5
"""Quantities that a terminal has room for."""
COLORS = 4
"""More tasks than these are colored along a ramp, from the largest final weight to the smallest."""


def ends(title: str, metrics: Metrics, shown: Shown, rates: Rates) -> list[Table]:
    """A table per problem, a row per method: its learning rate, its figures, its difference from equal weights.

    Args:
        title: The tables' title.
        metrics: The results.
        shown: The quantities, the columns.
        rates: The methods' learning rates; what was picked among several runs has none.
    """
    return [_ends(f"{title}: {problem}", metrics, problem, shown[problem], rates) for problem in shown]


def _ends(title: str, metrics: Metrics, problem: str, shown: Sequence[Quantity], rates: Rates) -> Table:
    rows = []
    for method in metrics.methods(problem):
        values = [spread(metrics.final(problem, method, quantity.name)) for quantity in _known(metrics, problem, shown)]
        rate = f"{rates[problem][method]:g}" if method in rates[problem] else ""
        rows.append((method, rate, *values, _difference(metrics, problem, method, shown[0])))
    names = [f"{quantity.name} {'↑' if quantity.largest else '↓'}" for quantity in _known(metrics, problem, shown)]
    difference = f"{shown[0].name}: less equal's"
    note = "Mean ± standard deviation over seeds; ↓ lower is better."
    return Table(
        title,
        ("method", "lr", *names, difference),
        rows,
        f"{note} {difference}: paired, mean ± standard error.",
        terminal=("method", *names[:MOST_IN_TERMINAL]),
        terminal_note=note,
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
    return paired(f"{found.mean():+.3g}", standard_error(found))


def weights(metrics: Metrics, problem: str, tasks: Sequence[str]) -> Table:
    """The weights at the end of a problem's runs: a row per method, a column per task."""
    rows = [
        (method, *(spread(metrics.final(problem, method, f"weight/{task}")) for task in tasks))
        for method in metrics.methods(problem)
    ]
    return Table(f"The weights at the end: {problem}", ("method", *tasks), rows, terminal=None)


def figures(
    metrics: Metrics, shown: Shown, tasks: Mapping[str, Sequence[str]], folder: Path, late: float = 0.0
) -> list[Figure]:
    """In `folder`: the methods' results by the first quantity, all over time, results by the others, the weights.

    Args:
        metrics: The results.
        shown: The quantities.
        tasks: By problem, the tasks.
        folder: Where the figures go.
        late: The last share of the records over which the last one is a mean.
    """
    from gradnorm_studies.analysis import figures as draw

    known = {problem: _known(metrics, problem, quantities) for problem, quantities in shown.items()}
    known = {problem: quantities for problem, quantities in known.items() if quantities}
    pairs = [(problem, quantity) for problem, quantities in known.items() for quantity in quantities]
    first = [_end(metrics, problem, quantities[0]) for problem, quantities in known.items()]
    rest = [_end(metrics, problem, q) for problem, quantities in known.items() for q in quantities[1:]]
    curves = [_curves(metrics, problem, quantity) for problem, quantity in pairs]
    weights = [panel for problem in known for panel in _weights(metrics, problem, tasks[problem])]
    ends = "Each method on test data: a dot per seed, a stroke and a number at the mean."
    over_time = (
        f"All quantities over time: means over seeds, and their range, without the first {BURN_IN:.0%} of each run, "
        f"which would set the scale."
        + (f" The last point is the mean of the last {late:.0%} of the records." if late else "")
    )
    found = [Figure(draw.finals(folder / "ends.svg", first, columns=2), ends)]
    found.append(Figure(draw.over_time(folder / "metric.svg", curves, columns=2), over_time))
    if rest:
        found.append(Figure(draw.finals(folder / "finals.svg", rest, columns=2), "The other quantities."))
    if weights:
        caption = "The weights over time: means over seeds, and their range."
        found.append(Figure(draw.over_time(folder / "weights.svg", weights, columns=3), caption))
    return found


def _end(metrics: Metrics, problem: str, quantity: Quantity):
    """A panel of the quantity of each method's results."""
    from gradnorm_studies.analysis import figures as draw

    finals = {m: metrics.final(problem, m, quantity.name) for m in metrics.methods(problem)}
    better = "higher" if quantity.largest else "lower"
    return draw.Ends(problem, finals, f"{quantity.label}, {better} is better", may_be_log=not quantity.largest)


def _curves(metrics: Metrics, problem: str, quantity: Quantity):
    """A panel of the quantity over time."""
    from gradnorm_studies.analysis import figures as draw

    methods = metrics.methods(problem)
    drawn = methods if len(methods) <= FEW else [m for m in methods if m in (*MOVING, "equal", "single")]
    steps = metrics.steps(problem, methods[0], quantity.name)
    late = slice(round(BURN_IN * len(steps)), None)
    series = {m: metrics.series(problem, m, quantity.name)[:, late] for m in drawn}
    log = draw.is_wide(np.stack([values.mean(axis=0) for values in series.values()]))
    return draw.Curves(problem, steps[late], series, quantity.label, log, xlabel=draw.STEP)


def _weights(metrics: Metrics, problem: str, tasks: Sequence[str]) -> list[Any]:
    """A panel per method of its weights; a task has one color in all, by its weight at the end of the first method."""
    from gradnorm_studies.analysis import figures as draw

    methods = [method for method in metrics.methods(problem) if method in MOVING]
    if not methods:
        return []
    ends = {task: metrics.final(problem, methods[0], f"weight/{task}").mean() for task in tasks}
    order = sorted(tasks, key=lambda task: -ends[task])
    colors = draw.ramp(order) if len(tasks) > COLORS else None
    panels = []
    for method in methods:
        curves = {task: metrics.series(problem, method, f"weight/{task}") for task in order}
        steps = metrics.steps(problem, method, f"weight/{tasks[0]}")
        title = f"{problem}: {method}"
        panels.append(draw.Curves(title, steps, curves, draw.WEIGHT, log=True, colors=colors, xlabel=draw.STEP))
    return panels
