"""Both updates written literally, in the words of the paper and of `ClosedForm`.

The one line that Algorithm 1 does not have is the floor under the weights, the deviation that `min_weight` documents.
"""

import torch


class Literal:
    """Holds `w`, its own Adam over the life of the run, and `L(0)`; trains `model_optimizer`'s model by the sum."""

    def __init__(self, count, W, alpha, lr=0.025, initial=None):
        self.w = torch.ones(count, dtype=torch.float64, requires_grad=True)
        self.adam = torch.optim.Adam([self.w], lr=lr)
        self.W, self.alpha, self.initial, self.count = W, alpha, initial, count

    def step(self, losses, model_optimizer):
        L = torch.stack(losses)
        if self.initial is None:
            self.initial = L.detach()
        weighted = self.w * L
        G = torch.stack(
            [
                torch.cat([g.flatten() for g in torch.autograd.grad(wl, self.W, create_graph=True)]).norm()
                for wl in weighted
            ]
        )
        ratio = L.detach() / self.initial
        r = ratio / ratio.mean()
        target = (G.mean() * r**self.alpha).detach()
        L_grad = (G - target).abs().sum()
        (w_gradient,) = torch.autograd.grad(L_grad, self.w, retain_graph=True)
        model_optimizer.zero_grad()
        weighted.sum().backward()
        self.w.grad = w_gradient
        self.adam.step()
        model_optimizer.step()
        with torch.no_grad():
            w = self.w.clamp(min=1e-4)
            self.w.copy_(w * (self.count / w.sum()))


class LiteralClosedForm:
    """The point at which Algorithm 1 would rest, from averages; one number at a time, in the words of `ClosedForm`."""

    def __init__(self, count, W, alpha, smoothing=0.9):
        self.w, self.W, self.alpha, self.smoothing, self.count = None, W, alpha, smoothing, count
        self.initial, self.sums, self.share = None, [[0.0, 0.0] for _ in range(count)], 0.0

    def weights(self, norms, losses):
        self.share = self.smoothing * self.share + 1 - self.smoothing  # of what has been averaged in all
        for sums, norm, loss in zip(self.sums, norms, losses, strict=True):
            sums[0] = self.smoothing * sums[0] + (1 - self.smoothing) * norm**2
            sums[1] = self.smoothing * sums[1] + (1 - self.smoothing) * loss
        ratios = [sums[1] / self.share / first for sums, first in zip(self.sums, self.initial, strict=True)]
        rates = [min(max(ratio * self.count / sum(ratios), 0.1), 10.0) for ratio in ratios]
        wanted = [rate**self.alpha / (sums[0] / self.share) ** 0.5 for rate, sums in zip(rates, self.sums, strict=True)]
        return torch.tensor([self.count * one / sum(wanted) for one in wanted], dtype=torch.float64)

    def step(self, losses, model_optimizer):
        norms = [
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, self.W, retain_graph=True)]).norm().item()
            for loss in losses
        ]
        values = [loss.item() for loss in losses]
        if self.w is None:
            self.initial = values
            shares = [1 / norm for norm in norms]
            self.w = torch.tensor([self.count * share / sum(shares) for share in shares], dtype=torch.float64)
        model_optimizer.zero_grad()
        (self.w * torch.stack(losses)).sum().backward()
        model_optimizer.step()
        self.w = self.weights(norms, values)
