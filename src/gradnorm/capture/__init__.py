"""Per-task gradients at `W`, measured inside one ordinary backward. Knows the graph, and nothing of the rule.

- `_graph.py`: where in the graph the tasks meet; `_collectors.py`: nodes that only collect;
- `_shared.py`: which parameters `W` is; `_layers.py`: which of a graph's layers come last;
- `_measurement.py`: what was measured since the last step, and which backwards belong to it;
- `_backward_pass.py`: hooks that collect each task's gradient; `_hooks.py`: which take it to `W` (`_products.py`), or
  measure it at the features; `_rows.py`: what is kept of it;
- `_operations.py`, `_self_check.py`: functions that are not torch's own, and whether the measurement disturbs them;
- `_branches.py`: the same at features that the network forks itself, without hooks, for compiled graphs;
- `_first_look.py`: what the first backward finds out before anything runs in it.
"""

from ._branches import AtBranches
from ._graph import AutogradGraph
from ._hooks import AtFeatures, AtLayer
from ._measurement import At, Measurement, Opening, Sums, Wanted, Window
from ._products import refusal
from ._shared import (
    DetectedLayer,
    NamedLayer,
    SharedLayer,
    SharedParameter,
    entry_count,
    flat,
    heads_among,
    resolve_shared,
)

__all__ = [
    "At",
    "AtBranches",
    "AtFeatures",
    "AtLayer",
    "AutogradGraph",
    "DetectedLayer",
    "Measurement",
    "NamedLayer",
    "Opening",
    "SharedLayer",
    "SharedParameter",
    "Sums",
    "Wanted",
    "Window",
    "entry_count",
    "flat",
    "heads_among",
    "refusal",
    "resolve_shared",
]
