"""The recipes for other libraries' trainers, run in stand-ins that call them as those trainers do."""

import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from gradnorm import GradNorm

from .blocks import blocks

RECIPES = {block.title: block.text for block in blocks("docs/guide/shared.md") if block.title}
TASKS = ["near", "far"]


def run_recipe(title, monkeypatch, modules):
    for name, contents in modules.items():
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    namespace = {}
    exec(compile(RECIPES[title], title, "exec"), namespace)
    return namespace["Balanced"]


@pytest.fixture
def network():
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
    return nn.ModuleDict({"trunk": trunk, "heads": nn.ModuleList(nn.Linear(16, 1) for _ in TASKS)})


def batches(count):
    for _ in range(count):
        x = torch.randn(32, 8)
        yield x, torch.stack([x[:, 0], 100 * x[:, 1]], 1)


def test_libmtl(network, monkeypatch):
    weighting = ModuleType("LibMTL.weighting")
    modules = {"LibMTL": {"weighting": weighting}, "LibMTL.weighting": vars(weighting)}
    weighting.AbsWeighting = nn.Module
    balanced = run_recipe("libmtl_balanced.py", monkeypatch, modules)
    assert weighting.Balanced is balanced

    class Model(balanced):
        def __init__(self):
            super().__init__()
            self.task_name, self.network = TASKS, network
            self.init_param()

    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for x, y in batches(20):
        features = network["trunk"](x)
        losses = torch.zeros(len(TASKS))
        for i, head in enumerate(network["heads"]):
            losses[i] = (head(features)[:, 0] - y[:, i]).square().mean()
        optimizer.zero_grad(set_to_none=False)
        near, far = model.backward(torch.stack([losses]).squeeze(0))
        optimizer.step()
    assert near > 1.9 > 0.1 > far > 0
    assert len(model.balancer.history) == 20
    assert model.balancer.shared[0] is network["trunk"][2].weight
    assert "balancer._loss_weights.weights" in model.state_dict()


def test_torch_rechub(network, monkeypatch):
    class MTLTrainer:
        device = "cpu"

    balanced = run_recipe("rechub_balanced.py", monkeypatch, {"torch_rechub.trainers": {"MTLTrainer": MTLTrainer}})

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x):
            features = network["trunk"](torch.stack([x[str(i)] for i in range(8)], 1))
            return torch.cat([head(features) for head in network["heads"]], 1)

    trainer = balanced()
    trainer.model, trainer.loss_fns = Model(), [nn.MSELoss(), nn.MSELoss()]
    trainer.optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    trainer.balancer = GradNorm(2, update="closed-form")
    trainer.balancer.attach(trainer.optimizer)
    losses = trainer.train_one_epoch([({str(i): x[:, i] for i in range(8)}, y) for x, y in batches(20)])
    assert len(losses) == 2
    near, far = trainer.balancer.weights.tolist()
    assert near > 1.9 > 0.1 > far > 0
    assert trainer.balancer.shared[0] is network["trunk"][2].weight
