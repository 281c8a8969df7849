"""Per-task gradients at `W`, measured inside one ordinary backward. Independent of the rule.

- `_graph.py`: where in the graph the tasks meet; `_collectors.py`: nodes that only collect tensors;
- `_shared.py`: the parameters of `W`; `_named.py`: those that the user names; `_detected.py`: those that a graph shows;
- `_layers.py`: which layers of a graph come last; `_penalties.py`: what reads layers but applies none;
- `_measurement.py`: the measurements since the last step, and which backwards belong to it;
- `_backward_pass.py`: hooks that collect each task's gradient; `_hooks.py`: the measurement at `W` (`_products.py`) or
  at the features; `_by_loss.py`: where a backward of each loss is cheaper; `_rows.py`: storage of the gradients or
  their norms;
- `_operations.py`, `_self_check.py`: functions that are not torch's own, and the check that measuring does not affect
  them;
- `_branches.py`: the measurement at features that the network forks, without hooks, for compiled graphs;
- `_first_look.py`: the decisions of the first backward, before anything else runs in it.
"""

from ._branches import AtBranches
from ._detected import DetectedLayer, heads_among, without_gradient
from ._graph import AutogradGraph
from ._hooks import AtFeatures, AtLayer
from ._measurement import At, Measurement, Opening, Sums, Wanted, Window
from ._named import NamedLayer, resolve_shared
from ._products import refusal
from ._shared import SharedLayer, SharedParameter, entry_count, flat, sample

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
    "sample",
    "without_gradient",
]
