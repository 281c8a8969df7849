"""Many copies of one small network, trained side by side as one: same start, same batches, fixed weights of their own.

`torch.func` stacks the parameters of N copies and computes the losses of all in one pass, [N, T]. The sum over networks
of `Σ_i w_i L_i` has each network's own gradient, and an optimizer that works element by element, as Adam does, gives
each network its own step. To the loop that trains it, a stack is one experiment with N·T tasks; what belongs to network
k is called `NAME@k`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from gradnorm.study.methods import Fixed, Weighting
from gradnorm.study.run import Experiment, UsageError


class Stack:
    """N runs of one experiment that differ in their fixed weights alone; itself an `Experiment`.

    Args:
        single: One of the runs, just built; its own weighting is left unused, its optimizer trains the stack.
        weights: Those of all networks, one network after the other, [N·T].

    Raises:
        UsageError: If the network keeps statistics, or its data depend on what it did: such runs cannot share a pass.
    """

    def __init__(self, single: Experiment, weights: Sequence[float]) -> None:
        if hasattr(single, "world") or any(True for _ in single.model.buffers()):
            raise UsageError("--together: networks that keep statistics or change their data train alone; give 1.")
        self._n = len(weights) // len(single.tasks)
        self._single = _Callable(single)
        self._names = [name for name, _ in self._single.named_parameters()]
        self.tasks = tuple(f"{task}@{k}" for k in range(self._n) for task in single.tasks)
        stacked = [p.detach().expand(self._n, *p.shape).clone() for p in self._single.parameters()]
        self.model: nn.Module = nn.ParameterList(stacked)
        self.weighting: Weighting = Fixed(torch.tensor(weights))
        self.optimizer = single.optimizer
        (group,) = self.optimizer.param_groups
        group["params"] = list(self.model.parameters())

    def losses(self, step: int) -> Tensor:
        """The losses of all networks on this step's batch, [N·T]."""

        def losses(*parameters: Any) -> Tensor:
            return self._with(parameters, "losses", step)

        return vmap(losses, randomness="same")(*self.model.parameters()).flatten()

    def evaluate(self) -> dict[str, float]:
        """The test metrics of each network."""
        metrics = {}
        for k in range(self._n):
            own = self._with([parameter[k] for parameter in self.model.parameters()], "evaluate")
            metrics |= {f"{name}@{k}": value for name, value in own.items()}
        return metrics

    def _with(self, parameters: Sequence[Tensor], method: str, *arguments: Any) -> Any:
        """What a method of the single experiment says where its network has these parameters."""
        return functional_call(self._single, dict(zip(self._names, parameters, strict=True)), (method, *arguments))


class _Callable(nn.Module):
    """An experiment as a module, so that `functional_call` can lend its network other parameters."""

    def __init__(self, experiment: Experiment) -> None:
        super().__init__()
        self.network = experiment.model
        self._experiment = experiment

    def forward(self, method: str, *arguments: Any) -> Any:
        """Calls the method."""
        return getattr(self._experiment, method)(*arguments)
