"""Algorithm 1 written literally: slow, with `create_graph=True`, in the words of the paper.

The one line that the paper does not have is the floor under the weights, the deviation that `min_weight` documents.
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
