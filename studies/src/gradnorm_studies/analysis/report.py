"""A study's report, rendered as Markdown, as one self-contained HTML page, and in the terminal."""

from __future__ import annotations

import base64
import html
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #fbfaf8; color: #22252a;
  font: 17px/1.6 "Iowan Old Style", "Palatino Linotype", Palatino, "Noto Serif", Georgia, serif; }
main { max-width: 50rem; margin: 0 auto; padding: 4rem 1.5rem 6rem; }
h1 { font-size: 2.1rem; line-height: 1.2; margin: 0 0 1.2rem; letter-spacing: -0.01em; }
h2 { font-size: 1.25rem; margin: 3rem 0 0.8rem; }
p { margin: 0 0 1rem; }
code { font: 0.82em ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  background: #efece6; padding: 0.1em 0.35em; border-radius: 3px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font: 0.82rem/1.45 system-ui, "Segoe UI", "DejaVu Sans", sans-serif;
  font-variant-numeric: tabular-nums; border-top: 2px solid #22252a; border-bottom: 2px solid #22252a; }
th { text-align: left; font-weight: 600; border-bottom: 1px solid #22252a; }
th, td { padding: 0.45rem 0.8rem 0.45rem 0; vertical-align: top; }
tr + tr td { border-top: 1px solid #e4e0d8; }
.note { color: #666a72; font-size: 0.85rem; margin-top: 0.6rem; }
.holds { color: #00664c; font-weight: 600; } .fails { color: #a03c00; font-weight: 600; }
.open { color: #7a5a00; font-weight: 600; }
.holds, .fails, .open { white-space: nowrap; }
figure { margin: 2.2rem 0; } figure img { width: 100%; height: auto; display: block; background: #fff; }
figcaption { color: #666a72; font-size: 0.88rem; margin-top: 0.6rem; }
"""

VERDICTS = {"holds": "holds", "does not hold": "fails", "undecided": "open", "not enough to say": "open"}
"""CSS class by verdict; the word itself is always shown, so color is redundant."""


@dataclass(frozen=True)
class Table:
    """A table of text."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""
    terminal: tuple[str, ...] | None = ()
    """The columns shown in a terminal. Default: all. `None`: the table is not shown there."""

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

        colors = {"holds": "green", "does not hold": "red", "undecided": "yellow", "not enough to say": "yellow"}
        columns = [i for i, name in enumerate(self.header) if name in (self.terminal or self.header)]
        names = [self.header[i] for i in columns]
        table = RichTable(*names, title=self.title, title_justify="left", box=box.SIMPLE_HEAD)
        for row in self.rows:
            table.add_row(*(Text(row[i], style=colors.get(row[i], "")) for i in columns))
        console.print(table)
        console.print(Text(self.note, style="dim"))


@dataclass(frozen=True)
class Figure:
    """An image file and its caption."""

    path: Path
    caption: str

    def html(self) -> str:
        """The figure with its image inlined."""
        data = base64.b64encode(self.path.read_bytes()).decode()
        caption = html.escape(self.caption)
        image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
        return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


@dataclass(frozen=True)
class StudyReport:
    """A study's report, in reading order: questions, results, figures, settings."""

    title: str
    command: str
    lead: list[str]
    tables: list[Table]
    figures: list[Figure] = field(default_factory=list)
    settings: Table | None = None
    data: dict[str, Any] = field(default_factory=dict)
    """Files of JSON to write beside the report, by name."""

    def markdown(self) -> str:
        made = f"Made by `{self.command}`."
        tables = [table.markdown() for table in self._all_tables()]
        return "\n\n".join([f"# {self.title}", *self.lead, made, *tables]) + "\n"

    def html(self) -> str:
        """One self-contained page: no script, font, file or network access."""
        title = html.escape(self.title)
        lead = "\n".join(f"<p>{html.escape(paragraph)}</p>" for paragraph in self.lead)
        made = f"<p>Made by <code>{html.escape(self.command)}</code>.</p>"
        parts = [lead, made, *(t.html() for t in self.tables), *(f.html() for f in self.figures)]
        parts += [self.settings.html()] if self.settings else []
        head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
        body = f"<main><h1>{title}</h1>\n" + "\n".join(parts) + "</main>"
        return f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head><body>{body}</body></html>\n'

    def write(self, folder: Path) -> None:
        """Write `table.md`, `report.html`, and the files of `data`."""
        (folder / "table.md").write_text(self.markdown(), encoding="utf-8")
        (folder / "report.html").write_text(self.html(), encoding="utf-8")
        for name, content in self.data.items():
            (folder / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def print(self, console: Console) -> None:
        """Print the tables, without the settings."""
        for table in self.tables:
            table.print(console)

    def _all_tables(self) -> list[Table]:
        return [*self.tables, *([self.settings] if self.settings else [])]


def _cell(text: str) -> str:
    style = f' class="{VERDICTS[text]}"' if text in VERDICTS else ""
    return f"<td{style}>{html.escape(text)}</td>"
