"""Tables with small bars, as HTML for notebooks: no scripts, and readable on light and dark grounds.

Text keeps the notebook's own color; bars and shades have colors that show on both grounds.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

BAR = "#4a90d9"
WIDEST = 6.0
"""Width of a full bar, in em."""


def document(title: str, parts: Sequence[str], sentences: Sequence[str] = ()) -> str:
    """A title, tables, and sentences as a list."""
    items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences)
    listed = f'<ul style="max-width:50em">{items}</ul>' if items else ""
    return f"<div><div><b>{html.escape(title)}</b></div>{''.join(parts)}{listed}</div>"


def table(columns: Mapping[str, Sequence[str]], bars: Mapping[str, Sequence[str]] | None = None) -> str:
    """A table, its first column left-aligned and the others right-aligned.

    Args:
        columns: Cells by heading, as text.
        bars: Beside the column of that name, cells of HTML.
    """
    drawn_columns = []
    for place, (name, cells) in enumerate(columns.items()):
        drawn_columns.append(
            [_cell("th", html.escape(name), place == 0), *(_cell("td", html.escape(c), place == 0) for c in cells)]
        )
        if beside := (bars or {}).get(name):
            drawn_columns.append([_cell("th", "", True), *(_cell("td", drawn, True) for drawn in beside)])
    rows = "".join(f"<tr>{''.join(row)}</tr>" for row in zip(*drawn_columns, strict=True))
    return f'<table style="color:inherit;margin:.5em 0">{rows}</table>'


def matrix(name: str, tasks: Sequence[str], values: Sequence[Sequence[float]]) -> str:
    """A table of numbers from −1 to 1, shaded from red to blue."""
    heads = "".join(_cell("th", html.escape(text), place == 0) for place, text in enumerate((name, *tasks)))
    rows = "".join(
        f"<tr>{_cell('td', html.escape(task), True)}{''.join(map(_shaded, row))}</tr>"
        for task, row in zip(tasks, values, strict=True)
    )
    return f'<table style="color:inherit;margin:.5em 0"><tr>{heads}</tr>{rows}</table>'


def bar(part: float) -> str:
    """A horizontal bar of this part of the full width."""
    width = WIDEST * min(max(part, 0.0), 1.0) if math.isfinite(part) else 0.0
    return f'<div style="background:{BAR};height:.7em;width:{width:.2f}em"></div>'


def bars(values: Sequence[float]) -> list[str]:
    """A bar for each value, the largest of full width."""
    most = max((value for value in values if math.isfinite(value)), default=0.0)
    return [bar(value / most if most > 0 else math.nan) for value in values]


def trace(values: Sequence[float], most: float) -> str:
    """Small upright bars, one per value, of full height at `most`."""
    heights = (min(max(value / most, 0.0), 1.0) if math.isfinite(value) and most > 0 else 0.0 for value in values)
    drawn = (f'<div style="background:{BAR};width:3px;height:{1.4 * height:.2f}em"></div>' for height in heights)
    return f'<div style="display:flex;align-items:flex-end;gap:1px;height:1.4em">{"".join(drawn)}</div>'


def _cell(kind: str, inner: str, is_left: bool) -> str:
    return f'<{kind} style="text-align:{"left" if is_left else "right"}">{inner}</{kind}>'


def _shaded(value: float) -> str:
    color = "74,144,217" if value > 0 else "217,83,79"
    depth = 0.55 * min(abs(value), 1.0) if math.isfinite(value) else 0.0
    text = f"{value:.2f}" if math.isfinite(value) else "–"
    return f'<td style="text-align:right;background:rgba({color},{depth:.2f})">{text}</td>'
