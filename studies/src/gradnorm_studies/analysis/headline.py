"""The first lines of a report: what was compared, which method ends best and by how much, how the claims fared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import get_args

import numpy as np

from gradnorm_studies.analysis.claims import RULES, Array, Finding, Verdict, paired, standard_error, verdict
from gradnorm_studies.analysis.metrics import Quantity

MOST_NAMED = 6
"""With more methods than these only their number is given."""
ORDER: tuple[Verdict, ...] = get_args(Verdict)
"""In which verdicts are counted."""


def compared(ends: Mapping[str, Mapping[str, Array]], steps: int, is_short: bool = False) -> str:
    """What was compared: methods, problems, seeds, steps.

    Args:
        ends: By problem and method, [seeds].
        steps: Steps per run.
        is_short: Whether the study's own runs have more.
    """
    methods = list(dict.fromkeys(method for found in ends.values() for method in found))
    seeds = max((len(values) for found in ends.values() for values in found.values()), default=0)
    named = f": {', '.join(methods)}" if len(methods) <= MOST_NAMED else ""
    size = f"{_count(seeds, 'seed')}, {steps:,} steps" + (" (fewer than the study's own)" if is_short else "")
    return f"Compared: {_count(len(methods), 'method')} on {_listed(ends)}, {size}{named}."


def best(where: str, ends: Mapping[str, Array], quantity: Quantity) -> str:
    """Which method ends best by the mean over seeds, ahead of the next and of equal weights by how much.

    Args:
        where: The problem, for the sentence.
        ends: By method, [seeds].
        quantity: What they are.

    Examples:
        >>> ends = {"equal": np.array([2.0, 2.1, 2.2]), "gradnorm": np.array([1.0, 1.2, 1.1])}
        >>> best("toy", ends, Quantity("error"))
        'On toy gradnorm ends best: error 1.1, ahead of equal by 1 ± 0.06.'
    """
    sign = 1 if quantity.largest else -1
    known = {name: values for name, values in ends.items() if np.isfinite(values).all()}
    order = sorted(known, key=lambda name: -sign * known[name].mean())
    if not order:
        return f"On {where} every method has a run that diverged."
    first, *others = order
    rivals = [*others[:1], *(["equal"] if "equal" in others[1:] else [])]
    margins = [
        _margin(name, sign * (known[first] - known[name])) for name in rivals if len(known[name]) == len(known[first])
    ]
    ahead = f", ahead of {' and of '.join(margins)}" if margins else ""
    return f"On {where} {first} ends best: {quantity.measured(known[first].mean())}{ahead}."


def losing(ends: Mapping[str, Mapping[str, Array]], quantity: Quantity) -> list[str]:
    """A sentence per update rule that was run: which methods end ahead of it, by their means.

    Args:
        ends: By problem and method, [seeds].
        quantity: What they are.
    """
    sentences = []
    for rule, method in RULES.items():
        places = [f"on {where} {_place(found, method, quantity)}" for where, found in ends.items() if method in found]
        if places:
            sentences.append(f"{rule} ends, by the mean of {quantity.name}, {'; '.join(places)}.")
    return sentences


def _place(ends: Mapping[str, Array], method: str, quantity: Quantity) -> str:
    if not np.isfinite(ends[method]).all():
        return "with a run that diverged"
    sign = 1 if quantity.largest else -1
    means = {name: sign * values.mean() for name, values in ends.items()}
    ahead = [name for name, mean in means.items() if mean > means[method]]
    return f"behind {', '.join(ahead)}" if ahead else "ahead of all other methods"


def verdicts(findings: Sequence[Finding]) -> str:
    """How many claims hold, and how many do not."""
    if not findings:
        return "Verdicts: none, as the methods that the claims are about were not run."
    counts = Counter(finding.verdict for finding in findings)
    parts = [f"{name} {counts[name]}" for name in ORDER if counts[name]]
    return f"Verdicts on {_count(len(findings), 'claim')}: {', '.join(parts)}."


def _margin(name: str, margins: Array) -> str:
    """The mean paired difference to a method, with its standard error, and a word where that is not enough."""
    if len(margins) == 1:
        return f"{name} by {margins[0]:.2g} (one seed)"
    clear = "" if verdict(margins) == "holds" else f" ({verdict(margins)})"
    return f"{name} by {paired(f'{margins.mean():.2g}', standard_error(margins))}{clear}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _listed(names: Iterable[str]) -> str:
    """Names as a list in a sentence; of many, their number."""
    *head, last = names
    return f"{len(head) + 1} problems" if len(head) > 3 else " and ".join(filter(None, (", ".join(head), last)))
