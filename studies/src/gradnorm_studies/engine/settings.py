"""The settings of a study: fields of its config, each with what it is, its default, the reason for it, and bounds."""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradnorm_studies.analysis.report import Table
from gradnorm_studies.engine.errors import UsageError
from gradnorm_studies.weightings import METHODS, STATIC

ALPHA = "Strength α of GradNorm's restoring force, for both updates."
BATCH = "Batch size."
METHODS_SUBSET = "Comma-separated methods to run."
RECORD_EVERY = "Steps between two evaluations."
STEPS = "Training steps per run."
WEIGHT_LR = "Learning rate of GradNorm's weights and of uncertainty weighting's, with Adam."
"""What a setting is that several studies have, each with its own default."""


CHUNK = 1 << 24
"""Bytes of a file that are read at once."""


def setting(
    default: Any,
    what: str,
    why: str,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    choices: Sequence[str] = (),
    is_place: bool = False,
) -> Any:
    """A field of a config.

    Args:
        default: The default.
        what: What the setting is, a noun phrase; `--help` shows it first.
        why: The reason for the default; shown after it.
        least: The smallest valid number.
        above: Valid numbers are above this.
        most: The largest valid number.
        choices: The valid texts.
        is_place: Whether it is where data lie, of which reports show the last part alone.
    """
    facts = {"what": what, "why": why, "least": least, "above": above, "most": most, "choices": choices}
    facts["is_place"] = is_place
    return dataclasses.field(default=default, metadata=facts)


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings that every study has; subclasses give each its own default and reason."""

    seeds: int = setting(3, "Number of seeds.", "The fewest that show a spread.", least=1)
    steps: int = setting(1000, STEPS, "Enough for a smoke run.", least=1)
    record_every: int = setting(25, RECORD_EVERY, "40 points per curve.", least=1)


@dataclasses.dataclass(frozen=True)
class TrainingConfig(Config):
    """The settings of studies that compare methods; those of sweeps are their base study's."""

    methods: str = setting(",".join(METHODS), METHODS_SUBSET, "All methods.")
    alpha: float = setting(0.12, ALPHA, "The library's default.", least=0)
    weight_lr: float = setting(0.025, WEIGHT_LR, "The paper's, §5.", above=0)
    lr: float = setting(
        0.0,
        "The networks' learning rate; 0: for each method the one that --search found.",
        "One rate for all would favor the methods that it happens to suit.",
        least=0,
    )


def check(config: Any) -> None:
    """Raise a `UsageError` for the first setting that is out of bounds."""
    for f in dataclasses.fields(config):
        value, option = getattr(config, f.name), f"--{f.name.replace('_', '-')}"
        if isinstance(value, str):
            if f.metadata["choices"] and value not in f.metadata["choices"]:
                raise UsageError(f"{option} is {value!r}: choose one of {', '.join(f.metadata['choices'])}.")
            continue
        least, above, most = (f.metadata[k] for k in ("least", "above", "most"))
        if not (least <= value <= most and value > above):
            wanted = {"at least": least, "above": above, "at most": most}
            bounds = " and ".join(f"{word} {bound:g}" for word, bound in wanted.items() if math.isfinite(bound))
            raise UsageError(f"{option} is {value}: give a number {bounds}.")


def recorded(config: Any) -> dict[str, Any]:
    """The settings that decide what runs compute: of places what is there, so that files may move, but not change."""
    values = {f: getattr(config, f.name) for f in dataclasses.fields(config)}
    return {
        f.name: fingerprint(Path(value)) if f.metadata["is_place"] and value else value for f, value in values.items()
    }


def fingerprint(path: Path) -> str:
    """What tells the data at a place from others: a file's size and checksum, a folder's number of files and size."""
    if not path.exists():
        return "nothing"
    if path.is_dir():
        sizes = [file.stat().st_size for file in path.rglob("*") if file.is_file()]
        return f"{len(sizes):,} files, {sum(sizes):,} bytes"
    checksum = 0
    with path.open("rb") as stream:
        while part := stream.read(CHUNK):
            checksum = zlib.crc32(part, checksum)
    return f"{path.stat().st_size:,} bytes, crc32 {checksum:08x}"


def shown(config: Any) -> dict[str, str]:
    """The settings as a report shows them."""
    values = {f: getattr(config, f.name) for f in dataclasses.fields(config)}
    return {f.name: Path(value).name if f.metadata["is_place"] else str(value) for f, value in values.items()}


def command_line(name: str, config: Any, base: Any = None) -> str:
    """The command that reproduces a study: its name, and each setting that differs from `base`, or from the default."""
    usual = shown(base or type(config)())
    changed = {name: value for name, value in shown(config).items() if value != usual[name]}
    return " ".join(["gradnorm reproduce", name, *(f"--{n.replace('_', '-')} {value}" for n, value in changed.items())])


def config_table(config: Any) -> Table:
    """The settings, what they are and the reasons for their defaults, for the end of a report."""
    values = shown(config)
    rows = [(f.name, values[f.name], f.metadata["what"], f.metadata["why"]) for f in dataclasses.fields(config)]
    return Table("How it was done", ("setting", "value", "what", "why"), rows)


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
