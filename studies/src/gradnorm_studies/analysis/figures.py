"""The studies' figures: plain data in, a picture in the suffix's format out, in the style of `gradnorm.plots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatter
from numpy.typing import NDArray

from gradnorm import plots
from gradnorm.plots import Curves, draw_curves, is_wide, panels, save

Array = NDArray[np.float64]

STYLE = {**plots.STYLE, "svg.fonttype": "none"}
"""That of the library, with text as text: it can be searched, and is a third of the size."""

COLORS = {
    "gradnorm": "#0072b2",
    "closed-form": "#d55e00",
    "single": "#222222",
    "equal": "#777b82",
    "divided": "#86a9c4",
    "uncertainty": "#784538",
    "geometric": "#896e38",
    "dwa": "#334f79",
    "random": "#97a974",
    "static": "#50adf8",
    "static-closed-form": "#b9a84f",
    "best grid": "#5c4452",
}
"""By method, the same in every figure: GradNorm's two updates saturated, all others muted. Any two are more than 15
apart in CIELAB, with protanopia, deuteranopia and tritanopia too; none is too light for its name on white."""
LEADING = ("gradnorm", "closed-form")
"""Methods that are drawn over the others, with thicker lines."""
FALLBACK = ("#009e73", "#e69f00", "#cc79a7", "#56b4e9")
"""Of names that are no method."""

STEP = "training step"
WEIGHT = "weight $w_i$ of a task"
"""Labels of axes; neither has a unit."""


def over_time(path: Path, shown: Sequence[Curves], columns: int = 4) -> Path:
    """Panels in rows of `columns`: means over seeds as lines, ranges as bands, names at the lines' ends."""
    with rc_context(STYLE):
        figure, axes = panels(len(shown), columns, width=4.6, height=3.2)
        for ax, panel in zip(axes, shown, strict=True):
            methods = {name: color_of(name, panel.values) for name in panel.values}
            draw_curves(ax, replace(panel, colors=methods | {**(panel.colors or {})}))
            _emphasize(ax, list(panel.values))
            if panel.log:
                ax.yaxis.set_major_formatter(PlainLog())
                ax.yaxis.set_minor_formatter(PlainLog())
        return save(figure, path)


class PlainLog(LogFormatter):
    """Ticks of a logarithmic axis as 0.6, not as 6 × 10⁻¹."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """The label of a tick; empty where there would be too many."""
        return f"{x:g}" if super().__call__(x, pos) else ""


def _emphasize(ax: Axes, names: Sequence[str]) -> None:
    """Among other methods, the curves of `LEADING` are thick and on top, and the others' bands pale."""
    if not set(LEADING) & set(names) or set(names) <= set(LEADING):
        return
    for name, line, band in zip(names, ax.lines, ax.collections, strict=True):
        is_leading = name in LEADING
        line.set(linewidth=2.6 if is_leading else 1.3, zorder=4 if is_leading else 2)
        band.set(alpha=0.2 if is_leading else 0.08, zorder=3 if is_leading else 1)


@dataclass(frozen=True)
class Points:
    """One scatter panel: points (x [n], y [n]) by name."""

    title: str
    values: Mapping[str, tuple[Array, Array]]
    xlabel: str
    ylabel: str


def scatter(path: Path, shown: Sequence[Points], columns: int = 4) -> Path:
    """Scatter panels in rows of `columns`: one color per name, methods in their own color and larger, a line at 0."""
    with rc_context(STYLE):
        figure, axes = panels(len(shown), columns, width=4.6, height=3.6)
        for ax, panel in zip(axes, shown, strict=True):
            _draw_points(ax, panel)
        return save(figure, path)


def _draw_points(ax: Axes, panel: Points) -> None:
    for name, (x, y) in panel.values.items():
        size = 46 if name in COLORS else 14
        ax.scatter(x, y, s=size, color=color_of(name, panel.values), alpha=0.7, linewidths=0, label=name)
    ax.axhline(0, color=COLORS["gradnorm"], linewidth=1)
    ax.set_title(panel.title)
    ax.set_xlabel(panel.xlabel)
    ax.set_ylabel(panel.ylabel)
    ax.legend(frameon=False, fontsize=8.5)


@dataclass(frozen=True)
class Ends:
    """One panel: a final metric [seeds] by method."""

    title: str
    values: Mapping[str, Array]
    xlabel: str
    may_be_log: bool = True
    """`False` for scores, of which the largest matter and not the decades below."""


def finals(path: Path, shown: Sequence[Ends], columns: int = 4) -> Path:
    """Panels in rows of `columns`: one dot per seed, a stroke at the mean, and its value."""
    with rc_context(STYLE):
        rows = max(len(panel.values) for panel in shown)
        figure, axes = panels(len(shown), columns, width=4.2, height=0.9 + 0.33 * rows)
        for ax, panel in zip(axes, shown, strict=True):
            _draw_ends(ax, panel)
        return save(figure, path)


def _draw_ends(ax: Axes, panel: Ends) -> None:
    if panel.may_be_log and is_wide(np.concatenate([*panel.values.values()])):
        ax.set_xscale("log")
    for row, (name, values) in enumerate(panel.values.items()):
        color, weight = color_of(name, panel.values), "bold" if name in LEADING else "normal"
        ax.plot(values, np.full(len(values), row), "o", color=color, markersize=4.5, alpha=0.55, markeredgewidth=0)
        ax.plot([values.mean()] * 2, [row - 0.3, row + 0.3], color=color, linewidth=2.4)
        end = {"transform": ax.get_yaxis_transform(), "color": color, "va": "center", "weight": weight}
        ax.text(1.02, row, f"{values.mean():#.3g}".rstrip("."), **end)
    ax.set_yticks(range(len(panel.values)), list(panel.values))
    for tick, name in zip(ax.get_yticklabels(), panel.values, strict=True):
        tick.set(color=color_of(name, panel.values), fontweight="bold" if name in LEADING else "normal")
    ax.set_ylim(len(panel.values) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="y", color="#eeeeee")
    ax.set_axisbelow(True)
    ax.margins(x=0.06)
    if ax.get_xscale() == "log":
        ax.xaxis.set_major_formatter(PlainLog(labelOnlyBase=True))
    ax.set_title(panel.title)
    ax.set_xlabel(panel.xlabel)


def color_of(name: str, names: Mapping[str, Any]) -> str:
    """The color of a method, the same in every figure; other names are colored by position."""
    others = [other for other in names if other not in COLORS]
    return COLORS[name] if name in COLORS else FALLBACK[others.index(name) % len(FALLBACK)]


def ramp(names: Sequence[str]) -> dict[str, Any]:
    """Colors from light to dark by name, for tasks that have an order."""
    shades = colormaps["viridis"](np.linspace(0.85, 0.0, len(names)))
    return dict(zip(names, map(tuple, shades), strict=True))
