"""GradNorm for the Hugging Face `Trainer`: the balanced loss becomes the loss that it trains on.

`Trainer` keeps its loop, its backward and its optimizer. This file only says what the loss is, attaches the balancer to
the optimizer, adds its figures to the log lines, and keeps its state beside the optimizer's in each checkpoint.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ._balancer import GradNorm
from ._errors import ArgumentError, StateError, missing_extra
from ._types import Losses

try:
    from transformers.trainer import Trainer
    from transformers.trainer_callback import TrainerCallback
except ModuleNotFoundError as error:
    raise missing_extra("transformers", "transformers") from error

STATE_NAME = "gradnorm.pt"
"""The balancer's `state_dict()` in each checkpoint folder."""


class GradNormTrainer(Trainer):
    """A `Trainer` for a model with several losses, balanced by GradNorm.

    The model returns its task losses as `losses` in its output, each a mean over the batch; or override
    `compute_losses`. With another trainer, name both: `class MyTrainer(GradNormTrainer, Seq2SeqTrainer)`.

    Args:
        args: As `Trainer` takes them, and in the same order.
        balancer: The balancer; its tasks are the names in `losses`.
        kwargs: As `Trainer` takes them.

    Raises:
        ArgumentError: No balancer, or an option that is incompatible with it: DeepSpeed, `nn.DataParallel`,
            `compute_loss_func`, label smoothing.

    Examples:
        >>> import tempfile
        >>> import torch
        >>> from transformers import TrainingArguments
        >>> from gradnorm import GradNorm
        >>> class Net(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.trunk = torch.nn.Linear(4, 8)
        ...         self.near, self.far = torch.nn.Linear(8, 2), torch.nn.Linear(8, 2)
        ...
        ...     def forward(self, x, labels):
        ...         features = self.trunk(x).tanh()
        ...         near, far = self.near(features) - labels, self.far(features) + labels
        ...         return {"losses": {"near": near.square().mean(), "far": 100 * far.square().mean()}}
        >>> data = [{"x": torch.randn(4), "labels": torch.randn(2)} for _ in range(32)]
        >>> balancer = GradNorm(["near", "far"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     args = TrainingArguments(folder, max_steps=4, use_cpu=True, report_to="none", disable_tqdm=True)
        ...     trainer = GradNormTrainer(model=Net(), args=args, train_dataset=data, balancer=balancer)
        ...     _ = trainer.train()  # doctest: +ELLIPSIS
        {'train_runtime': ...}
        >>> bool(balancer.weights[0] > balancer.weights[1])
        True
    """

    # What compute_loss returns is a mean over one micro-batch: Trainer is to divide it by their number.
    loss_is_scaled_for_ga = False

    def __init__(self, *args: Any, balancer: GradNorm | None = None, **kwargs: Any) -> None:
        if not isinstance(balancer, GradNorm):
            raise ArgumentError(
                f"balancer must be a GradNorm, got {type(balancer).__name__}: give balancer=GradNorm([…]), or a "
                "gradnorm.monitor([…])"
            )
        super().__init__(*args, **kwargs)
        self.balancer = balancer
        _check_usable(self)
        # Nothing here is normalized by `num_items_in_batch`; versions without `loss_is_scaled_for_ga` go by this.
        self.model_accepts_loss_kwargs = False
        self._attach = _Attach(balancer)
        self.add_callback(self._attach)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`; the balancer is attached while it runs, and detached afterwards, even if it raised."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self._attach.detach()

    def compute_losses(self, model: nn.Module, inputs: dict[str, Any]) -> Losses | tuple[Losses, Any]:
        """The task losses of one batch, each a mean over it; override where the model does not return them.

        Args:
            model: The model, wrapped for training.
            inputs: The batch.

        Returns:
            The losses by name, or `(losses, outputs)` if `predict` or `compute_metrics` are to see the model's outputs.

        Raises:
            ArgumentError: The model's output has no `losses`.
        """
        outputs = model(**inputs)
        if not isinstance(outputs, Mapping) or "losses" not in outputs:
            found = f"the keys {', '.join(outputs)}" if isinstance(outputs, Mapping) else type(outputs).__name__
            raise ArgumentError(
                f"the model's output must hold the task losses as 'losses', got {found}; "
                "return them by name from the model, or override compute_losses(model, inputs)"
            )
        return outputs["losses"], {name: value for name, value in outputs.items() if name != "losses"}

    def compute_loss(  # noqa: D102
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        found = self.compute_losses(model, inputs)
        losses, outputs = found if isinstance(found, tuple) else (found, {})
        loss = self.balancer(losses)
        if not return_outputs:
            return loss
        if not isinstance(outputs, Mapping):  # Trainer takes the first of several outputs for the loss
            outputs = (loss, *outputs) if isinstance(outputs, tuple | list) else (loss, outputs)
        return loss, outputs

    def prediction_step(  # noqa: D102
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Any]:
        if ignore_keys is None:
            ignore_keys = list(getattr(getattr(self.model, "config", None), "keys_to_ignore_at_inference", ()))
        # Trainer computes a loss only where all labels are there; here a task may be missing.
        every = self.label_names
        self.label_names = [name for name in every if inputs.get(name) is not None] or every
        try:
            return super().prediction_step(model, inputs, prediction_loss_only, [*ignore_keys, "losses"])
        finally:
            self.label_names = every

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As `Trainer.log`; lines of training steps also hold the balancer's `log_dict()`."""
        if "loss" in logs:
            logs = {**logs, **self.balancer.log_dict()}
        super().log(logs, *args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            torch.save(self.balancer.state_dict(), os.path.join(output_dir, STATE_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = os.path.join(checkpoint, STATE_NAME)
        if not os.path.isfile(path):
            raise StateError(
                f"{checkpoint} has no {STATE_NAME}: it was saved by another trainer, or with save_only_model=True; to "
                "start balancing from there, load the model from it and train without resume_from_checkpoint"
            )
        self.balancer.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))


class _Attach(TrainerCallback):
    """Attaches the balancer once the optimizer exists, when training begins."""

    def __init__(self, balancer: GradNorm) -> None:
        self._balancer = balancer
        self._handle = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.detach()  # Trainer may retry with a smaller batch in the same run
        self._handle = self._balancer.attach(kwargs["optimizer"])

    def detach(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None


def _check_usable(trainer: Trainer) -> None:
    if trainer.is_deepspeed_enabled:
        raise ArgumentError("DeepSpeed steps inside its own engine, where a balancer cannot attach; train without it")
    if trainer.args.n_gpu > 1:
        raise ArgumentError(
            f"one process has {trainer.args.n_gpu} GPUs, for which Trainer uses nn.DataParallel: it makes vectors of "
            "the losses; start one process for each GPU (torchrun --nproc-per-node), or set CUDA_VISIBLE_DEVICES"
        )
    if trainer.compute_loss_func is not None:
        raise ArgumentError("compute_loss_func gives one loss; override compute_losses(model, inputs) instead")
    if trainer.label_smoother is not None:
        raise ArgumentError(
            f"label_smoothing_factor={trainer.args.label_smoothing_factor:g} has no effect on losses that the model "
            "computes; set it to 0 and smooth in the task's own loss"
        )
