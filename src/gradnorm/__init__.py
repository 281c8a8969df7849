"""GradNorm (Chen et al., ICML 2018): loss weights learned during training, out of one ordinary backward.

`GradNorm` is the object to hold; `functional` has the paper's equations, one function each.
"""

from . import functional
from ._errors import ArgumentError, GradNormError, GraphError, StateError
from .balancer import GradNorm
from .history import History

__all__ = ["ArgumentError", "GradNorm", "GradNormError", "GraphError", "History", "StateError", "functional"]
__version__ = "0.1.0"
