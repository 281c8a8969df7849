"""Random networks: a trunk, skips, partly shared decoders, heads; every one a graph that `capture` must get right."""

import random

import torch
from torch import nn

ACTIVATIONS = (torch.tanh, torch.nn.functional.softplus, torch.sigmoid, torch.nn.functional.gelu)


class RandomNet(nn.Module):
    """Some layers in a row; each task reads one or two of the features from `W` on, through a decoder it may share."""

    def __init__(self, seed: int):
        super().__init__()
        draw = random.Random(seed)
        torch.manual_seed(seed)
        self.width = draw.randint(2, 6)
        self.kinds = random.Random(f"layers {seed}")
        self.trunk = nn.ModuleList(self.layer() for _ in range(draw.randint(1, 4)))
        self.after = nn.ModuleList(self.layer() for _ in range(draw.randint(0, 2)))
        self.decoders = nn.ModuleList(self.layer() for _ in range(2))
        self.tasks = draw.randint(2, 5)
        self.heads = nn.ModuleList(nn.Linear(self.width, draw.randint(1, 3)).double() for _ in range(self.tasks))
        features = range(len(self.after) + 1)
        self.plans = [
            {
                "reads": [draw.choice(features) for _ in range(draw.randint(1, 2))],
                "early": draw.random() < 0.3,
                "decoder": draw.choice([None, 0, 1]),
                "twice": draw.random() < 0.2,
                "scale": 10.0 ** draw.uniform(-1, 1),
                "activation": draw.choice(ACTIVATIONS),
            }
            for _ in range(self.tasks)
        ]
        self.activation = draw.choice(ACTIVATIONS)
        self.joined = self.kinds.random() < 0.2
        self.x = torch.randn(draw.randint(1, 8), self.width, dtype=torch.float64)

    def layer(self):
        """Linear mostly, sometimes normalized or a convolution."""
        kind = self.kinds.random()
        if kind < 0.2:
            layer = nn.Sequential(nn.Linear(self.width, self.width), nn.LayerNorm(self.width))
        elif kind < 0.4:
            channels = nn.Unflatten(1, (1, self.width))
            layer = nn.Sequential(channels, nn.Conv1d(1, 2, 3, padding=1), nn.Conv1d(2, 1, 1), nn.Flatten())
        else:
            layer = nn.Linear(self.width, self.width)
        return layer.double()

    @property
    def W(self):  # noqa: N802
        return list(self.trunk[-1].parameters())

    def losses(self, x=None):
        x, early = self.x if x is None else x, None
        for layer in self.trunk:
            early = x
            x = self.activation(layer(x))
        features = [x]
        for layer in self.after:
            features.append(self.activation(layer(features[-1])))
        outputs = [self.output(head, plan, features, early) for head, plan in zip(self.heads, self.plans, strict=True)]
        if self.joined:  # one output for all tasks, cut up again
            outputs = torch.cat(outputs, 1).split([output.shape[1] for output in outputs], 1)
        return [
            plan["scale"] * (output.square().mean() + 0.1) for output, plan in zip(outputs, self.plans, strict=True)
        ]

    def output(self, head, plan, features, early):
        x = sum(features[i] for i in plan["reads"])
        if plan["early"]:
            x = x + early  # a skip from before W
        if plan["twice"]:
            x = x * features[0]
        if plan["decoder"] is not None:
            x = plan["activation"](self.decoders[plan["decoder"]](x))
        return head(x)
