"""`GradNorm`, the balancer: a balanced loss is just a loss.

`balancer(losses)` returns `Σ w_i L_i` and arranges for its backward to measure each task's gradient norm (`capture/`);
`step()` computes the next weights from these norms (`_loss_weights.py`). This file connects the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from . import _html
from ._advice import Report, Training, cells, describe
from ._arguments import check_graphs, parse_count, parse_losses, parse_number, parse_tasks, refuse_transforms
from ._distributed import agree, data_parallel, reduce_sums
from ._errors import ArgumentError, GraphError, StateError, warn
from ._history import FIELDS, PAIRWISE_TASKS, History, StepRecord
from ._loss_weights import InitialWeights, LossWeights, Priorities
from ._numerics import at_least, cosines
from ._silence import Silence, Situation
from ._state import SealedModule, built_on_cpu
from ._torch_private import is_exporting, is_registered, outside_compiled_graph
from ._types import Losses, PerTask, Shared
from ._updates import Update, parse_update
from .capture import (
    At,
    AtBranches,
    AtFeatures,
    AtLayer,
    DetectedLayer,
    Measurement,
    NamedLayer,
    Opening,
    SharedLayer,
    Sums,
    Wanted,
    Window,
    resolve_shared,
)

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

DEFAULT_ALPHA = 0.12
"""Default α of both rules, by the validation figures of `benchmarks/results/alpha.md`; the paper has 1.5 on NYUv2."""


class GradNorm(SealedModule):
    """Loss weights learned during training, by GradNorm (Chen et al., ICML 2018, Algorithm 1).

    Args:
        tasks: Task names, or the number of tasks.
        shared: `W`, where gradients are compared: a parameter, a module, an iterable of parameters, or with `model` a
            pattern of parameter names. Default: the last shared layer, detected in the graph: every parameter with two
            or more dimensions above one that all tasks reach and that no other such parameter follows.
        model: The network, for the names of its parameters.
        alpha: α ≥ 0, the strength with which lagging tasks are helped. 0 makes all gradient norms equal and does not
            use the losses, which may then be of either sign.
        update: Update rule: "descent", Algorithm 1 of the paper, or "closed-form", its fixed point; `Descent(…)` and
            `ClosedForm(…)` take options.
        initial_weights: Weights of the first step: `None` for ones, as in the paper; "balanced" for weights that
            balance the first step already, from the norms of the first batch (the loss returned for it is the sum with
            ones; its gradient is the balanced one); or one number per task. "auto" is `None` for descent and "balanced"
            for the closed form.
        initial_losses: `L_i(0)`. Default: the losses of the first step. A number n: the mean of the first n steps (if
            α > 0, weights are not updated until then). Or one number per task, as in `{"segmentation": math.log(13)}`.
        every: Measure and update every `every` steps.
        priorities: `p_i`, making the targets `p_i Ḡ r_i^α`; not in the paper. They can be changed later.
        at: "layer" compares gradients at `W`, as in the paper; "features" where the tasks meet before `W`, which is
            cheaper and not the paper's rule; "branches" at the features that the network passes through `branch`, at
            the same cost, also inside a network that is compiled as a whole.
        reduce: Where `torch.distributed` runs, "gradients" sums the tasks' gradients over the processes in `step()`, in
            one collective; `None`: no reduction.
        process_group: The processes that share the batch. Default: all.
        check: Whether the first measured step checks that measuring does not change the model's own gradient, and
            raises `GraphError` in its backward if it does. It costs about one more measurement, once.
        cosines_every: Compute the cosines between the tasks' gradients in every `cosines_every`-th measured step.
        history: Maximum number of points that `history` keeps of a run, 0 for none; see `History`.

    Attributes:
        tasks: Task names.
        history: The run's losses, weights, norms, targets, rates and cosines, as points that span it.

    Raises:
        ArgumentError: For each argument that cannot be used; it is a `ValueError`.

    Examples:
        >>> import torch
        >>> trunk, heads = torch.nn.Linear(8, 4), torch.nn.ModuleList(torch.nn.Linear(4, 1) for _ in range(2))
        >>> optimizer = torch.optim.Adam([*trunk.parameters(), *heads.parameters()])
        >>> balancer = GradNorm(["near", "far"], shared=trunk.weight)
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

    _step_count: Tensor
    _is_frozen: Tensor

    @built_on_cpu
    def __init__(
        self,
        tasks: int | Iterable[str],
        *,
        shared: Shared | None = None,
        model: nn.Module | None = None,
        alpha: float = DEFAULT_ALPHA,
        update: Update | Literal["descent", "closed-form"] = "descent",
        initial_weights: InitialWeights = "auto",
        initial_losses: int | PerTask | None = None,
        every: int = 1,
        priorities: PerTask | None = None,
        at: At = "layer",
        reduce: Literal["gradients"] | None = "gradients",
        process_group: ProcessGroup | None = None,
        check: bool = True,
        cosines_every: int = 10,
        history: int = 2000,
    ) -> None:
        super().__init__()
        self.tasks = parse_tasks(tasks)
        self._steps = 0
        self._called = False
        self.every = every
        self.at = _parse_at(at, shared)
        if reduce not in ("gradients", None):
            raise ArgumentError(f'reduce must be "gradients" or None, got {reduce!r}')
        self.reduce = reduce
        self.process_group = process_group
        self.cosines_every = parse_count("cosines_every", cosines_every, low=1)
        self.history = History(self.tasks, parse_count("history", history, low=0))
        self._loss_weights = LossWeights(
            self.tasks,
            parse_update(update),
            _parse_alpha(alpha),
            priorities=priorities,
            initial_losses=initial_losses,
            initial_weights=initial_weights,
        )
        # Inside an object that is not a module, or nn.Module would register the network's parameters as the balancer's.
        self._measurement = self._measured_by(self._layer(shared, model), Window(), check)
        self._measured_on = (self.weights.device, self.weights.dtype)
        # Saved with the weights; the copies on the host avoid synchronizing with the device.
        self.register_buffer("_step_count", torch.tensor(0.0, dtype=torch.float32))
        self.register_buffer("_is_frozen", torch.tensor(0.0, dtype=torch.float32))
        self._frozen = False
        self._step_opening: Opening | None = None
        self._warned_of_dropping = False
        self._last: Tensor | None = None
        self._cosines: Tensor | None = None
        self._attachment: tuple[RemovableHandle, str] | None = None
        self._silence = Silence()
        self._seal(self.tasks)

    # ------------------------------------------------------------------------------------------------ training

    def forward(self, losses: Losses) -> Tensor:
        """`Σ w_i L_i` over the tasks present, an ordinary scalar.

        In training its backward measures the tasks' gradients. In `eval()`, without grad, or frozen, it is just a sum.

        Args:
            losses: Scalars by name (a named tuple is, too), in the tasks' order, or stacked into a [T] tensor. The
                statistics of a task that is absent or `None` are kept.

        Raises:
            ArgumentError: Unknown names, a wrong number, something that is no scalar floating tensor, several devices.
            GraphError: A loss without a graph, one that does not reach `W`, one inside a transform of `torch.func`, or
                in training inside `torch.export`.
            StateError: The loaded state belongs to another balancer, or is incomplete.
        """
        is_measured = self.training and torch.is_grad_enabled() and not self._frozen
        if is_measured and is_exporting():
            raise GraphError("an exported program cannot be measured; call eval() on the model before torch.export")
        if is_measured and self.at != "branches":
            return outside_compiled_graph(self._forward, losses, is_measured)
        return self._forward(losses, is_measured)

    def _forward(self, losses: Losses, is_measured: bool) -> Tensor:
        self._check_state()
        parsed = parse_losses(losses, self.tasks, empty=self._reduces)
        if is_measured:
            check_graphs(parsed, self.tasks)
        device = next((loss.device for loss in parsed if loss is not None), self.weights.device)
        if device != self.weights.device:
            self.to(device)
        # A copy: step() changes the weights in place, and backward may still need these.
        weights = self.weights.clone()
        values = torch.stack(
            [weights.new_zeros(()) if loss is None else at_least(loss, weights.dtype) for loss in parsed]
        )
        tasks = [task for task, loss in enumerate(parsed) if loss is not None]
        if is_measured and (self._due or (not torch.compiler.is_compiling() and self._awaits(tasks))):
            balanced = self._balanced(parsed, tasks, values, weights)
        else:
            balanced = (weights * values).sum()
        if is_measured:
            self._called = True
        if torch.is_grad_enabled():
            self._silence.balanced(self.training, is_measured, tasks, self._situation)
        return balanced

    def branch(self, features: Tensor) -> tuple[Tensor, ...]:
        """One copy of the features per task, in the tasks' order, for the heads. For `at="branches"`.

        Gradient norms are then measured here, in eager mode or inside a compiled graph. Several calls in one forward
        (skip connections) count as one longer vector.

        Args:
            features: A tensor of any shape; the returned tensors must not be changed in place.

        Raises:
            StateError: The balancer has another `at`, or a loaded state that belongs to another balancer.
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
        if not isinstance(self._measurement, AtBranches):
            raise StateError('branch() measures gradients where it is called: make the balancer with at="branches"')
        if not self.training:
            return (features,) * len(self.tasks)
        refuse_transforms(features)
        self._check_state()
        if features.device != self.weights.device:
            self.to(features.device)
        return self._measurement.branch(features)

    def step(self) -> None:
        """`w(t) → w(t+1)`, from the backwards since the last step.

        Call it once after each optimizer step, or use `attach`. No effect in `eval()` and when frozen.

        Raises:
            StateError: No loss was balanced, or no backward has run, since the last step; or the balancer is attached
                to an optimizer and steps automatically.
        """
        outside_compiled_graph(self._step)

    def _step(self) -> None:
        if (name := self._attached_to()) is not None:
            raise StateError(
                f"step() was called on a balancer that is attached to {name} and steps automatically; remove this "
                "call, or remove() the handle that attach() returned"
            )
        if not self.training or self._frozen:
            self._silence.refused(self._situation)
            return
        if not self._called:
            raise StateError("step() was called before balancer(losses): call it, and backward() on its result, first")
        self._measurement.window.detach()
        self._measurement.check_balanced()
        if self._due and self._measurement.sums is None and not self._awaited:
            raise StateError(
                "step() was called before a backward: call backward() on the result of balancer(losses), with the "
                "gradient reaching W, then step()"
            )
        self._advance(None)

    def attach(self, optimizer: Optimizer) -> RemovableHandle:
        """Step automatically after each step of `optimizer`.

        There is one update per optimizer step, also with gradient accumulation and steps that a loss scaler skips.

        Returns:
            A handle; its `remove()` detaches the balancer.

        Raises:
            ArgumentError: `optimizer` is not a `torch.optim.Optimizer`.
            StateError: The balancer is attached already.

        Examples:
            >>> import torch
            >>> trunk, heads = torch.nn.Linear(8, 4), torch.nn.ModuleList(torch.nn.Linear(4, 1) for _ in range(2))
            >>> optimizer = torch.optim.Adam([*trunk.parameters(), *heads.parameters()])
            >>> balancer = GradNorm(["near", "far"], shared=trunk.weight)
            >>> handle = balancer.attach(optimizer)
            >>> for _ in range(3):
            ...     features = trunk(torch.randn(16, 8)).relu()
            ...     optimizer.zero_grad()
            ...     balancer([head(features).square().mean() for head in heads]).backward()
            ...     optimizer.step()
            >>> len(balancer.history)
            3
            >>> handle.remove()
        """
        inner = getattr(optimizer, "optimizer", optimizer)  # Accelerate wraps the real one
        if not isinstance(inner, Optimizer):
            raise ArgumentError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        if (name := self._attached_to()) is not None:
            raise StateError(
                f"the balancer is attached to {name} already, and would step twice; remove() the handle that attach() "
                "returned before attaching it again"
            )
        self._measurement.window.attach([p for group in inner.param_groups for p in group["params"]])

        def after_step(optimizer: Optimizer, *_: object) -> None:
            outside_compiled_graph(self._after_step, optimizer)

        handle = inner.register_step_post_hook(after_step)
        self._attachment = handle, type(inner).__name__
        return handle

    def _after_step(self, optimizer: Optimizer) -> None:
        ready = self._measurement.sums is not None or not self._due
        if self.training and not self._frozen and self._called and ready:
            # Fused optimizers skip on the device, and the hook still fires: this tensor says whether they skipped.
            self._advance(getattr(optimizer, "found_inf", None))
        else:
            self._silence.refused(self._situation)

    def freeze(self, frozen: bool = True) -> Self:
        """Stop measuring and updating, until `unfreeze()`.

        Args:
            frozen: False is `unfreeze()`.
        """
        self._frozen = frozen
        self._value("_is_frozen").fill_(float(frozen))
        self._silence.is_meant = frozen
        self._silence.restart()
        self._forget()
        return self

    def unfreeze(self) -> Self:
        """Continue to measure and update after `freeze()`.

        Examples:
            >>> balancer = GradNorm(["near", "far"]).freeze()
            >>> balancer = balancer.unfreeze()
        """
        return self.freeze(False)

    def reset(self) -> Self:
        """Discard the measurements since the last step, as when that step is skipped on purpose; weights are kept.

        `reset_parameters` is what goes back to the start.
        """
        self._forget()
        return self

    def reset_parameters(self) -> None:
        """Reset to the initial state: weights, `L(0)`, the optimizer's state, averages, counters, an empty history.

        Called by tools that build a model on the meta device. A detected layer and `freeze()` are kept. `reset` only
        discards what was measured since the last step.
        """
        frozen = self._frozen
        super().reset_parameters()
        self.history = History(self.tasks, self.history.capacity)
        self._last = self._cosines = None
        self.freeze(frozen)

    # ------------------------------------------------------------------------------------------------- reading

    @property
    def weights(self) -> Tensor:
        """[T], `w_i`, sum T. A buffer: no optimizer, decay or clipping of the model can touch it."""
        return self._loss_weights.weights

    @weights.setter
    def weights(self, weights: PerTask) -> None:
        self._loss_weights.assign(weights)
        if self._step_opening is not None:
            self._step_opening.weights = None
        self._measurement.is_partial = self._measurement.sums is not None  # assigned weights outlive this step

    def named_weights(self) -> dict[str, float]:
        """The weights by task, as plain numbers; synchronizes with the device.

        Examples:
            >>> GradNorm(["near", "far"], initial_weights={"near": 1.5, "far": 0.5}).named_weights()
            {'near': 1.5, 'far': 0.5}
        """
        return dict(zip(self.tasks, self.weights.tolist(), strict=True))

    @property
    def every(self) -> int:
        """Measure in every `every`-th step; assignments are validated, and hold from the first loss of a step on."""
        return self._every

    @every.setter
    def every(self, every: int) -> None:
        self._every = parse_count("every", every, low=1)
        if not self._called:
            self._plan()

    @property
    def alpha(self) -> float:
        """α; assignments are validated as the constructor's argument is."""
        return self._loss_weights.alpha

    @alpha.setter
    def alpha(self, alpha: float) -> None:
        self._loss_weights.alpha = _parse_alpha(alpha)

    @property
    def priorities(self) -> Priorities:
        """`p_i` by task, which can be changed during training; 1 by default.

        Writing does not synchronize with the device. They are settings, and so not part of `state_dict`.

        Examples:
            >>> balancer = GradNorm(["reconstruction", "kl"])
            >>> balancer.priorities["kl"] = 0.5
            >>> balancer.priorities
            {'reconstruction': 1.0, 'kl': 0.5}
            >>> balancer.priorities = {"reconstruction": 2.0, "kl": 1.0}
        """
        return self._loss_weights.priorities

    @priorities.setter
    def priorities(self, priorities: PerTask | None) -> None:
        self._loss_weights.priorities = priorities

    @property
    def initial_losses(self) -> Tensor:
        """[T], `L_i(0)`; NaN where it is not known yet."""
        return self._loss_weights.initial_losses

    @property
    def optimizer(self) -> Optimizer | None:
        """The optimizer of the weights, for learning-rate schedulers; `None` for the closed form."""
        return self._loss_weights.rule.optimizer

    @property
    def shared(self) -> tuple[Tensor, ...] | None:
        """`W`; `None` until it is known. A detected layer grows by the parts that later batches bring."""
        return tuple(self._measurement.layer.tensors) or None

    @property
    def shared_names(self) -> tuple[str, ...] | None:
        """`W` by name, if `model=` was given, or by shape; `None` until it is known."""
        return tuple(self._measurement.layer.names) or None

    def time_averaged_weights(self) -> Tensor:
        """[T], the weights averaged over the steps so far, sum T: what the paper's static run is trained with (§5.2).

        Raises:
            StateError: Before the first step.
        """
        if not self._steps:
            raise StateError("no step has been made yet: train before averaging the weights")
        return self._loss_weights.averaged()

    def log_dict(self, prefix: str = "gradnorm/") -> dict[str, float]:
        """The last measured step as floats for a logger; synchronizes with the device.

        Holds `loss/…`, `weight/…`, `norm/…`, `target/…`, `rate/…` for each task that was present,
        `cosine/…/…` for each pair of them from the last step in which cosines were computed, and `skipped`, the number
        of steps that left the weights unchanged: numbers that could not be used, or only a part was measured.
        """
        logged = {f"{prefix}skipped": float(self._loss_weights.skipped)}
        if self._last is None:
            return logged
        for task, values in zip(self.tasks, self._last.tolist(), strict=True):
            logged |= {f"{prefix}{field}/{task}": value for field, value in zip(FIELDS, values, strict=True)}
        if self._cosines is not None:
            table = self._cosines.tolist()
            for i, first in enumerate(self.tasks):
                for j in range(i + 1, len(self.tasks)):
                    logged[f"{prefix}cosine/{first}/{self.tasks[j]}"] = table[i][j]
        return {key: value for key, value in logged.items() if value == value}

    def report(self) -> Report:
        """A report on the recorded steps: a table of the tasks, cosines between them, and advice.

        `print` it: it is a `str`, with its figures as attributes. `assert not balancer.report().advice` can serve as a
        test; `gradnorm.plots.training(balancer)` plots the run.

        Raises:
            StateError: Nothing has been measured yet.
        """
        if not len(self.history):
            why = self._silence.remark_on_no_step(self._situation())
            raise StateError(
                f"no step is in the history: {why or 'train first'} (with history=0 none is kept); before training, "
                "gradnorm.diagnose(losses) analyzes one batch"
            )
        training = Training(
            weights=self.weights.cpu().clone(),
            averaged_weights=self.time_averaged_weights().cpu(),
            initial_losses=self.initial_losses.cpu(),
            layer=self._described,
            steps=self._steps,
            skipped=int(self._loss_weights.skipped),
            needs_losses=self.alpha > 0,
            min_weight=getattr(self._loss_weights.rule, "min_weight", 0.0),
            is_frozen=self._frozen,
            is_constant=self._loss_weights.rule.is_constant,
            unbalanced=self._silence.remark(self._situation()),
        )
        return describe(self.history, training)

    def extra_repr(self) -> str:
        """Settings, `W` and weights, for `print`; on a GPU without their values, which would synchronize with it."""
        is_read = self.weights.device.type == "cpu"
        width = max(map(len, self.tasks))
        numbers = cells(self.weights) if is_read else [f"on {self.weights.device}"] * len(self.tasks)
        listed = (f"{task:<{width}}  {number}" for task, number in zip(self.tasks, numbers, strict=True))
        return "\n".join([self._settings, f"W: {self._described}", *listed, *([] if is_read else [_READ_BY])])

    def __repr__(self) -> str:
        return f"{type(self).__name__}(\n  " + self.extra_repr().replace("\n", "\n  ") + "\n)"

    def _repr_html_(self) -> str:
        columns = {
            "task": self.tasks,
            "weight": cells(self.weights),
            **self._measured("loss", "norm", "target", "rate"),
        }
        title = f"{type(self).__name__}: {self._settings}; {self._steps:,} steps; shared layer: {self._described}"
        return _html.document(title, [_html.table(columns, {"weight": _html.bars(self.weights.tolist())})])

    def _measured(self, *fields: str) -> dict[str, list[str]]:
        """These of `FIELDS` of the last measured step as text, if there is one."""
        if self._last is None:
            return {}
        last = self._last.cpu()
        return {field: cells(last[:, FIELDS.index(field)]) for field in fields}

    @property
    def _settings(self) -> str:
        rule = self._loss_weights.rule
        update = f"{type(rule).__name__}({rule.extra_repr()})"
        frozen = ", frozen" if self._frozen else ""
        return f"alpha={self.alpha:g}, update={update}, every={self.every}, at={self.at!r}{frozen}"

    @property
    def _described(self) -> str:
        """`W`, in words."""
        if self.at == "branches":
            return "where branch() is called"
        return ", ".join(self._measurement.layer.described) or "detected in the first backward"

    # ------------------------------------------------------------------------------------------------- internals

    def _layer(self, shared: Shared | None, model: nn.Module | None) -> SharedLayer:
        names = {} if model is None else {parameter: name for name, parameter in model.named_parameters()}
        if shared is None and self.at != "branches":
            return DetectedLayer(self.tasks, names)
        return NamedLayer([] if shared is None else resolve_shared(shared, model), names)

    def _measured_by(self, layer: SharedLayer, window: Window, check: bool) -> Measurement:
        if self.at == "branches":
            return AtBranches(self.tasks, layer, window, like=self.weights)
        return (AtLayer if self.at == "layer" else AtFeatures)(self.tasks, layer, window, check=check)

    def _balanced(
        self, parsed: Sequence[Tensor | None], tasks: Sequence[int], values: Tensor, weights: Tensor
    ) -> Tensor:
        """The balanced loss, whose backward will measure the tasks."""
        opening = partial(self._opening, tasks)
        if tasks:
            wanted = Wanted(rows=self._reduces, products=self._wants_cosines)
            balanced = self._measurement.balanced(parsed, values, weights, self._mask(tasks), opening, wanted)
            self._check_layer()
            return balanced
        return self._measurement.without_tasks(values, weights, opening)

    def _check_layer(self) -> None:
        """Raise if a detected layer cannot be the same on all processes."""
        layer = self._measurement.layer
        if self._reduces and (self._awaited or layer.growths):
            why = f"has not seen {', '.join(self._awaited)} yet" if self._awaited else "has met another part of W"
            raise StateError(f"{_UNKNOWN_LAYER.format(why)}; give the layer with shared=")

    @property
    def _awaited(self) -> list[str]:
        """The tasks without which the layer cannot be detected."""
        layer = self._measurement.layer
        return layer.awaited if isinstance(layer, DetectedLayer) else []

    def _opening(self, tasks: Sequence[int]) -> Opening | None:
        """What the first backward must determine."""
        if not self._measurement.layer.is_confirmed or self._awaits(tasks):
            abandon = self._loss_weights.abandon_opening
            self._step_opening = self._step_opening or Opening(
                self._reduce, self._agree, self._awaits, self._open, abandon
            )
        return self._step_opening

    def _awaits(self, tasks: Sequence[int], has_begun: bool = False) -> bool:
        """Whether one of these tasks still needs a starting weight.

        Never in a step that has begun where processes share the batch: each would act on its own measurements, and
        their collectives would no longer match.
        """
        if self._frozen or (has_begun and self._reduces):
            return False
        return self._loss_weights.awaits_opening(tasks, self._reduces)

    def _agree(self, layer: SharedLayer) -> None:
        if self._reduces and not agree(" ".join(layer.described), self.process_group, self.weights.device):
            raise GraphError("the detected shared layer is not the same on all processes; name it with shared=")

    def _open(self, sums: Sums, before: Sums | None) -> Tensor | None:
        raw_norms = self._measurement.norms(sums) / sums.scales.abs()
        if before is not None:
            earlier = self._measurement.norms(before) / before.scales.abs()
            raw_norms = torch.where(sums.counts > 0, raw_norms, earlier)
        return self._loss_weights.open(raw_norms.to(self.weights.dtype), sums.counts > 0, has_begun=before is not None)

    def _reduce(self, sums: Sums) -> Sums:
        return reduce_sums(sums, self.process_group) if self._reduces else sums

    @torch.no_grad()
    def _advance(self, found_inf: Tensor | None) -> None:
        self._check_state()
        self._silence.stepped(self._due)
        self._loss_weights.note_step(self._steps + 1)
        sums = self._measurement.sums
        if self._due and sums is not None:
            if self._is_whole():
                self._update(self._reduce(sums), found_inf)
            else:
                self._loss_weights.skipped.add_(1)
        self._loss_weights.restore_sum()
        self._steps += 1
        self._forget()
        self._step_count.fill_(self._steps)

    def _is_whole(self) -> bool:
        """Whether the measurements cover the whole step; warns once if gradients were cleared within it."""
        if self._measurement.dropped and not self._warned_of_dropping:
            self._warned_of_dropping = True
            warn(_DROPPED)
        # Processes that share the batch must agree, and a gradient may be missing on one of them only.
        return self._reduces or not self._measurement.is_partial

    def _update(self, sums: Sums, found_inf: Tensor | None) -> None:
        """Apply the rule; absent tasks become NaN in the divisions."""
        self._silence.updates(self._loss_weights, found_inf)
        norms = self._measurement.norms(sums)
        raw_norms = norms.to(self.weights.dtype) / sums.scales.abs()
        present = None if sums.is_complete else sums.counts > 0
        values = self._loss_weights.update(sums.losses / sums.factors, raw_norms, present, found_inf)
        table = None
        if self._wants_cosines:
            products = sums.entries @ sums.entries.T if sums.are_whole else sums.products
            if products is not None:
                table = self._cosines = cosines(products, norms)
        self.history.append(StepRecord(self._steps, values, table))
        self._last = values

    @property
    def _wants_cosines(self) -> bool:
        """Whether cosines are computed in this step."""
        if not self._measurement.has_cosines or len(self.tasks) > PAIRWISE_TASKS:
            return False
        return self._steps // self.every % self.cosines_every == 0

    def _forget(self) -> None:
        """Clear the measurements, before the first loss of a step."""
        self._measurement.clear()
        self._step_opening = None
        self._called = False
        self._plan()

    def _plan(self) -> None:
        """Note whether the step that begins is measured, by `every`."""
        self._due = self._steps % self.every == 0  # a compiled forward is compiled anew for each value of what it reads

    @property
    def _reduces(self) -> bool:
        return self.reduce is not None and data_parallel(self.process_group)

    def _attached_to(self, if_gone: bool = False) -> str | None:
        """Class name of the optimizer that this is attached to; if that no longer exists, only `if_gone`."""
        handle, name = self._attachment or (None, None)
        return name if handle is not None and is_registered(handle, if_gone) else None

    def _situation(self) -> Situation:
        return Situation(
            is_training=self.training,
            is_frozen=self._frozen,
            attached=self._attached_to(if_gone=True),
            awaited=self._awaited,
            is_due=self._due,
            measurement=self._measurement,
            last=self._last,
            loss_weights=self._loss_weights,
        )

    def _mask(self, tasks: Sequence[int]) -> Tensor:
        """[T], 1 for these tasks."""
        if len(tasks) == len(self.tasks):
            return torch.ones_like(self.weights)
        one, zero = self.weights.new_ones(()), self.weights.new_zeros(())
        # Created on the device, not copied there.
        return torch.stack([one if task in tasks else zero for task in range(len(self.tasks))])

    # ------------------------------------------------------------------------------------------- nn.Module, saving

    def __getstate__(self) -> dict[str, Any]:
        """A copy is not attached."""
        return {**self.__dict__, "_attachment": None, "_silence": Silence(self._silence.is_meant)}

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """As `nn.Module._apply`; measurements on another device are discarded."""
        super()._apply(fn, recurse)
        self._measure_here()
        return self

    def _read(self) -> None:
        self._steps = round(self._value("_step_count").item())
        self._plan()
        self._frozen = bool(self._value("_is_frozen") > 0.5)
        self._silence.restart()
        if self._measured_on != (self.weights.device, self.weights.dtype):
            self._measure_here()

    def _measure_here(self) -> None:
        """Measure on the weights' device; measurements on another one are discarded."""
        self._measurement.moved(self.weights)
        self._measured_on = (self.weights.device, self.weights.dtype)

    def _moved(self) -> None:
        self._step_count.fill_(self._steps)
        self._is_frozen.fill_(float(self._frozen))

    def _after_load(self, *_: object) -> None:
        super()._after_load()
        self._forget()
        self._last = self._cosines = None
        self.history.rewind(self._steps)
        self._silence.restart()


_DROPPED = (
    "gradients were cleared between two backwards without a step, so that GradNorm has measured only part of this step "
    "and does not update the loss weights (where processes share the batch, it does, from that part). "
    "If a step was skipped on purpose, call balancer.reset() then; if gradients are moved elsewhere after each "
    "micro-batch, let them accumulate in .grad until the step"
)
_READ_BY = "(named_weights() reads them)"
_UNKNOWN_LAYER = "this process {}, and processes that share a batch must measure at the same layer"


def _parse_at(at: At, shared: Shared | None) -> At:
    if at == "weights":
        raise ArgumentError('at="weights" is called at="layer": gradients are compared at the layer W')
    if at not in ("layer", "features", "branches"):
        raise ArgumentError(f'at must be "layer", "features" or "branches", got {at!r}')
    if at == "branches" and shared is not None:
        raise ArgumentError('shared names W, but at="branches" measures where branch() is called; leave one out')
    return at


def _parse_alpha(alpha: float) -> float:
    return parse_number("alpha", alpha, low=0.0)
