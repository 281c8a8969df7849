"""`GradNormTrainer` trains as a plain loop does: real runs of `Trainer` on the CPU, with a model written here."""

import importlib
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    TrainingArguments,
)

import gradnorm
from gradnorm import ArgumentError, GradNorm, StateError
from gradnorm._history import FIELDS
from gradnorm.transformers import GradNormTrainer

from ..distributed.launch import launch

STEPS = 6
BATCH = 4


class Net(nn.Module):
    """Two tasks of unlike scale behind one trunk, whose last layer is `W`; no `**kwargs` in its forward."""

    def __init__(self):
        super().__init__()
        self.build()

    def build(self):
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
        self.near, self.far = nn.Linear(8, 1), nn.Linear(8, 1)

    def forward(self, x, labels):
        features = self.trunk(x)
        near, far = self.near(features), self.far(features)
        losses = {
            "near": (near - labels[:, :1]).float().square().mean(),
            "far": 30 * (far - labels[:, 1:]).float().square().mean(),
        }
        return {"losses": losses, "logits": torch.cat([near, far], 1)}


class NetWithKwargs(Net):
    def forward(self, x, labels, **kwargs):
        return super().forward(x, labels)


class Pretrained(PreTrainedModel, Net):
    """The same as `save_pretrained` knows it; its forward takes `**kwargs`, as most of the library's do."""

    config_class = PreTrainedConfig

    def __init__(self, config):
        PreTrainedModel.__init__(self, config)
        self.build()
        self.post_init()

    def forward(self, x, labels, **kwargs):
        return Net.forward(self, x, labels)


MODELS = {"module": Net, "module with kwargs": NetWithKwargs, "pretrained": lambda: Pretrained(PreTrainedConfig())}


def seeded(name):
    torch.manual_seed(0)
    return MODELS[name]()


def rows(count=STEPS * BATCH):
    generator = torch.Generator().manual_seed(1)
    return [
        {"x": torch.randn(6, generator=generator), "labels": torch.randn(2, generator=generator)} for _ in range(count)
    ]


def trainer_of(model, balancer, folder, data, kind=GradNormTrainer, model_init=None, **kwargs):
    settings = {
        "max_steps": STEPS,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "logging_steps": 1,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    arguments = Seq2SeqTrainingArguments if issubclass(kind, Seq2SeqTrainer) else TrainingArguments
    args = arguments(str(folder), **(settings | kwargs))
    given = {"args": args, "train_dataset": data, "eval_dataset": data[:BATCH], "balancer": balancer}
    return kind(model=model, model_init=model_init, **given)


def plain_loop(model, balancer, data, size=BATCH, bf16=False, optimizer=None):
    """The loop of the README; left out, the optimizer and the clipping are Trainer's defaults."""
    clip = optimizer is None
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0, fused=True)
    for step in range(STEPS):
        batch = data[step * size : (step + 1) * size]
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            found = model(*(torch.stack([row[name] for row in batch]) for name in ("x", "labels")))
        optimizer.zero_grad()
        balancer(found["losses"]).backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        balancer.step()


def states(model, balancer):
    return {**model.state_dict(), "w": balancer.weights}


def measured(balancer):
    """Loss, weight, norm, target and rate, a row a step and task."""
    return torch.tensor([[row[field] for field in FIELDS] for row in balancer.history.rows()])


def pair():
    return [GradNorm(["near", "far"], cosines_every=1) for _ in range(2)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_it_trains_as_a_plain_loop(name, bf16, tmp_path):
    (ours, theirs), data = pair(), rows()
    model, reference = seeded(name), seeded(name)
    trainer_of(model, ours, tmp_path, data, bf16=bf16).train()
    plain_loop(reference, theirs, data, bf16=bf16)
    assert ours.weights[0] > 1.05
    torch.testing.assert_close(states(model, ours), states(reference, theirs), rtol=0, atol=0)


class OfAnOldVersion(GradNormTrainer):
    """The attribute that older versions of `Trainer` do not look at."""

    loss_is_scaled_for_ga = None


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", [GradNormTrainer, OfAnOldVersion])
def test_accumulating_four_batches_is_one_of_four_times_the_size(name, kind, tmp_path):
    (ours, theirs), data = pair(), rows(4 * STEPS * BATCH)
    model, reference = seeded(name), seeded(name)
    # Neither clipping nor Adam, which would hide a gradient of four times the size.
    plain = {"optim": "sgd", "learning_rate": 1e-3, "max_grad_norm": 0.0}
    trainer_of(model, ours, tmp_path, data, kind, gradient_accumulation_steps=4, **plain).train()
    optimizer = torch.optim.SGD(reference.parameters(), lr=1e-3)
    plain_loop(reference, theirs, data, size=4 * BATCH, optimizer=optimizer)
    torch.testing.assert_close(states(model, ours), states(reference, theirs), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(measured(ours), measured(theirs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["module", "pretrained"])
def test_interrupted_and_resumed_is_uninterrupted(name, tmp_path):
    data, (ours, other) = rows(40), pair()
    shuffled = {"save_strategy": "steps", "save_steps": 3, "train_sampling_strategy": "random"}
    straight = seeded(name)
    whole = trainer_of(straight, ours, tmp_path / "a", data, **shuffled)
    whole.train()

    first = trainer_of(seeded(name), pair()[0], tmp_path / "b", data, **shuffled)
    first.add_callback(StopAfterThree)
    first.train()
    torch.manual_seed(99)
    model = MODELS[name]()
    resumed = trainer_of(model, other, tmp_path / "b", data, **shuffled)
    resumed.train(resume_from_checkpoint=True)

    torch.testing.assert_close(states(model, other), states(straight, ours), rtol=0, atol=0)
    torch.testing.assert_close(other.state_dict(), ours.state_dict(), rtol=0, atol=0)
    assert figures(resumed) == figures(whole)
    torch.testing.assert_close(measured(other), measured(ours)[-6:], rtol=0, atol=0)


class StopAfterThree(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step == 3


def figures(trainer):
    """What was logged of each step, apart from the times."""
    return [line for line in trainer.state.log_history if "loss" in line]


def test_the_model_is_saved_as_ever_with_the_balancer_beside_it(tmp_path):
    (balancer, fresh), data = pair(), rows()
    model = seeded("pretrained")
    trainer_of(model, balancer, tmp_path, data, save_strategy="steps", save_steps=STEPS).train()
    folder = tmp_path / f"checkpoint-{STEPS}"
    loaded = Pretrained.from_pretrained(folder)
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    fresh.load_state_dict(torch.load(folder / "gradnorm.pt", weights_only=True))
    torch.testing.assert_close(fresh.weights, balancer.weights, rtol=0, atol=0)


def test_log_lines_of_steps_hold_the_figures_of_each_task(tmp_path):
    balancer, _ = pair()
    trainer = trainer_of(seeded("module"), balancer, tmp_path, rows(), logging_steps=2, eval_strategy="steps")
    trainer.train()
    lines = figures(trainer)
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert {name: lines[-1][name] for name in balancer.log_dict()} == balancer.log_dict()
    for line, row in zip(lines, balancer.history.rows()[2::4], strict=True):
        assert line["learning_rate"] == 1e-2
        assert line["gradnorm/weight/near"] == row["weight"]
    others = [line for line in trainer.state.log_history if "loss" not in line]
    assert others
    assert not any(name.startswith("gradnorm") for line in others for name in line)


def test_a_monitor_takes_the_balancers_place(tmp_path):
    data, model = rows(), seeded("module")
    monitor = gradnorm.monitor(["near", "far"], every=2)
    trainer = trainer_of(model, monitor, tmp_path, data, logging_steps=1)
    trainer.train()
    assert monitor.weights.tolist() == [1.0, 1.0]
    assert monitor.history.steps == list(range(0, STEPS, 2))
    assert all("gradnorm/share/near" in line and "gradnorm/weight/near" not in line for line in figures(trainer))


def test_evaluate_is_the_weighted_sum_and_leaves_the_weights_alone(tmp_path):
    balancer, _ = pair()
    data, model = rows(), seeded("module")
    trainer = trainer_of(model, balancer, tmp_path, data)
    trainer.train()
    before, steps = balancer.weights.clone(), len(balancer.history)
    found = trainer.evaluate()["eval_loss"]
    with torch.no_grad():
        losses = model(*(torch.stack([row[name] for row in data[:BATCH]]) for name in ("x", "labels")))["losses"]
    near, far = before.tolist()
    assert found == pytest.approx(near * losses["near"].item() + far * losses["far"].item(), rel=1e-5)
    torch.testing.assert_close(balancer.weights, before, rtol=0, atol=0)
    assert len(balancer.history) == steps
    predicted = trainer.predict(data[:BATCH])
    assert isinstance(predicted.predictions, np.ndarray), "losses are no predictions"
    assert predicted.predictions.shape == (BATCH, 2)


class WithoutLosses(Net):
    def forward(self, x, labels):
        features = self.trunk(x)
        return {"near": self.near(features), "far": self.far(features)}


class ComputesBoth(GradNormTrainer):
    def compute_losses(self, model, inputs):
        outputs, labels = model(**inputs), inputs["labels"]
        near, far = outputs["near"] - labels[:, :1], outputs["far"] - labels[:, 1:]
        return {"near": near.square().mean(), "far": 30 * far.square().mean()}, outputs


class Outputs(ComputesBoth):
    """Whose outputs are no mapping."""

    def __init__(self, *args, form=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.form = form

    def compute_losses(self, model, inputs):
        losses, outputs = super().compute_losses(model, inputs)
        both = outputs["near"], outputs["far"]
        return losses, both if self.form == "tuple" else torch.cat(both, 1)


@pytest.mark.parametrize("form", ["tuple", "tensor"])
def test_outputs_of_any_form_are_predictions(form, tmp_path):
    data = rows(10)
    trainer = trainer_of(WithoutLosses(), GradNorm(["near", "far"]), tmp_path, data, Outputs, max_steps=1)
    trainer.form = form
    trainer.train()
    found = trainer.predict(data)
    shapes = [each.shape for each in found.predictions] if form == "tuple" else found.predictions.shape
    assert shapes == ([(10, 1), (10, 1)] if form == "tuple" else (10, 2))
    assert found.metrics["test_loss"] > 0


class TwoLabels(Net):
    """Computes the losses of which there are labels."""

    def forward(self, x, near_labels=None, far_labels=None):
        features = self.trunk(x)
        outputs = {"near": self.near(features), "far": self.far(features)}
        given = {"near": near_labels, "far": far_labels}
        losses = {n: (outputs[n] - y).square().mean() for n, y in given.items() if y is not None}
        return {"losses": losses, "logits": torch.cat([*outputs.values()], 1)}


def test_a_task_may_be_missing_in_evaluation(tmp_path):
    data = [{"x": row["x"], "near_labels": row["labels"][:1], "far_labels": row["labels"][1:]} for row in rows(8)]
    for row in data[4:]:
        del row["far_labels"]
    model, balancer = TwoLabels(), GradNorm(["near", "far"], update="closed-form")
    trainer = trainer_of(model, balancer, tmp_path, data[:4], max_steps=1, per_device_eval_batch_size=4)
    trainer.train()
    parts = [trainer.evaluate(part)["eval_loss"] for part in (data[:4], data[4:])]
    assert trainer.evaluate(data)["eval_loss"] == pytest.approx(sum(parts) / 2)
    unlabeled = trainer.predict([{"x": row["x"]} for row in data]).predictions
    assert isinstance(unlabeled, np.ndarray), "losses are no predictions"
    assert unlabeled.shape == (8, 2)


class ComputesLosses(ComputesBoth):
    def compute_losses(self, model, inputs):
        return super().compute_losses(model, inputs)[0]


@pytest.mark.parametrize("kind", [ComputesLosses, ComputesBoth])
def test_losses_may_be_computed_by_the_trainer(kind, tmp_path):
    (ours, theirs), data = pair(), rows()
    torch.manual_seed(0)
    model, reference = WithoutLosses(), seeded("module")
    trainer = trainer_of(model, ours, tmp_path, data, kind)
    trainer.train()
    plain_loop(reference, theirs, data)
    torch.testing.assert_close(states(model, ours), states(reference, theirs), rtol=0, atol=0)
    assert trainer.evaluate()["eval_loss"] > 0
    assert len(trainer.predict(data).predictions) == (2 if kind is ComputesBoth else 0)


class Seq2Seq(GradNormTrainer, Seq2SeqTrainer):
    pass


def test_other_trainers_take_it_as_a_first_base(tmp_path):
    (ours, theirs), data = pair(), rows()
    model, reference = seeded("pretrained"), seeded("pretrained")
    trainer_of(model, ours, tmp_path, data, Seq2Seq).train()
    plain_loop(reference, theirs, data)
    torch.testing.assert_close(states(model, ours), states(reference, theirs), rtol=0, atol=0)


def test_a_model_made_in_train_is_the_one_measured(tmp_path):
    (ours, theirs), data = pair(), rows()
    trainer = trainer_of(None, ours, tmp_path, data, model_init=lambda: seeded("module"))
    trainer.train()
    reference = seeded("module")
    plain_loop(reference, theirs, data)
    torch.testing.assert_close(states(trainer.model, ours), states(reference, theirs), rtol=0, atol=0)


class Failing(TrainerCallback):
    def on_step_end(self, *_, **__):
        raise KeyboardInterrupt


def test_training_again_goes_on(tmp_path):
    balancer, _ = pair()
    trainer = trainer_of(seeded("module"), balancer, tmp_path, rows())
    trainer.train()
    trainer.train()
    assert [row["step"] for row in balancer.history.rows()][::2] == list(range(2 * STEPS))
    assert not trainer.optimizer.optimizer._optimizer_step_post_hooks


def test_a_balancer_is_free_for_another_trainer_after_training_that_failed(tmp_path):
    balancer, _ = pair()
    failing = trainer_of(seeded("module"), balancer, tmp_path, rows())
    failing.add_callback(Failing())
    with pytest.raises(KeyboardInterrupt):
        failing.train()
    before = len(balancer.history)
    trainer_of(seeded("module"), balancer, tmp_path, rows()).train()
    assert len(balancer.history) == before + STEPS


def test_errors_name_the_remedy(tmp_path):
    balancer, _ = pair()
    data = rows()

    def of(model=None, **kwargs):
        return trainer_of(model or seeded("module"), balancer, tmp_path, data, **kwargs)

    with pytest.raises(ArgumentError, match="balancer must be a GradNorm, got list"):
        trainer_of(seeded("module"), ["near", "far"], tmp_path, data)
    with pytest.raises(ArgumentError, match=r"balancer must be a GradNorm, got NoneType: give balancer=GradNorm"):
        GradNormTrainer(model=seeded("module"))
    with pytest.raises(ArgumentError, match=r"'losses', got the keys near, far; .*override compute_losses"):
        of(WithoutLosses()).train()
    with pytest.raises(ArgumentError, match=r"label_smoothing_factor=0\.1 has no effect"):
        of(seeded("pretrained"), label_smoothing_factor=0.1)
    with pytest.raises(ArgumentError, match="override compute_losses"):
        GradNormTrainer(seeded("module"), of().args, compute_loss_func=lambda *_: 0, balancer=balancer)
    args = of().args
    args._n_gpu = 2
    with pytest.raises(ArgumentError, match=r"2 GPUs.*one process for each GPU"):
        GradNormTrainer(seeded("module"), args, balancer=balancer)


class WithDeepSpeed(GradNormTrainer):
    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        self.is_deepspeed_enabled = True


def test_deepspeed_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match="train without it"):
        trainer_of(seeded("module"), pair()[0], tmp_path, rows(), WithDeepSpeed)


def test_without_transformers_the_error_names_the_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "gradnorm.transformers")
    monkeypatch.setitem(sys.modules, "transformers.trainer", None)
    with pytest.raises(ImportError, match=r"pip install \"gradnorm\[transformers\]\""):
        importlib.import_module("gradnorm.transformers")


def test_a_checkpoint_without_the_balancer_is_refused(tmp_path):
    balancer, _ = pair()
    trainer = trainer_of(seeded("module"), balancer, tmp_path, rows(), save_strategy="steps", save_steps=STEPS)
    trainer.train()
    Path(tmp_path, f"checkpoint-{STEPS}", "gradnorm.pt").unlink()
    with pytest.raises(StateError, match=r"has no gradnorm\.pt.*without resume_from_checkpoint"):
        trainer.train(resume_from_checkpoint=True)


def two_processes(rank, folder):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    data = rows(2 * STEPS * BATCH)
    runs = []
    for resume in (None, f"{folder}/checkpoint-3"):
        model, (balancer, _) = seeded("pretrained"), pair()
        trainer = trainer_of(model, balancer, folder, data, save_strategy="steps", save_steps=3)
        assert trainer.args.world_size == 2
        trainer.train(resume_from_checkpoint=resume)
        runs.append(states(model, balancer))
    return runs


def test_two_processes_are_one_on_the_joint_batch_and_resume(tmp_path):
    ranks = launch(two_processes, tmp_path / "ranks", str(tmp_path / "run"))
    reference, balancer = seeded("pretrained"), pair()[0]
    plain_loop(reference, balancer, rows(2 * STEPS * BATCH), size=2 * BATCH)
    torch.testing.assert_close(ranks[0][0], states(reference, balancer), rtol=1e-4, atol=1e-5)
    for run in (*ranks[0], *ranks[1]):
        torch.testing.assert_close(run, ranks[0][0], rtol=0, atol=0)
