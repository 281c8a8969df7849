"""The learning rates that `gradnorm reproduce STUDY --search` chose, on validation data and seeds of its own.

One file per study in `learning_rates`, written by that command: steps → problem → label → rate. A study of another
length takes the rates of the nearest length at which its problem was searched.
"""

from __future__ import annotations

import json
import math
from functools import cache
from importlib.resources import files


def chosen(study: str, steps: int, problem: str, label: str) -> float | None:
    """The rate of a method, by its label; `None` if it was never searched."""
    lengths = {int(length): rates[problem] for length, rates in _searched(study).items() if problem in rates}
    if not lengths:
        return None
    nearest = min(lengths, key=lambda length: abs(math.log(length / steps)))
    return lengths[nearest].get(label)


@cache
def _searched(study: str) -> dict[str, dict[str, dict[str, float]]]:
    file = files("gradnorm_studies") / "learning_rates" / f"{study}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
