"""The pages of docs/migrate: both sides of each diff run, and their numbers agree where the page says so.

The other methods are written here in a few lines, from their formulas; gradnorm-pytorch is the package itself.
"""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from gradnorm import ClosedForm, Descent, GradNorm

PAGES = Path(__file__).parents[2] / "docs" / "migrate"


def diff(page):
    return re.search(r"^```diff\n(.*?)^```$", (PAGES / f"{page}.md").read_text(), flags=re.M | re.S)[1]


def side(page, mark):
    """The code before ("-") or after ("+") the change."""
    return "".join(line[1:] or "\n" for line in diff(page).splitlines(keepends=True) if line[0] in f"{mark} \n")


def run(page, mark, names, **replaced):
    """Runs one side in `names`, with these texts replaced; returns the names after it."""
    code = side(page, mark)
    for old, new in replaced.items():
        assert old in code
        code = code.replace(old, new)
    names = {"torch": torch, "GradNorm": GradNorm, "ClosedForm": ClosedForm, "Descent": Descent, **names}
    exec(compile(code, f"{page} {mark}", "exec"), names)
    return names


def norm(loss, tensors):
    gradients = torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True)
    return torch.cat([g.flatten() for g in gradients if g is not None]).norm()


def close(actual, expected, rtol=1e-5):
    torch.testing.assert_close(torch.as_tensor(actual).double(), torch.as_tensor(expected).double(), rtol=rtol, atol=0)


def proportional(actual, expected):
    close(actual / actual.norm(), expected / expected.norm(), rtol=1e-4)


@pytest.mark.parametrize("page", sorted(path.stem for path in PAGES.glob("*.md")))
def test_a_diff_changes_ten_lines_at_most(page):
    assert 0 < len(re.findall(r"^[+-]", diff(page), flags=re.M)) <= 10


class Still:
    """A network that is kept still, its batches, and an optimizer whose gradients are looked at."""

    def __init__(self, steps=12, same=False):
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(8, 1) for _ in range(2))
        self.loader = [torch.randn(16, 6) for _ in range(steps)]
        if same:
            self.loader = [self.loader[0]] * steps
        self.optimizer = torch.optim.SGD([*self.trunk.parameters(), *self.heads.parameters()], lr=0.0)
        self.gradients, W = [], self.trunk[2].weight
        self.optimizer.register_step_pre_hook(lambda *_: self.gradients.append(W.grad.flatten().clone()))

    def losses(self, x):
        features = self.trunk(x)
        return [(scale * head(features) - 1).square().mean() for head, scale in zip(self.heads, (1, 20), strict=True)]


def test_gradnorm_pytorch_has_the_same_weights_without_a_restoring_force():
    weights, gradients = [], []
    for mark in "-+":
        still = Still()
        names = {"trunk": still.trunk, "loader": still.loader, "optimizer": still.optimizer}
        balancer = run("gradnorm-pytorch", mark, {**names, "compute_losses": still.losses})["balancer"]
        weights.append(balancer.loss_weights if mark == "-" else balancer.weights)
        gradients.append(still.gradients[0])
    assert abs(weights[0][0] - 1) > 1e-3, "the weights must have moved for this to mean anything"
    close(*weights, rtol=1e-6)
    assert (gradients[0] - gradients[1]).norm() > 0.01 * gradients[1].norm(), "its own L_grad reaches the network"


def test_gradnorm_pytorch_has_no_setting_for_its_restoring_force():
    """The lagging task's weight falls there, rises here."""
    from gradnorm_pytorch import GradNormLossWeighter

    w = nn.Parameter(torch.ones(1))
    theirs = GradNormLossWeighter(num_losses=2, learning_rate=0.025, restoring_force_alpha=1.0, grad_norm_parameters=w)
    theirs.initial_losses.copy_(torch.tensor([4.0, 1.0]))
    theirs.initted.fill_(True)
    ours = GradNorm(2, shared=w, alpha=1.0, initial_losses=[4.0, 1.0])
    theirs.backward([w.sum(), w.sum()])
    ours([w.sum(), w.sum()]).backward()
    ours.step()
    assert theirs.loss_weights[1] < 1 < ours.weights[1]


def libmtl_weights(norms, steps=4000, lr=5e-4):
    """LibMTL's rule at α = 0 on constant gradients: `T · softmax` of a parameter, by gradient descent on `L_grad`."""
    scale = torch.zeros(len(norms), dtype=torch.float64)
    for _ in range(steps):
        w = len(norms) * scale.softmax(0)
        slope = torch.sign(w * norms - (w * norms).mean()) * norms
        scale = scale - lr * w * (slope - (slope * w).mean())  # through the softmax
    return len(norms) * scale.softmax(0)


def test_libmtl_rests_where_the_closed_form_is():
    still = Still(steps=2, same=True)
    W = list(still.trunk.parameters())
    balancer = GradNorm(2, shared=W, alpha=0, update="closed-form")
    balancer(still.losses(still.loader[0])).backward()
    norms = torch.stack([norm(loss, W) for loss in still.losses(still.loader[0])]).double()
    assert balancer.weights.std() > 0.5
    close(libmtl_weights(norms), balancer.weights, rtol=0.02)


def test_libmtl_finds_our_weighting_by_name():
    made = {}
    names = {"Trainer": lambda **options: made.update(options), "task_dict": {}, "Encoder": None, "decoders": {}}
    run("libmtl", "+", names, **{"import libmtl_balanced\n": ""})
    recipe = (PAGES.parent / "guide" / "shared.md").read_text()
    assert f"LibMTL.weighting.{made['weighting']} = " in recipe
    assert "def backward(self, losses, **options)" in recipe  # takes weight_args, whatever they are


class Encodec:
    """The formula of encodec's balancer: `Σ p_i / Σ p · g_i / n̂_i` at the output, norms averaged by `ema_decay`."""

    def __init__(self, priorities, ema_decay):
        self.priorities, self.decay = priorities, ema_decay
        self.sums, self.count, self.scales = dict.fromkeys(priorities, 0.0), 0.0, {}

    def backward(self, losses, output):
        total = 0
        self.count = self.decay * self.count + 1
        for name, loss in losses.items():
            (gradient,) = torch.autograd.grad(loss, output, retain_graph=True)
            self.sums[name] = self.decay * self.sums[name] + gradient.norm()
            self.scales[name] = self.priorities[name] / sum(self.priorities.values()) * self.count / self.sums[name]
            total = total + self.scales[name] * gradient
        output.backward(total)


def encodec(mark, same, decay):
    still = Still(same=same)
    critic = nn.Linear(8, 1)
    names = {
        "Balancer": Encodec,
        "loader": still.loader,
        "generator": still.trunk,
        "l1": lambda y, x: (y[:, :6] - x).abs().mean(),
        "adversarial": lambda y: -critic(y).mean(),
        "optimizer": still.optimizer,
    }
    return run("encodec", mark, names, **{"0.999": decay})["balancer"], still.gradients


def test_encodec_has_the_same_weights_up_to_a_factor():
    (theirs, _), (ours, _) = (encodec(mark, same=False, decay="0.0") for mark in "-+")
    proportional(ours.weights, torch.stack([*theirs.scales.values()]))
    (_, theirs), (_, ours) = (encodec(mark, same=True, decay="0.999") for mark in "-+")
    for a, b in zip(ours, theirs, strict=True):
        proportional(a, b)


def adaptive_weight(rec, adv, last_layer):
    """VQGAN's λ."""
    return (norm(rec, last_layer) / (norm(adv, last_layer) + 1e-4)).clamp(0, 1e4).detach()


@pytest.mark.parametrize("start", [0, 5])
@pytest.mark.parametrize("same", [True, False])
def test_vqgan_has_the_same_weights_up_to_a_factor(start, same):
    found = {}
    for mark in "-+":
        still = Still(same=same)
        critic, codes = nn.Linear(8, 1), nn.Parameter(torch.ones(3))

        def losses(x, still=still, critic=critic, codes=codes):
            y = still.trunk(x)
            return (y[:, :6] - x).abs().mean(), codes.square().sum(), -3 * critic(y).mean()

        names = {
            "adaptive_weight": adaptive_weight,
            "generator_losses": losses,
            "loader": still.loader,
            "last_layer": still.trunk[2].weight,
            "optimizer": still.optimizer,
            "disc_weight": 0.8,
            "disc_start": start,
        }
        found[mark] = run("vqgan", mark, names), still.gradients
    (theirs, before), (ours, after) = found["-"], found["+"]
    weights = ours["balancer"].weights
    close(weights[1] / weights[0], theirs["adaptive"], rtol=2e-3)  # of the last step, and their 1e-4
    for step in range(len(after)):
        if same or step < start or step == start == 0:  # elsewhere ours is that of the step before
            assert torch.cosine_similarity(after[step], before[step], 0) > 1 - 1e-5


def pinn():
    """Residual of an equation of first order, and a boundary value; the last bias does not reach the residual."""
    u = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
    x = torch.rand(16, 1, requires_grad=True)

    def losses(u):
        (slope,) = torch.autograd.grad(u(x).sum(), x, create_graph=True)
        return 50 * (slope - x).square().mean(), u(torch.zeros(1, 1)).square().mean()

    return {
        "u": u,
        "compute_losses": losses,
        "steps": 21,
        "weight": 1.0,
        "adaptive_weight": largest_over_mean,
        "optimizer": torch.optim.SGD(u.parameters(), lr=0.0),
    }


def entries(loss, u):
    parameters = list(u.parameters())
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    pairs = zip(parameters, found, strict=True)
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in pairs])


def largest_over_mean(residual, boundary, u):
    """Wang, Teng and Perdikaris 2021: `max|∇L_r| / mean|∇L_i|`."""
    return (entries(residual, u).abs().max() / entries(boundary, u).abs().mean()).item()


def test_jaxpis_weights_are_the_same_up_to_a_factor_and_those_of_2021_are_larger():
    torch.manual_seed(0)
    names = pinn()
    balancer = run("pinn", "+", names)["balancer"]
    losses = names["compute_losses"](names["u"])
    norms = torch.stack([entries(loss, names["u"]).norm() for loss in losses])
    proportional(balancer.weights, norms.mean() / norms)
    assert len(balancer.history) == 3  # every tenth step
    ratio = (balancer.weights[1] / balancer.weights[0]).item()
    assert largest_over_mean(*losses, names["u"]) > 1.5 * ratio
    adapted = 1.0
    for _ in range(3):
        adapted = 0.9 * adapted + 0.1 * largest_over_mean(*losses, names["u"])
    assert run("pinn", "-", names)["weight"] == pytest.approx(adapted)
