"""Both updates written literally, in the words of the paper and of `ClosedForm`.

The lines that Algorithm 1 does not have: the floor under the weights, which `min_weight` documents; priorities; and a
task that is absent, `None` among the losses, over which no mean and no sum runs and whose weight stays.
"""

import torch


class Literal:
    """Holds `w`, its own Adam over the life of the run, and `L(0)`; trains `model_optimizer`'s model by the sum.

    `found` has what the last step computed on its way, of the tasks present.
    """

    def __init__(
        self, count, W, alpha, lr=0.025, initial=None, optimizer=torch.optim.Adam, priorities=None, min_weight=1e-4
    ):
        self.w = torch.ones(count, dtype=torch.float64, requires_grad=True)
        self.optimizer = optimizer([self.w], lr=lr)
        self.W, self.alpha, self.count, self.min_weight = W, alpha, count, min_weight
        self.initial = [None] * count if initial is None else list(initial)
        self.priorities = torch.ones(count, dtype=torch.float64) if priorities is None else priorities

    def step(self, losses, model_optimizer):
        present = [i for i, loss in enumerate(losses) if loss is not None]
        for i in present:
            if self.initial[i] is None:
                self.initial[i] = losses[i].item()
        L = torch.stack([losses[i] for i in present])
        weighted = self.w[present] * L
        G = torch.stack(
            [
                torch.cat([g.flatten() for g in torch.autograd.grad(wl, self.W, create_graph=True)]).norm()
                for wl in weighted
            ]
        )
        ratio = L.detach() / torch.tensor([self.initial[i] for i in present], dtype=torch.float64)
        r = ratio / ratio.mean()
        target = (self.priorities[present] * G.mean() * r**self.alpha).detach()
        L_grad = (G - target).abs().sum()
        (w_gradient,) = torch.autograd.grad(L_grad, self.w, retain_graph=True)
        model_optimizer.zero_grad()
        weighted.sum().backward()
        total = self.w[present].sum().item()
        self.w.grad = w_gradient
        self.optimizer.step()
        model_optimizer.step()
        with torch.no_grad():
            w = self.w[present].clamp(min=self.min_weight)
            self.w[present] = w * (total / w.sum())
        self.found = {
            "gradient_norms": G.detach(),
            "inverse_training_rates": r,
            "target_norms": target,
            "gradnorm_loss": L_grad.detach(),
            "weight_gradients": w_gradient[present],
        }


class LiteralClosedForm:
    """The point at which Algorithm 1 would rest, from averages; one number at a time, in the words of `ClosedForm`."""

    def __init__(self, count, W, alpha, smoothing=0.9, initial=None, priorities=None, w=None):
        self.w, self.W, self.alpha, self.smoothing, self.count = w, W, alpha, smoothing, count
        self.initial = [None] * count if initial is None else list(initial)
        self.priorities = [1.0] * count if priorities is None else list(priorities)
        self.sums, self.shares = [[0.0, 0.0] for _ in range(count)], [0.0] * count

    def weights(self, norms, losses):
        for i, norm in norms.items():
            self.shares[i] = self.smoothing * self.shares[i] + 1 - self.smoothing  # of what has been averaged in all
            self.sums[i][0] = self.smoothing * self.sums[i][0] + (1 - self.smoothing) * norm**2
            self.sums[i][1] = self.smoothing * self.sums[i][1] + (1 - self.smoothing) * losses[i]
        ratios = [
            sums[1] / share / first for sums, share, first in zip(self.sums, self.shares, self.initial, strict=True)
        ]
        self.rates = [min(max(ratio * self.count / sum(ratios), 0.1), 10.0) for ratio in ratios]
        wanted = [
            priority * rate**self.alpha / (sums[0] / share) ** 0.5
            for priority, rate, sums, share in zip(self.priorities, self.rates, self.sums, self.shares, strict=True)
        ]
        return torch.tensor([self.count * one / sum(wanted) for one in wanted], dtype=torch.float64)

    def step(self, losses, model_optimizer):
        present = [i for i, loss in enumerate(losses) if loss is not None]
        norms = {
            i: torch.cat([g.flatten() for g in torch.autograd.grad(losses[i], self.W, retain_graph=True)]).norm().item()
            for i in present
        }
        values = {i: losses[i].item() for i in present}
        self.initial = [values.get(i) if first is None else first for i, first in enumerate(self.initial)]
        if self.w is None:  # all tasks must be in the first step
            wanted = [self.priorities[i] / norms[i] for i in present]
            self.w = torch.tensor([self.count * one / sum(wanted) for one in wanted], dtype=torch.float64)
        model_optimizer.zero_grad()
        sum(self.w[i] * losses[i] for i in present).backward()
        model_optimizer.step()
        G = [self.w[i].item() * norms[i] for i in present]
        self.w = self.weights(norms, values)
        self.found = {
            "gradient_norms": G,
            "inverse_training_rates": [self.rates[i] for i in present],
            "target_norms": [self.priorities[i] * sum(G) / len(G) * self.rates[i] ** self.alpha for i in present],
        }
