"""What somebody writes who has read README and nothing else: an own model of two tasks, by equal weights and balanced.

A signal of 32 samples is a sine, a square or a sawtooth in noise. From it: which of the three ("shape", cross entropy),
and its energy in millijoules ("energy", squared error, by far the larger loss).
"""

import sys

import torch
from torch import nn
from torch.nn import functional as F

from gradnorm import GradNorm


def signals(count):
    """Signals [n, 1, 32], shapes [n], energies [n]."""
    shape = torch.randint(3, (count,))
    phase = (torch.arange(32) / 16 + torch.rand(count, 1)) % 1
    waves = torch.stack([torch.sin(2 * torch.pi * phase), torch.sign(phase - 0.5), 2 * phase - 1])
    signal = (0.5 + torch.rand(count, 1)) * waves[shape, torch.arange(count)] + 0.1 * torch.randn(count, 32)
    return signal.unsqueeze(1), shape, 1000 * signal.square().mean(1)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv1d(1, 16, 5, padding=2), nn.ReLU(), nn.Conv1d(16, 16, 5, stride=2), nn.ReLU(), nn.Flatten()
        )
        self.shape, self.energy = nn.Linear(224, 3), nn.Linear(224, 1)

    def forward(self, x):
        features = self.trunk(x)
        return self.shape(features), self.energy(features).squeeze(1)


def train(balancer=None, seed=0, steps=300):
    """Errors on signals that were never trained on: wrong shapes, and the energy's deviation in standard deviations."""
    torch.manual_seed(seed)
    net = Net()
    x, shape, energy = signals(2000)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for _ in range(steps):
        rows = torch.randint(len(x), (64,))
        logits, predicted = net(x[rows])
        losses = {"shape": F.cross_entropy(logits, shape[rows]), "energy": F.mse_loss(predicted, energy[rows])}
        loss = balancer(losses) if balancer else sum(losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if balancer:
            balancer.step()
    with torch.no_grad():
        x, shape, energy = signals(2000)
        logits, predicted = net(x)
        wrong = (logits.argmax(1) != shape).float().mean()
        return {"shape": wrong.item(), "energy": ((predicted - energy).square().mean().sqrt() / energy.std()).item()}


def main(seeds=2):
    """Mean errors by method."""
    methods = {
        "equal weights": lambda: None,
        "GradNorm": lambda: GradNorm(["shape", "energy"], update="closed-form"),
    }
    found = {name: [train(made(), seed) for seed in range(seeds)] for name, made in methods.items()}
    return {
        name: {task: sum(run[task] for run in runs) / seeds for task in ("shape", "energy")}
        for name, runs in found.items()
    }


if __name__ == "__main__":
    for method, errors in main(*map(int, sys.argv[1:])).items():
        print(f"{method:14}", *(f"{task} {error:.3f}" for task, error in errors.items()))
