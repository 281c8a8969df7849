"""A study's report, rendered as Markdown, as one self-contained HTML page, and in the terminal."""

from __future__ import annotations

import base64
import html
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

STYLE = """
:root { color-scheme: light dark; --page: #fbfaf8; --text: #22252a; --quiet: #5f636b; --line: #e4e0d8; --tint: #efece6;
  --shade: #0003; --holds: #00664c; --fails: #a03c00; --open: #7a5a00; }
@media (prefers-color-scheme: dark) {
  :root { --page: #17191d; --text: #e3e4e6; --quiet: #a2a7b0; --line: #33373e; --tint: #262a30; --shade: #000a;
    --holds: #5fd0ad; --fails: #ff9d66; --open: #e0b84a; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); overflow-wrap: break-word;
  font: 17px/1.6 "Iowan Old Style", "Palatino Linotype", Palatino, "Noto Serif", Georgia, serif; }
main { max-width: 64rem; margin: 0 auto; padding: 3.5rem 1.5rem 6rem; }
h1 { font-size: 2.1rem; line-height: 1.2; margin: 0 0 1.2rem; letter-spacing: -0.01em; }
h2 { font-size: 1.25rem; margin: 3rem 0 0.8rem; }
p, ul { margin: 0 0 1rem; max-width: 46rem; }
.summary { padding-left: 1.1rem; font-size: 1.05rem; }
.summary li { margin-bottom: 0.35rem; }
code { font: 0.82em ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  background: var(--tint); padding: 0.1em 0.35em; border-radius: 3px; }
.wide { overflow-x: auto; background: /* a shade where more is beyond the edge; covers scroll along, shades do not */
  linear-gradient(90deg, var(--page) 40%, transparent) left / 2.5rem 100% no-repeat local,
  linear-gradient(270deg, var(--page) 40%, transparent) right / 2.5rem 100% no-repeat local,
  linear-gradient(90deg, var(--shade), transparent) left / 0.9rem 100% no-repeat scroll,
  linear-gradient(270deg, var(--shade), transparent) right / 0.9rem 100% no-repeat scroll; }
table { border-collapse: collapse; width: 100%; font: 0.82rem/1.45 system-ui, "Segoe UI", "DejaVu Sans", sans-serif;
  font-variant-numeric: tabular-nums; border-top: 2px solid var(--text); border-bottom: 2px solid var(--text); }
th { text-align: left; font-weight: 600; border-bottom: 1px solid var(--text); }
th, td { padding: 0.45rem 0.9rem 0.45rem 0; vertical-align: top; overflow-wrap: normal; }
td:first-child:not(.long), td.figures { white-space: nowrap; } td.long { min-width: 8.5rem; }
tr + tr td { border-top: 1px solid var(--line); }
.note, figcaption { color: var(--quiet); font-size: 0.88rem; margin-top: 0.6rem; }
.holds { color: var(--holds); } .fails { color: var(--fails); } .open { color: var(--open); }
.holds, .fails, .open { font-weight: 600; white-space: nowrap; }
figure { margin: 2.2rem 0; }
figure img { width: 100%; height: auto; display: block; background: #fff; border-radius: 4px; }
@media (max-width: 40rem) {
  body { font-size: 16px; }
  main { padding: 1.6rem 1rem 3rem; }
  h1 { font-size: 1.6rem; } td.long { min-width: 11rem; }
  figure img { width: calc(0.78 * var(--width)); max-width: none; } /* one panel fills the screen, the others follow */
}
"""

PIXELS = 110 / 72
"""Of a point, at the resolution of the figures that are pixels."""
VERDICTS = {
    "holds": "holds",
    "does not hold": "fails",
    "undecided": "open",
    "not enough to say": "open",
    "a run diverged": "open",
}
"""CSS class by verdict; the word itself is always shown, so color is redundant."""


def _finite(content: Any) -> Any:
    """What JSON has no number for becomes null.

    Examples:
        >>> _finite({"margin": float("nan"), "ends": [1.0, float("inf")]})
        {'margin': None, 'ends': [1.0, None]}
    """
    if isinstance(content, Mapping):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


@dataclass(frozen=True)
class Table:
    """A table of text."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""
    terminal: tuple[str, ...] | None = ()
    """The columns shown in a terminal. Default: all. `None`: the table is not shown there."""
    terminal_note: str | None = None
    """The note there, where columns are left out. Default: `note`."""

    def markdown(self) -> str:
        """The table in Markdown, under its title.

        Examples:
            >>> print(Table("Ends", ("method", "loss"), [("equal", "1.5")]).markdown())
            ## Ends
            <BLANKLINE>
            | method | loss |
            | --- | --- |
            | equal | 1.5 |
        """
        lines = [self.header, ("---",) * len(self.header), *self.rows]
        table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return "\n\n".join(filter(None, (f"## {self.title}", table, self.note)))

    def html(self) -> str:
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in self.header)
        head = re.sub(r" ([↓↑])", r"&nbsp;\1", head)
        body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>\n" for row in self.rows)
        note = f'<p class="note">{html.escape(self.note)}</p>' if self.note else ""
        table = f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'
        return f"<h2>{html.escape(self.title)}</h2>\n{table}\n{note}"

    def print(self, console: Console) -> None:
        """The table in the terminal, and its note."""
        if self.terminal is None:
            return
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        colors = {"holds": "green", "fails": "red", "open": "yellow"}
        columns = [i for i, name in enumerate(self.header) if name in (self.terminal or self.header)]
        names = [self.header[i] for i in columns]
        table = RichTable(*names, title=self.title, title_justify="left", box=box.SIMPLE_HEAD)
        for row in self.rows:
            table.add_row(*(Text(row[i], style=colors.get(VERDICTS.get(row[i], ""), "")) for i in columns))
        console.print(table)
        console.print(Text(self.note if self.terminal_note is None else self.terminal_note, style="dim"))


@dataclass(frozen=True)
class Figure:
    """An image file and its caption."""

    path: Path
    caption: str

    def html(self) -> str:
        """The figure with its image inlined."""
        data = base64.b64encode(self.path.read_bytes()).decode()
        width, height = self._size()
        kind = "svg+xml" if self.path.suffix == ".svg" else "png"
        caption, size = html.escape(self.caption), f'width="{width}" height="{height}" style="--width: {width}px"'
        image = f'<div class="wide"><img alt="{caption}" {size} src="data:image/{kind};base64,{data}"></div>'
        return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"

    def _size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        if self.path.suffix == ".svg":
            found = re.search(r'<svg [^>]*?width="([\d.]+)pt"[^>]*? height="([\d.]+)pt"', self.path.read_text("utf-8"))
            assert found is not None
            width, height = (round(float(points) * PIXELS) for points in found.groups())
            return width, height
        from PIL import Image

        with Image.open(self.path) as image:
            return image.size


@dataclass(frozen=True)
class StudyReport:
    """A study's report, in reading order: the result in three lines and a figure, then all the rest."""

    title: str
    command: str
    lead: list[str]
    tables: list[Table]
    figures: list[Figure] = field(default_factory=list)
    """The first one leads the page."""
    settings: Table | None = None
    data: dict[str, Any] = field(default_factory=dict)
    """Files of JSON to write beside the report, by name."""
    summary: list[str] = field(default_factory=list)
    """What was compared, which method ends best, how the claims fared."""
    made: str = ""
    """When, in which time, by what code and where. Of the page alone: tables are the same wherever they are made."""

    def markdown(self) -> str:
        made = f"Made by `{self.command}`."
        summary = "\n".join(f"- {line}" for line in self.summary)
        tables = [table.markdown() for table in self._all_tables()]
        return "\n\n".join(filter(None, [f"# {self.title}", summary, *self.lead, made, *tables])) + "\n"

    def html(self) -> str:
        """One self-contained page: no script, font, file or network access."""
        title = html.escape(self.title)
        parts = [self._summary(), *(figure.html() for figure in self.figures[:1])]
        parts += [f"<p>{html.escape(paragraph)}</p>" for paragraph in self.lead]
        parts += [f"<p>Made by <code>{html.escape(self.command)}</code>. {html.escape(self.made)}</p>"]
        parts += [*(table.html() for table in self.tables), *(figure.html() for figure in self.figures[1:])]
        parts += [self.settings.html()] if self.settings else []
        view = '<meta name="viewport" content="width=device-width, initial-scale=1">'
        head = f'<meta charset="utf-8">{view}<title>{title}</title>'
        body = f"<main><h1>{title}</h1>\n" + "\n".join(parts) + "</main>"
        return f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head><body>{body}</body></html>\n'

    def _summary(self) -> str:
        lines = "\n".join(f"<li>{html.escape(line)}</li>" for line in self.summary)
        return f'<ul class="summary">\n{lines}</ul>' if lines else ""

    def write(self, folder: Path) -> None:
        """Write `table.md`, `report.html`, and the files of `data`."""
        (folder / "table.md").write_text(self.markdown(), encoding="utf-8")
        (folder / "report.html").write_text(self.html(), encoding="utf-8")
        for name, content in self.data.items():
            (folder / name).write_text(
                json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
            )

    def print(self, console: Console) -> None:
        """Print the tables, without the settings, and the summary below them."""
        from rich.text import Text

        for table in self.tables:
            table.print(console)
        for line in self.summary:
            console.print(Text(line, style="bold"))

    def _all_tables(self) -> list[Table]:
        return [*self.tables, *([self.settings] if self.settings else [])]


LONG = 24
"""Cells of more characters than these are prose and may be broken into lines, but not into single words."""


def _cell(text: str) -> str:
    style = VERDICTS.get(text) or ("long" if len(text) > LONG else "figures" if "±" in text else "")
    return f'<td class="{style}">{html.escape(text)}</td>' if style else f"<td>{html.escape(text)}</td>"
