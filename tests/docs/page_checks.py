"""Runs beside the blocks of a page: ends what each prints with a mark, and looks at the balancers that it made."""

import functools
import warnings

import gradnorm

MARK = "=== end of block ==="
LEAST = 2e-4
"""Twice `Descent(min_weight=)` as it is by default."""

made = []


def watch():
    """Keep every balancer that is made from now on; a network that diverges is an error."""
    warnings.filterwarnings("error", ".*gradient norm is not finite")
    original = gradnorm.GradNorm.__init__

    @functools.wraps(original)
    def init(self, *args, **kwargs):
        original(self, *args, **kwargs)
        made.append(self)

    gradnorm.GradNorm.__init__ = init


def end_of_block():
    print(f"\n{MARK}", flush=True)


def end_of_page():
    for balancer in made:
        if balancer.optimizer is not None and not balancer.weights.is_meta:
            assert balancer.weights.min() > LEAST, f"a weight is at the floor:\n{balancer}"
