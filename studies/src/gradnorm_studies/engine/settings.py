"""The settings of a study: fields of its config, each with its default, the reason for it, and its bounds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from gradnorm_studies.analysis.report import Table
from gradnorm_studies.engine.study import UsageError


def setting(
    default: Any,
    reason: str,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    choices: Sequence[str] = (),
) -> Any:
    """A field of a config: its default, the reason for it (shown by `--help`), and its valid values."""
    bounds = {"reason": reason, "least": least, "above": above, "below": below, "choices": choices}
    return dataclasses.field(default=default, metadata=bounds)


def check(config: Any) -> None:
    """Raise a `UsageError` for the first setting that is out of bounds."""
    for f in dataclasses.fields(config):
        value, option = getattr(config, f.name), f"--{f.name.replace('_', '-')}"
        if isinstance(value, str):
            if f.metadata["choices"] and value not in f.metadata["choices"]:
                raise UsageError(f"{option} is {value!r}: choose one of {', '.join(f.metadata['choices'])}.")
            continue
        least, above, below = (f.metadata[k] for k in ("least", "above", "below"))
        if not (value >= least and above < value < below):
            wanted = {"at least": least, "above": above, "below": below}
            bounds = " and ".join(f"{word} {bound:g}" for word, bound in wanted.items() if math.isfinite(bound))
            raise UsageError(f"{option} is {value}: give a number {bounds}.")


def command_line(name: str, config: Any, base: Any = None) -> str:
    """The command that reproduces a study: its name, and each setting that differs from `base`, or from the default."""
    base = base or type(config)()
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    changed = {name: value for name, value in values.items() if value != getattr(base, name)}
    return " ".join(["gradnorm reproduce", name, *(f"--{n.replace('_', '-')} {value}" for n, value in changed.items())])


def config_table(config: Any) -> Table:
    """The settings and their reasons, for the end of a report."""
    fields = dataclasses.fields(config)
    rows = [(f.name, str(getattr(config, f.name)), f.metadata["reason"]) for f in fields]
    return Table("How it was done", ("setting", "value", "why"), rows)
