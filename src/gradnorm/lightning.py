"""GradNorm for Lightning: `training_step` returns the balanced loss, and a callback does the rest.

Lightning keeps its loop, its backward and its optimizer. The callback only attaches the balancer to the optimizer while
`fit` runs and logs its figures. It is stateless: the balancer is a submodule of the LightningModule, and so is in every
checkpoint.

`watch` is one line for those who only look: it measures, logs, and leaves training as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ._balancer import GradNorm
from ._errors import ArgumentError, missing_extra
from ._monitor import Monitor, monitor
from ._torch_private import outside_compiled_graph

try:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import Callback
except ModuleNotFoundError as error:
    raise missing_extra("lightning", "lightning") from error


class GradNormCallback(Callback):
    """Steps a LightningModule's balancer after each real optimizer step, and logs its figures.

    The module holds the balancer (`self.balancer = GradNorm(…)`) and returns `self.balancer(losses)` from
    `training_step`. Every `trainer.log_every_n_steps` the balancer's `log_dict()` goes to all loggers of the trainer.

    Args:
        balancer: The balancer, or the name of the module's attribute; needed where the module has several.
        optimizer: Index of the optimizer after which the balancer steps; needed where there are several.

    Raises:
        ArgumentError: When `fit` starts: the module has no balancer, or several and none was named; likewise for the
            optimizers; or the balancer is not part of the module, whose checkpoints would lack it.

    Examples:
        >>> import torch
        >>> from lightning.pytorch import LightningModule, Trainer
        >>> from gradnorm import GradNorm
        >>> class Net(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.trunk = torch.nn.Linear(4, 8)
        ...         self.near, self.far = torch.nn.Linear(8, 1), torch.nn.Linear(8, 1)
        ...         self.balancer = GradNorm(["near", "far"])
        ...
        ...     def training_step(self, x, batch_idx):
        ...         features = self.trunk(x).tanh()
        ...         near, far = self.near(features), 10 * self.far(features)
        ...         return self.balancer({"near": near.square().mean(), "far": far.square().mean()})
        ...
        ...     def configure_optimizers(self):
        ...         return torch.optim.Adam(self.parameters())
        >>> trainer = Trainer(
        ...     callbacks=[GradNormCallback()],
        ...     max_steps=4,
        ...     log_every_n_steps=1,
        ...     accelerator="cpu",
        ...     logger=False,
        ...     enable_checkpointing=False,
        ...     enable_progress_bar=False,
        ...     enable_model_summary=False,
        ... )
        >>> net = Net()
        >>> trainer.fit(net, torch.utils.data.DataLoader(torch.randn(16, 4), batch_size=4))
        >>> bool(net.balancer.weights[0] > net.balancer.weights[1])
        True
    """

    def __init__(self, balancer: GradNorm | str | None = None, *, optimizer: int | None = None) -> None:
        self._balancer = balancer
        self._optimizer = optimizer
        self._handles: list[RemovableHandle] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attaches the balancer; the optimizers exist by now, and resuming loads their state into the same objects."""
        balancer = _find_balancer(pl_module, self._balancer)
        optimizer = _find_optimizer(trainer.optimizers, self._optimizer)

        def log_step(*_: Any) -> None:
            # As Lightning's own callbacks: when and at which step `self.log` would write, so that curves line up.
            if trainer.loggers and trainer._logger_connector.should_update_logs:
                figures = balancer.log_dict()
                for logger in trainer.loggers:
                    logger.log_metrics(figures, step=trainer.fit_loop.epoch_loop._batches_that_stepped)

        self._detach()
        self._handles = [balancer.attach(optimizer), optimizer.register_step_post_hook(log_step)]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Detaches the balancer."""
        self._detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Detaches the balancer: Lightning does not end a fit that raised."""
        self._detach()

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


def watch(
    module: LightningModule, losses: Mapping[str, Tensor | None], *, optimizer: int | None = None, **options: Any
) -> Tensor:
    """The sum of the losses, for `training_step` to return; logs the tasks' gradient norms, shares and cosines.

    Its `gradnorm.monitor` is created in the first call and is not part of the module: checkpoints stay as they are.

    Args:
        module: The LightningModule.
        losses: By name. All tasks must be named in the first call; one that a batch lacks is `None`.
        optimizer: Index of the optimizer that holds the shared layer; needed where there are several.
        options: As `gradnorm.monitor` takes them, such as `every=10`.

    Raises:
        ArgumentError: A value that `gradnorm.monitor` does not take, or several optimizers and none was named.
        TypeError: An option that it does not have.

    Examples:
        >>> from torch import nn
        >>> class Net(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.trunk, self.near, self.far = nn.Linear(4, 8), nn.Linear(8, 1), nn.Linear(8, 1)
        ...
        ...     def training_step(self, x, batch_idx):
        ...         features = self.trunk(x).tanh()
        ...         near, far = self.near(features), 10 * self.far(features)
        ...         return watch(self, {"near": near.square().mean(), "far": far.square().mean()})
    """
    if module.training:  # what a compiler traces would be attached once and never step
        return outside_compiled_graph(_watch, module, losses, optimizer, options)
    present = [loss.reshape(()) for loss in losses.values() if loss is not None]
    return torch.stack(present).sum() if present else torch.zeros((), device=module.device)


def _watch(
    module: LightningModule, losses: Mapping[str, Tensor | None], optimizer: int | None, options: dict[str, Any]
) -> Tensor:
    watched = _watched(module, losses, optimizer, options)
    if module.trainer._logger_connector.should_update_logs:
        module.log_dict(watched.log_dict())
    return watched(losses)


class _Watched(NamedTuple):
    """What watches a module: its monitor, the plain options that made it, and the optimizer of this `fit`."""

    monitor: Monitor
    plain: dict[str, Any]
    optimizer: ReferenceType[Optimizer]
    handle: RemovableHandle


_WATCHED: WeakKeyDictionary[LightningModule, _Watched] = WeakKeyDictionary()


def _watched(
    module: LightningModule, losses: Mapping[str, Tensor | None], index: int | None, options: dict[str, Any]
) -> Monitor:
    optimizer = _find_optimizer(module.trainer.optimizers, index)
    known = _WATCHED.get(module)
    if known and known.optimizer() is optimizer:
        return known.monitor
    if known:
        known.handle.remove()
    plain = {name: value for name, value in options.items() if isinstance(value, int | float | str)}
    watcher = known.monitor if known and known.plain == plain else monitor(losses, model=module, **options)
    _WATCHED[module] = _Watched(watcher, plain, ref(optimizer), watcher.attach(optimizer))
    return watcher


def _find_balancer(module: LightningModule, wanted: GradNorm | str | None) -> GradNorm:
    found = {name: part for name, part in module.named_modules() if isinstance(part, GradNorm)}
    names = ", ".join(map(repr, found)) or "none"
    if wanted is not None:
        for name, balancer in found.items():
            if wanted is balancer or wanted == name:
                return balancer
        what = repr(wanted) if isinstance(wanted, str) else "a balancer"
        raise ArgumentError(
            f"balancer is {what}, which {type(module).__name__} does not hold (it holds {names}), so that its "
            "checkpoints would lack the loss weights; make the balancer an attribute of the module, in its __init__"
        )
    if not found:
        raise ArgumentError(
            f"{type(module).__name__} holds no GradNorm; make one in its __init__, self.balancer = GradNorm(…), and "
            "return self.balancer(losses) from training_step"
        )
    if len(found) > 1:
        raise ArgumentError(
            f"{type(module).__name__} holds several balancers, {names}; "
            "add a callback for each: GradNormCallback(balancer=name, …)"
        )
    return next(iter(found.values()))


def _find_optimizer(optimizers: list[Optimizer], index: int | None) -> Optimizer:
    kinds = ", ".join(f"{i}: {type(optimizer).__name__}" for i, optimizer in enumerate(optimizers))
    if index is None and len(optimizers) != 1:
        raise ArgumentError(
            f"training has {len(optimizers)} optimizers ({kinds}); give the one after which the balancer steps, "
            "optimizer=0: the one that holds W"
        )
    if index is not None and not 0 <= index < len(optimizers):
        raise ArgumentError(f"optimizer is {index}, and training has {len(optimizers)} optimizers ({kinds})")
    return optimizers[index or 0]
