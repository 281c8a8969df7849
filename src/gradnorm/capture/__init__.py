"""Per-task gradients at `W`, out of one ordinary backward. Knows the graph, and nothing of the rule.

- `_graph.py`: where in the graph the tasks meet;
- `_measure.py`: hooks there, which take each task's gradient on to `W`;
- `_probe.py`: the same at features that the network forks itself, without hooks, for compiled graphs;
- `_shared.py`: which tensors `W` is.
"""

from ._graph import Graph
from ._measure import At, Pass, Tally, measure
from ._probe import Fork, Probe, Weigh
from ._shared import Held, last_shared, resolve_shared, shared_layers, whole

__all__ = [
    "At",
    "Fork",
    "Graph",
    "Held",
    "Pass",
    "Probe",
    "Tally",
    "Weigh",
    "last_shared",
    "measure",
    "resolve_shared",
    "shared_layers",
    "whole",
]
