"""FSDP2 and tensor parallelism: the same weights and the same model as one process on the joint batch."""

import os

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from gradnorm import GradNorm, GraphError

from ..unit.networks import batch
from .launch import launch
from .test_reduce import NAMES, SIZE, STEPS, Outputs, losses

if torch.__version__ < "2.7":
    pytest.skip("FSDP2 runs on the CPU from torch 2.7 on", allow_module_level=True)


def train(model, balancer, first=0, last=STEPS, share=lambda x: x, micro=1):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    balancer.attach(optimizer)
    for step in range(first, last):
        optimizer.zero_grad()
        for part in share(batch(step, SIZE)).chunk(micro):
            (balancer(losses(model(part))) / micro).backward()
        optimizer.step()


def whole(tensor):
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def result(model, balancer):
    return balancer.weights.clone(), [whole(p) for p in model.parameters()], balancer.log_dict()


SHARED = {
    "found": lambda model: {},
    "layer": lambda model: {"shared": model.net.trunk[2]},
    "weight": lambda model: {"shared": model.net.trunk[2].weight, "model": model},
    "pattern": lambda model: {"shared": "net.trunk.2.*", "model": model},
}


def alone(how="layer", update="descent"):
    model = Outputs()
    balancer = GradNorm(NAMES, update=update, **SHARED[how](model))
    train(model, balancer)
    return result(model, balancer)


def same(ranks, expected, rtol=1e-5, atol=1e-6):
    weights, parameters, logged = expected
    for found, mine, log in ranks:
        assert torch.equal(found, ranks[0][0])
        torch.testing.assert_close(found, weights, rtol=rtol, atol=atol)
        for a, b in zip(mine, parameters, strict=True):
            torch.testing.assert_close(a, b, rtol=rtol, atol=atol)
        assert log == pytest.approx(logged, rel=max(1e-3, 10 * rtol), abs=max(1e-3, 10 * atol))
    assert (weights - 1).abs().max() > 0.01, "the weights must have moved for this to mean anything"


# ------------------------------------------------------------------------------------------------------------- FSDP2


def shard(model, reshard, policy=None, world=2):
    mesh = init_device_mesh("cpu", (world,))
    policy = policy or MixedPrecisionPolicy()
    if reshard != "root":
        for layer in (model.net.trunk[0], model.net.trunk[2], *model.net.heads):
            fully_shard(layer, mesh=mesh, reshard_after_forward=reshard, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def sharded(rank, reshard, how, micro=1, update="descent"):
    model = Outputs()
    shard(model, reshard)
    balancer = GradNorm(NAMES, update=update, **SHARED[how](model))
    train(model, balancer, share=lambda x: x.chunk(2)[rank], micro=micro)
    return result(model, balancer)


@pytest.mark.parametrize("update", ["descent", "closed-form"])
@pytest.mark.parametrize("reshard", [True, False, "root"])
def test_fsdp_in_every_resharding_mode(reshard, update, tmp_path):
    how = "found" if update == "closed-form" else "layer"  # both of the first look's questions
    same(launch(sharded, tmp_path, reshard, how, 1, update), alone(how, update))


@pytest.mark.parametrize("how", ["found", "weight", "pattern"])
def test_fsdp_however_the_layer_is_named(how, tmp_path):
    same(launch(sharded, tmp_path, True, how), alone(how))


@pytest.mark.parametrize("how", ["found", "layer"])
def test_fsdp_accumulates(how, tmp_path):
    same(launch(sharded, tmp_path, True, how, 2), alone(how))


def bfloat16(rank):
    model = Outputs()
    shard(model, True, MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32))
    balancer = GradNorm(NAMES, shared=model.net.trunk[2])
    train(model, balancer, share=lambda x: x.chunk(2)[rank])
    assert balancer.weights.dtype is torch.float32
    return result(model, balancer)


def test_fsdp_in_mixed_precision(tmp_path):
    same(launch(bfloat16, tmp_path), alone(), rtol=0.02, atol=0.02)


def skipping(rank, skip):
    """A loss scaler that finds an overflow skips the step; the next one is measured by itself."""
    model = Outputs()
    shard(model, True)
    balancer = GradNorm(NAMES, initial_losses=[1.0, 1.0, 1.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    balancer.attach(optimizer)
    for step in range(4):
        optimizer.zero_grad()
        balancer(losses(model(batch(step, SIZE).chunk(2)[rank]))).backward()
        if step not in skip:
            optimizer.step()
    return balancer.weights.clone(), [r["norm"] for r in balancer.history.rows()]


def test_fsdp_forgets_a_step_that_was_skipped(tmp_path):
    ranks = launch(skipping, tmp_path, [0, 2])
    balancer = GradNorm(NAMES, initial_losses=[1.0, 1.0, 1.0])
    model = Outputs()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    balancer.attach(optimizer)
    for step in (1, 3):
        optimizer.zero_grad()
        balancer(losses(model(batch(step, SIZE)))).backward()
        optimizer.step()
    for weights, norms in ranks:
        torch.testing.assert_close(weights, balancer.weights)
        assert norms == pytest.approx([r["norm"] for r in balancer.history.rows()], rel=1e-4)


def wrongly_named(rank):
    model = Outputs()
    early = GradNorm(NAMES, shared=model.net.trunk[2])
    shard(model, True)
    late = GradNorm(NAMES, shared=model.net.trunk[2].weight)
    outputs = losses(model(batch(rank)))
    with pytest.raises(GraphError, match=r"make the balancer after that"):
        early(outputs)
    with pytest.raises(GraphError, match=r"give the layer itself instead of its weight, or model="):
        late(outputs)


def test_fsdp_says_what_to_do_when_the_layer_cannot_be_followed(tmp_path):
    launch(wrongly_named, tmp_path)


# ------------------------------------------------------------------------------------------------------ four processes


def partly(rank):
    """Kept gathered by halves between forward and backward."""
    model = Outputs()
    shard(model, 2, world=4)
    balancer = GradNorm(NAMES, shared=model.net.trunk[2])
    train(model, balancer, share=lambda x: x.chunk(4)[rank])
    return result(model, balancer)


def hybrid(rank):
    """Sharded over two, replicated over two."""
    model, mesh = Outputs(), init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    fully_shard(model.net.trunk[2], mesh=mesh)
    fully_shard(model, mesh=mesh)
    balancer = GradNorm(NAMES, shared=model.net.trunk[2])
    train(model, balancer, share=lambda x: x.chunk(4)[rank])
    return result(model, balancer)


def tensor_and_data_parallel(rank):
    """Two groups of two, each with half of the batch: layers are split in a group, and sharded between groups."""
    model, mesh = Outputs(), init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    parallelize_module(model, mesh["tensor"], {name: make() for name, make in PLANS["rows"].items()})
    fully_shard(model, mesh=mesh["data"])
    balancer = GradNorm(NAMES, shared=model.net.trunk[2])
    train(model, balancer, share=lambda x: x.chunk(2)[rank // 2])
    return result(model, balancer)


@pytest.mark.parametrize("how", [partly, hybrid, tensor_and_data_parallel])
def test_four_processes(how, tmp_path):
    same(launch(how, tmp_path, world=4), alone())


# --------------------------------------------------------------------------------------- distributed checkpoints (DCP)


class Together(nn.Module):
    """A model that holds its balancer, as a checkpoint wants it."""

    def __init__(self, seed=0):
        super().__init__()
        self.outputs = Outputs()
        torch.manual_seed(seed)
        for p in self.outputs.parameters():
            nn.init.normal_(p, std=0.3)
        shard(self.outputs, True)
        self.balancer = GradNorm(NAMES, shared=self.outputs.net.trunk[2])

    def train_steps(self, rank, first, last):
        train(self.outputs, self.balancer, first, last, share=lambda x: x.chunk(2)[rank])


def saved_and_loaded(rank, folder):
    uninterrupted = Together()
    uninterrupted.train_steps(rank, 0, 6)
    first = Together()
    first.train_steps(rank, 0, 3)
    dcp.save({"model": get_model_state_dict(first)}, checkpoint_id=folder)
    second = Together(seed=9)
    state = {"model": get_model_state_dict(second)}
    dcp.load(state, checkpoint_id=folder)
    set_model_state_dict(second, state["model"])
    second.train_steps(rank, 3, 6)
    assert torch.equal(second.balancer.weights, uninterrupted.balancer.weights)
    assert torch.equal(second.balancer.time_averaged_weights(), uninterrupted.balancer.time_averaged_weights())
    for a, b in zip(second.outputs.parameters(), uninterrupted.outputs.parameters(), strict=True):
        assert torch.equal(whole(a), whole(b))
    return os.listdir(folder)


@pytest.mark.filterwarnings("default")  # torch's own
def test_a_distributed_checkpoint_resumes_bitwise(tmp_path):
    (files, _) = launch(saved_and_loaded, tmp_path, str(tmp_path / "checkpoint"))
    assert ".metadata" in files


# ----------------------------------------------------------------------------------------------------- tensor parallel

PLANS = {
    "rows": {"net.trunk.0": ColwiseParallel, "net.trunk.2": RowwiseParallel},
    "columns": {"net.trunk.2": ColwiseParallel},
    "heads too": {
        "net.trunk.0": ColwiseParallel,
        "net.trunk.2": RowwiseParallel,
        "net.heads.0": ColwiseParallel,
    },
}


def tensor_parallel(rank, plan, how, update="descent"):
    model = Outputs()
    kinds = {name: make() for name, make in PLANS[plan].items()}
    if plan != "rows":  # these end in a part of the features: gather them
        last = "net.heads.0" if plan == "heads too" else "net.trunk.2"
        kinds[last] = ColwiseParallel(output_layouts=torch.distributed.tensor.Replicate())
    parallelize_module(model, init_device_mesh("cpu", (2,)), kinds)
    balancer = GradNorm(NAMES, update=update, **SHARED[how](model))
    train(model, balancer)
    return result(model, balancer)


@pytest.mark.parametrize("plan", PLANS)
def test_tensor_parallel_norms_are_those_of_the_full_gradient(plan, tmp_path):
    same(launch(tensor_parallel, tmp_path, plan, "layer"), alone())


@pytest.mark.parametrize("update", ["descent", "closed-form"])
def test_tensor_parallel_finds_the_layer(update, tmp_path):
    same(launch(tensor_parallel, tmp_path, "rows", "found", update), alone("found", update))


# ------------------------------------------------------------------------------------------------------ the meta device


def built_on_meta(rank):
    with torch.device("meta"):
        model = Outputs()
        model.balancer = GradNorm(NAMES, update="closed-form")
    shard(model, True)
    model.to_empty(device="cpu")
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Linear | GradNorm):
            module.reset_parameters()
    wanted = GradNorm(NAMES, update="closed-form")
    for name, value in wanted.state_dict().items():
        assert torch.equal(model.balancer.state_dict()[name], value), name
    train(model, model.balancer, 0, 3, share=lambda x: x.chunk(2)[rank])
    return model.balancer.weights


@pytest.mark.filterwarnings("default")  # torch's own
def test_a_model_that_was_built_on_the_meta_device_balances(tmp_path):
    one, other = launch(built_on_meta, tmp_path)
    assert torch.equal(one, other)
    assert torch.isfinite(one).all()
    assert (one != 1).all()
