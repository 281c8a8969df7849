"""How every command ends that cannot do what was asked: one sentence and exit code 2, never a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path


@contextmanager
def usage_errors(out: Path | None = None) -> Iterator[None]:
    """Ends the command with a usage error's message, and exit code 2; a file `out` that cannot be written is one."""
    import typer
    from rich.console import Console

    from gradnorm_studies.engine.errors import UsageError
    from gradnorm_studies.engine.results import writing

    try:
        with writing(out) if out else nullcontext():
            yield
    except UsageError as error:
        Console(stderr=True).print(f"Error: {error}", style="red", highlight=False, markup=False)
        raise typer.Exit(2) from None
