"""Plots of a diagnosis and of a balancer's history, as PNG files. The only module that imports matplotlib.

One palette (Okabe and Ito's, for color-blind readers), one style, and labels beside the curves. `Curves`, `panels`,
`draw_curves` and `save` draw other figures in this style.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from ._diagnosis import Diagnosis
from ._errors import missing_extra
from ._history import FIELDS, History

try:
    import matplotlib
except ModuleNotFoundError as error:
    raise missing_extra("matplotlib", "plots") from error

import numpy as np
from numpy.typing import NDArray
from PIL import Image  # matplotlib's own dependency

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
}


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
    ax.set_title(panel.title)
    ax.set_xlabel(panel.xlabel)
    ax.set_ylabel(panel.ylabel)
    ax.set_xlim(panel.steps[0], panel.steps[-1])
    if panel.ylim:
        ax.set_ylim(*panel.ylim)
    label_ends(ax, ends)


def label_ends(ax: Axes, ends: Sequence[tuple[float, str, Any]]) -> None:
    """Labels each curve at its end, shifted just enough that no two overlap and none is above the panel."""
    to_axes = ax.transAxes.inverted()
    ends = sorted(e for e in ends if np.isfinite(e[0]))
    at = [to_axes.transform(ax.transData.transform((ax.get_xlim()[1], value)))[1] for value, _, _ in ends]
    gap = 0.065
    for i in range(1, len(at)):
        at[i] = max(at[i], at[i - 1] + gap)
    for i in reversed(range(len(at))):
        at[i] = min(at[i], at[i + 1] - gap if i + 1 < len(at) else 1.0)
    for height, (_, name, color) in zip(at, ends, strict=True):
        ax.text(1.02, height, name, transform=ax.transAxes, color=color, va="center", fontsize=8.5)


def diagnosis(found: Diagnosis, path: str | Path) -> Path:
    """Plot a `Diagnosis`: each task's gradient norm at the shared layer, and the cosines between the gradients."""
    with plt.rc_context(STYLE):
        figure, (bars, table) = panels(2, 2, width=4.4, height=1.4 + 0.34 * len(found.tasks))
        norms = found.norms.numpy()
        bars.barh(range(len(norms)), norms, color=COLORS[0], height=0.62)
        for row, norm in enumerate(norms):
            bars.text(1.02, row, f"{norm:.3g}", transform=bars.get_yaxis_transform(), va="center")
        bars.set_yticks(range(len(norms)), found.tasks)
        bars.invert_yaxis()
        if norms.any():
            bars.set_xscale("log")
            bars.set_xlim(left=norms[norms > 0].min(initial=1.0) / 3)
        bars.set_title("Gradient norm at the shared layer")
        bars.set_xlabel(found.layer)
        _draw_cosines(table, found)
        return save(figure, Path(path))


def _draw_cosines(ax: Axes, found: Diagnosis) -> None:
    places = range(len(found.tasks))
    ax.imshow(found.cosines.numpy(), cmap="RdBu", vmin=-1, vmax=1)
    for i in places:
        for j in places:
            value = found.cosines[i, j].item()
            ax.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if abs(value) > 0.6 else "#222222")
    ax.set_xticks(places, found.tasks, rotation=30, ha="right")
    ax.set_yticks(places, found.tasks)
    ax.set_title("Cosine between gradients")
    ax.tick_params(length=0)


def training(history: History, path: str | Path) -> Path:
    """Plot a history: weights, gradient norms and their targets, loss / initial loss, training rates."""
    rows = history.rows()
    table = {field: np.array([row[field] for row in rows], float).reshape(-1, len(history.tasks)) for field in FIELDS}
    steps = np.array([row["step"] for row in rows], float)[:: len(history.tasks)]
    colors = {task: color_at(place) for place, task in enumerate(history.tasks)}
    shown = [
        ("weight $w_i$", table["weight"], False),
        ("gradient norm $G_i$; dotted: its target", table["norm"], True),
        ("loss over the first recorded", table["loss"] / _first_present(table["loss"]), True),
        ("inverse training rate $r_i$: above 1 lags", table["rate"], False),
    ]
    with plt.rc_context(STYLE):
        figure, axes = panels(len(shown), 2, width=4.6, height=2.9)
        for ax, (title, values, log) in zip(axes, shown, strict=True):
            curves = {task: values[None, :, i] for i, task in enumerate(history.tasks)}
            draw_curves(ax, Curves(title, steps, curves, "", log, colors))
        for i, task in enumerate(history.tasks):
            axes[1].plot(steps, table["target"][:, i], ":", color=colors[task], linewidth=1.1)
        return save(figure, Path(path))


def _first_present(values: Array) -> Array:
    return np.array([column[np.isfinite(column)][0] if np.isfinite(column).any() else np.nan for column in values.T])


def color_at(place: int) -> str:
    """The color of the task with this index."""
    return COLORS[place % len(COLORS)]


def panels(count: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels in rows of `columns`, with the size of each in inches."""
    columns = min(columns, count)
    rows = -(-count // columns)
    size = (width * columns, height * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # pyright: ignore[reportOptionalMemberAccess, reportCallIssue]
    for ax in axes.flat[count:]:
        ax.axis("off")
    return figure, list(axes.flat[:count])


def save(figure: Figure, path: Path, few_colors: bool = True) -> Path:
    """Save an SVG, or a PNG with 128 colors, which for all but photographs looks the same at a third of the size."""
    if path.suffix == ".svg":
        with plt.rc_context({"svg.hashsalt": "gradnorm"}):  # the same bytes each time
            figure.savefig(path, metadata={"Date": None})
        plt.close(figure)
        return path
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    picture = Image.open(buffer).convert("RGB")
    (picture.quantize(128) if few_colors else picture).save(path, optimize=True)
    return path
