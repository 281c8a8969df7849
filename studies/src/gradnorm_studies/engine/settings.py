"""The settings of a study: fields of its config, each with its default, the reason for it, and its bounds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from gradnorm_studies.analysis.report import Table
from gradnorm_studies.engine.errors import UsageError
from gradnorm_studies.weightings import METHODS, STATIC


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


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings that every study has; subclasses give each its own default and reason."""

    seeds: int = setting(3, "The fewest that show a spread.", least=1)
    steps: int = setting(1000, "Training steps per run.", least=1)
    record_every: int = setting(25, "Steps between two evaluations.", least=1)


@dataclasses.dataclass(frozen=True)
class TrainingConfig(Config):
    """The settings of studies that compare methods; those of sweeps are their base study's."""

    methods: str = setting(",".join(METHODS), "A comma-separated subset.")
    alpha: float = setting(0.12, "GradNorm's α, for both updates.", least=0)
    weight_lr: float = setting(
        0.025, "The paper's, §5, with Adam; of GradNorm's weights and of uncertainty weighting's.", above=0
    )
    lr: float = setting(0.0, "The networks' learning rate; 0: for each method the one that --search found.", least=0)


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


def parse_methods(config: Config) -> list[str]:
    """The methods of `config.methods`, in the order of `METHODS`.

    Raises:
        UsageError: It names one that there is not, or static weights without their source.
    """
    named = [name.strip() for name in getattr(config, "methods", "").split(",")]
    unknown = [name for name in named if name not in METHODS]
    if unknown:
        raise UsageError(f"--methods names {unknown[0]!r}: choose from {', '.join(METHODS)}.")
    for method in STATIC.keys() & set(named):
        if STATIC[method] not in named:
            raise UsageError(f"--methods has {method}, whose weights are {STATIC[method]}'s averages: add it.")
    return [name for name in METHODS if name in named]
