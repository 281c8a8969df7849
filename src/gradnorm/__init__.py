"""GradNorm (Chen et al., ICML 2018): loss weights learned during training, out of one ordinary backward.

`GradNorm` is the balancer; `diagnose` analyzes one batch before training; `monitor` measures and balances nothing;
`live` shows the weights while they are learned; `functional` has the paper's equations, one function each.
"""

from . import functional
from ._advice import Report
from ._balancer import GradNorm
from ._diagnosis import Diagnosis, diagnose
from ._errors import ArgumentError, GradNormError, GraphError, StateError
from ._history import History, StepRecord
from ._live import live
from ._monitor import Monitor, monitor
from ._updates import ClosedForm, Descent

__all__ = [
    "ArgumentError",
    "ClosedForm",
    "Descent",
    "Diagnosis",
    "GradNorm",
    "GradNormError",
    "GraphError",
    "History",
    "Monitor",
    "Report",
    "StateError",
    "StepRecord",
    "diagnose",
    "functional",
    "live",
    "monitor",
]
__version__ = "0.1.0"
