"""The errors of this package; each is also the builtin that a caller would expect.

A message names the argument, says what was found, and ends in the remedy.
"""

from __future__ import annotations

import sys
import warnings

_NOT_THE_USERS = {"gradnorm", "torch", "accelerate", "lightning", "pytorch_lightning", "transformers"}
"""Packages whose lines are not where a user would look."""


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
    """Warn at the user's line: the innermost one that is neither ours, PyTorch's nor a trainer's.

    Without a registry of that line, in which Python would note that it has warned there and drop the same message of
    the next balancer: once per cause is for each balancer to see to. Filters apply as ever.
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
