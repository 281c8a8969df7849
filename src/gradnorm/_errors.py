"""The errors of this package; each is also the builtin that a caller would expect.

A message names the argument, says what was found, and ends in the remedy.
"""

from __future__ import annotations

import os
import sys
import warnings

import torch

_NOT_THE_USERS = (os.path.dirname(__file__), os.path.dirname(torch.__file__))


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
    """Warn at the line of whoever uses this package: the innermost one that is neither ours nor PyTorch's own."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_NOT_THE_USERS):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, RuntimeWarning, stacklevel=level)
