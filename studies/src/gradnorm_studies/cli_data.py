"""`gradnorm data`: look at a data set, check what is there of it, and prepare one small file from the official ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from gradnorm_studies.cli_errors import usage_errors

if TYPE_CHECKING:
    import typer

ROOT = "Folder of the official files, or a prepared file."
CHECK = "Only say what is there and what is missing."
OUT = "Write one small file of everything that a study reads."
NOTHING = "nothing to do: add --check to see what is there, or --out FILE to prepare it."


def data_commands() -> typer.Typer:
    """The commands of `gradnorm data`."""
    import typer

    app = typer.Typer(no_args_is_help=True, help="Check, prepare and show the data sets of the studies.")
    app.callback()(lambda: None)
    root, out = typer.Option(help=ROOT), typer.Option(None, help=OUT)
    check = typer.Option(False, "--check", help=CHECK)

    def nyuv2(root: Path = root, check: bool = check, out: Path | None = out) -> None:
        """NYU Depth V2, for `vision --data nyuv2`."""
        _nyuv2(root, check, out)

    def faces(root: Path = root, check: bool = check, out: Path | None = out) -> None:
        """MTFL, for `faces`."""
        _faces(root, check, out)

    path = typer.Option("rooms.png", help="Path of the PNG file.")
    count = typer.Option(16, help="Number of rooms.")
    seeded = typer.Option(0, help="Seed of the data set.")
    part = typer.Option("train", help="Split: train, validation or test.")
    furnished = typer.Option("full", help="What rooms are furnished with: full or sparse.")
    shown = typer.Option(False, "--show", help="Write a contact sheet.")

    def rooms(
        show: bool = shown,
        out: Path = path,
        n: int = count,
        seed: int = seeded,
        split: str = part,
        style: str = furnished,
    ) -> None:
        """Rooms rendered on the fly: images, and ground truth for every task."""
        if not show:
            raise typer.BadParameter("nothing to do: add --show to write a contact sheet.")
        typer.echo(_show_rooms(out, n, seed, split, style))

    for name, command in {"nyuv2": nyuv2, "faces": faces, "rooms": rooms}.items():
        app.command(name)(command)
    return app


def _nyuv2(root: Path, is_check: bool, out: Path | None) -> None:
    from gradnorm_studies.vision.data import nyuv2

    with usage_errors(out):
        if is_check:
            lines, is_usable = nyuv2.check(root)
            _table(nyuv2.HEADER, lines)
            _end(is_usable)
        _prepare(lambda path, advance: nyuv2.prepare(root, path, advance), out)


def _faces(root: Path, is_check: bool, out: Path | None) -> None:
    from gradnorm_studies.faces import data

    with usage_errors(out):
        if is_check:
            parts = data.check(root)
            _table(("part", "found", ""), [(p.name, p.found, "" if p.is_complete else "missing") for p in parts])
            _end(all(part.is_complete for part in parts))
        _prepare(lambda path, _: data.prepare(root, path), out)


def _prepare(prepare: Callable[[Path, Callable[[int, int], None]], Any], out: Path | None) -> None:
    """Write the file `out`, with a progress bar if the data set tells how far it is."""
    import typer
    from rich.console import Console
    from rich.progress import Progress

    if out is None:
        raise typer.BadParameter(NOTHING)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(str(out), total=None)
        prepare(out, lambda done, total: progress.update(bar, completed=done, total=total))
    typer.echo(out)


def _show_rooms(out: Path, n: int, seed: int, split: Any, style: str) -> Path:
    import typer

    from gradnorm import ArgumentError
    from gradnorm_studies.vision.data.preview import contact_sheet
    from gradnorm_studies.vision.data.rooms import Rooms

    try:
        with usage_errors(out):
            return contact_sheet(Rooms(split, n, seed, style=style), out)
    except ArgumentError as error:
        raise typer.BadParameter(str(error)) from None


def _end(is_usable: bool) -> NoReturn:
    import typer

    raise typer.Exit(0 if is_usable else 2)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for name in header:
        table.add_column(name, overflow="fold")  # addresses and file names are to be copied whole
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)
