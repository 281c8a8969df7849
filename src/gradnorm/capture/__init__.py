"""Per-task gradients at `W`, out of one ordinary backward. Knows the graph, and nothing of the rule.

- `_graph.py`: where in the graph the tasks meet;
- `_measure.py`: hooks there, which take each task's gradient on to `W`;
- `_shared.py`: which tensors `W` is.
"""

from ._graph import Graph
from ._measure import At, Pass, Tally, measure
from ._shared import Held, last_shared, resolve_shared

__all__ = ["At", "Graph", "Held", "Pass", "Tally", "last_shared", "measure", "resolve_shared"]
