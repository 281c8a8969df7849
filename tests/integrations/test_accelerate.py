"""Accelerate needs no integration: a prepared model, optimizer and backward train as a plain loop does."""

import os

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, GradientState
from torch import nn

from gradnorm import GradNorm

from ..distributed.launch import launch
from ..unit.networks import Net, batch

STEPS = 5
SIZE = 8


class Model(nn.Module):
    """Gives its losses from `forward`, as what `prepare` wraps must."""

    def __init__(self, seed=0):
        super().__init__()
        self.net = Net(seed=seed)

    def forward(self, x):
        return self.net.losses(x)


class Run:
    """A model, its optimizer and balancer, prepared by Accelerate, or plain where that is `None`."""

    def __init__(self, accelerator=None, seed=0, **options):
        model = Model(seed)
        self.w = model.net.last
        self.balancer = GradNorm(["a", "b", "c"], shared=self.w, **options)
        self.accelerator = accelerator
        self.model, self.optimizer = model, torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
        if accelerator is not None:
            self.model, self.optimizer = accelerator.prepare(self.model, self.optimizer)
            accelerator.register_for_checkpointing(self.balancer)
        self.balancer.attach(self.optimizer)

    def train(self, first=0, last=STEPS, micro=1, rank=0, world=1):
        for step in range(first, last):
            for part in batch(step, SIZE).chunk(world)[rank].chunk(micro):
                with self.accelerator.accumulate(self.model):
                    loss = self.balancer(self.model(part))
                    self.accelerator.backward(loss)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
        return self

    def train_plainly(self, bf16=False):
        for step in range(STEPS):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                losses = self.model(batch(step, SIZE))
            self.optimizer.zero_grad()
            self.balancer(losses).backward()
            self.optimizer.step()
        return self

    def found(self):
        """Everything that training has changed, and what it measured."""
        model = self.model if self.accelerator is None else self.accelerator.unwrap_model(self.model)
        rows = [[value for value in row.values() if not isinstance(value, str)] for row in self.balancer.history.rows()]
        return {**model.state_dict(), "w": self.balancer.weights, "rows": torch.tensor(rows)}


@pytest.fixture(autouse=True)
def fresh_state():
    """Accelerate keeps its settings in the process."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def exactly(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert (expected["w"] - 1).abs().max() > 0.01, "the weights must have moved for this to mean anything"


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_it_trains_as_a_plain_loop(precision):
    plain = Run().train_plainly(bf16=precision == "bf16")
    exactly(Run(Accelerator(cpu=True, mixed_precision=precision)).train().found(), plain.found())


@pytest.mark.parametrize("options", [{}, {"every": 2}, {"at": "features"}], ids=str)
def test_accumulated_parts_are_the_joint_batch(options):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    found = Run(accelerator, **options).train(micro=4).found()
    torch.testing.assert_close(found, Run(**options).train_plainly().found(), rtol=1e-4, atol=1e-5)


def test_saved_and_loaded_state_goes_on_as_if_never_interrupted(tmp_path):
    whole = Run(Accelerator(cpu=True)).train().found()
    first = Run(Accelerator(cpu=True)).train(last=3)
    first.accelerator.save_state(tmp_path)
    second = Run(Accelerator(cpu=True), seed=7)
    second.accelerator.load_state(tmp_path)
    found = second.train(first=3).found()
    assert found["rows"].equal(whole.pop("rows")[-6:])
    found.pop("rows")
    exactly(found, whole)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_loss_scaler_skips_is_no_step(fused):
    """float16 needs a GPU, but the optimizer that Accelerate makes for it does not."""
    Accelerator(cpu=True)
    model, reference = Model(), Run().train_plainly()
    balancer, scaler = GradNorm(["a", "b", "c"], shared=model.net.last), torch.amp.GradScaler("cpu")
    plain = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9, fused=fused)
    optimizer = AcceleratedOptimizer(plain, device_placement=False, scaler=scaler)
    balancer.attach(optimizer)
    for step in (0, 1, "overflow", 2, 3, 4):
        loss = balancer(model(batch(0 if step == "overflow" else step, SIZE)))
        scaler.scale(loss * torch.inf if step == "overflow" else loss).backward()
        before = balancer.weights.clone()
        optimizer.step()
        optimizer.zero_grad()
        assert balancer.weights.equal(before) == (step == "overflow")
    torch.testing.assert_close(balancer.weights, reference.balancer.weights, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.net.last, reference.w, rtol=1e-4, atol=1e-5)


def worker(rank, micro, options):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=micro)
    assert accelerator.num_processes == 2
    run = Run(accelerator, **options).train(micro=micro, rank=rank, world=2)
    assert isinstance(run.model, nn.parallel.DistributedDataParallel)
    return run.found()


@pytest.mark.parametrize(("micro", "options"), [(2, {}), (1, {"at": "features"})], ids=str)
def test_two_processes_are_one_on_the_joint_batch(micro, options, tmp_path):
    ranks = launch(worker, tmp_path, micro, options)
    exactly(ranks[0], ranks[1])
    torch.testing.assert_close(ranks[0], Run(**options).train_plainly().found(), rtol=1e-4, atol=1e-5)
