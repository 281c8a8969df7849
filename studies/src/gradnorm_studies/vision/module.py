"""One run of a study on images as a LightningModule: network, batches, metrics.

Lightning adds mixed precision, multiple GPUs and logs. As in every study, a batch is drawn from its step number, so
that all methods with a seed see the same batches, and so does a resumed run.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gradnorm_studies.analysis.metrics import Row
from gradnorm_studies.engine.experiment import Experiment, Job, Split, Stop, step_generator
from gradnorm_studies.engine.results import write_result
from gradnorm_studies.engine.training import CHECKPOINT_SECONDS, HEARTBEAT_STEPS, evaluation
from gradnorm_studies.vision.data.augment import DRAWS, augment
from gradnorm_studies.vision.data.sample import Sample
from gradnorm_studies.vision.loading import Images, load
from gradnorm_studies.vision.models.dense import Dense, Head
from gradnorm_studies.vision.models.fcn import FCN
from gradnorm_studies.vision.models.segnet import SegNet
from gradnorm_studies.vision.pictures import SHOWN, predicted
from gradnorm_studies.vision.settings import ImageConfig
from gradnorm_studies.vision.tasks import ERROR, TEST_LOSS, ImageTask

MODELS: dict[str, Callable[[dict[str, Head], float], Dense]] = {"segnet": SegNet, "fcn": FCN}
DECAY, DECAYS_AT = 0.2, 0.3
"""The paper's schedule: the learning rate times 0.2 every 6,000 of 20,000 steps."""
EVALUATED = 4
"""Batches whose images are evaluated at once: without gradients they need less memory."""
TOGETHER_STEPS = 200
"""Steps between two checkpoints when several processes train."""


class VisionModule(LightningModule, Experiment):
    """One run: the network, or one per task, and a weighting.

    Args:
        config: The settings.
        image_tasks: By name, in order.
        images: The data.
        job: The run.
    """

    def __init__(self, config: ImageConfig, image_tasks: Mapping[str, ImageTask], images: Images, job: Job) -> None:
        super().__init__()
        self.config, self.job = config, job
        self.tasks = tuple(image_tasks)
        self._image_tasks, self._images = image_tasks, images
        groups = [(task,) for task in self.tasks] if job.method == "single" else [self.tasks]
        heads = [{task: image_tasks[task].head for task in group} for group in groups]
        networks = [MODELS[config.model](each, config.width) for each in heads]
        # The layout in which convolutions in bfloat16 are fastest.
        self.model: nn.Module = nn.ModuleList(networks).to(memory_format=torch.channels_last)  # pyright: ignore
        self.equip(job, config, networks[0].last_shared, epoch=math.ceil(images.train / config.batch))
        self.rows: list[Row] = []

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """[B, 3, H, W] → each task's output in float32, [B, channels, H/4, W/4] or [B, channels]."""
        return {task: out.float() for network in self.model.children() for task, out in network(image).items()}

    def decay(self, step: int) -> float:
        """The paper's."""
        return DECAY ** (step // max(1, round(DECAYS_AT * self.config.steps)))

    def losses(self, step: int) -> Tensor:
        """[T], the losses on the batch of this step."""
        truth = self._batch(step)
        return self._losses(self(truth.image), truth)

    def _losses(self, outputs: Mapping[str, Tensor], truth: Sample) -> Tensor:
        return torch.stack([image_task.loss(outputs[name], truth) for name, image_task in self._image_tasks.items()])

    def _batch(self, step: int) -> Sample:
        generator = step_generator(self.job.seed, step)
        train = load(self._images, "train")
        rank, processes = self._place
        count = self.config.batch * processes
        indices = torch.randint(len(train.image), (count,), generator=generator)
        draws = torch.rand(count, DRAWS, generator=generator)
        own, drawn = indices.chunk(processes)[rank], draws.chunk(processes)[rank]
        return augment(train.map(lambda values: values[own].to(self.device)), drawn)

    @property
    def _place(self) -> tuple[int, int]:
        """Rank, and number of processes."""
        return (self.global_rank, self.trainer.world_size) if self._trainer else (0, 1)

    def evaluate(self, split: Split) -> dict[str, float]:
        """Every metric of every task, and on test images every task's loss."""
        whole = load(self._images, split)
        errors = {name: image_task.errors().to(self.device) for name, image_task in self._image_tasks.items()}
        diverged: set[str] = set()
        total = torch.zeros(len(self.tasks), device=self.device)
        at_once = EVALUATED * self.config.batch
        for start in range(0, len(whole.image), at_once):
            part = slice(start, start + at_once)
            truth = whole.map(lambda values: values[part].to(self.device))  # noqa: B023 - called at once
            outputs = self(truth.image)
            total += len(truth.image) * self._losses(outputs, truth)
            # Metrics leave out what is not a number, or take it for a class.
            diverged |= {name for name, output in outputs.items() if not output.isfinite().all()}
            for name in outputs.keys() - diverged:
                errors[name].update(outputs[name], truth)
        found: dict[str, float] = {}
        for name, each in errors.items():
            values = (math.nan,) * len(each.names) if name in diverged else each.compute()
            found |= dict(zip(each.names, values, strict=True))
        own = [found[image_task.quantities[0].name] for image_task in self._image_tasks.values()]
        found = {ERROR.name: math.prod(own) ** (1 / len(own))} | found
        if split == "test":
            losses = (total / len(whole.image)).tolist()
            found |= {TEST_LOSS + task: loss for task, loss in zip(self.tasks, losses, strict=True)}
        return found

    @torch.no_grad()
    def pictures(self) -> list[dict[str, Any]]:
        """Predictions on the first `SHOWN` test images."""
        test = load(self._images, "test").map(lambda values: values[:SHOWN])
        self.model.eval()
        maps = {task: out.cpu() for task, out in self(test.image.to(self.device)).items()}
        self.model.train()
        return predicted(maps, test, self._image_tasks)

    # ------------------------------------------------------------------------------------------- hooks of Lightning

    def configure_optimizers(self) -> Any:
        """Those of `equip`."""
        return {"optimizer": self.optimizer, "lr_scheduler": {"scheduler": self.schedule, "interval": "step"}}

    def train_dataloader(self) -> Any:
        """Nothing but a length: `training_step` draws the batch of its step, whatever the loader was resumed at."""
        return DataLoader(range(self.config.steps), batch_size=None)  # pyright: ignore

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        step = self.global_step
        is_recorded = step % self.config.record_every == 0
        if is_recorded:
            self._record(step)
        losses = self.losses(step)
        if is_recorded:
            found = zip(self.tasks, losses.tolist(), strict=True)
            self.rows += [(step, f"loss/{task}", value) for task, value in found]
        return self.weighting(losses)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step the weighting after the optimizer, before callbacks save both."""
        super().optimizer_step(*args, **kwargs)
        self.weighting.step()

    def _record(self, step: int) -> None:
        rows = evaluation(self, step)
        self.rows += rows
        self.log_dict({name: value for _, name, value in rows if "/" not in name}, rank_zero_only=True)

    def on_train_end(self) -> None:
        """Evaluate after the last step."""
        if self.global_step >= self.config.steps:
            with self.trainer.precision_plugin.forward_context():  # as while training
                self.rows += evaluation(self, self.config.steps)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the recorded metrics to the checkpoint."""
        checkpoint["rows"] = self.rows

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.rows = [(step, name, value) for step, name, value in checkpoint["rows"]]


class Heartbeat(Callback):
    """Saves checkpoints, reports progress, and stops when told to.

    Several processes save together, so at the same step, and cannot be told to stop: they end with the one that
    started them.
    """

    def __init__(self, checkpoint: Path, stop: Stop | None) -> None:
        self._checkpoint, self._stop = checkpoint, stop
        self._saved = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step % HEARTBEAT_STEPS or step >= (trainer.max_steps or 0):
            return
        if self._stop is None:
            is_late = step % TOGETHER_STEPS == 0
        else:
            trainer.should_stop = self._stop(step)
            is_late = time.monotonic() - self._saved > CHECKPOINT_SECONDS * 6
        if trainer.should_stop or is_late:
            trainer.save_checkpoint(self._checkpoint)
            self._saved = time.monotonic()


class Finish(Callback):
    """Writes a finished run's result, on the first of several processes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, VisionModule)
        if trainer.is_global_zero and trainer.global_step >= pl_module.config.steps:
            drawn = {"pictures": pl_module.pictures()} if pl_module.job.seed == 0 else {}
            write_result(self._folder, pl_module.job, pl_module.weighting, pl_module.rows, **drawn)


def fit(module: VisionModule, folder: Path, stop: Stop) -> bool:
    """Train with Lightning from the run's checkpoint, if there is one; returns whether the run is finished."""
    config, job = module.config, module.job
    checkpoint = folder / f"{job.file_name}.checkpoint"
    logs = folder.parent / "logs"
    several = config.devices > 1
    with _quiet():
        trainer = Trainer(
            max_steps=config.steps,
            accelerator="auto",
            devices=config.devices,
            strategy="ddp_spawn" if several else "auto",
            precision=config.precision,  # pyright: ignore[reportArgumentType]
            logger=[CSVLogger(logs, "csv", job.file_name), TensorBoardLogger(logs, "tensorboard", job.file_name)],
            # The study's own bars show progress; processes of their own cannot reach them.
            callbacks=[Finish(folder), Heartbeat(checkpoint, None if several else stop)],
            enable_progress_bar=several,
            use_distributed_sampler=False,  # what the loader gives are steps, which are the same for all
            enable_checkpointing=False,
            enable_model_summary=False,
            log_every_n_steps=1,
        )
        try:
            trainer.fit(module, ckpt_path=str(checkpoint) if checkpoint.exists() else None)
        except SystemExit:  # Lightning's answer to Ctrl-C
            if trainer.interrupted:
                raise KeyboardInterrupt from None
            raise
    finished = (folder / f"{job.file_name}.json").exists()
    if finished:
        checkpoint.unlink(missing_ok=True)
    return finished


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences Lightning's banners and advice, which would break the progress bars."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        logger.setLevel(level)
