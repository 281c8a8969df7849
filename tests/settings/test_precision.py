"""Mixed precision: the weights and the network of a plain run, whatever scales the loss or narrows the numbers."""

import math

import pytest
import torch

from gradnorm import Descent, GradNorm
from gradnorm._history import FIELDS

from ..unit.networks import Net, batch

NAMES = ["a", "b", "c"]
UPDATES = ["descent", "closed-form"]
OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=1e-2),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
    "fused Adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-2, fused=True),
}


class Training:
    """A network, its balancer attached to the optimizer, and perhaps a loss scaler."""

    def __init__(self, make=OPTIMIZERS["SGD"], scale=None, autocast=None, update="descent"):
        self.net = Net()
        self.balancer = GradNorm(NAMES, shared=self.net.last, update=update)
        self.optimizer = make(self.net.parameters())
        self.balancer.attach(self.optimizer)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        self.autocast = autocast

    def losses(self, x):
        with torch.autocast("cpu", self.autocast, enabled=self.autocast is not None):
            return self.net.losses(x)

    def step(self, number, bad=False, clip=None, parts=1):
        self.optimizer.zero_grad()
        for i, part in enumerate(batch(number).chunk(parts)):
            loss = self.scaler.scale(self.balancer(self.losses(part)) / parts)
            (loss * math.inf if bad and i == 0 else loss).backward()
        if clip is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def measured(self):
        return torch.tensor([[row[field] for field in FIELDS] for row in self.balancer.history.rows()])

    def result(self):
        return [self.balancer.weights.clone(), *(p.detach().clone() for p in self.net.parameters())]


def assert_same(one, other, **tolerance):
    for a, b in zip(one.result(), other.result(), strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_loss_scale_changes_neither_the_weights_nor_the_network(make, clip, update):
    plain, scaled = Training(make, update=update), Training(make, scale=65536.0, update=update)
    for number in range(8):
        plain.step(number, clip=clip)
        scaled.step(number, clip=clip)
    assert torch.equal(plain.balancer.weights, scaled.balancer.weights) or clip is not None
    assert_same(plain, scaled)
    # Adam on the weights would hide a factor that all tasks have in common.
    torch.testing.assert_close(plain.measured(), scaled.measured())
    assert (plain.balancer.weights - 1).abs().max() > 0.1


@pytest.mark.parametrize("parts", [1, 2], ids=["whole batches", "one of two micro-batches is bad"])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("update", UPDATES)
def test_a_skipped_step_leaves_no_trace(make, parts, update):
    """As if that batch had never come; `fused` optimizers skip on the device, and their hooks run all the same."""
    scaled, plain = Training(make, scale=1024.0, update=update), Training(make, update=update)
    for number in range(8):
        scaled.step(number, bad=number in (0, 3), parts=parts)
        if number not in (0, 3):
            plain.step(number, parts=parts)
    assert_same(scaled, plain)
    assert scaled.balancer.log_dict()["gradnorm/skipped"] == 0
    assert scaled.scaler.get_scale() == 256.0


@pytest.mark.filterwarnings("ignore:GradNorm left the loss weights unchanged")
@pytest.mark.parametrize(("name", "skips"), [("SGD", 1), ("fused Adam", 0)])
def test_gradients_cleared_to_zeros_make_a_skipped_step_cost_the_next_update(name, skips):
    """As the page says: zeros do not show that they were cleared. The weights stay sound, and the skip is counted."""
    training = Training(OPTIMIZERS[name], scale=1024.0)
    clear = training.optimizer.zero_grad
    training.optimizer.zero_grad = lambda: clear(set_to_none=False)
    moved = []
    for number in range(5):
        before = training.balancer.weights.clone()
        training.step(number, bad=number == 2)
        moved.append(not torch.equal(before, training.balancer.weights))
    assert moved == [True, True, False, not skips, True]
    assert training.balancer.log_dict()["gradnorm/skipped"] == skips


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_measures_the_norms_of_the_gradients_that_autocast_gives(dtype):
    training = Training(scale=8.0 if dtype is torch.float16 else None, autocast=dtype)
    for number in range(5):
        losses = training.losses(batch(number))
        wanted = [torch.autograd.grad(loss, training.net.last, retain_graph=True)[0].norm() for loss in losses.values()]
        weights = training.balancer.weights.clone()
        training.step(number)
        found = [training.balancer.log_dict()[f"gradnorm/norm/{name}"] for name in NAMES]
        # The product of the weight and a gradient is rounded, once for us and once for autograd.
        torch.testing.assert_close(torch.tensor(found), weights * torch.stack(wanted), rtol=0.02, atol=0.0)
    assert training.balancer.weights.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_stays_near_full_precision(dtype):
    plain, narrow = Training(), Training(scale=8.0 if dtype is torch.float16 else None, autocast=dtype)
    for number in range(20):
        plain.step(number)
        narrow.step(number)
    assert_same(plain, narrow, rtol=0.0, atol=0.1)
    assert (plain.balancer.weights - 1).abs().max() > 0.3


WAYS = {
    "plain": {},
    "features": {"at": "features"},
    "every other": {"every": 2},
    "mean L(0)": {"initial_losses": 2},
    "priorities": {"priorities": [1.0, 2.0, 3.0]},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("missing", [(), ("b",)], ids=["all tasks", "one missing"])
def test_no_step_reads_a_value(missing, way):
    """On the meta device there are no values: whatever would wait for a GPU is an error here."""
    with torch.device("meta"):
        net = Net()
        # torch makes Adam's count of steps capturable on real accelerators only; SGD has none.
        balancer = GradNorm(NAMES, shared=net.last, update=Descent(optimizer=torch.optim.SGD), check=False, **WAYS[way])
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
        for number in range(3):
            optimizer.zero_grad()
            losses = net.losses(torch.ones(4, 6))
            balancer({name: None if name in missing else loss for name, loss in losses.items()}).backward()
            optimizer.step()
            balancer._advance(torch.tensor(0.0) if number else None)  # as `attach` does after a fused optimizer
    assert len(balancer.history) == (2 if way == "every other" else 3)
    with pytest.raises(RuntimeError, match="meta"):
        balancer.log_dict()
