"""`gradnorm plot FILE`: draws the history that a balancer saved during training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gradnorm_studies.cli_errors import usage_errors

FORMATS = (".png", ".svg", ".pdf")


def plot(
    file: Annotated[Path, typer.Argument(help="What History.save wrote: a .csv, .jsonl or .parquet file.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Path of the picture: .png, .svg or .pdf.", show_default="FILE with the suffix .png"),
    ] = None,
) -> None:
    """Draw a saved history: weights, gradient norms, losses and training rates over the steps."""
    if not file.is_file():
        raise typer.BadParameter(f"{file} is no file: give what History.save wrote.")
    path = out or file.with_suffix(FORMATS[0])
    if path.suffix not in FORMATS:
        raise typer.BadParameter(f"--out is {path}: give a path that ends in {', '.join(FORMATS)}.")
    typer.echo(_draw(file, path))


def _draw(file: Path, path: Path) -> Path:
    from gradnorm import ArgumentError, History, plots

    try:
        history = History.load(file)
    except (ArgumentError, ImportError) as error:
        raise typer.BadParameter(str(error)) from None
    if not len(history):
        raise typer.BadParameter(f"{file} holds no step: there is nothing to draw.")
    with usage_errors(path):
        plots.training(history, path=path)
    return path
