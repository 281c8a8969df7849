"""The errors of this package; each is also a subclass of the matching builtin.

A message names the argument, states what was found, and ends with the remedy.
"""

from __future__ import annotations

import sys
import warnings

_NOT_THE_USERS = {"gradnorm", "torch", "accelerate", "lightning", "pytorch_lightning", "transformers"}
"""Packages whose frames are skipped when a warning is located."""

NOT_POSITIVE = ", or its loss not positive. Losses that may be zero or negative need alpha=0"
"""A cause of skipped updates where α > 0."""


class GradNormError(Exception):
    """Base of all errors that `gradnorm` raises on purpose."""


class ArgumentError(GradNormError, ValueError):
    """An argument has a value that cannot be used."""


class GraphError(GradNormError, RuntimeError):
    """The graph of the losses does not allow the measurement: no graph, no path to `W`, or a forbidden node in it."""


class StateError(GradNormError, RuntimeError):
    """A call came at the wrong time, or a saved state does not belong to this balancer."""


def missing_extra(package: str, extra: str) -> ImportError:
    """The error for an optional `package` that is not installed, naming the exact command.

    Examples:
        >>> print(missing_extra("pyarrow", "parquet"))
        'pyarrow' is needed here and not installed: pip install "gradnorm[parquet]"
    """
    return ImportError(f"'{package}' is needed here and not installed: pip install \"gradnorm[{extra}]\"")


def warn(message: str) -> None:
    """Warn at the user's line: the innermost one outside this package, PyTorch and trainers.

    The warning registry of that line is not used: with it Python would suppress the same message of the next balancer.
    Each balancer itself warns once per cause. Filters apply as usual.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and _package(frame.f_globals) in _NOT_THE_USERS:
        frame = frame.f_back
    warnings.warn_explicit(
        message,
        RuntimeWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        module=frame.f_globals.get("__name__"),
    )


def _package(names: dict[str, object]) -> str:
    return str(names.get("__name__")).partition(".")[0]
