"""What to choose: does the unit of a loss matter, which α, and how long an average of the closed form.

Three questions, each answered by training small networks that are made here: two tasks on real scans, eleven
properties of molecules, a Helmholtz equation of five losses, and two made-up problems whose batches now and then
have a very large gradient. A seed draws the split, the network and the batches, the same for every method. Choices
are made by the figures on the validation split; those on the test split stand apart, and nothing is chosen by them.

    python benchmarks/choices.py units        # one loss in other units, 10⁻⁶ … 10⁶: results/units.md
    python benchmarks/choices.py alpha        # α by both rules:                      results/alpha.md
    python benchmarks/choices.py smoothing    # the closed form's average:            results/smoothing.md

`alpha` and `smoothing` read QM9 from the files of `pip install qm9pack`; without them they leave the molecules out.
"""

import argparse
import importlib.util
import json
import math
import multiprocessing
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Literal, NamedTuple, Protocol

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from gradnorm import ClosedForm, Descent, GradNorm
from gradnorm_studies import molecules
from gradnorm_studies.networks import perceptron
from report import table

RESULTS = Path(__file__).parent / "results"
SPLITS = ("validation", "test")
Figures = dict[str, float]
Losses = dict[str, Tensor]
Rule = Literal["descent", "closed form"]


# ---------------------------------------------------------------------------------------------------------- problems


class Problem(Protocol):
    """A network, its losses and what it is worth; `main` is the figure that a choice is made by."""

    steps: int
    lr: float
    main: str
    largest: bool
    tasks: tuple[str, ...]

    def __init__(self, seed: int, task: str | None = None) -> None: ...

    @property
    def model(self) -> nn.Module:
        """All that is trained."""
        ...

    @property
    def shared(self) -> Tensor:
        """W."""
        ...

    def losses(self) -> Losses:
        """Of the next batch."""
        ...

    def figures(self, split: str) -> Figures:
        """On the `validation` or the `test` split."""
        ...


class Split(NamedTuple):
    """Row numbers; three fifths, one fifth and one fifth of all."""

    train: Tensor
    validation: Tensor
    test: Tensor


def split(count: int, generator: torch.Generator) -> Split:
    order = torch.randperm(count, generator=generator)
    return Split(*order.split([count - 2 * (count // 5), count // 5, count // 5]))


def last_weight(layers: nn.Sequential) -> Tensor:
    """Of the last layer, which has an activation behind it: the paper's W."""
    layer = layers[-2]
    assert isinstance(layer, nn.Linear)
    return layer.weight


class Heads(nn.Module):
    """A trunk of two layers and a linear head per task."""

    def __init__(self, inputs: int, width: int, outputs: dict[str, int]) -> None:
        super().__init__()
        self.trunk = perceptron([inputs, width, width], nn.ReLU)
        self.heads = nn.ModuleDict({task: nn.Linear(width, n) for task, n in outputs.items()})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """[B, inputs] → [B, outputs] per task."""
        features = self.trunk(x)
        return {task: head(features) for task, head in self.heads.items()}


def explained(output: Tensor, wanted: Tensor) -> float:
    """R², the share of the variance that is explained."""
    return 1 - (F.mse_loss(output, wanted) / wanted.var(correction=0)).item()


class Digits:
    """scikit-learn's scans: which digit, and how much ink, standardized. Cross entropy and squared error."""

    steps, lr, batch = 2000, 1e-3, 64
    main, largest = "mean of accuracy and 100 R²", True
    tasks: tuple[str, ...] = ("class", "ink")

    def __init__(self, seed: int, task: str | None = None) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        scans, digits = load_digits(return_X_y=True)
        self._x, self._digit = torch.tensor(scans / 16, dtype=torch.float32), torch.tensor(digits)
        self._rows = split(len(self._x), self._generator)
        ink = self._x.sum(1, keepdim=True)
        self._ink = (ink - ink[self._rows.train].mean()) / ink[self._rows.train].std()
        self.model = Heads(64, 64, {"class": 10, "ink": 1})
        self.shared = last_weight(self.model.trunk)

    def losses(self) -> Losses:
        """Of the next batch."""
        picked = torch.randint(len(self._rows.train), (self.batch,), generator=self._generator)
        rows = self._rows.train[picked]
        out = self.model(self._x[rows])
        return {
            "class": F.cross_entropy(out["class"], self._digit[rows]),
            "ink": F.mse_loss(out["ink"], self._ink[rows]),
        }

    def figures(self, split: str) -> Figures:
        """Accuracy in percent, R²."""
        rows = getattr(self._rows, split)
        out = self.model(self._x[rows])
        accuracy = 100 * (out["class"].argmax(1) == self._digit[rows]).double().mean().item()
        r2 = explained(out["ink"], self._ink[rows])
        return {self.main: (accuracy + 100 * r2) / 2, "accuracy": accuracy, "R²": r2}


class Helmholtz:
    """Δu + u = f on [−1, 1]², zero on the four edges, with the solution sin πx sin 3πy: five losses.

    The points are drawn anew each step. The splits are other points, at which no loss looks; as the solution is smooth,
    both say much the same.
    """

    steps, lr, inside, edge = 4000, 3e-3, 256, 64
    main, largest = "relative L2 error, %", False
    waves = torch.tensor([math.pi, 3 * math.pi])
    tasks: tuple[str, ...] = ("residual", "left", "right", "bottom", "top")

    def __init__(self, seed: int, task: str | None = None) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._points = {name: self._draw(4000) for name in SPLITS}
        trunk = perceptron([2, 64, 64, 64], nn.Tanh)
        self.model = nn.Sequential(trunk, nn.Linear(64, 1))
        self.shared = last_weight(trunk)

    def _draw(self, count: int) -> Tensor:
        return 2 * torch.rand(count, 2, generator=self._generator) - 1

    def solution(self, at: Tensor) -> Tensor:
        """[n, 2] → [n, 1]."""
        return torch.sin(self.waves * at).prod(1, keepdim=True)

    def losses(self) -> Losses:
        """Mean squares of the residual and of u on each edge."""
        at = self._draw(self.inside).requires_grad_()
        u = self.model(at)
        (slope,) = torch.autograd.grad(u.sum(), at, create_graph=True)
        curvature = [torch.autograd.grad(slope[:, i].sum(), at, create_graph=True)[0][:, i : i + 1] for i in range(2)]
        forcing = (1 - self.waves.square().sum()) * self.solution(at.detach())
        along = self._draw(2 * self.edge).view(4, self.edge)
        ones = torch.ones_like(along[0])
        places = ((-ones, along[0]), (ones, along[1]), (along[2], -ones), (along[3], ones))
        sides = self.model(torch.cat([torch.stack(place, 1) for place in places])).view(4, self.edge)
        residual = (curvature[0] + curvature[1] + u - forcing).square().mean()
        return dict(zip(self.tasks, (residual, *sides.square().mean(1)), strict=True))

    def figures(self, split: str) -> Figures:
        """`‖u − solution‖ / ‖solution‖`."""
        wanted = self.solution(self._points[split])
        return {self.main: 100 * ((self.model(self._points[split]) - wanted).norm() / wanted.norm()).item()}


class Rare:
    """Made up: two sines of projections of the same inputs; the second task has rare, large labels in training."""

    steps, lr, batch, inputs = 2000, 1e-3, 64, 8
    main, largest = "mean R², %", True
    tasks: tuple[str, ...] = ("plain", "rare")

    def __init__(self, seed: int, task: str | None = None) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._directions = torch.randn(self.inputs, 3, generator=self._generator) / math.sqrt(self.inputs)
        self._held_out = {name: self._draw(8000) for name in SPLITS}
        self.model = Heads(self.inputs, 64, {"plain": 1, "rare": 1})
        self.shared = last_weight(self.model.trunk)

    def _draw(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        x = torch.randn(count, self.inputs, generator=self._generator)
        along = x @ self._directions
        waves = torch.sin(2 * along[:, :2])
        return x, waves[:, :1], self._rare(waves[:, 1:], along[:, 2:])

    def _rare(self, wave: Tensor, along: Tensor) -> Tensor:
        raise NotImplementedError

    def _corrupt(self, labels: Tensor) -> Tensor:
        return labels

    def losses(self) -> Losses:
        """Squared errors."""
        x, plain, rare = self._draw(self.batch)
        out = self.model(x)
        return {"plain": F.mse_loss(out["plain"], plain), "rare": F.mse_loss(out["rare"], self._corrupt(rare))}

    def figures(self, split: str) -> Figures:
        """R² in percent, of labels without errors."""
        x, plain, rare = self._held_out[split]
        out = self.model(x)
        each = {"plain R², %": 100 * explained(out["plain"], plain), "rare R², %": 100 * explained(out["rare"], rare)}
        return {self.main: fmean(each.values()), **each}


class Events(Rare):
    """The large values are real: at one input in 300 the function is 30 times as large."""

    def _rare(self, wave: Tensor, along: Tensor) -> Tensor:
        spread = self._directions[:, 2].norm()
        return torch.where(along > 2.7 * spread, 30 * (1 + along - 2.7 * spread), wave)


class Outliers(Rare):
    """The large values are errors, of one label in 20, with tails of Student's t with two degrees of freedom."""

    def _rare(self, wave: Tensor, along: Tensor) -> Tensor:
        return wave

    def _corrupt(self, labels: Tensor) -> Tensor:
        normal = torch.randn(labels.shape, generator=self._generator)
        uniform = torch.rand(labels.shape, generator=self._generator)
        rare = torch.rand(labels.shape, generator=self._generator) < 0.05
        return labels + torch.where(rare, normal / uniform.clamp(min=1e-4).sqrt(), 0.0)


class Molecules:
    """QM9: eleven standardized properties from 34 simple descriptors; energies less each element's usual share."""

    steps, lr, batch = 3000, 2e-3, 256
    main, largest = "Δm, %", True

    def __init__(self, seed: int, task: str | None = None) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._x, self._y, _ = molecules.prepared(seed)
        self._rows = split(len(self._x), self._generator)
        self._columns = {name: i for i, name in enumerate(molecules.TASKS) if task in (None, name)}
        self.tasks = tuple(self._columns)
        self.model = Heads(self._x.shape[1], 128, dict.fromkeys(self.tasks, 1))
        self.shared = last_weight(self.model.trunk)

    def losses(self) -> Losses:
        """Squared errors of the next batch."""
        picked = torch.randint(len(self._rows.train), (self.batch,), generator=self._generator)
        rows = self._rows.train[picked]
        out = self.model(self._x[rows])
        return {task: F.mse_loss(out[task].squeeze(1), self._y[rows, i]) for task, i in self._columns.items()}

    def figures(self, split: str) -> Figures:
        """Mean absolute error of each task, in its standard deviations."""
        rows = getattr(self._rows, split)
        out = self.model(self._x[rows])
        return {task: F.l1_loss(out[task].squeeze(1), self._y[rows, i]).item() for task, i in self._columns.items()}


PROBLEMS: dict[str, type[Problem]] = {
    "rare events": Events,
    "outliers": Outliers,
    "digits": Digits,
    "molecules": Molecules,
    "Helmholtz": Helmholtz,
}


# ---------------------------------------------------------------------------------------------------------- training


ADAM_EPS = 1e-8
"""PyTorch's own."""


@dataclass(frozen=True)
class Method:
    """How losses are weighed: by their sum, or by a balancer's rule; `eps` is of the network's Adam."""

    rule: Rule | None = None
    alpha: float = 0.0
    smoothing: float = 0.9
    eps: float = ADAM_EPS

    @property
    def name(self) -> str:
        """For tables."""
        if self.rule is None:
            return "equal"
        eps = "" if self.eps == ADAM_EPS else f", Adam's eps = {self.eps:g}"
        return f"{self.rule}, α = {self.alpha:g}{eps}"

    def balancer(self, tasks: Iterable[str], shared: Tensor) -> GradNorm | None:
        """Of `GradNorm` only what differs from its defaults is named."""
        if self.rule is None:
            return None
        update = Descent() if self.rule == "descent" else ClosedForm(smoothing=self.smoothing)
        return GradNorm(tasks, shared=shared, alpha=self.alpha, update=update, history=0)


@dataclass(frozen=True)
class Job:
    """One training run: `task` trains this one only, `scaled` names a loss and the power of ten it is multiplied by."""

    problem: str
    method: Method
    seed: int
    task: str | None = None
    scaled: tuple[str, int] | None = None
    steps: int | None = None


EQUAL = Method()


def train(job: Job) -> Figures:
    """`validation …`, `test …` of the trained network, and the weights' `swings`."""
    torch.manual_seed(job.seed)
    problem = PROBLEMS[job.problem](job.seed, job.task)
    steps = job.steps or problem.steps
    optimizer = torch.optim.Adam(problem.model.parameters(), lr=problem.lr, eps=job.method.eps)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)  # the last step's luck would decide otherwise
    balancer = job.method.balancer(problem.tasks, problem.shared)
    trace = []
    for _ in range(steps):
        losses = problem.losses()
        if job.scaled:
            name, power = job.scaled
            losses[name] = losses[name] * 10.0**power
        loss = torch.stack(list(losses.values())).sum() if balancer is None else balancer(losses)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
        if balancer is not None:
            balancer.step()
            trace.append(balancer.weights.clone())
    found = swings(torch.stack(trace)) if trace else {}
    with torch.no_grad():
        for name in SPLITS:
            found |= {f"{name} {figure}": value for figure, value in problem.figures(name).items()}
    return found


def swings(weights: Tensor) -> Figures:
    """Of the weights' logarithms over the last half of the steps: mean change per step, and standard deviation."""
    late = weights[len(weights) // 2 :].log()
    return {"change": late.diff(dim=0).abs().mean().item(), "spread": late.std(0).mean().item()}


def describe_job(job: Job) -> str:
    """A line of progress."""
    what = [job.problem, job.task or f"{job.method.name}, smoothing = {job.method.smoothing:g}", f"seed {job.seed}"]
    if job.scaled:
        what.append("{} × 10^{}".format(*job.scaled))
    return "; ".join(what)


def train_all(jobs: Iterable[Job], processes: int, kept: Path | None) -> dict[Job, Figures]:
    """Every job once, a line of progress for each; what the file `kept` holds from before is taken from there."""
    todo = list(dict.fromkeys(jobs))
    lines = kept.read_text().splitlines() if kept and kept.exists() else []
    before: dict[str, Figures] = dict(json.loads(line) for line in lines)
    found = {job: before[repr(job)] for job in todo if repr(job) in before}
    began = time.perf_counter()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        running = {pool.submit(train, job): job for job in todo if job not in found}
        for future in as_completed(running):
            job = running[future]
            found[job] = future.result()
            if kept:
                with kept.open("a") as file:
                    file.write(json.dumps([repr(job), found[job]]) + "\n")
            print(f"{len(found)}/{len(todo)} {time.perf_counter() - began:.0f} s: {describe_job(job)}", flush=True)
    return {job: found[job] for job in todo}


def with_gains(found: dict[Job, Figures]) -> dict[Job, Figures]:
    """Adds Δm to the molecules: the mean over tasks of the error saved beside the seed's single-task networks, in %."""
    for job, figures in found.items():
        if job.problem != "molecules" or job.task:
            continue
        for name in SPLITS:
            single = {task: found[replace(job, method=EQUAL, task=task)][f"{name} {task}"] for task in molecules.TASKS}
            gains = [1 - figures[f"{name} {task}"] / error for task, error in single.items()]
            figures[f"{name} {Molecules.main}"] = 100 * fmean(gains)
    return found


# ------------------------------------------------------------------------------------------------------------- tables


class Study(NamedTuple):
    """What a part was asked for, and the runs it is made of."""

    seeds: int
    steps: int | None
    found: dict[Job, Figures]

    def values(self, figure: str, problem: str, method: Method, scaled: tuple[str, int] | None = None) -> list[float]:
        """A figure, seed by seed."""
        job = Job(problem, method, 0, None, scaled, self.steps)
        return [self.found[replace(job, seed=seed)][figure] for seed in range(self.seeds)]

    def mean(self, figure: str, problem: str, method: Method, scaled: tuple[str, int] | None = None) -> float:
        """Its mean over the seeds."""
        return fmean(self.values(figure, problem, method, scaled))


def cell(values: Sequence[float], digits: int = 1) -> str:
    """Mean ± standard deviation over seeds."""
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{spread}"


def available(names: Iterable[str]) -> list[str]:
    """Those whose data are here."""
    return [name for name in names if name != "molecules" or importlib.util.find_spec("qm9pack")]


def comparison(problems: Iterable[str], methods: Sequence[Method], seeds: int, steps: int | None) -> list[Job]:
    """Every method on every problem, and the single-task networks that Δm is counted from."""
    return [
        Job(problem, method, seed, task, steps=steps)
        for problem in problems
        for seed in range(seeds)
        for method, task in (
            *((method, None) for method in methods),
            *((EQUAL, task) for task in molecules.TASKS if problem == "molecules"),
        )
    ]


# Units: one of two losses multiplied by 10^k.

UNIT_METHODS = (
    EQUAL,
    Method("descent", 0.5),
    Method("closed form", 0.0),
    Method("closed form", 0.5),
    Method("closed form", 0.5, eps=1e-15),
)
UNIT_POWERS = {"ink": range(-6, 7), "class": range(-6, 7, 2)}
LIMITS = {"accuracy": 2.0, "R²": 0.02}
"""Within so much of the figures of k = 0 a network counts as unchanged."""


def scale(loss: str, power: int) -> tuple[str, int] | None:
    """With k = 0 no loss is multiplied."""
    return (loss, power) if power else None


def unit_jobs(seeds: int, steps: int | None) -> list[Job]:
    return [
        Job("digits", method, seed, None, scale(loss, power), steps)
        for seed in range(seeds)
        for loss, powers in UNIT_POWERS.items()
        for power in powers
        for method in UNIT_METHODS
    ]


def unit_table(study: Study, loss: str) -> str:
    def show(method: Method, power: int) -> str:
        accuracy, r2 = (
            study.values(f"validation {name}", "digits", method, scale(loss, power)) for name in ("accuracy", "R²")
        )
        return f"{cell(accuracy)}; {cell(r2, 3)}"

    header = ["k", *(method.name for method in UNIT_METHODS)]
    return table(
        header, ([str(power), *(show(method, power) for method in UNIT_METHODS)] for power in UNIT_POWERS[loss])
    )


def change(study: Study, figure: str, method: Method, loss: str, power: int) -> float:
    """How far a figure's mean is from that of k = 0."""
    return abs(study.mean(figure, "digits", method, scale(loss, power)) - study.mean(figure, "digits", method))


def unchanged(study: Study, split: str, method: Method, loss: str) -> tuple[int, int]:
    """The longest run of powers around 0 with the figures of k = 0."""

    def reach(sign: int) -> int:
        last = 0
        for power in sorted((power for power in UNIT_POWERS[loss] if sign * power > 0), key=abs):
            if any(change(study, f"{split} {name}", method, loss, power) > limit for name, limit in LIMITS.items()):
                break
            last = power
        return last

    return reach(-1), reach(1)


def unit_summary(study: Study, split: str) -> str:
    rows = []
    for loss, powers in UNIT_POWERS.items():
        for method in UNIT_METHODS:
            low, high = unchanged(study, split, method, loss)
            largest = [
                max(change(study, f"{split} {name}", method, loss, power) for power in powers if power >= -2)
                for name in LIMITS
            ]
            rows.append([loss, method.name, f"{low} … {high}", f"{largest[0]:.1f}", f"{largest[1]:.3f}"])
    header = [
        "loss × 10^k",
        "method",
        "unchanged for k =",
        "accuracy, k = −2 … 6: moves by",
        "R², k = −2 … 6: moves by",
    ]
    return table(header, rows)


def units(study: Study) -> str:
    parts = [
        "# One loss in other units",
        f"Two tasks on one network: which digit a scan shows (accuracy in %) and its ink (R²). One of the losses is "
        f"multiplied by 10^k. Unchanged: the mean accuracy is within {LIMITS['accuracy']:g} points, the mean R² within "
        f"{LIMITS['R²']:g} of k = 0. Weights sum to T: for k below 0 all weighted gradients shrink with the loss, "
        f"towards Adam's eps, {ADAM_EPS:g} unless another is named.",
        "## Validation split",
        unit_summary(study, "validation"),
    ]
    for loss in UNIT_POWERS:
        parts += [f"The {loss} loss × 10^k, validation split: accuracy; R².", unit_table(study, loss)]
    return "\n\n".join([*parts, "## Test split", unit_summary(study, "test")])


# α: both rules, three kinds of problem.

ALPHAS = (0.0, 0.12, 0.5, 1.5)
RULES: tuple[Rule, ...] = ("descent", "closed form")
ALPHA_METHODS = {rule: [Method(rule, a) for a in ALPHAS] for rule in RULES}
REAL = ("digits", "molecules", "Helmholtz")


def alpha_jobs(seeds: int, steps: int | None) -> list[Job]:
    methods = [EQUAL, *(method for methods in ALPHA_METHODS.values() for method in methods)]
    return comparison(available(REAL), methods, seeds, steps)


def places(study: Study, problems: Iterable[str], methods: Sequence[Method]) -> list[float]:
    """Each method's place among these by the validation split, 1 the best, averaged over problems and seeds."""
    found: list[list[int]] = []
    for problem in problems:
        kind = PROBLEMS[problem]
        values = [study.values(f"validation {kind.main}", problem, method) for method in methods]
        for each in zip(*values, strict=True):
            found.append([1 + sum(v > mine if kind.largest else v < mine for v in each) for mine in each])
    return [fmean(each) for each in zip(*found, strict=True)]


def columns(problem: str) -> list[str]:
    """The figures of a problem that tables show."""
    return ["accuracy", "R²"] if problem == "digits" else [PROBLEMS[problem].main]


def figure_cells(study: Study, split: str, method: Method, problems: Iterable[str]) -> list[str]:
    return [
        cell(study.values(f"{split} {figure}", problem, method), 3 if figure == "R²" else 1)
        for problem in problems
        for figure in columns(problem)
    ]


def alpha(study: Study) -> str:
    problems = list(dict.fromkeys(job.problem for job in study.found))
    header = ["method", *(f"{problem}: {figure}" for problem in problems for figure in columns(problem))]
    rows, found = [["equal", *figure_cells(study, "validation", EQUAL, problems), ""]], []
    for rule, methods in ALPHA_METHODS.items():
        placed = dict(zip(methods, places(study, problems, methods), strict=True))
        rows += [
            [method.name, *figure_cells(study, "validation", method, problems), f"{place:.2f}"]
            for method, place in placed.items()
        ]
        found.append(f"{rule}: {min(placed, key=lambda method: placed[method]).alpha:g}")
    held_out = [
        [method.name, *figure_cells(study, "test", method, problems)]
        for method in [EQUAL, *(method for methods in ALPHA_METHODS.values() for method in methods)]
    ]
    return "\n\n".join(
        [
            "# Which α",
            f"Δm is the mean over tasks of the error saved beside one network per task. Place: a method's place among "
            f"those of its rule, 1 the best, averaged over problems and seeds; on digits by the {Digits.main}. "
            f"The α with the best place: {'; '.join(found)}.",
            "## Validation split",
            table([*header, "place"], rows),
            "## Test split",
            table(header, held_out),
        ]
    )


# Smoothing: how long the closed form's averages are.

SMOOTHINGS = (0.0, 0.5, 0.9, 0.99)
SMOOTHING_ALPHA = 0.12
SMOOTHING_METHODS = [Method("closed form", SMOOTHING_ALPHA, s) for s in SMOOTHINGS]


def smoothing_jobs(seeds: int, steps: int | None) -> list[Job]:
    return comparison(available(PROBLEMS), [EQUAL, *SMOOTHING_METHODS], seeds, steps)


def smoothing(study: Study) -> str:
    problems = list(dict.fromkeys(job.problem for job in study.found))
    header = ["smoothing", *(f"{problem}: {PROBLEMS[problem].main}" for problem in problems)]
    names = {EQUAL: EQUAL.name, **{method: f"{method.smoothing:g}" for method in SMOOTHING_METHODS}}
    placed = dict(zip(SMOOTHING_METHODS, places(study, problems, SMOOTHING_METHODS), strict=True))

    def row(split: str, method: Method) -> list[str]:
        cells = [cell(study.values(f"{split} {PROBLEMS[name].main}", name, method)) for name in problems]
        place = [f"{placed[method]:.2f}" if method in placed else ""] if split == "validation" else []
        return [names[method], *cells, *place]

    def swing(method: Method) -> list[str]:
        means = [[study.mean(figure, name, method) for figure in ("change", "spread")] for name in problems]
        return [names[method], *(f"{100 * change:.1f} / {100 * spread:.1f}" for change, spread in means)]

    return "\n\n".join(
        [
            "# How long the closed form's averages are",
            f"α = {SMOOTHING_ALPHA:g}. Place: among the four, 1 the best, averaged over problems and seeds. Swing of "
            f"the weights over the last half of the steps: the mean change of log w from one step to the next, and its "
            f"standard deviation, both in hundredths.",
            "## Validation split",
            table([*header, "place"], (row("validation", method) for method in names)),
            "## Swing of the weights",
            table(["smoothing", *problems], map(swing, SMOOTHING_METHODS)),
            "## Test split",
            table(header, (row("test", method) for method in names)),
        ]
    )


PARTS = {"units": (unit_jobs, units), "alpha": (alpha_jobs, alpha), "smoothing": (smoothing_jobs, smoothing)}


def heading(part: str, arguments: argparse.Namespace) -> str:
    """The command that repeats a part, torch's version and the number of seeds."""
    given = [f"--{name} {value}" for name in ("seeds", "steps") if (value := getattr(arguments, name)) is not None]
    line = " ".join(["python benchmarks/choices.py", part, *given])
    return f"Made by `{line}` with torch {torch.__version__}; mean ± standard deviation over {arguments.seeds} seeds."


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"of: {', '.join(PARTS)} (default: all)")
    parser.add_argument("--seeds", type=int, default=3, help="of each run (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="of each run; left out, each problem's own")
    parser.add_argument("--processes", type=int, default=2, help="runs side by side (default: %(default)s)")
    parser.add_argument("--keep", type=Path, help="file of finished runs, which are not made again; a line each")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"unknown {sorted(unknown)}; choose from {list(PARTS)}")
    return arguments


def main() -> None:
    arguments = parse()
    for part in arguments.parts:
        jobs, write = PARTS[part]
        found = with_gains(train_all(jobs(arguments.seeds, arguments.steps), arguments.processes, arguments.keep))
        title, rest = write(Study(arguments.seeds, arguments.steps, found)).split("\n\n", 1)
        text = f"{title}\n\n{heading(part, arguments)}\n\n{rest}\n"
        (arguments.out / f"{part}.md").write_text(text)
        print(text)


if __name__ == "__main__":
    main()
