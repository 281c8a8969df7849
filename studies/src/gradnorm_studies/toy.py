"""The paper's toy problem (§4): T regressions that differ in scale alone, `f_i(x) = σ_i tanh((B + ε_i) x)`.

The entries of `B` are N(0, 10), those of `ε_i` N(0, 3.5), read as standard deviations, as public reproductions do. The
metric is the sum over tasks of test loss over initial test loss, which no scale can dominate.

The learning rates of `RATES` are the outcome of `gradnorm reproduce toy --search --seeds 1`, `results/toy/search.md`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from gradnorm_studies.analysis import claims
from gradnorm_studies.analysis.claims import Claim
from gradnorm_studies.analysis.metrics import Metrics
from gradnorm_studies.analysis.report import Figure, StudyReport, Table
from gradnorm_studies.engine.settings import command_line, config_table, setting
from gradnorm_studies.engine.study import Job
from gradnorm_studies.weightings import WeightingConfig, weighting

SIGMAS: dict[str, tuple[float, ...]] = {
    "T=10": (48, 3, 54, 16, 9, 30, 52, 26, 47, 81),
    "T=2": (1, 100),
}
INPUTS, OUTPUTS, WIDTH = 250, 100, 100
METRIC = "Σ test loss ratio"

GRID = ((1.9, 0.1), (1.98, 0.02), (1.998, 0.002), (1.9998, 0.0002), (1.99998, 0.00002))
"""Static weights for T = 2, log-spaced since squared errors differ by 10⁴; equal weights come first."""

RATES: dict[str, dict[str, float]] = {
    "T=2": {"equal": 3e-3, "uncertainty": 3e-3, "gradnorm": 3e-3, "static": 1e-2},
    "T=10": {"equal": 3e-3, "uncertainty": 1e-2, "gradnorm": 3e-3, "static": 3e-3},
}


@dataclass(frozen=True)
class ToyConfig:
    """The paper's settings, and those that it leaves open, chosen once, before any result was seen."""

    seeds: int = setting(
        3, "The fewest that show a spread; a seed sets the problem, the network and the batches.", least=1
    )
    steps: int = setting(
        2500, "All runs of all methods in about three minutes on two cores; --full takes 25,000.", least=1
    )
    batch: int = setting(100, "Open in the paper; new inputs every step, so there is no overfitting.", least=1)
    test_size: int = setting(1000, "Open in the paper; the same held-out inputs for every method with a seed.", least=1)
    preactivation: float = setting(
        1.0,
        "Standard deviation of (B x)_k, which sets s in x ~ N(0, s² I). Open in the paper; with unit inputs 98 % of "
        "the targets saturate and are close to random signs. At 1 tanh is bent but can be learned. The network sees "
        "x / s, its input at unit variance.",
        above=0,
    )
    alpha: float = setting(0.12, "The paper's, §4.", least=0)
    weight_lr: float = setting(0.025, "The paper's, §5, with Adam; the toy's own is not given.", above=0)
    record_every: int = setting(25, "100 points per curve.", least=1)


class Problem:
    """The matrices and the data of one seed."""

    def __init__(self, config: ToyConfig, sigmas: tuple[float, ...], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        base = 10.0 * torch.randn(OUTPUTS, INPUTS, generator=generator)
        own = 3.5 * torch.randn(len(sigmas), OUTPUTS, INPUTS, generator=generator)
        scale = config.preactivation / (10.0 * INPUTS**0.5)
        self._maps = scale * (base + own).flatten(0, 1).T.contiguous()
        self._sigmas = torch.tensor(sigmas, dtype=torch.float32).view(-1, 1, 1)
        self._seed = seed
        self.test = self.sample(config.test_size, generator)

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs of unit variance [n, 250] and targets [T, n, 100]."""
        x = torch.randn(n, INPUTS, generator=generator)
        y = torch.tanh(x @ self._maps).unflatten(1, (-1, OUTPUTS)).transpose(0, 1)
        return x, self._sigmas * y

    def batch(self, n: int, step: int) -> tuple[Tensor, Tensor]:
        """The batch of a step: the same for every method, and after resuming."""
        return self.sample(n, torch.Generator().manual_seed((self._seed + 1) * 1_000_003 + step))


class Network(nn.Module):
    """Four fully connected ReLU layers of 100 units, then one affine head per task (§4)."""

    def __init__(self, n_tasks: int) -> None:
        super().__init__()
        widths = [INPUTS, WIDTH, WIDTH, WIDTH, WIDTH]
        layers = [(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(widths)]
        self.trunk = nn.Sequential(*(module for layer in layers for module in layer))
        self.heads = nn.ModuleList(nn.Linear(WIDTH, OUTPUTS) for _ in range(n_tasks))

    def forward(self, x: Tensor) -> list[Tensor]:
        """[n, 250] → T times [n, 100]."""
        features = self.trunk(x)
        return [head(features) for head in self.heads]


class Regression:
    def __init__(self, config: ToyConfig, job: Job) -> None:
        self._config = config
        self._problem = Problem(config, SIGMAS[job.problem], job.seed)
        self.tasks = tasks(job.problem)
        self.model = Network(len(self.tasks))
        shared = self.model.trunk[-2]
        own = WeightingConfig(self.tasks, shared, config.alpha, config.weight_lr, job.weights)
        self.weighting = weighting(job.method, own)
        self.optimizer = torch.optim.Adam([*self.model.parameters(), *self.weighting.parameters()], lr=job.lr)
        with torch.no_grad():
            self._initial = self._errors(*self._problem.test)

    def losses(self, step: int) -> Tensor:
        """[T], mean squared errors on the batch of this step."""
        return self._errors(*self._problem.batch(self._config.batch, step))

    def evaluate(self) -> dict[str, float]:
        """Test loss over initial test loss, by task and summed."""
        ratios = (self._errors(*self._problem.test) / self._initial).tolist()
        return {METRIC: sum(ratios), **{f"ratio/{task}": r for task, r in zip(self.tasks, ratios, strict=True)}}

    def _errors(self, x: Tensor, targets: Tensor) -> Tensor:
        return torch.stack([(y - t).square().mean() for y, t in zip(self.model(x), targets, strict=True)])


def tasks(problem: str) -> tuple[str, ...]:
    """The names of a problem's tasks: their σ."""
    return tuple(f"σ={sigma:g}" for sigma in SIGMAS[problem])


def _smallest(problem: str) -> str:
    return f"σ={min(SIGMAS[problem]):g}"


def _largest(problem: str) -> str:
    return f"σ={max(SIGMAS[problem]):g}"


CLAIMS = (
    Claim(
        "Equal weights let the largest σ suppress the smallest",
        "§4",
        claims.suppressed("ratio", "equal", _smallest, _largest),
    ),
    Claim("GradNorm raises the weight of small σ", "§4, fig. 2", claims.ordered("gradnorm", _smallest, _largest)),
    Claim("GradNorm ends below equal weights", "§4, fig. 2", claims.below(METRIC, "gradnorm", "equal")),
    Claim("GradNorm ends below uncertainty weighting", "§4, fig. 2", claims.below(METRIC, "gradnorm", "uncertainty")),
    Claim(
        "Uncertainty weighting is faster at first (a tenth of the run)",
        "§4, fig. 2",
        claims.faster_at_first(METRIC, "uncertainty", "gradnorm"),
    ),
    Claim("…and then deteriorates", "§4, fig. 2", claims.deteriorated(METRIC, "uncertainty")),
    Claim("…as its weights keep growing", "§4", claims.growing("uncertainty", tasks)),
    Claim("GradNorm's weights are stable and converge", "§4, fig. 2", claims.settled("gradnorm", tasks)),
    Claim("Static GradNorm weights end below equal weights", "§5.2", claims.below(METRIC, "static", "equal")),
)
GRID_CLAIM = Claim("No static weights of a grid beat GradNorm", "§5.3", claims.below(METRIC, "gradnorm", "best grid"))


@dataclass(frozen=True)
class Toy:
    config: ToyConfig = field(default_factory=ToyConfig)
    name: ClassVar[str] = "toy"
    config_class: ClassVar[type[ToyConfig]] = ToyConfig
    summary: ClassVar[str] = "The paper's toy problem (§4): regressions that differ in scale alone, T = 2 and T = 10."
    metric: ClassVar[str] = METRIC
    largest: ClassVar[bool] = False

    def task_names(self, problem: str) -> tuple[str, ...]:
        """Their σ."""
        return tasks(problem)

    def jobs(self) -> list[Job]:
        """GradNorm first, since the static runs depend on it."""
        jobs = []
        for problem, rates in RATES.items():
            for seed in range(self.config.seeds):
                job = partial(Job, problem, seed=seed)
                gradnorm = job("gradnorm", lr=rates["gradnorm"])
                static = job("static", lr=rates["static"], weights_from=gradnorm)
                jobs += [gradnorm, job("equal", lr=rates["equal"]), job("uncertainty", lr=rates["uncertainty"]), static]
                if problem == "T=2":
                    grid = partial(job, "static", lr=rates["static"])
                    jobs += [grid(label=f"grid {w[0]:.7g} : {w[1]:.7g}", weights=w) for w in GRID]
        return jobs

    def experiment(self, job: Job) -> Regression:
        return Regression(self.config, job)

    def report(self, metrics: Metrics, figures: Path) -> StudyReport:
        metrics, best = _with_best_grid(metrics)
        rows = claims.table(CLAIMS, metrics, tuple(RATES))
        grid = claims.table((GRID_CLAIM,), metrics, ("T=2",))
        verdicts = replace(rows, rows=rows.rows + grid.rows)
        return StudyReport(
            title="GradNorm on the paper's toy problem",
            command=command_line(self.name, self.config),
            lead=[_lead(self.config), claims.losses_of("gradnorm", metrics, tuple(RATES), METRIC)],
            tables=[_finals(metrics, best), verdicts],
            figures=_figures(metrics, figures),
            settings=config_table(self.config),
        )


def _lead(config: ToyConfig) -> str:
    return (
        f"Every task is the same kind of regression, f_i(x) = σ_i tanh((B + ε_i) x); only the scale σ_i differs. The "
        f"metric is the sum over tasks of test loss over initial test loss: T at the start, lower is better. All "
        f"methods with a seed start from the same initial values and see the same batches, for {config.steps:,} steps; "
        f"figures are mean ± standard deviation over {config.seeds} seeds."
    )


def _with_best_grid(metrics: Metrics) -> tuple[Metrics, str]:
    """Add the best of the grid as a method; it is selected on the test set, which favors the grid."""
    grid = [m for m in metrics.methods("T=2") if m.startswith("grid") or m == "equal"]
    best = min(grid, key=lambda m: metrics.final("T=2", m, METRIC).mean())
    return metrics.renamed("T=2", best, "best grid", drop=[m for m in grid if m != "equal"]), best


def _finals(metrics: Metrics, best: str) -> Table:
    rows = []
    for problem in RATES:
        for method in metrics.methods(problem):
            final = claims.spread(metrics.final(problem, method, METRIC))
            low, high = _smallest(problem), _largest(problem)
            ratios = [claims.spread(metrics.final(problem, method, f"ratio/{task}")) for task in (low, high)]
            weights = [claims.spread(metrics.final(problem, method, f"weight/{task}")) for task in (low, high)]
            rate = RATES[problem].get(best if method == "best grid" else method, RATES[problem]["static"])
            rows.append((problem, method, f"{rate:g}", final, *ratios, *weights))
    header = ("on", "method", "lr", METRIC, "ratio, smallest σ", "ratio, largest σ", "w, smallest σ", "w, largest σ")
    note = f"best grid: {best}, the best of {len(GRID) + 1} by the test metric itself, so it has the advantage."
    shown = ("on", "method", METRIC, "w, smallest σ", "w, largest σ")
    return Table("Where each method ends", header, rows, note, terminal=shown)


def _figures(metrics: Metrics, folder: Path) -> list[Figure]:
    from gradnorm_studies.analysis import figures

    problems = ("T=2", "T=10")
    weights = [_weight_panel(metrics, p, "gradnorm") for p in problems]
    diverging = [_weight_panel(metrics, p, "uncertainty") for p in problems]
    curves, ends = [], []
    for p in problems:
        methods = metrics.methods(p)
        series = {m: metrics.series(p, m, METRIC) for m in methods}
        curves.append(figures.Curves(p, metrics.steps(p, "gradnorm", METRIC), series, METRIC))
        ends.append(figures.Ends(p, {m: metrics.final(p, m, METRIC) for m in methods}, METRIC))
    over_time, finals = figures.over_time, figures.finals
    return [
        Figure(
            over_time(folder / "toy.png", [*curves, *weights], columns=2),
            "Above, the test metric; below, GradNorm's weights. Lines are means over seeds, bands their range.",
        ),
        Figure(finals(folder / "finals.png", ends), "Where each method ends, seed by seed, and the mean."),
        Figure(over_time(folder / "uncertainty.png", diverging), "The effective weights of uncertainty weighting."),
    ]


def _weight_panel(metrics: Metrics, problem: str, method: str):
    from gradnorm_studies.analysis import figures

    names = sorted(tasks(problem), key=lambda name: float(name[2:]))
    values = {name: metrics.series(problem, method, f"weight/{name}") for name in names}
    steps = metrics.steps(problem, method, f"weight/{names[0]}")
    return figures.Curves(f"{problem}, {method}", steps, values, "weight", log=True, colors=figures.ramp(names))
