"""`GradNorm`, the object users hold: a balanced loss is just a loss.

`balancer(losses)` returns `Σ w_i L_i` and arranges for its backward to measure each task's gradient norm (`capture/`);
`step()` turns those norms into the next weights by Algorithm 1 (`functional.py`). This file wires the two.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from . import functional as rule
from ._arguments import (
    check_graphs,
    parse_count,
    parse_losses,
    parse_number,
    parse_per_task,
    parse_tasks,
    refuse_transforms,
)
from ._errors import ArgumentError, StateError
from ._numerics import at_least_float32, cosines, row_norms
from ._optimizer import WeightOptimizer
from ._types import Losses, OptimizerFactory, PerTask, Shared, Sums
from .capture import At, Fork, Graph, Held, Pass, Probe, Tally, Weigh, last_shared, measure, resolve_shared
from .diagnose import describe
from .distributed import Reduce, data_parallel, reduce_sums
from .history import FIELDS, PAIRWISE_TASKS, History

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_log = logging.getLogger("gradnorm")


class Figures(NamedTuple):
    """What the last measured step found: step, [T, 5] values of the `FIELDS`, and [T, T] cosines."""

    step: int
    values: Tensor
    cosines: Tensor | None


class GradNorm(nn.Module):
    """Loss weights learned during training, by GradNorm (Chen et al., ICML 2018, Algorithm 1).

    Args:
        tasks: Names, or how many.
        shared: `W`, where gradients are compared: a parameter, a module, an iterable of parameters, or with `model` a
            pattern of parameter names. Left out, the last shared layer's weight, found in the first graph.
        model: The network whose parameter names `shared` means.
        alpha: α ≥ 0, how strongly lagging tasks are helped. 0 makes all gradient norms equal.
        lr: Learning rate of the weights.
        optimizer: Makes their optimiser, `optimizer([weights], lr=lr)`.
        initial_losses: `L_i(0)`. Left out, the losses of the first step; a number n, the mean of the first n steps
            (weights stay until then); or one number a task, such as `{"segmentation": math.log(13)}`.
        min_weight: Weights stay at or above this before they are rescaled; the paper has no bound.
        every: Measure and update each this many steps.
        priorities: `p_i`, making the targets `p_i Ḡ r_i^α`; not in the paper.
        at: "weights" compares gradients at `W`, as in the paper; "features" where the tasks meet before `W`, which is
            cheaper and not the paper's rule; "branches" at the features that the network hands to `branch`, which
            costs as little and works inside a network that is compiled as a whole.
        reduce: Where `torch.distributed` runs, what `step()` adds up over the processes, in one collective.
            "gradients": the tasks' gradients at `W`, which is exact; "norms": their norms, T numbers, which is not;
            `None`: nothing, each process is on its own.
        process_group: The processes that share the batch; left out, all of them.
        history: How many steps `history` keeps.

    Attributes:
        weights: [T], `w_i`, sum T. A buffer: no optimizer, decay or clipping of the model can touch it.
        history: The last steps' losses, weights, norms, targets, rates and cosines.

    Raises:
        ArgumentError: For each argument that cannot be used; it is a `ValueError`.

    Examples:
        >>> import torch
        >>> trunk, heads = torch.nn.Linear(8, 4), torch.nn.ModuleList(torch.nn.Linear(4, 1) for _ in range(2))
        >>> optimizer = torch.optim.Adam([*trunk.parameters(), *heads.parameters()])
        >>> balancer = GradNorm(["near", "far"], shared=trunk.weight, alpha=1.5)
        >>> x = torch.randn(16, 8)
        >>> for _ in range(3):
        ...     features = trunk(x).relu()
        ...     losses = {
        ...         "near": heads[0](features).square().mean(),
        ...         "far": 100 * (heads[1](features) - 1).square().mean(),
        ...     }
        ...     loss = balancer(losses)
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step()
        ...     balancer.step()
        >>> bool(balancer.weights[0] > balancer.weights[1]), round(balancer.weights.sum().item(), 4)
        (True, 2.0)
    """

    weights: Tensor
    _initial_sums: Tensor
    _initial_counts: Tensor
    _weight_sums: Tensor
    _skips: Tensor
    _step_count: Tensor
    _is_frozen: Tensor
    _names: Tensor
    _priorities: Tensor | None

    def __init__(
        self,
        tasks: int | Iterable[str],
        *,
        shared: Shared | None = None,
        model: nn.Module | None = None,
        alpha: float = 1.5,
        lr: float = 0.025,
        optimizer: OptimizerFactory = torch.optim.Adam,
        initial_losses: int | PerTask | None = None,
        min_weight: float = 1e-4,
        every: int = 1,
        priorities: PerTask | None = None,
        at: At = "weights",
        reduce: Reduce | None = "gradients",
        process_group: ProcessGroup | None = None,
        history: int = 1000,
    ) -> None:
        super().__init__()
        self.tasks = parse_tasks(tasks)
        self.alpha = parse_number("alpha", alpha, low=0.0)
        lr = parse_number("lr", lr, low=0.0, open_low=True, high=1e6)
        self.min_weight = parse_number("min_weight", min_weight, low=0.0, open_low=True, high=1.0)
        self.every = parse_count("every", every, low=1)
        if at not in ("weights", "features", "branches"):
            raise ArgumentError(f'at must be "weights", "features" or "branches", got {at!r}')
        if at == "branches" and shared is not None:
            raise ArgumentError('shared names W, but at="branches" measures where branch() is called; leave one out')
        self.at: At = at
        if reduce not in ("gradients", "norms", None):
            raise ArgumentError(f'reduce must be "gradients", "norms" or None, got {reduce!r}')
        self.reduce: Reduce | None = reduce
        self.process_group = process_group
        self.history = History(self.tasks, parse_count("history", history, low=0))
        # Not as attributes of their own, or nn.Module would take the network's parameters for the balancer's.
        self._shared: tuple[Held, ...] | None = None if shared is None else resolve_shared(shared, model)
        self._attached: list[Tensor] | None = None
        self._sees_clearing = not data_parallel(process_group)

        count = len(self.tasks)
        p = None if priorities is None else torch.tensor(parse_per_task("priorities", priorities, self.tasks))
        self._initial_steps, given = _parse_initial(initial_losses, self.tasks)
        self.register_buffer("weights", torch.ones(count))
        self.register_buffer("_initial_sums", torch.zeros(count) if given is None else torch.tensor(given))
        self.register_buffer("_initial_counts", torch.full((count,), 0.0 if given is None else 1.0))
        self.register_buffer("_weight_sums", torch.zeros(count))
        self.register_buffer("_skips", torch.zeros(count, dtype=torch.int64))
        self.register_buffer("_priorities", p, persistent=False)
        # Saved beside the weights; the host's own copies spare it waiting for the device.
        self.register_buffer("_step_count", torch.tensor(0))
        self.register_buffer("_is_frozen", torch.tensor(False))
        self.register_buffer("_names", _encode(self.tasks))
        self._optimizer = WeightOptimizer(optimizer, self.weights, lr)
        self._steps = 0
        self._frozen = False
        self._called = False
        self._warned = False
        self._masks: dict[tuple[bool, ...], Tensor] = {}
        self._branched = False
        self._unchecked = False
        self._tally: Tally | Probe = self._fresh_tally()
        self._last: Figures | None = None

    # ------------------------------------------------------------------------------------------------ training

    def forward(self, losses: Losses) -> Tensor:
        """`Σ w_i L_i` over the tasks present, an ordinary scalar.

        In training its backward measures the tasks' gradients. In `eval()`, without grad, or frozen, it is just a sum.

        Args:
            losses: Scalars by name, in the tasks' order, or stacked into a [T] tensor. A task that is absent or `None`
                keeps its weight and statistics.

        Raises:
            ArgumentError: Unknown names, a wrong number, something that is no scalar floating tensor, several devices.
            GraphError: A loss without a graph, one that does not reach `W`, or one inside a transform of `torch.func`.
        """
        parsed = parse_losses(losses, self.tasks, empty=self._reduces)
        watched = self.training and torch.is_grad_enabled() and not self._frozen
        if watched:
            check_graphs(parsed, self.tasks)
        values = [loss for loss in parsed if loss is not None]
        if values and values[0].device != self.weights.device:
            self.to(values[0].device)
        zero = self.weights.new_zeros(())
        stacked = torch.stack([zero if loss is None else _at_least(loss, zero.dtype) for loss in parsed])
        # A copy: step() changes the weights in place, and backward may still need these.
        weights = self.weights.clone()
        if watched:
            self._called = True
            if self._due:
                return self._watched(parsed, weights, stacked)
        return (weights * stacked).sum()

    def branch(self, features: Tensor) -> tuple[Tensor, ...]:
        """The features, once for each task, in the tasks' order: each head takes its own. For `at="branches"`.

        Gradient norms are then measured right here, inside whatever graph this is part of, compiled or not. Several
        calls in one forward (skip connections) count as one longer vector.

        Args:
            features: Of any shape; what comes out must not be changed in place.

        Raises:
            StateError: The balancer was made for another `at`.
            GraphError: Inside a transform of `torch.func`.

        Examples:
            >>> import torch
            >>> balancer = GradNorm(2, at="branches")
            >>> trunk, heads = torch.nn.Linear(8, 4), torch.nn.ModuleList(torch.nn.Linear(4, 1) for _ in range(2))
            >>> def network(x):
            ...     first, second = balancer.branch(trunk(x).relu())
            ...     return heads[0](first), heads[1](second)
            >>> loss = balancer([y.square().mean() for y in network(torch.randn(16, 8))])
            >>> loss.backward()
            >>> balancer.step()
        """
        if not isinstance(self._tally, Probe):
            raise StateError('branch() measures gradients where it is called: make the balancer with at="branches"')
        if not self.training:
            return (features,) * len(self.tasks)
        refuse_transforms(features)
        self._branched = True
        return Fork.apply(features, self._tally.tensor)  # pyright: ignore[reportReturnType]

    def step(self) -> None:
        """`w(t) → w(t+1)` by Algorithm 1, from what the backwards since the last step measured.

        Call it once after each optimizer step, or let `attach` do so. Without effect in `eval()` and when frozen.

        Raises:
            StateError: No loss was balanced, or no backward has run, since the last step.
        """
        if not self.training or self._frozen:
            return
        if not self._called:
            raise StateError("step() came before a loss: call balancer(losses) and its backward() first")
        if self.at == "branches" and not self._branched:
            raise StateError('at="branches" measures in branch(), which the network never called: see its example')
        if self._due and self._tally.sums is None:
            raise StateError(
                "step() came before a backward: call backward() on what balancer(losses) returned, with the gradient "
                "reaching W, then step()"
            )
        self._sees_clearing = any(held.parameter.grad is not None for held in self._shared or ())
        self._advance(None)

    def attach(self, optimizer: Optimizer) -> RemovableHandle:
        """Step by itself after each real step of `optimizer`.

        Gradient accumulation and steps that a loss scaler skips come out right: there is one update per optimizer step.

        Returns:
            A handle; its `remove()` undoes this.

        Raises:
            ArgumentError: `optimizer` is not a `torch.optim.Optimizer`.
        """
        inner = getattr(optimizer, "optimizer", optimizer)  # Accelerate wraps the real one
        if not isinstance(inner, Optimizer):
            raise ArgumentError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        self._attached = [parameter for group in inner.param_groups for parameter in group["params"]]

        def after_step(optimizer: Optimizer, *_: object) -> None:
            ready = self._tally.sums is not None or not self._due
            if self.training and not self._frozen and self._called and ready:
                # Fused optimizers skip on the device: the hook fires all the same, and this says whether they did.
                self._advance(getattr(optimizer, "found_inf", None))

        return inner.register_step_post_hook(after_step)

    def freeze(self, frozen: bool = True) -> Self:
        """Keep the weights as they are from now on, measuring nothing; `freeze(False)` goes on learning them."""
        self._frozen = frozen
        self._is_frozen.fill_(frozen)
        self._tally.clear()
        self._called = False
        return self

    # ------------------------------------------------------------------------------------------------- reading

    def time_averaged_weights(self) -> Tensor:
        """[T], the weights averaged over the steps so far, sum T: what the paper's static run is trained with (§5.2).

        Raises:
            StateError: Before the first step.
        """
        if not self._steps:
            raise StateError("no step has been made yet: train first, then average the weights")
        return rule.renormalize(self._weight_sums, float(len(self.tasks)))

    def log_dict(self, prefix: str = "gradnorm/") -> dict[str, float]:
        """The last measured step as plain numbers for a logger; reading them waits for the device.

        Holds `loss/…`, `weight/…`, `norm/…`, `target/…`, `rate/…` for each task that was present,
        `cosine/…/…` for each pair of them, and `skipped`, how often bad numbers kept the weights from being updated.
        """
        logged = {f"{prefix}skipped": float(self._skips.max())}
        if self._last is None:
            return logged
        for task, values in zip(self.tasks, self._last.values.tolist(), strict=True):
            logged |= {f"{prefix}{field}/{task}": value for field, value in zip(FIELDS, values, strict=True)}
        if self._last.cosines is not None:
            table = self._last.cosines.tolist()
            for i, first in enumerate(self.tasks):
                for j in range(i + 1, len(self.tasks)):
                    logged[f"{prefix}cosine/{first}/{self.tasks[j]}"] = table[i][j]
        return {key: value for key, value in logged.items() if value == value}

    def report(self) -> str:
        """What has been measured so far, as text: a table of the tasks, cosines between them, and plain advice.

        `print` it; `gradnorm.plots.training(balancer.history, path)` is the picture to it.

        Raises:
            StateError: Nothing has been measured yet.
        """
        if self._last is None or not len(self.history):
            raise StateError(
                "no step is in the history: train first (with history=0 none is kept); before training, "
                "gradnorm.diagnose(losses) looks at one batch"
            )
        shapes = ", ".join(f"a parameter of shape {tuple(tensor.shape)}" for tensor in self.shared or ())
        return describe(
            self.history,
            self.weights.tolist(),
            self.time_averaged_weights().tolist(),
            layer=shapes or "where branch() is called",
            steps=self._steps,
            skipped=int(self._skips.max()),
            min_weight=self.min_weight,
        )

    @property
    def shared(self) -> tuple[Tensor, ...] | None:
        """`W`; `None` until the first loss has shown the graph."""
        return None if self._shared is None else tuple(held.parameter for held in self._shared)

    def extra_repr(self) -> str:
        """The settings, for `print`."""
        return f"{', '.join(self.tasks)}; alpha={self.alpha:g}, every={self.every}, at={self.at!r}"

    # --------------------------------------------------------------------------------------------- inner workings

    def _fresh_tally(self) -> Tally | Probe:
        return Probe(self.weights) if self.at == "branches" else Tally()

    def _watched(self, parsed: Sequence[Tensor | None], weights: Tensor, stacked: Tensor) -> Tensor:
        """The balanced loss, whose backward will measure the tasks."""
        mask = self._mask(tuple(loss is not None for loss in parsed))
        if isinstance(self._tally, Probe):
            balanced = Weigh.apply(stacked, weights, mask, self._tally.tensor)
            if not torch.compiler.is_compiling():
                balanced.grad_fn.register_prehook(self._forget_if_cleared)
            return balanced
        balanced = (weights * stacked).sum()
        if any(loss is not None for loss in parsed):
            _eagerly(self._watch, balanced, parsed, weights, stacked.detach().to(weights.dtype), mask, self._tally)
        else:
            self._tally.add(self._nothing(), self.at)
        return balanced

    def _watch(
        self,
        balanced: Tensor,
        parsed: Sequence[Tensor | None],
        weights: Tensor,
        losses: Tensor,
        mask: Tensor,
        tally: Tally,
    ) -> None:
        tasks = [task for task, loss in enumerate(parsed) if loss is not None]
        graph = Graph([loss for loss in parsed if loss is not None])
        if self._shared is None:
            self._shared = last_shared(graph, len(tasks))
            shape = tuple(self._shared[0].used.shape)
            self._unchecked = True
            _log.info("gradients are compared at the last shared layer, a parameter of shape %s; see shared=", shape)
        used = [held.used for held in self._shared]
        one = Pass(tally, used, weights, losses, mask, self.at, self._cleared)
        measure(balanced, graph, tasks, one, self.tasks)

    def _nothing(self) -> Sums:
        """What a process measures whose batch lacks all tasks: it takes part in the reduction all the same."""
        if self._shared is None:
            raise StateError(
                "this process has seen no loss yet and so knows no W to take part with; give the layer with shared="
            )
        zeros = torch.zeros_like(self.weights)
        entries = 1 if self.at == "features" else sum(held.parameter.numel() for held in self._shared)
        dtype = torch.promote_types(self._shared[0].parameter.dtype, torch.float32)
        return Sums(zeros.new_zeros(len(self.tasks), entries, dtype=dtype), zeros, zeros, zeros)

    def _forget_if_cleared(self, _: object) -> None:
        if self._cleared():
            self._tally.clear()

    def _cleared(self) -> bool:
        """Whether gradients were cleared since the last backward: then no step was made of what that one measured."""
        mine = [held.parameter for held in self._shared or ()]
        if self._attached is not None:
            # A gathered parameter of FSDP2 never shows its gradient, but the optimizer's parameters do.
            known = {id(parameter) for parameter in self._attached}
            if mine and all(id(parameter) in known for parameter in mine):
                self._attached = mine
            mine = self._attached
        elif not self._sees_clearing:
            return False
        return bool(mine) and all(parameter.grad is None for parameter in mine)

    @torch.no_grad()
    def _advance(self, found_inf: Tensor | None) -> None:
        self._weight_sums += self.weights
        sums = self._tally.sums if self._due else None
        if sums is not None:
            if self._reduces:
                assert self.reduce is not None
                sums = reduce_sums(sums, self.process_group, self.reduce, self.at != "weights")
            self._update(sums, found_inf)
        self._tally.clear()
        self._called = False
        self._steps += 1
        self._step_count += 1

    def _update(self, sums: Sums, found_inf: Tensor | None) -> None:
        """Algorithm 1 from `G_i` on; tasks that were absent come out of the divisions as NaN."""
        w = self.weights
        losses = sums.losses / sums.factors
        norms = row_norms(sums.rows)
        raw_norms = norms.to(w.dtype) / (sums.factors.abs() * w)
        initial, waiting = self._initial(losses, found_inf)

        G = rule.gradient_norms(w, raw_norms)
        rates = rule.inverse_training_rates(rule.loss_ratios(losses, initial))
        targets = rule.target_norms(rule.mean_gradient_norm(G), rates, self.alpha, self._priorities)
        gradients = rule.weight_gradients(G, targets, raw_norms)

        present = sums.counts > 0
        if self._unchecked:
            self._unchecked = False
            self._warn_of_silence(present & (norms == 0))
        values = torch.stack([losses, w, G, targets, rates], 1)
        self._last = Figures(
            self._steps,
            torch.where(present.unsqueeze(1), values, torch.nan),
            cosines(sums.rows, norms) if self._pairwise else None,
        )
        self.history.append(*self._last)
        usable = torch.isfinite(values).all(1)
        ran = True if found_inf is None else found_inf == 0
        self._apply_update(present, gradients, usable & ran, present & ~usable & ~waiting & ran)

    def _initial(self, losses: Tensor, found_inf: Tensor | None) -> tuple[Tensor, Tensor]:
        """[T], `L_i(0)`, NaN where unknown; and whether this step's loss was taken in and more are wanted."""
        seen = losses if found_inf is None else torch.where(found_inf == 0, losses, torch.nan)
        sums, counts = rule.initial_mean(seen, self._initial_sums, self._initial_counts, self._initial_steps)
        known = counts >= self._initial_steps
        waiting = (counts > self._initial_counts) & ~known
        self._initial_sums.copy_(sums)
        self._initial_counts.copy_(counts)
        return torch.where(known, sums / counts, torch.nan), waiting

    def _apply_update(self, present: Tensor, gradients: Tensor, usable: Tensor, bad: Tensor) -> None:
        """The optimiser's step and the rescaling, over the tasks present, if all of them are usable."""
        self._skips += bad
        total = float(len(self.tasks)) - torch.where(present, 0.0, self.weights).sum()

        def finish(weights: Tensor) -> Tensor:
            return rule.renormalize(torch.where(present, weights, torch.nan), total, self.min_weight)

        self._optimizer.step(gradients, finish, present & (usable | ~present).all())
        self._warn_once()

    def _warn_of_silence(self, silent: Tensor) -> None:
        """Once, after the first measured step with a `W` that was found: only here does the host wait."""
        names = ", ".join(task for task, quiet in zip(self.tasks, silent.tolist(), strict=True) if quiet)
        if names:
            shape = tuple(self._shared[0].used.shape) if self._shared else ()
            warnings.warn(
                f"the gradient of {names} is exactly zero at the layer that was found, a parameter of shape {shape}. "
                "Where heads start at zero this passes; where their outputs are concatenated before the losses, that "
                "layer is a head: name the last shared layer with shared=",
                RuntimeWarning,
                stacklevel=6,
            )

    def _warn_once(self) -> None:
        # Looking at a GPU's counter would make the host wait in every step: there, log_dict() tells.
        if self._warned or self._skips.device.type != "cpu" or not self._skips.any():
            return
        self._warned = True
        names = ", ".join(task for task, skips in zip(self.tasks, self._skips.tolist(), strict=True) if skips)
        warnings.warn(
            f"GradNorm left the loss weights unchanged at step {self._steps}: the loss, its initial value or the "
            f"gradient norm of {names} is not a finite positive number. Training goes on; 'skipped' in log_dict() "
            "counts how often. A loss that can be zero or negative needs initial_losses=.",
            RuntimeWarning,
            stacklevel=7,  # the caller of step()
        )

    @property
    def _due(self) -> bool:
        """Whether this step is one of each `every` that are measured."""
        return self.every == 1 or self._steps % self.every == 0  # a compiled forward would guard on `_steps`

    @property
    def _reduces(self) -> bool:
        return self.reduce is not None and data_parallel(self.process_group)

    @property
    def _pairwise(self) -> bool:
        whole = self.at == "weights" and not (self.reduce == "norms" and self._reduces)
        return whole and len(self.tasks) <= PAIRWISE_TASKS

    def _mask(self, present: tuple[bool, ...]) -> Tensor:
        """[T], 1 for the tasks present."""
        if all(present):
            return torch.ones_like(self.weights)
        if present not in self._masks:
            # Kept, since copying it to a GPU makes the host wait.
            self._masks[present] = self.weights.new_tensor(present)
        return self._masks[present]

    # ------------------------------------------------------------------------------------------- nn.Module, saving

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """As `nn.Module._apply`, but `half()` and `bfloat16()` leave the rule in float32."""
        super()._apply(lambda tensor: _keep_wide(tensor, fn(tensor)), recurse)
        self._optimizer.rebind(self.weights)
        self._masks.clear()
        self._tally = self._fresh_tally()
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        saved = state_dict.get(f"{prefix}_names")
        if saved is not None and not torch.equal(saved.cpu(), self._names.cpu()):
            raise StateError(
                f"state_dict is of the tasks {', '.join(_decode(saved))}, this balancer's are {', '.join(self.tasks)}; "
                "make the balancer with the saved names, in their order"
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._steps = int(self._step_count)
        self._frozen = bool(self._is_frozen)
        self._tally.clear()
        self._called = False


_BREAKS_WITH_MESSAGE = torch.__version__ >= "2.8"
"""Whether a graph break may surely say why; older versions break all the same."""


def _eagerly(function: Callable[..., None], *args: object) -> None:
    """Call `function` outside of any graph that is being compiled, which breaks that graph in two."""
    if torch.compiler.is_compiling():
        if _BREAKS_WITH_MESSAGE:
            # A literal, as it must be for the compiler to show it where fullgraph=True refuses the break.
            torch._dynamo.graph_break(
                msg="tasks cannot be told apart inside one graph; call the balancer outside of what is compiled with "
                'fullgraph=True, or leave that out, or measure with at="branches"'
            )
        # Not as a decorator: that would load the compiler with `import gradnorm`.
        function = torch.compiler.disable(function)  # pyright: ignore[reportAssignmentType]
    function(*args)


def _encode(names: Sequence[str]) -> Tensor:
    """The names as bytes, so that a state holds tensors only."""
    return torch.tensor(list("\0".join(names).encode()), dtype=torch.uint8)


def _decode(names: Tensor) -> list[str]:
    return bytes(names.tolist()).decode().split("\0")


def _at_least(loss: Tensor, dtype: torch.dtype) -> Tensor:
    return loss if loss.dtype is dtype else loss.to(torch.promote_types(loss.dtype, dtype))


def _parse_initial(given: int | PerTask | None, tasks: Sequence[str]) -> tuple[int, list[float] | None]:
    if given is None:
        return 1, None
    if isinstance(given, int) and not isinstance(given, bool):
        return parse_count("initial_losses", given, low=1), None
    return 1, parse_per_task("initial_losses", given, tasks)  # pyright: ignore[reportArgumentType]


def _keep_wide(before: Tensor, after: Tensor) -> Tensor:
    if not before.is_floating_point() or at_least_float32(after).dtype == after.dtype:
        return after
    return before.to(after.device)
