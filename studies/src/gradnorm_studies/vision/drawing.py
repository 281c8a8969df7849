"""Images with what is known or predicted of them, as pictures: depth, normals, classes, keypoints, boxes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch, Rectangle

from gradnorm.plots import StyledFigure, save
from gradnorm_studies.analysis.figures import STYLE, Array

CLASS_COLORS = (
    "#4e79a7",
    "#b07aa1",
    "#e8e4da",
    "#f28e2b",
    "#9c755f",
    "#76b7b2",
    "#e15759",
    "#edc948",
    "#59a14f",
    "#ff9da7",
    "#222222",
    "#c9c5bb",
    "#86bcec",
)


@dataclass(frozen=True)
class AnnotatedImage:
    """One image with its ground truth or a network's predictions, each drawn over the same square at its own size."""

    title: str
    image: Array
    """[H, W, 3] in 0 … 1."""
    segmentation: Array | None = None
    """[h, w]: class indices; −1 unknown."""
    depth: Array | None = None
    """[h, w] in meters; 0 unknown."""
    normals: Array | None = None
    """[h, w, 3]; 0 unknown."""
    keypoints: Array | None = None
    """[k, 2]: x and y, in pixels of the image."""
    boxes: Array | None = None
    """[m, 4]: left, top, right, bottom."""
    labels: Sequence[int] = ()
    """[m]: the class of each box."""
    kind: str = ""
    """The class of the whole image."""


FARTHEST = 7.0
"""Upper end of the depth colormap, in meters."""


def contact_sheet(path: Path, views: Sequence[AnnotatedImage], names: Sequence[str], columns: int = 2) -> Path:
    """Per sample: image, classes, depth, normals, keypoints and boxes; `columns` samples side by side."""
    columns = min(columns, len(views))
    tiles = len(SHEET)
    rows = -(-len(views) // columns)
    with _tiles(path, rows, tiles * columns, names) as grid:
        for place, view in enumerate(views):
            row, column = divmod(place, columns)
            axes = list(grid[row, column * tiles : (column + 1) * tiles])
            for ax, (title, draw) in zip(axes, SHEET.items(), strict=True):
                draw(ax, view, names)
                if row == 0:
                    ax.set_title(title, fontsize=9)
            axes[0].text(0, -0.02, view.title, transform=axes[0].transAxes, fontsize=7.5, va="top")
    return path


def comparison(
    path: Path, rows: Sequence[Mapping[str, AnnotatedImage]], tasks: Sequence[str], names: Sequence[str]
) -> Path:
    """One row per image: the image, then per task (a field of `AnnotatedImage`) the row's versions side by side."""
    kinds = list(rows[0])
    shown = [task for task in tasks if task in DRAWINGS]
    legend = names if "segmentation" in shown else ()
    with _tiles(path, len(rows), 1 + len(shown) * len(kinds), legend) as grid:
        for axes, row in zip(grid, rows, strict=True):
            _draw_image(axes[0], row[kinds[0]], names)
            columns = ((task, kind) for task in shown for kind in kinds)
            for ax, (task, kind) in zip(axes[1:], columns, strict=True):
                DRAWINGS[task](ax, row[kind], names)
        for column, task in enumerate(shown):
            for place, kind in enumerate(kinds):
                ax = grid[0, 1 + column * len(kinds) + place]
                ax.set_title(kind if place else f"{task}: {kind}", fontsize=8, fontweight="normal" if place else "bold")
    return path


@contextmanager
def _tiles(path: Path, rows: int, columns: int, names: Sequence[str]) -> Iterator[Any]:
    """Square panels without axes, [rows, columns], and a legend of the classes; saved on exit."""
    with rc_context(STYLE):
        size = (1.45 * columns, 1.6 * rows + 0.9)
        figure = StyledFigure(figsize=size, layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for ax in grid.flat:
            ax.axis("off")
        yield grid
        if names:
            handles = [Patch(color=c, label=n) for n, c in zip(names, CLASS_COLORS, strict=False)]
            figure.legend(handles=handles, loc="outside lower center", ncols=len(names), frameon=False, handlelength=1)
        save(figure, path, few_colors=False)


def _draw_image(ax: Axes, view: AnnotatedImage, names: Sequence[str]) -> None:
    ax.imshow(view.image)


def _draw_segmentation(ax: Axes, view: AnnotatedImage, names: Sequence[str]) -> None:
    colors = ListedColormap(("#ffffff", *CLASS_COLORS[: len(names)]))
    assert view.segmentation is not None
    ax.imshow(view.segmentation, cmap=colors, vmin=-1.5, vmax=len(names) - 0.5, interpolation="nearest")


def _draw_depth(ax: Axes, view: AnnotatedImage, names: Sequence[str]) -> None:
    assert view.depth is not None
    known = np.ma.masked_equal(view.depth, 0)
    ax.imshow(known, cmap="viridis_r", vmin=0, vmax=FARTHEST, interpolation="nearest")
    ax.text(0.03, 0.04, f"to {known.max():.1f} m", transform=ax.transAxes, fontsize=7, color="#ffffff")


def _draw_normals(ax: Axes, view: AnnotatedImage, names: Sequence[str]) -> None:
    """Right is red, up is green, towards the viewer is blue."""
    assert view.normals is not None
    known = np.abs(view.normals).sum(axis=2, keepdims=True) > 0
    ax.imshow(np.where(known, view.normals * [0.5, -0.5, -0.5] + 0.5, 1.0), interpolation="nearest")


def _draw_keypoints(ax: Axes, view: AnnotatedImage, names: Sequence[str]) -> None:
    _draw_pale(ax, view)
    assert view.keypoints is not None
    ax.plot(*view.keypoints.T, "o", color="#d00000", markersize=3.5, clip_on=False)


def _draw_boxes(ax: Axes, view: AnnotatedImage, names: Sequence[str]) -> None:
    _draw_pale(ax, view)
    assert view.boxes is not None
    for (left, top, right, bottom), label in zip(view.boxes, view.labels, strict=True):
        corner = (left - 0.5, top - 0.5)
        ax.add_patch(Rectangle(corner, right - left, bottom - top, fill=False, color=CLASS_COLORS[label]))
        ax.text(*corner, names[label], fontsize=4.5, va="bottom", color="#222222", in_layout=False)


def _draw_found(ax: Axes, view: AnnotatedImage, names: Sequence[str]) -> None:
    _draw_keypoints(ax, view, names)
    _draw_boxes(ax, view, names)


def _draw_kind(ax: Axes, view: AnnotatedImage, names: Sequence[str]) -> None:
    _draw_pale(ax, view)
    ax.text(0.5, 0.5, view.kind.replace(" ", "\n"), transform=ax.transAxes, ha="center", va="center", fontweight="bold")


def _draw_pale(ax: Axes, view: AnnotatedImage) -> None:
    ax.imshow(view.image * 0.45 + 0.55)


DRAWINGS: dict[str, Callable[[Axes, AnnotatedImage, Sequence[str]], None]] = {
    "segmentation": _draw_segmentation,
    "depth": _draw_depth,
    "normals": _draw_normals,
    "keypoints": _draw_keypoints,
    "detection": _draw_boxes,
    "classification": _draw_kind,
}


SHEET: dict[str, Callable[[Axes, AnnotatedImage, Sequence[str]], None]] = {
    "image": _draw_image,
    "classes": _draw_segmentation,
    f"depth (0–{FARTHEST:g} m)": _draw_depth,
    "normals": _draw_normals,
    "keypoints, boxes": _draw_found,
}
"""The columns of a contact sheet."""
