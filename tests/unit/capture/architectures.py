"""Small networks in the shapes of real multi-task code, each with the names of what makes up `W`.

Each builds its towers, heads and losses in the order it is told, `list` or `reversed`; the numbers do not depend on it,
and neither may what is found.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..networks import batch, normal

Order = Callable[[Iterable], Iterable]


class Architecture(nn.Module):
    """Answers `losses(order)`."""

    tasks: ClassVar[tuple[str, ...]] = ("a", "b")
    W: ClassVar[set[str]]

    def losses(self, order: Order) -> dict[str, Tensor] | list[Tensor] | Tensor:
        raise NotImplementedError

    def each(self, make):
        """One module a task."""
        return nn.ModuleDict({task: make() for task in self.tasks})


def image(size=8):
    return normal(2, 3, size, size)


def mlp(*widths):
    return nn.Sequential(*(layer for i, o in pairwise(widths) for layer in (nn.Linear(i, o), nn.Tanh())))


def conv(inputs, outputs, kernel=3, **kwargs):
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **kwargs)


def error(output):
    return (output - 1).square().mean()


# ----------------------------------------------------------------------------------------------------- one trunk, heads


class HardSharing(Architecture):
    W: ClassVar = {"trunk.2.weight"}

    def __init__(self):
        super().__init__()
        self.trunk, self.heads = mlp(6, 8, 8), self.each(lambda: nn.Linear(8, 2))

    def losses(self, order):
        features = self.trunk(batch())
        return {task: error(self.heads[task](features)) for task in order(self.tasks)}


class Residual(HardSharing):
    """The block's input goes around it; the layer before is followed by the block all the same."""

    W: ClassVar = {"block.0.weight"}

    def __init__(self):
        super().__init__()
        self.trunk, self.block = mlp(6, 8), mlp(8, 8)

    def losses(self, order):
        features = self.trunk(batch())
        features = features + self.block(features)
        return {task: error(self.heads[task](features)) for task in order(self.tasks)}


class Shortcut(Residual):
    """What goes around the block is changed on its way."""

    def losses(self, order):
        features = self.trunk(batch())
        features = F.layer_norm(features, [8]) + self.block(features)
        return {task: error(self.heads[task](features)) for task in order(self.tasks)}


class Dense(Residual):
    """And here beside it."""

    def __init__(self):
        super().__init__()
        self.heads = self.each(lambda: nn.Linear(16, 2))

    def losses(self, order):
        features = self.trunk(batch())
        features = torch.cat([features, self.block(features)], 1)
        return {task: error(self.heads[task](features)) for task in order(self.tasks)}


class Convolutions(HardSharing):
    W: ClassVar = {"trunk.3.weight"}

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.Tanh(), conv(4, 4), nn.BatchNorm2d(4), nn.Tanh())
        self.heads = self.each(lambda: nn.Sequential(conv(4, 4), nn.Tanh(), conv(4, 2, 1)))

    def losses(self, order):
        features = self.trunk(image())
        return {task: error(self.heads[task](features)) for task in order(self.tasks)}


class ChannelScale(Convolutions):
    """ConvNeXt's layer scale: one number a channel, of shape (C, 1, 1)."""

    W: ClassVar = {"block.weight"}

    def __init__(self):
        super().__init__()
        self.block, self.scale = conv(4, 4), nn.Parameter(torch.full((4, 1, 1), 0.5))

    def losses(self, order):
        features = self.trunk(image())
        features = features + self.scale * self.block(features)
        return {task: error(self.heads[task](features)) for task in order(self.tasks)}


class UNet(Architecture):
    W: ClassVar = {"decoder.weight"}

    def __init__(self):
        super().__init__()
        self.encoder, self.bottom, self.decoder = conv(3, 4), conv(4, 4), conv(8, 4)
        self.heads = self.each(lambda: conv(4, 2, 1))

    def losses(self, order):
        skip = self.encoder(image()).tanh()
        below = self.bottom(F.avg_pool2d(skip, 2)).tanh()
        features = self.decoder(torch.cat([skip, F.interpolate(below, scale_factor=2)], 1)).tanh()
        return {task: error(self.heads[task](features)) for task in order(self.tasks)}


class TransformerEncoder(Architecture):
    """As BERT is trained: one head reads the first token, one all of them."""

    tasks: ClassVar = ("sentence", "tokens")
    W: ClassVar = {"encoder.layers.1.linear2.weight"}

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        self.embedding, self.positions = nn.Embedding(10, 8), nn.Parameter(torch.randn(1, 4, 8))
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.heads = self.each(lambda: nn.Linear(8, 2))

    def losses(self, order):
        features = self.encoder(self.embedding(torch.arange(8).view(2, 4)) + self.positions)
        read = {"sentence": features[:, 0], "tokens": features}
        return {task: error(self.heads[task](read[task])) for task in order(self.tasks)}


class Recurrent(HardSharing):
    """The recurrent weights follow those of the inputs, from the second step on."""

    W: ClassVar = {"trunk.weight_hh_l0"}
    if torch.get_default_device().type == "cuda":  # cuDNN has one function for the whole layer
        W |= {"trunk.weight_ih_l0"}

    def __init__(self):
        super().__init__()
        self.trunk = nn.GRU(6, 8)

    def losses(self, order):
        _, last = self.trunk(batch(size=12).view(4, 3, 6))
        return {task: error(self.heads[task](last)) for task in order(self.tasks)}


class Looped(HardSharing):
    """The same block again and again (ALBERT, universal transformers): each of its layers follows the other."""

    W: ClassVar = {"block.2.weight"}

    def __init__(self):
        super().__init__()
        self.block = mlp(8, 8, 8)

    def losses(self, order):
        features = self.trunk(batch())
        for _ in range(3):
            features = self.block(features)
        return {task: error(self.heads[task](features)) for task in order(self.tasks)}


class LearnedInput(HardSharing):
    """StyleGAN's: the network has no input but parameters."""

    def __init__(self):
        super().__init__()
        self.constant = nn.Parameter(torch.randn(5, 6))

    def inputs(self):
        return self.constant

    def losses(self, order):
        features = self.trunk(self.inputs())
        return {task: error(self.heads[task](features)) for task in order(self.tasks)}


class AutoDecoder(LearnedInput):
    """DeepSDF's: a code for each example, picked by its index."""

    def inputs(self):
        return self.constant[torch.tensor([0, 2, 4])]


class TiedEmbedding(Architecture):
    """The language model's head is the embedding."""

    tasks: ClassVar = ("next", "class")
    W: ClassVar = {"layer.weight"}

    def __init__(self):
        super().__init__()
        self.embedding, self.layer, self.classifier = nn.Embedding(10, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def losses(self, order):
        features = self.layer(self.embedding(torch.tensor([1, 2, 3]))).tanh()
        heads = {"next": lambda x: x @ self.embedding.weight.T, "class": self.classifier}
        return {task: error(heads[task](features)) for task in order(self.tasks)}


class Adapter(nn.Module):
    """LoRA: a frozen layer and a correction of low rank, whose second factor starts at zero."""

    def __init__(self, width):
        super().__init__()
        self.base = nn.Linear(width, width).requires_grad_(False)
        self.A, self.B = nn.Parameter(torch.randn(2, width)), nn.Parameter(torch.zeros(width, 2))

    def forward(self, x):
        return self.base(x) + x @ self.A.T @ self.B.T


class LoRA(HardSharing):
    W: ClassVar = {"trunk.2.B"}

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 8).requires_grad_(False), Adapter(8), Adapter(8), nn.Tanh())


class MergedLoRA(HardSharing):
    """The two factors multiplied first: side by side. The first one's gradient is zero while the second one is."""

    W: ClassVar = {"adapters.1.A", "adapters.1.B"}

    def __init__(self):
        super().__init__()
        self.adapters = nn.ModuleList(Adapter(8) for _ in range(2))

    def losses(self, order):
        features = self.trunk(batch())
        for adapter in self.adapters:
            features = F.linear(features, adapter.base.weight + adapter.B @ adapter.A).tanh()
        return {task: error(self.heads[task](features)) for task in order(self.tasks)}


class WeightNorm(HardSharing):
    """Directions and magnitudes; these, of shape (n, 1), are a vector."""

    W: ClassVar = {"trunk.2.parametrizations.weight.original1"}
    normalize = staticmethod(nn.utils.parametrizations.weight_norm)

    def __init__(self):
        super().__init__()
        self.normalize(self.trunk[0])
        self.normalize(self.trunk[2])
        self.trunk.eval()


class SpectralNorm(WeightNorm):
    """Divided by its largest singular value, which is a product with the weight as well."""

    W: ClassVar = {"trunk.2.parametrizations.weight.original"}
    normalize = staticmethod(nn.utils.parametrizations.spectral_norm)


class Orthogonal(SpectralNorm):
    """A function of the weight that multiplies it with itself and with constants."""

    normalize = staticmethod(nn.utils.parametrizations.orthogonal)


class ReverseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class DomainAdversarial(HardSharing):
    tasks: ClassVar = ("label", "domain")

    def losses(self, order):
        features = self.trunk(batch())
        read = {"label": lambda x: x, "domain": ReverseGradient.apply}
        return {task: error(self.heads[task](read[task](features))) for task in order(self.tasks)}


class ActorCritic(Architecture):
    """Policy and entropy share a head, which the value does not reach."""

    tasks: ClassVar = ("policy", "value", "entropy")
    W: ClassVar = {"trunk.2.weight"}

    def __init__(self):
        super().__init__()
        self.trunk, self.actor, self.critic = mlp(6, 8, 8), nn.Linear(8, 3), nn.Linear(8, 1)

    def losses(self, order):
        features = self.trunk(batch())
        log_p = self.actor(features).log_softmax(-1)
        losses = {
            "policy": lambda: -log_p[:, 0].mean(),
            "value": lambda: error(self.critic(features)),
            "entropy": lambda: math.log(3) + (log_p.exp() * log_p).sum(-1).mean(),
        }
        return {task: losses[task]() for task in order(self.tasks)}


class DeepSupervision(Architecture):
    """A loss a depth: what all share is the first block."""

    tasks: ClassVar = ("0", "1", "2")
    W: ClassVar = {"blocks.0.0.weight"}

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([mlp(6, 8), mlp(8, 8), mlp(8, 8)])
        self.exits = self.each(lambda: nn.Linear(8, 2))

    def losses(self, order):
        features = [batch()]
        for block in self.blocks:
            features.append(block(features[-1]))
        return {task: error(self.exits[task](features[int(task) + 1])) for task in order(self.tasks)}


class Attention(Architecture):
    """MTAN: each task weighs the trunk's features at each depth by masks of its own."""

    W: ClassVar = {"trunk.1.0.weight"}

    def __init__(self):
        super().__init__()
        self.trunk = nn.ModuleList([mlp(6, 8), mlp(8, 8)])
        self.masks = self.each(lambda: nn.ModuleList([nn.Linear(8, 8), nn.Linear(16, 8)]))
        self.heads = self.each(lambda: nn.Linear(8, 2))

    def losses(self, order):
        first = self.trunk[0](batch())
        second = self.trunk[1](first)

        def attended(task):
            below, above = self.masks[task]
            low = first * below(first).sigmoid()
            return second * above(torch.cat([second, low], 1)).sigmoid()

        return {task: error(self.heads[task](attended(task))) for task in order(self.tasks)}


# --------------------------------------------------------------------------------------------------- parts side by side


class CrossStitch(Architecture):
    """The last stitch has a row for each task, and so is a head."""

    W: ClassVar = {"towers.a.1.weight", "towers.b.1.weight"}

    def __init__(self):
        super().__init__()
        self.towers = self.each(lambda: nn.ModuleList([nn.Linear(6, 8), nn.Linear(8, 8)]))
        self.heads = self.each(lambda: nn.Linear(8, 2))
        mixing = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
        self.stitches = nn.ParameterList(self.mixed(mixing) for _ in range(2))

    def mixed(self, mixing):
        return nn.Parameter(mixing.clone())

    def stitch(self, depth, features, order):
        weights = self.stitches[depth]
        indexed = dict(enumerate(self.tasks))
        return {indexed[i]: sum(weights[i, j] * features[indexed[j]] for j in indexed) for i in order(list(indexed))}

    def losses(self, order):
        features = dict.fromkeys(self.tasks, batch())
        for depth in range(2):
            towers = {task: self.towers[task][depth](features[task]).tanh() for task in order(self.tasks)}
            features = self.stitch(depth, towers, order)
        return {task: error(self.heads[task](features[task])) for task in order(self.tasks)}


class ScalarStitch(CrossStitch):
    """A parameter of no dimension for each pair."""

    def mixed(self, mixing):
        return nn.ParameterList(nn.Parameter(entry.clone()) for entry in mixing.flatten())

    def stitch(self, depth, features, order):
        own, other = self.stitches[depth][0], self.stitches[depth][1]
        a, b = features["a"], features["b"]
        return {"a": own * a + other * b, "b": own * b + other * a}


class StitchByProduct(CrossStitch):
    """The stitch as a product with all towers at once."""

    def stitch(self, depth, features, order):
        together = torch.einsum("ij,jbc->ibc", self.stitches[depth], torch.stack([features[t] for t in self.tasks]))
        return dict(zip(self.tasks, together, strict=True))


class NDDR(Architecture):
    """Towers side by side, fused for each task by a 1×1 convolution of its own."""

    W: ClassVar = {"towers.a.1.weight", "towers.b.1.weight"}

    def __init__(self):
        super().__init__()
        self.towers = self.each(lambda: nn.ModuleList([conv(3, 4), conv(4, 4)]))
        self.fusions = self.each(lambda: nn.ModuleList([conv(8, 4, 1), conv(8, 4, 1)]))
        self.heads = self.each(lambda: conv(4, 2, 1))

    def losses(self, order):
        features = dict.fromkeys(self.tasks, image())
        for depth in range(2):
            towers = {task: self.towers[task][depth](features[task]).tanh() for task in order(self.tasks)}
            joint = torch.cat([towers[task] for task in self.tasks], 1)
            features = {task: self.fusions[task][depth](joint).tanh() for task in order(self.tasks)}
        return {task: error(self.heads[task](features[task])) for task in order(self.tasks)}


class MMoE(Architecture):
    W: ClassVar = {f"experts.{i}.2.weight" for i in range(3)}

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(mlp(6, 8, 8) for _ in range(3))
        self.gates, self.heads = self.each(lambda: nn.Linear(6, 3)), self.each(lambda: nn.Linear(8, 2))

    def experts_of(self, x, order):
        made = {i: self.experts[i](x) for i in order(range(3))}
        return torch.stack([made[i] for i in range(3)], 1)

    def losses(self, order):
        x = batch()
        experts = self.experts_of(x, order)
        mixed = {task: (self.gates[task](x).softmax(1).unsqueeze(2) * experts).sum(1) for task in order(self.tasks)}
        return {task: error(self.heads[task](mixed[task])) for task in order(self.tasks)}


class BatchedMMoE(MMoE):
    """All experts in one parameter."""

    W: ClassVar = {"experts"}

    def __init__(self):
        super().__init__()
        self.experts = None
        self.experts = nn.Parameter(torch.randn(3, 6, 8) / 3)

    def experts_of(self, x, order):
        return torch.einsum("bi,eio->beo", x, self.experts).tanh()


class PLE(Architecture):
    """Two extraction levels: what all tasks reach last is the upper level's shared experts."""

    W: ClassVar = {f"levels.1.experts.shared.{i}.weight" for i in range(2)}

    def __init__(self):
        super().__init__()
        self.levels = nn.ModuleList([self.level(6, ("a", "b", "shared")), self.level(8, ("a", "b"))])
        self.heads = self.each(lambda: nn.Linear(8, 2))

    def level(self, width, gates):
        counts = {"a": 1, "b": 1, "shared": 2}
        experts = {who: nn.ModuleList(nn.Linear(width, 8) for _ in range(n)) for who, n in counts.items()}
        gate = {who: nn.Linear(width, 4 if who == "shared" else 3) for who in gates}
        return nn.ModuleDict({"experts": nn.ModuleDict(experts), "gates": nn.ModuleDict(gate)})

    def extract(self, level, inputs, order):
        outputs = {
            who: [expert(inputs[who]).tanh() for expert in level["experts"][who]] for who in order(["a", "shared", "b"])
        }

        def mix(who):
            heard = outputs if who == "shared" else (who, "shared")
            read = torch.stack([output for expert in sorted(heard) for output in outputs[expert]], 1)
            return (level["gates"][who](inputs[who]).softmax(1).unsqueeze(2) * read).sum(1)

        return {who: mix(who) for who in order(list(level["gates"]))}

    def losses(self, order):
        features = dict.fromkeys(["a", "b", "shared"], batch())
        for level in self.levels:
            features = self.extract(level, features, order)
        return {task: error(self.heads[task](features[task])) for task in order(self.tasks)}


class Pyramid(Architecture):
    """RetinaNet: each head reads all levels, and what it says of them is concatenated."""

    tasks: ClassVar = ("class", "box")
    W: ClassVar = {f"smooth.{i}.weight" for i in range(3)}

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList(conv(i, 4, stride=2) for i in (3, 4, 4))
        self.lateral = nn.ModuleList(conv(4, 4, 1) for _ in range(3))
        self.smooth = nn.ModuleList(conv(4, 4) for _ in range(3))
        self.heads = nn.ModuleDict({"class": conv(4, 2), "box": conv(4, 4)})

    def losses(self, order):
        bottom_up = [image(16)]
        for stage in self.stages:
            bottom_up.append(stage(bottom_up[-1]).tanh())
        top_down = [lateral(x) for lateral, x in zip(self.lateral, bottom_up[1:], strict=True)]
        for i in (1, 0):
            top_down[i] = top_down[i] + F.interpolate(top_down[i + 1], scale_factor=2)
        levels = {i: self.smooth[i](top_down[i]) for i in order(range(3))}
        return {
            task: error(torch.cat([self.heads[task](levels[i]).flatten(2) for i in range(3)], 2))
            for task in order(self.tasks)
        }


class PADNet(Architecture):
    """Initial predictions of all tasks, each trained by itself as well, are distilled into every final one."""

    tasks: ClassVar = ("a", "b", "c")
    W: ClassVar = {f"initial.{task}.weight" for task in "abc"}

    def __init__(self):
        super().__init__()
        self.trunk, self.initial = conv(3, 4), self.each(lambda: conv(4, 2))
        self.distil, self.final = self.each(lambda: conv(6, 4)), self.each(lambda: conv(4, 2, 1))

    def losses(self, order):
        features = self.trunk(image()).tanh()
        initial = {task: self.initial[task](features) for task in order(self.tasks)}
        together = torch.cat([initial[task] for task in self.tasks], 1)
        return {
            task: error(initial[task]) + error(self.final[task](self.distil[task](together).tanh()))
            for task in order(self.tasks)
        }


class VAE(Architecture):
    tasks: ClassVar = ("reconstruction", "KL")
    W: ClassVar = {"latent.mean.weight", "latent.log_variance.weight"}

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = mlp(6, 8), nn.Sequential(mlp(4, 8), nn.Linear(8, 6))
        self.latent = nn.ModuleDict({"mean": nn.Linear(8, 4), "log_variance": nn.Linear(8, 4)})

    def losses(self, order):
        x = batch()
        features = self.encoder(x)
        latent = {name: self.latent[name](features) for name in order(["mean", "log_variance"])}
        mean, log_variance = latent["mean"], latent["log_variance"]
        z = mean + (log_variance / 2).exp() * batch(seed=1)[:, :4]
        losses = {
            "reconstruction": lambda: F.mse_loss(self.decoder(z), x),
            "KL": lambda: (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean() / 2,
        }
        return {task: losses[task]() for task in order(self.tasks)}


class Gated(HardSharing):
    """A gate that is computed from the last layer's output follows it: SENet's excitation."""

    W: ClassVar = {"gate.1.weight"}

    def __init__(self):
        super().__init__()
        self.last, self.gate = nn.Linear(8, 8), nn.Sequential(mlp(8, 4), nn.Linear(4, 8))

    def losses(self, order):
        features = self.gated(self.last(self.trunk(batch())))
        return {task: error(self.heads[task](features)) for task in order(self.tasks)}

    def gated(self, features):
        return features * self.gate(features).sigmoid()


class AttentionPooling(Gated):
    """Multiple-instance learning: a score per instance, computed from what is then averaged."""

    def gated(self, features):
        return self.gate(features).softmax(0).T @ features


class GraphAttention(Gated):
    """Scores of edges, by two vectors per head that read the transformed nodes."""

    W: ClassVar = {"source", "target"}

    def __init__(self):
        super().__init__()
        del self.gate
        self.source, self.target = (nn.Parameter(torch.randn(1, 2, 4)) for _ in range(2))

    def gated(self, features):
        nodes = features.view(-1, 2, 4)
        scores = [(nodes * way).sum(2) for way in (self.source, self.target)]
        edges = torch.cartesian_prod(torch.arange(len(nodes)), torch.arange(len(nodes))).T
        attention = F.leaky_relu(scores[0][edges[0]] + scores[1][edges[1]]).exp()
        return torch.zeros_like(nodes).index_add(0, edges[1], attention[..., None] * nodes[edges[0]]).flatten(1)


class AsleepBeside(Gated):
    """Two branches side by side, of which one is multiplied by zero at first."""

    W: ClassVar = {"last.weight", "branch.weight"}

    def __init__(self):
        super().__init__()
        del self.gate
        self.branch, self.scale = nn.Linear(8, 8), nn.Parameter(torch.zeros(8))

    def losses(self, order):
        features = self.trunk(batch())
        features = self.last(features) + self.scale * self.branch(features)
        return {task: error(self.heads[task](features)) for task in order(self.tasks)}


class AsleepAtFirst(Gated):
    """A residual branch whose last norm starts at zero, as in most ResNets today: no gradient reaches it yet."""

    W: ClassVar = {"gate.1.weight"}

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        nn.init.zeros_(self.norm.weight)

    def gated(self, features):
        return features + self.norm(self.gate(features))


class LateFusion(Architecture):
    """Two modalities, each with an encoder of its own, concatenated."""

    W: ClassVar = {"encoders.text.2.weight", "encoders.sound.2.weight"}

    def __init__(self):
        super().__init__()
        self.encoders = nn.ModuleDict({"text": mlp(6, 8, 8), "sound": mlp(6, 8, 8)})
        self.heads = self.each(lambda: nn.Linear(16, 2))

    def losses(self, order):
        x = {"text": batch(0), "sound": batch(1)}
        encoded = {kind: self.encoders[kind](x[kind]) for kind in order(list(x))}
        joint = torch.cat([encoded["text"], encoded["sound"]], 1)
        return {task: error(self.heads[task](self.read(task, joint))) for task in order(self.tasks)}

    def read(self, task, joint):
        return joint


class PartialFusion(LateFusion):
    """One task listens to the first modality alone."""

    W: ClassVar = {"encoders.text.2.weight"}

    def __init__(self):
        super().__init__()
        self.heads["b"] = nn.Linear(8, 2)

    def read(self, task, joint):
        return joint if task == "a" else joint[:, :8]


class DETR(Architecture):
    """Each head reads the stacked hidden states of all decoder layers: auxiliary losses are summed in."""

    tasks: ClassVar = ("class", "box")
    W: ClassVar = {"decoder.1.linear2.weight"}

    def __init__(self):
        super().__init__()
        self.encoder, self.queries = nn.Linear(6, 8), nn.Parameter(torch.randn(3, 8))
        self.decoder = nn.ModuleList(
            nn.TransformerDecoderLayer(8, 2, 16, batch_first=True, dropout=0.0) for _ in range(2)
        )
        self.heads = nn.ModuleDict({"class": nn.Linear(8, 4), "box": nn.Sequential(mlp(8, 8), nn.Linear(8, 4))})

    def losses(self, order):
        memory, hidden = self.encoder(batch(size=8).view(2, 4, 6)), self.queries.expand(2, 3, 8)
        states = []
        for layer in self.decoder:
            hidden = layer(hidden, memory)
            states.append(hidden)
        stacked = torch.stack(states)
        return {task: sum(error(level) for level in self.heads[task](stacked)) for task in order(self.tasks)}


# ----------------------------------------------------------------------------------------------------- several forwards


class Siamese(Architecture):
    """One network, two inputs: one loss compares them, one classifies the first."""

    tasks: ClassVar = ("contrast", "class")
    W: ClassVar = {"net.2.weight"}

    def __init__(self):
        super().__init__()
        self.net, self.classifier = mlp(6, 8, 8), nn.Linear(8, 2)

    def losses(self, order):
        z = {i: self.net(batch(i)) for i in order(range(2))}
        losses = {"contrast": lambda: (z[0] - z[1]).square().mean(), "class": lambda: error(self.classifier(z[0]))}
        return {task: losses[task]() for task in order(self.tasks)}


class Augmented(Architecture):
    """The whole network by a forward for each loss, its output layer as well."""

    W: ClassVar = {"net.2.weight"}

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(*mlp(6, 8), nn.Linear(8, 2))

    def losses(self, order):
        return {task: error(self.net(batch(ord(task)))) for task in order(self.tasks)}


class Prompted(Architecture):
    """One network that is told its task by an embedding: all of it is shared but that."""

    W: ClassVar = {"net.2.weight"}

    def __init__(self):
        super().__init__()
        self.prompts, self.net = nn.Embedding(2, 6), nn.Sequential(*mlp(6, 8), nn.Linear(8, 2))

    def losses(self, order):
        prompt = {task: self.prompts(torch.tensor(i)) for i, task in enumerate(self.tasks)}
        return {task: error(self.net(batch() + prompt[task])) for task in order(self.tasks)}


class Physics(Architecture):
    """Residual and boundary; the residual's graph passes the layers in both directions. The last layer is a vector."""

    tasks: ClassVar = ("residual", "boundary")
    W: ClassVar = {"net.4.weight"}

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(*mlp(2, 8, 8, 8), nn.Linear(8, 1))

    def residual(self):
        x = batch()[:, :2].requires_grad_()
        (slope,) = torch.autograd.grad(self.net(x).sum(), x, create_graph=True)
        (curvature,) = torch.autograd.grad(slope[:, 0].sum(), x, create_graph=True)
        return error(curvature[:, 0] - slope[:, 1])

    def boundary(self):
        return error(self.net(batch(1)[:, :2]))

    def losses(self, order):
        return {task: getattr(self, task)() for task in order(self.tasks)}


class Generator(Architecture):
    """Losses of one image: by pixels, by features of a frozen network, by a critic that trains elsewhere."""

    tasks: ClassVar = ("pixels", "features", "critic")
    W: ClassVar = {"generator.2.weight"}

    def __init__(self):
        super().__init__()
        self.generator = nn.Sequential(conv(3, 4), nn.Tanh(), conv(4, 3))
        self.features, self.critic = conv(3, 4).requires_grad_(False), conv(3, 2)

    def losses(self, order):
        made = self.generator(image())
        judges = {"pixels": nn.Identity(), "features": self.features, "critic": self.critic}
        return {task: error(judges[task](made)) for task in order(self.tasks)}


# --------------------------------------------------------------------------------------------------------- regularizers


class WeightDecay(HardSharing):
    """The size of the trunk's weights as a task: it reaches them all, and the last of them is what all tasks share."""

    tasks: ClassVar = ("a", "b", "decay")

    def decayed(self):
        return self.trunk.parameters()

    def losses(self, order):
        features = self.trunk(batch())
        losses = {
            "a": lambda: error(self.heads["a"](features)),
            "b": lambda: error(self.heads["b"](features)),
            "decay": lambda: sum(p.square().sum() for p in order(list(self.decayed()))),
        }
        return {task: losses[task]() for task in order(self.tasks)}


class DecayOfAll(WeightDecay):
    """Each head is reached by its own task and by the decay, but not by the other tasks."""

    def decayed(self):
        return self.parameters()


class DecayOfOne(WeightDecay):
    """Only the first layer is common to all."""

    W: ClassVar = {"trunk.0.weight"}

    def decayed(self):
        return [self.trunk[0].weight]


# ------------------------------------------------------------------------------------------------ outputs in one tensor


class OneOutputLayer(Architecture):
    """A column for each task: each has rows of its own in the weights."""

    tasks: ClassVar = ("a", "b", "c")
    W: ClassVar = {"trunk.weight"}

    def __init__(self):
        super().__init__()
        self.trunk, self.output = nn.Linear(6, 32), nn.Linear(32, 3)

    def losses(self, order):
        columns = self.output(self.trunk(batch()).tanh())
        return {task: error(columns[:, "abc".index(task)]) for task in order(self.tasks)}


class BatchedHeads(Architecture):
    """All heads in one parameter."""

    W: ClassVar = {"trunk.0.weight"}

    def __init__(self):
        super().__init__()
        self.trunk, self.heads = mlp(6, 8), nn.Parameter(torch.randn(2, 8, 2))

    def losses(self, order):
        outputs = torch.einsum("bi,tio->tbo", self.trunk(batch()), self.heads)
        return {task: error(outputs["ab".index(task)]) for task in order(self.tasks)}


class Joined(Architecture):
    """Heads whose outputs are joined to one tensor and taken apart again."""

    W: ClassVar = {"trunk.0.weight"}

    def __init__(self, join, apart, trunk, head, x):
        super().__init__()
        self.join, self.apart, self.x = join, apart, x
        self.trunk, self.heads = nn.Sequential(trunk(), nn.Tanh()), self.each(head)

    def losses(self, order):
        features = self.trunk(self.x)
        outputs = {task: self.heads[task](features) for task in order(self.tasks)}
        parts = self.apart(self.join([outputs[task] for task in self.tasks]))
        return {task: error(dict(zip(self.tasks, parts, strict=True))[task]) for task in order(self.tasks)}


first, second, last = (partial(torch.cat, dim=dim) for dim in (0, 1, -1))


class Consistency(Architecture):
    """Two tasks read their own part of the joint output, a third one all of it."""

    tasks: ClassVar = ("a", "b", "both")
    W: ClassVar = {"trunk.2.weight"}

    def __init__(self):
        super().__init__()
        self.trunk, self.heads = mlp(6, 8, 8), nn.ModuleDict({head: nn.Linear(8, 2) for head in "ab"})

    def losses(self, order):
        features = self.trunk(batch())
        outputs = {head: self.heads[head](features) for head in order("ab")}
        return self.errors(torch.cat([outputs["a"], outputs["b"]], 1), order)

    def errors(self, joint, order):
        read = {"a": joint[:, :2], "b": joint[:, 2:], "both": joint}
        return {task: error(read[task]) for task in order(self.tasks)}


class Total(Consistency):
    """The same with losses: a third task is their sum."""

    def errors(self, joint, order):
        vector = torch.stack([error(part) for part in joint.chunk(2, 1)])
        return {"a": vector[0], "b": vector[1], "both": vector.sum()}


def joined_rows(apart, join=second, width=2):
    return lambda: Joined(join, apart, lambda: nn.Linear(6, 8), lambda: nn.Linear(8, width), batch())


def joined_images(apart, join=second):
    return lambda: Joined(join, apart, lambda: conv(3, 4), lambda: conv(4, 2), image())


def joined_sequences(apart, join=last):
    x = batch(size=8).view(2, 4, 6)
    return lambda: Joined(join, apart, lambda: nn.Linear(6, 8), lambda: nn.Linear(8, 2), x)


def written(outputs):
    """Into slices of one tensor that was made before."""
    joint = torch.zeros(*outputs[0].shape[:-1], 4)
    for i, output in enumerate(outputs):
        joint[..., 2 * i : 2 * i + 2] = output
    return joint


JOINED = {
    "split": joined_rows(lambda y: y.split(2, 1)),
    "chunk": joined_rows(lambda y: y.chunk(2, 1)),
    "tensor_split": joined_rows(lambda y: y.tensor_split(2, 1)),
    "slices": joined_rows(lambda y: (y[:, :2], y[:, 2:])),
    "negative slices": joined_rows(lambda y: (y[:, :-2], y[:, -2:])),
    "narrow": joined_rows(lambda y: (y.narrow(1, 0, 2), y.narrow(1, 2, 2))),
    "indices": joined_rows(lambda y: (y[:, [0, 1]], y[:, [2, 3]])),
    "unbind": joined_rows(lambda y: y.unbind(1), width=1),
    "select": joined_rows(lambda y: (y[:, 0], y[:, 1]), width=1),
    "negative select": joined_rows(lambda y: (y[:, -2], y[:, -1]), width=1),
    "columns of a head": joined_rows(lambda y: (y[:, 0] * y[:, 1], y[:, 2] - y[:, 3])),
    "view": joined_rows(lambda y: y.view(5, 2, 2).unbind(1)),
    "rows": joined_rows(lambda y: y.split(5), join=first),
    "stack": joined_rows(lambda y: (y[0], y[1]), join=torch.stack),
    "stack of columns": joined_rows(lambda y: y.unbind(-1), join=lambda outputs: torch.stack(outputs, -1)),
    "written": joined_rows(lambda y: (y[:, :2], y[:, 2:]), join=written),
    "images split": joined_images(lambda y: y.split(2, 1)),
    "images select": joined_images(lambda y: (y[:, 0], y[:, 3])),
    "images permuted": joined_images(lambda y: y.permute(0, 2, 3, 1).split(2, -1)),
    "images beside each other": joined_images(lambda y: (y[..., :8], y[..., 8:]), join=last),
    "images chunk": joined_images(lambda y: y.chunk(2, -1), join=partial(torch.cat, dim=3)),
    "sequences split": joined_sequences(lambda y: y.split(2, -1)),
    "sequences slices": joined_sequences(lambda y: (y[..., :2], y[..., 2:])),
    "sequences select": joined_sequences(lambda y: (y[..., 0], y[:, :, 2])),
    "sequences written": joined_sequences(lambda y: y.chunk(2, 2), join=written),
    "sequences one after the other": joined_sequences(lambda y: (y[:, :4], y[:, 4:]), join=second),
}


# ------------------------------------------------------------------------------------------------- losses in one tensor


class Collected(HardSharing):
    """The losses pass through one tensor on their way to the balancer."""

    def __init__(self, collect):
        super().__init__()
        self.collect = collect

    def losses(self, order):
        losses = super().losses(order)
        return self.collect([losses[task] for task in self.tasks])


def assigned(losses):
    vector = torch.zeros(len(losses))
    for i, loss in enumerate(losses):
        vector[i] = loss
    return vector


COLLECTED = {
    "stack": torch.stack,
    "cat": lambda losses: torch.cat([loss.view(1) for loss in losses]),
    "assigned": assigned,
    "assigned, picked": lambda losses: (lambda vector: [vector[0], vector[1]])(assigned(losses)),
    "picked": lambda losses: (lambda vector: [vector[0], vector[-1]])(torch.stack(losses)),
    "picked from cat": lambda losses: (lambda vector: [vector[0], vector[1]])(torch.cat([x[None] for x in losses])),
    "unbind": lambda losses: list(torch.stack(losses).unbind()),
    "split": lambda losses: [part.squeeze() for part in torch.stack(losses).split(1)],
    "scaled": lambda losses: torch.stack(losses) * torch.tensor([1.0, 10.0]),
}


ARCHITECTURES: dict[str, Callable[[], Architecture]] = {
    kind.__name__: kind
    for kind in (
        HardSharing,
        Residual,
        Shortcut,
        Dense,
        Convolutions,
        ChannelScale,
        UNet,
        TransformerEncoder,
        Recurrent,
        Looped,
        LearnedInput,
        AutoDecoder,
        TiedEmbedding,
        LoRA,
        MergedLoRA,
        WeightNorm,
        SpectralNorm,
        Orthogonal,
        DomainAdversarial,
        ActorCritic,
        DeepSupervision,
        Attention,
        CrossStitch,
        ScalarStitch,
        StitchByProduct,
        NDDR,
        MMoE,
        BatchedMMoE,
        PLE,
        Pyramid,
        PADNet,
        VAE,
        Gated,
        AttentionPooling,
        GraphAttention,
        AsleepBeside,
        AsleepAtFirst,
        LateFusion,
        PartialFusion,
        DETR,
        Siamese,
        Augmented,
        Prompted,
        Physics,
        Generator,
        WeightDecay,
        DecayOfAll,
        DecayOfOne,
        OneOutputLayer,
        BatchedHeads,
        Consistency,
        Total,
    )
}
ARCHITECTURES |= {f"joined: {name}": make for name, make in JOINED.items()}
ARCHITECTURES |= {f"collected: {name}": lambda collect=how: Collected(collect) for name, how in COLLECTED.items()}


class SwitchLayer(Architecture):
    """A mixture of experts of which each row takes one: which of them a batch trains depends on it.

    The gate stands beside the experts, as what it says is multiplied with what they say.
    """

    def __init__(self):
        super().__init__()
        self.trunk, self.gate = mlp(6, 8), nn.Linear(8, 3)
        nn.init.normal_(self.gate.weight)  # wide enough that batches differ in what they choose
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.heads = self.each(lambda: nn.Linear(8, 2))

    def route(self, x):
        features = self.trunk(x)
        return features, self.gate(features).softmax(1)

    def layer_for(self, x):
        """The names of `W` in this batch."""
        chosen = self.route(x)[1].argmax(1).tolist()
        return {"gate.weight"} | {f"experts.{i}.weight" for i in chosen}

    def losses(self, order, x):
        features, shares = self.route(x)
        share, chosen = shares.max(1)
        outputs = torch.zeros_like(features)
        for i, expert in order(list(enumerate(self.experts))):
            (rows,) = torch.where(chosen == i)
            if len(rows):
                outputs = outputs.index_add(0, rows, share[rows, None] * expert(features[rows]).tanh())
        return {task: error(self.heads[task](outputs)) for task in order(self.tasks)}
