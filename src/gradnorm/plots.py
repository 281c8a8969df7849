"""Figures of a diagnosis and of a balancer's history. The only module that imports matplotlib.

Each function returns a matplotlib `Figure`, which a notebook shows, and writes it where `path=` is given; pyplot and
its backend are left alone. One palette (Okabe and Ito's, for color-blind readers), one style, and labels beside the
curves: `Curves`, `panels`, `draw_curves` and `save` draw other figures in this style.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from ._advice import Report
from ._arguments import check_kind
from ._balancer import GradNorm
from ._diagnosis import Diagnosis
from ._errors import ArgumentError, StateError, missing_extra
from ._history import FIELDS, History

try:
    from matplotlib import rc_context
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:
    raise missing_extra("matplotlib", "plots") from error

import numpy as np
from numpy.typing import NDArray
from PIL import Image  # matplotlib's own dependency
from torch import Tensor

Array = NDArray[np.float64]

COLORS = ("#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#f0e442", "#56b4e9")
"""Colors by the task's index."""
STYLE: Any = {
    "figure.dpi": 110,
    "savefig.dpi": 110,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9a9a9a",
    "axes.labelcolor": "#444444",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "lines.linewidth": 1.7,
    "svg.hashsalt": "gradnorm",
}
FORMATS = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
"""The formats to save, by suffix, with metadata by which the same figure gives the same file."""
SMOOTHED = 40
"""Running medians are over this part of a curve."""
WIDE = 30
"""Values whose largest is so many times the smallest are drawn on a logarithmic axis."""


class StyledFigure(Figure):
    """A `Figure` in `STYLE`, which notebooks show whether or not pyplot is in use."""

    def draw(self, renderer: Any) -> None:  # noqa: D102
        with rc_context(STYLE):
            super().draw(renderer)

    def _repr_png_(self) -> bytes:
        with rc_context(STYLE):
            buffer = BytesIO()
            self.savefig(buffer, format="png")
            return buffer.getvalue()


# ------------------------------------------------------------------------------------------------ a balancer's history


def training(balancer: GradNorm | History, path: str | Path | None = None) -> Figure:
    """A run in four panels: weights, gradient norms and their targets, losses, and training rates.

    The whole run, as far as the balancer has recorded it: values as faint lines, and their running medians.

    Args:
        balancer: The balancer, or its history; without the balancer, losses are divided by the first recorded ones.
        path: Where to write the figure, too: `.png`, `.svg` or `.pdf`.

    Raises:
        StateError: Nothing is recorded yet.
        ArgumentError: Another suffix, or neither a balancer nor its history.

    Examples:
        >>> import torch
        >>> trunk, heads = torch.nn.Linear(8, 4), torch.nn.ModuleList(torch.nn.Linear(4, 1) for _ in range(2))
        >>> balancer = GradNorm(["near", "far"], shared=trunk.weight)
        >>> for _ in range(3):
        ...     features = trunk(torch.randn(16, 8)).relu()
        ...     balancer([head(features).square().mean() for head in heads]).backward()
        ...     balancer.step()
        >>> [ax.get_ylabel() for ax in training(balancer).axes]
        ['weight $w_i$', 'gradient norm $G_i$', 'loss / initial loss', 'inverse training rate $r_i$']
    """
    run = _recorded(balancer)
    with rc_context(STYLE):
        figure, axes = panels(len(_PANELS), 2, width=4.6, height=2.9)
        for ax, draw in zip(axes, _PANELS, strict=True):
            draw(ax, run)
    return _finished(figure, path)


def weights(balancer: GradNorm | History, path: str | Path | None = None, *, ax: Axes | None = None) -> Figure:
    """The weights over the run, as in `training`; on `ax` if given."""
    return _one_panel(_draw_weights, balancer, path, ax)


def gradient_norms(balancer: GradNorm | History, path: str | Path | None = None, *, ax: Axes | None = None) -> Figure:
    """The gradient norms over the run, and their targets dotted; on `ax` if given."""
    return _one_panel(_draw_norms, balancer, path, ax)


def losses(balancer: GradNorm | History, path: str | Path | None = None, *, ax: Axes | None = None) -> Figure:
    """The losses over the run, divided by the initial ones where all are positive; on `ax` if given."""
    return _one_panel(_draw_losses, balancer, path, ax)


def rates(balancer: GradNorm | History, path: str | Path | None = None, *, ax: Axes | None = None) -> Figure:
    """The inverse training rates over the run: a task above 1 lags; on `ax` if given."""
    return _one_panel(_draw_rates, balancer, path, ax)


class _Run(NamedTuple):
    """What is drawn of a run: R recorded steps of T tasks."""

    tasks: tuple[str, ...]
    steps: Array
    """[R]."""
    values: Mapping[str, Array]
    """[R, T] by field, NaN where a task was absent."""
    initial: Array
    """[T], `L_i(0)`."""


def _recorded(balancer: GradNorm | History) -> _Run:
    check_kind("balancer", balancer, GradNorm, History)
    history = balancer if isinstance(balancer, History) else balancer.history
    if not len(history):
        raise StateError("no step is in the history: train first (with history=0 none is kept)")
    count = len(history.tasks)
    rows = history.rows()
    values = {field: np.array([row[field] for row in rows], float).reshape(-1, count) for field in FIELDS}
    initial = [np.nan] * count if isinstance(balancer, History) else balancer.initial_losses.tolist()
    first = [next(iter(column[np.isfinite(column)]), np.nan) for column in values["loss"].T]
    known = np.where(np.isfinite(initial), initial, first)
    return _Run(history.tasks, np.array(history.steps, float), values, known)


def _one_panel(draw: Any, balancer: GradNorm | History, path: str | Path | None, ax: Axes | None) -> Figure:
    run = _recorded(balancer)
    with rc_context(STYLE):
        ax = panels(1, 1, width=4.8, height=3.0)[1][0] if ax is None else ax
        draw(ax, run)
    return _finished(_figure_of(ax), path)


def _draw_weights(ax: Axes, run: _Run) -> None:
    found = run.values["weight"]
    _draw(ax, run, "Loss weights", "weight $w_i$", found, log=is_wide(found))


def _draw_norms(ax: Axes, run: _Run) -> None:
    _draw(ax, run, "Gradient norms (targets dotted)", "gradient norm $G_i$", run.values["norm"], log=True)
    for i in range(len(run.tasks)):
        steps, targets = _present(run.steps, run.values["target"][:, i])
        ax.plot(steps, running_median(targets), ":", color=color_at(i), linewidth=1.1)


def _draw_losses(ax: Axes, run: _Run) -> None:
    found = run.values["loss"]
    if (found[np.isfinite(found)] > 0).all() and not (run.initial <= 0).any():
        _draw(ax, run, "Losses", "loss / initial loss", found / run.initial, log=True)
    else:
        _draw(ax, run, "Losses", "loss $L_i$", found)


def _draw_rates(ax: Axes, run: _Run) -> None:
    found = run.values["rate"]
    _draw(ax, run, "Training rates (above 1: lags)", "inverse training rate $r_i$", found, log=is_wide(found))


def is_wide(values: Array) -> bool:
    """Whether values of any shape ask for a logarithmic axis: all positive, the largest `WIDE` times the smallest."""
    found = values[np.isfinite(values)]
    return len(found) > 0 and found.min() > 0 and found.max() > WIDE * found.min()


_PANELS = (_draw_weights, _draw_norms, _draw_losses, _draw_rates)


def _draw(ax: Axes, run: _Run, title: str, ylabel: str, values: Array, log: bool = False) -> None:
    """Each task's values faint, under their running median; named at its end."""
    ends: list[tuple[float, str, Any]] = []
    for i, task in enumerate(run.tasks):
        steps, column = _present(run.steps, values[:, i])
        if len(column):
            smooth = running_median(column)
            ax.plot(steps, column, color=color_at(i), alpha=0.25, linewidth=0.8)
            ax.plot(steps, smooth, color=color_at(i))
            ends.append((float(smooth[-1]), task, color_at(i)))
    _label(ax, title, "step", ylabel, run.steps)
    if log and (values > 0).any():
        ax.set_yscale("log", nonpositive="mask")
    label_ends(ax, ends)


def _present(steps: Array, column: Array) -> tuple[Array, Array]:
    is_there = np.isfinite(column)
    return steps[is_there], column[is_there]


def running_median(values: Array) -> Array:
    """[R] → [R]: the median over the nearest values, a 40th of them; fewer at both ends."""
    half = len(values) // SMOOTHED // 2
    if not half:
        return values
    padded = np.pad(values, half, constant_values=np.nan)
    return np.nanmedian(np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1), axis=-1)


# --------------------------------------------------------------------------------------------------------- a diagnosis


def diagnosis(found: Diagnosis, path: str | Path | None = None) -> Figure:
    """A `Diagnosis`: each task's gradient norm at the shared layer, and the cosines between the gradients.

    Args:
        found: What `gradnorm.diagnose` returned.
        path: Where to write the figure, too: `.png`, `.svg` or `.pdf`.

    Raises:
        ArgumentError: Another suffix, or no diagnosis.
    """
    check_kind("found", found, Diagnosis)
    with rc_context(STYLE):
        figure, (bars, table) = panels(2, 2, width=4.4, height=1.5 + 0.34 * len(found.tasks))
        norms = found.norms.numpy()
        bars.barh(range(len(norms)), np.where(np.isfinite(norms), norms, 0), color=COLORS[0], height=0.62)
        for row, norm in enumerate(norms):
            bars.text(1.02, row, f"{norm:.3g}", transform=bars.get_yaxis_transform(), va="center")
        bars.set_yticks(range(len(norms)), [*map(_plain, found.tasks)])
        bars.invert_yaxis()
        if (norms > 0).any():
            bars.set_xscale("log")
            bars.set_xlim(left=norms[norms > 0].min(initial=1.0) / 3)
        bars.set_title("Gradients at the shared layer")
        bars.set_xlabel(f"gradient norm at {found.layer}")
        bars.set_ylabel("task")
        _draw_cosines(table, found.tasks, found.cosines)
    return _finished(figure, path)


def cosines(found: Diagnosis | Report | GradNorm, path: str | Path | None = None, *, ax: Axes | None = None) -> Figure:
    """The cosines between the tasks' gradients as a colored table; of a balancer, their mean; on `ax` if given.

    Raises:
        StateError: None have been recorded.
    """
    found = found.report() if isinstance(found, GradNorm) else found
    if found.cosines is None:
        raise StateError("no cosines are recorded: before the first step, or with more than 16 tasks or another at=")
    with rc_context(STYLE):
        side = 1.8 + 0.45 * len(found.tasks)
        ax = panels(1, 1, width=side, height=side)[1][0] if ax is None else ax
        _draw_cosines(ax, found.tasks, found.cosines)
    return _finished(_figure_of(ax), path)


def _draw_cosines(ax: Axes, tasks: Sequence[str], cosines: Tensor) -> None:
    places, names = range(len(tasks)), [*map(_plain, tasks)]
    ax.imshow(cosines.cpu().numpy(), cmap="RdBu", vmin=-1, vmax=1)
    for i in places:
        for j in places:
            value = cosines[i, j].item()
            ax.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if abs(value) > 0.6 else "#222222")
    ax.set_xticks(places, names, rotation=30, ha="right")
    ax.set_yticks(places, names)
    ax.set_title("Cosine between gradients")
    ax.set_xlabel("task")
    ax.set_ylabel("task")
    ax.tick_params(length=0)


# ------------------------------------------------------------------------------------------------------- any figure


@dataclass(frozen=True)
class Curves:
    """One panel: curves by name over the same steps, each [seeds, R]."""

    title: str
    steps: Array
    values: Mapping[str, Array]
    ylabel: str
    log: bool = False
    colors: Mapping[str, Any] | None = None
    """Colors by name. Default: by position."""
    xlabel: str = "step"
    ylim: tuple[float, float] | None = None


def draw_curves(ax: Axes, panel: Curves) -> None:
    """Means over seeds as lines, their range as a band, names at the lines' ends."""
    ends: list[tuple[float, str, Any]] = []
    for place, (name, values) in enumerate(panel.values.items()):
        color = (panel.colors or {}).get(name) or color_at(place)
        mean = values.mean(axis=0)
        ax.plot(panel.steps, mean, color=color)
        ax.fill_between(panel.steps, values.min(axis=0), values.max(axis=0), color=color, alpha=0.16, linewidth=0)
        ends.append((float(mean[-1]), name, color))
    if panel.log:
        ax.set_yscale("log")
    _label(ax, panel.title, panel.xlabel, panel.ylabel, panel.steps)
    if panel.ylim:
        ax.set_ylim(*panel.ylim)
    label_ends(ax, ends)


def label_ends(ax: Axes, ends: Sequence[tuple[float, str, Any]]) -> None:
    """Labels each curve at its end, shifted just enough that no two overlap and none is above the panel."""
    to_axes = ax.transAxes.inverted()
    ends = sorted(e for e in ends if np.isfinite(e[0]))
    at = [to_axes.transform(ax.transData.transform((ax.get_xlim()[1], value)))[1] for value, _, _ in ends]
    gap = min(0.065, 1 / max(1, len(at)))  # of many, all fit beside the panel
    size = 8.5 * max(0.4, gap / 0.065)
    for i in range(1, len(at)):
        at[i] = max(at[i], at[i - 1] + gap)
    for i in reversed(range(len(at))):
        at[i] = min(at[i], at[i + 1] - gap if i + 1 < len(at) else 1.0)
    for height, (_, name, color) in zip(at, ends, strict=True):
        ax.text(1.02, height, _plain(name), transform=ax.transAxes, color=color, va="center", fontsize=size)


def _plain(name: str) -> str:
    """A name in which matplotlib sees no formula."""
    return name.replace("$", r"\$")


def color_at(place: int) -> str:
    """The color of the task with this index."""
    return COLORS[place % len(COLORS)]


def panels(count: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels in rows of `columns`, with the size of each in inches."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = StyledFigure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # pyright: ignore[reportOptionalMemberAccess, reportCallIssue]
    for ax in axes.flat[count:]:
        ax.axis("off")
    return figure, list(axes.flat[:count])


def save(figure: Figure, path: str | Path, few_colors: bool = True) -> Path:
    """Write a figure, in the format of the suffix: `.png`, or with all lines and text as vectors `.svg`, `.pdf`.

    An SVG has its coordinates to a hundredth of a point.

    Args:
        figure: The figure.
        path: Where to.
        few_colors: Write a PNG with 128 colors, which for all but photographs looks the same and is a third of the
            size.

    Raises:
        ArgumentError: Another suffix.
    """
    path = _checked(path)
    suffix = path.suffix[1:].lower()
    with rc_context(STYLE):
        buffer = BytesIO()
        if suffix != "png":
            figure.savefig(buffer, format=suffix, metadata=FORMATS[suffix])
            written = buffer.getvalue()
            path.write_bytes(re.sub(rb"<[^>]*>", _shortened, written) if suffix == "svg" else written)
            return path
        figure.savefig(buffer, format="png")
    picture = Image.open(buffer).convert("RGB")
    (picture.quantize(128) if few_colors else picture).save(path, optimize=True)
    return path


def _shortened(tag: re.Match[bytes]) -> bytes:
    """A tag of an SVG with its coordinates cut to two decimals; what is between tags may be a figure to read."""
    return re.sub(rb"(?<=\d\.\d\d)\d+", b"", tag[0])


def _checked(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix[1:].lower() not in FORMATS:
        raise ArgumentError(f"path must end in .png, .svg or .pdf, got {path.name!r}")
    return path


def _finished(figure: Figure, path: str | Path | None) -> Figure:
    if path is not None:
        save(figure, path)
    return figure


def _figure_of(ax: Axes) -> Figure:
    figure = ax.get_figure()
    assert figure is not None
    return figure if isinstance(figure, Figure) else figure.figure  # of a SubFigure


def _label(ax: Axes, title: str, xlabel: str, ylabel: str, steps: Array) -> None:
    ax.set_title(title)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    if steps[0] < steps[-1]:
        ax.set_xlim(steps[0], steps[-1])
