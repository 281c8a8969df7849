"""The errors of this package; each is also the builtin that a caller would expect.

A message names the argument, says what was found, and ends in the remedy.
"""

from __future__ import annotations


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
