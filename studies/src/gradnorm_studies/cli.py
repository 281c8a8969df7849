"""`gradnorm reproduce STUDY`: one command writes a folder with tables, figures and a report.

The options of a study are generated from the fields of its config: what each is, its default, and why; so `--help`
and the code cannot differ.
"""

from __future__ import annotations

import dataclasses
import inspect
import io
import signal
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

if TYPE_CHECKING:
    import typer

    from gradnorm_studies.engine.pool import OpenPool
    from gradnorm_studies.engine.settings import Config
    from gradnorm_studies.engine.study import Extra, Study

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


def main() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what another encoding has no sign for is no reason to stop
            stream.reconfigure(errors="replace")
    build()()


def build() -> typer.Typer:
    """The command line, with one command per study."""
    import typer

    from gradnorm_studies.cli_data import data_commands
    from gradnorm_studies.cli_plot import plot
    from gradnorm_studies.studies import STUDIES

    app = typer.Typer(
        name="gradnorm",
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},  # all commands take theirs from here
    )
    reproduce = typer.Typer(no_args_is_help=True, help="Run a study and write its folder; run again to resume.")
    app.add_typer(reproduce, name="reproduce")
    app.add_typer(data_commands(), name="data")
    app.command("plot", no_args_is_help=True)(plot)
    app.callback()(_about())
    for study in STUDIES.values():
        reproduce.command(study.name, help=study.summary)(_command(study))
    return app


def _about() -> Callable[..., None]:
    """What the command does without a subcommand: its help, or its version."""
    import typer

    def show(is_asked: bool) -> None:
        if is_asked:
            typer.echo(f"gradnorm {version('gradnorm-studies')}")
            raise typer.Exit

    flag = typer.Option("--version", callback=show, is_eager=True, help="Show the version of both packages and exit.")

    def about(version: bool = False) -> None:
        """GradNorm for PyTorch: the paper's experiments from one command."""

    about.__annotations__ = {"version": Annotated[bool, flag], "return": None}
    return about


def _command(study: type[Study[Any]]) -> Callable[..., None]:
    """A function whose signature is the fields of the study's config plus the options that all studies share."""

    def command(**options: Any) -> None:
        run_options = {name: options.pop(name) for name in ("out", "workers", "address", "search")}
        _run(study, _config(study, options), **run_options)

    parameters = [*_config_parameters(study), *_shared_parameters(study)]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _config(study: type[Study[Any]], options: dict[str, Any]) -> Any:
    """The study's config: the chosen preset, if there are any, with the given options replaced."""
    import typer

    base = study.default
    if study.presets:
        name = options[study.chooser]
        if name not in study.presets:
            raise typer.BadParameter(f"--{study.chooser} is {name!r}: choose one of {', '.join(study.presets)}.")
        base = study.presets[name]
    given = {option: value for option, value in options.items() if value is not None}
    return dataclasses.replace(base, **given)


def _config_parameters(study: type[Study[Any]]) -> list[inspect.Parameter]:
    import typer

    parameters = []
    for field in dataclasses.fields(study.default):
        default = getattr(study.default, field.name)
        kind = type(default)
        choices = "|".join(field.metadata["choices"])
        is_presets = bool(study.presets) and field.name != study.chooser
        option = typer.Option(
            help=f"{field.metadata['what']} {field.metadata['why']}",
            metavar=choices or kind.__name__,
            parser=_number(kind),
            show_default=_by_preset(study, field.name) if is_presets else True,
        )
        if is_presets:  # left out, a setting is the preset's
            parameters.append(_parameter(field.name, Annotated[kind | None, option], None))
        else:
            parameters.append(_parameter(field.name, Annotated[kind, option], default))
    return parameters


def _by_preset(study: type[Study[Any]], name: str) -> str:
    """The default of a setting; per preset where they differ."""
    values = {preset: str(getattr(config, name)) for preset, config in study.presets.items()}
    if len(set(values.values())) == 1:
        return next(iter(values.values())) or "none"
    return ", ".join(f"{preset}: {value}" for preset, value in values.items())


def _number(kind: type) -> Callable[[str], Any]:
    """A number parser whose error message quotes the input; typer's own does not."""
    import typer

    def parse(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            wanted = "a whole number" if kind is int else "a number"
            raise typer.BadParameter(f"found {text!r}: give {wanted}.") from None

    return parse


def _shared_parameters(study: type[Study[Any]]) -> list[inspect.Parameter]:
    import typer

    chosen = f"-{study.chooser.upper()}" if study.presets else ""
    out = typer.Option(help="Output folder; resumed if it exists.", show_default=f"runs/{study.name}{chosen}")
    workers = typer.Option(help="Worker processes (one thread each); 0 runs in-process.")
    address = typer.Option(help="Address of a Ray cluster: ray://HOST:PORT or auto; local starts one on this machine.")
    search = typer.Option("--search", help="Search each method's learning rate, on seeds that are never reported.")
    return [
        _parameter("out", Annotated[Path | None, out], None),
        _parameter("workers", Annotated[int, workers], 2),
        _parameter("address", Annotated[str, address], ""),
        _parameter("search", Annotated[bool, search], False),
    ]


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _run(kind: type[Study[Any]], config: Config, out: Path | None, workers: int, address: str, search: bool) -> None:
    import typer
    from rich.console import Console

    from gradnorm_studies.cli_errors import usage_errors
    from gradnorm_studies.engine.errors import Interrupted
    from gradnorm_studies.engine.executor import reproduce
    from gradnorm_studies.engine.settings import check
    from gradnorm_studies.sweeps.learning_rate import Search

    console, errors = Console(), Console(stderr=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with usage_errors():
            check(config)
            study = kind(config)
            _check_extra(f"The study {kind.name}", study.extra)
            study = Search(study) if search else study
            folder = out or Path("runs") / "-".join(filter(None, (study.name, getattr(config, kind.chooser, ""))))
            report = reproduce(study, folder, _pool(workers, address), console)
    except Interrupted:
        errors.print("Stopped; run the same command again to resume.", highlight=False)
        raise typer.Exit(INTERRUPTED) from None
    report.print(console)
    for name in ("report.html", "table.md", "metrics.csv", "figures"):
        console.print(f"{folder / name}", highlight=False, soft_wrap=True)


def _pool(workers: int, address: str) -> OpenPool:
    """Where the runs are trained.

    Raises:
        UsageError: A number of workers that cannot be, or Ray is not installed.
    """
    from gradnorm_studies.engine.errors import UsageError
    from gradnorm_studies.engine.pool import InProcess
    from gradnorm_studies.engine.processes import Processes
    from gradnorm_studies.engine.study import Extra

    if workers < 0:
        raise UsageError(f"--workers is {workers}: give a number at least 0.")
    if address:
        _check_extra("--address", Extra("ray", ("ray",)))
        from gradnorm_studies.engine.ray_executor import Cluster

        return partial(Cluster, address=address, workers=workers)
    return partial(Processes, workers=workers) if workers else InProcess


def _check_extra(who: str, extra: Extra | None) -> None:
    """Raise a `UsageError` if a package of an extra is not installed."""
    from gradnorm_studies.engine.errors import UsageError

    missing = [package for package in extra.packages if find_spec(package) is None] if extra else []
    if extra and missing:
        named = ", ".join(missing)
        raise UsageError(
            f'{who} needs packages that are not installed ({named}): pip install "gradnorm-studies[{extra.name}]"'
        )
