"""Two processes equal one on the joint batch: weights, losses, norms and the model, in every setting of DDP."""

import math

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from gradnorm import GradNorm, GraphError, StateError

from ..unit.networks import Net, batch
from .launch import launch

NAMES = ["a", "b", "c"]
STEPS = 5
SIZE = 8

MODES = {
    "plain": {},
    "static graph": {"static_graph": True},
    "unused parameters": {"find_unused_parameters": True},
    "bucket view": {"gradient_as_bucket_view": True},
}
OPTIONS = {
    "layer": {},
    "features": {"at": "features"},
    "every other": {"every": 2},
    "mean L(0)": {"initial_losses": 3},
    "closed form at the features": {"update": "closed-form", "at": "features"},
    "closed form every other": {"update": "closed-form", "every": 2},
}
UPDATES = ["descent", "closed-form"]


class Outputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Net()

    @property
    def layer(self):
        return {"shared": self.net.last}

    def forward(self, x):
        features = self.features(x)
        return [head(features) for head in self.net.heads]

    def features(self, x):
        return self.net.trunk(x)


class AsleepAtFirst(Outputs):
    """The detected layer is in a branch that is multiplied by zero before the first step."""

    def __init__(self):
        super().__init__()
        self.branch, self.gain = nn.Linear(8, 8), nn.Parameter(torch.zeros(8))

    @property
    def layer(self):
        return {"model": self}

    def features(self, x):
        features = self.net.trunk(x)
        return features + self.gain * self.branch(features)


def losses(outputs, present=NAMES):
    scaled = [10**i * (y - 1).square().mean() for i, y in enumerate(outputs)]
    return {name: loss for name, loss in zip(NAMES, scaled, strict=True) if name in present}


def found(model, balancer):
    net = getattr(model, "net", model)
    return {
        "weights": balancer.weights.clone(),
        "initial": balancer.initial_losses,
        "averaged": balancer.time_averaged_weights(),
        "rows": [{**row, "task": 0} for row in balancer.history.rows()],
        "cosines": [row["cosine"] for row in balancer.history.cosines()],
        "parameters": [p.detach().clone() for p in net.parameters()],
    }


def numbers(rows):
    return torch.tensor([list(row.values()) for row in rows])


def same(ranks, alone):
    """All ranks bitwise alike; and as one process found."""
    for rank in ranks:
        assert torch.equal(rank["weights"], ranks[0]["weights"])
        assert rank["cosines"] == ranks[0]["cosines"] or any(map(math.isnan, rank["cosines"]))
        for key in ("weights", "initial", "averaged"):
            torch.testing.assert_close(rank[key], alone[key], equal_nan=True)
        torch.testing.assert_close(numbers(rank["rows"]), numbers(alone["rows"]), equal_nan=True, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(rank["cosines"], alone["cosines"], equal_nan=True, rtol=1e-3, atol=1e-3)
        for mine, theirs in zip(rank["parameters"], alone["parameters"], strict=True):
            torch.testing.assert_close(mine, theirs)
    assert (alone["weights"] - 1).abs().max() > 0.01, "the weights must have moved for this to mean anything"


def joint(options, parts=1, kind=Outputs):
    """One process on the joint batch."""
    model = kind()
    balancer = GradNorm(NAMES, **model.layer, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for step in range(STEPS):
        x = batch(step, SIZE)
        optimizer.zero_grad()
        for part in x.chunk(parts):
            (balancer(losses(model(part))) / parts).backward()
        optimizer.step()
        balancer.step()
    return found(model, balancer)


def data_parallel(rank, kwargs, options, micro=1, kind=Outputs):
    model = kind()
    balancer = GradNorm(NAMES, **model.layer, **options)
    wrapped = DistributedDataParallel(model, **kwargs)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    balancer.attach(optimizer)
    for step in range(STEPS):
        x = batch(step, SIZE).chunk(2)[rank]
        optimizer.zero_grad()
        parts = x.chunk(micro)
        for i, part in enumerate(parts):
            wrapped.require_backward_grad_sync = i == len(parts) - 1  # what no_sync() sets
            (balancer(losses(wrapped(part))) / micro).backward()
        optimizer.step()
    return found(model, balancer)


@pytest.mark.filterwarnings("ignore:.*find_unused_parameters.*")
@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("mode", MODES)
def test_two_processes_equal_one(mode, update, tmp_path):
    options = {"update": update}
    same(launch(data_parallel, tmp_path, MODES[mode], options), joint(options))


@pytest.mark.parametrize("option", OPTIONS)
def test_two_processes_equal_one_with(option, tmp_path):
    same(launch(data_parallel, tmp_path, {}, OPTIONS[option]), joint(OPTIONS[option]))


@pytest.mark.parametrize("update", UPDATES)
def test_two_processes_equal_one_while_the_layer_is_asleep(update, tmp_path):
    options = {"update": update}
    same(launch(data_parallel, tmp_path, {}, options, 1, AsleepAtFirst), joint(options, kind=AsleepAtFirst))


@pytest.mark.parametrize("update", UPDATES)
def test_accumulation_without_synchronization_equals_one_batch(update, tmp_path):
    # The first micro-batch decides where the closed form starts.
    options = {"update": update, "initial_weights": None}
    same(launch(data_parallel, tmp_path, {}, options, 2), joint(options))


# ------------------------------------------------------------------------------------------------------ uneven tasks

PLANS = {
    "one lacks a task": [{"a", "b", "c"}, {"a", "b"}],
    "each lacks another": [{"a", "c"}, {"b", "c"}],
    "one task here, the others there": [{"a"}, {"b", "c"}],
    "one has none": [{"a", "b", "c"}, set()],
}


def uneven(rank, plan, options):
    model = Outputs()
    balancer = GradNorm(NAMES, shared=model.net.last, **options)
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for step in range(STEPS):
        present = plan[(rank + step) % 2]  # the ranks take turns
        outputs = wrapped(batch(step, SIZE).chunk(2)[rank])
        loss = balancer(losses(outputs, present)) + 0 * sum(y.sum() for y in outputs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        balancer.step()
    return found(model, balancer)


def even(plan, options):
    """The same by hand in one process: each task's mean over the parts that have it."""
    model = Outputs()
    balancer = GradNorm(NAMES, shared=model.net.last, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for step in range(STEPS):
        optimizer.zero_grad()
        parts = batch(step, SIZE).chunk(2)
        per_part = [losses(model(part), plan[(i + step) % 2]) for i, part in enumerate(parts)]
        held = {name: [each[name] for each in per_part if name in each] for name in NAMES}
        means = {name: sum(each) / len(each) for name, each in held.items() if each}
        weights = balancer.weights.clone()
        # Under DDP a task that half of the processes lack counts half in the model's gradient.
        model_loss = sum(weights[i] * sum(held[name]) / 2 for i, name in enumerate(NAMES) if held[name])
        model_loss.backward(retain_graph=True)
        kept = [p.grad.clone() for p in model.parameters()]
        balancer(means).backward()
        for p, gradient in zip(model.parameters(), kept, strict=True):
            p.grad = gradient
        optimizer.step()
        balancer.step()
    return found(model, balancer)


@pytest.mark.filterwarnings("ignore:.*find_unused_parameters.*")
@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("plan", PLANS)
def test_tasks_may_be_missing_on_some_ranks(plan, update, tmp_path):
    options = {"update": update, "initial_weights": None}
    same(launch(uneven, tmp_path, PLANS[plan], options), even(PLANS[plan], options))


@pytest.mark.filterwarnings("ignore:.*find_unused_parameters.*")
def test_a_rank_without_tasks_takes_part_in_the_first_look(tmp_path):
    options = {"update": "closed-form"}
    ranks = launch(uneven, tmp_path, PLANS["one has none"], options)
    assert torch.equal(ranks[0]["weights"], ranks[1]["weights"])
    first = torch.tensor([row["norm"] for row in ranks[0]["rows"][:3]])
    torch.testing.assert_close(first, first.mean().expand(3), msg="the first step is balanced")


def overflowing(rank):
    """The loss scale is too large for one rank's first micro-batch, and the step is skipped on both."""
    model = Outputs()
    balancer = GradNorm(NAMES, shared=model.net.last, update="closed-form")
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    balancer.attach(optimizer)
    for step in range(3):
        optimizer.zero_grad()
        for i, part in enumerate(batch(step, SIZE).chunk(2)[rank].chunk(2)):
            wrapped.require_backward_grad_sync = i == 1
            scale = math.inf if (rank, step, i) == (0, 0, 0) else 1.0
            (balancer(losses(wrapped(part))) / 2 * scale).backward()
        if step:
            optimizer.step()
    return balancer.weights.clone(), [row["weight"] for row in balancer.history.rows()]


def test_an_overflow_on_one_rank_leaves_the_collectives_in_step(tmp_path):
    first, second = launch(overflowing, tmp_path)
    assert torch.equal(first[0], second[0])
    assert first[1] == second[1]
    assert len(first[1]) == 2 * 3
    assert min(first[1][:3]) < 0.1, "the first step that is made is balanced"


def emptied(rank, scale):
    """The first step is not made; the second rank has no task in its last micro-batch, nor in the second step."""
    model = Outputs()
    balancer = GradNorm(NAMES, shared=model.net.last, alpha=0, update="closed-form")
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    balancer.attach(optimizer)
    for step in range(2):
        optimizer.zero_grad()
        for i, part in enumerate(batch(step, SIZE).chunk(2)[rank].chunk(2)):
            present = [] if rank and step + i else NAMES
            outputs = wrapped(part)
            loss = balancer(losses(outputs, present)) + 0 * sum(y.sum() for y in outputs)
            (loss / 2 * (scale if (step, i) == (0, 0) else 1.0)).backward()
    weights = balancer.weights.clone()
    raw = []
    for name in NAMES:
        model.zero_grad()
        sum(losses(model(part))[name] / 2 for part in batch(1, SIZE).chunk(2)[0].chunk(2)).backward()
        raw.append(model.net.last.grad.norm())
    optimizer.step()
    return weights, [row["norm"] / row["weight"] for row in balancer.history.rows()], torch.stack(raw).tolist()


@pytest.mark.filterwarnings("ignore:.*find_unused_parameters.*")
@pytest.mark.parametrize("scale", [1.0, math.inf])
def test_a_rank_without_tasks_forgets_a_step_that_was_not_made(scale, tmp_path):
    first, second = launch(emptied, tmp_path, scale)
    assert torch.equal(first[0], second[0])
    assert first[1] == second[1] == pytest.approx(first[2], rel=1e-4)


def asleep_and_empty(rank):
    model = AsleepAtFirst()
    balancer = GradNorm(NAMES, model=model)
    balancer(losses(model(batch(rank)))).backward()
    balancer.step()
    with pytest.raises(StateError, match="W is not settled yet; give the layer with shared="):
        balancer({})


def test_a_rank_without_tasks_needs_a_layer_that_is_settled(tmp_path):
    launch(asleep_and_empty, tmp_path)


def another_layer(rank):
    model, other = Outputs(), nn.Linear(8, 8 + rank)
    model.net.trunk.append(other)
    model.net.heads = nn.ModuleList(nn.Linear(8 + rank, 2) for _ in NAMES)
    with pytest.raises(GraphError, match="not the same on all processes; name it with shared="):
        GradNorm(NAMES)(losses(model(batch(rank)))).backward()


def test_processes_that_detect_different_layers_are_told(tmp_path):
    launch(another_layer, tmp_path)


def missing_at_first(rank):
    balancer, model = GradNorm(NAMES), Outputs()
    with pytest.raises(StateError, match=r"has not seen c yet.*give the layer with shared="):
        balancer(losses(model(batch(rank)), {"a", "b"}))


def test_a_layer_that_waits_for_a_task_must_be_named_where_processes_share_a_batch(tmp_path):
    launch(missing_at_first, tmp_path)


def unknown_layer(rank):
    balancer = GradNorm(NAMES)
    with pytest.raises(StateError, match="give the layer with shared="):
        balancer({})


def test_a_process_that_never_saw_a_loss_must_be_told_the_layer(tmp_path):
    launch(unknown_layer, tmp_path)


# ----------------------------------------------------------------------------------------------------------- options


def on_its_own(rank, options):
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last, **options())
    reference = GradNorm(NAMES, shared=net.last, reduce=None)
    for step in range(3):
        for each in (balancer, reference):
            each(net.losses(batch(10 * step + rank))).backward()
            each.step()
            net.zero_grad()
    return balancer.weights.clone(), reference.weights.clone()


def not_reduced():
    return {"reduce": None}


def alone_in_its_group():
    groups = [torch.distributed.new_group([rank]) for rank in range(2)]
    return {"process_group": groups[torch.distributed.get_rank()]}


@pytest.mark.parametrize("options", [not_reduced, alone_in_its_group])
def test_processes_may_be_on_their_own(options, tmp_path):
    ranks = launch(on_its_own, tmp_path, options)
    for weights, reference in ranks:
        assert torch.equal(weights, reference)
    assert not torch.equal(ranks[0][0], ranks[1][0])


def two_by_two(rank):
    groups = [torch.distributed.new_group(ranks) for ranks in ([0, 1], [2, 3])]
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last, process_group=groups[rank // 2], update="closed-form")
    for step in range(3):
        balancer(net.losses(batch(10 * step + rank))).backward()
        balancer.step()
        net.zero_grad()
    return balancer.weights.clone()


def test_a_process_group_shares_its_batch_and_no_other(tmp_path):
    one, other, third, fourth = launch(two_by_two, tmp_path, world=4)
    assert torch.equal(one, other)
    assert torch.equal(third, fourth)
    assert not torch.equal(one, third)


# ------------------------------------------------------------------------------------------------------- collectives


class Collectives(TorchDispatchMode):
    """Notes all collectives, DDP's own too: what they are, and how many numbers they carry."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "c10d":
            self.seen.append((function._opname, sum(tensor.numel() for tensor in args[0])))
        return function(*args, **(kwargs or {}))


def collectives(rank, balanced):
    """Those of each step, in which the ranks hold different tasks and only each second is measured."""
    model, plan, steps = Outputs(), PLANS["each lacks another"], []
    balancer = GradNorm(NAMES, shared=model.net.last, every=2) if balanced else lambda held: sum(held.values())
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    for step in range(4):
        with Collectives() as noted:
            held = losses(wrapped(batch(step, SIZE).chunk(2)[rank]), plan[(rank + step) % 2])
            balancer(held).backward()
            if balanced:
                balancer.step()
        steps.append(noted.seen)
    return steps


def test_a_measured_step_makes_one_collective_more_and_no_other_step_any(tmp_path):
    """In the same place on every rank, whatever tasks it holds: after those that DDP makes by itself."""
    first, second = launch(collectives, tmp_path / "balanced", True)
    assert first == second
    plain, _ = launch(collectives, tmp_path / "plain", False)
    assert all(plain), "DDP's own must be seen for this to mean anything"
    ours = [("allreduce_", 3 * 64 + 3 * 4)]
    assert first == [own + ours * (step % 2 == 0) for step, own in enumerate(plain)]


# ---------------------------------------------------------------------------- normalization over the batch of all ranks


class SumOfRanks(torch.autograd.Function):
    """What `SyncBatchNorm`, which PyTorch has for GPUs only, does in its forward and in its backward."""

    @staticmethod
    def forward(ctx, x):
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(x := x.clone())
        return x

    @staticmethod
    def backward(ctx, gradient):
        return SumOfRanks.apply(gradient)


class Normalized(nn.Module):
    def forward(self, x):
        total = SumOfRanks.apply(torch.cat([x.sum(0), x.square().sum(0), x.new_tensor([len(x)])]))
        mean, square = (total[:-1] / total[-1]).chunk(2)
        return (x - mean) / (square - mean.square() + 1e-5).sqrt()


def synchronized(rank, place):
    """In float64, since differences of squares are noisy; `rank` is `None` for one process on the joint batch."""
    model = Outputs()
    model.net.trunk[place] = nn.Sequential(model.net.trunk[place], Normalized())
    model.double()
    balancer = GradNorm(NAMES, shared=model.net.last).double()
    wrapped = model if rank is None else DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for step in range(STEPS):
        x = batch(step, SIZE).double()
        optimizer.zero_grad()
        balancer(losses(wrapped(x if rank is None else x.chunk(2)[rank]))).backward()
        optimizer.step()
        balancer.step()
    return found(model, balancer)


@pytest.mark.parametrize("place", [1, 3], ids=["before W", "between W and the heads"])
def test_statistics_over_all_ranks(place, tmp_path):
    same(launch(synchronized, tmp_path, place), synchronized(None, place))
