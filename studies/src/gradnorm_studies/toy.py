"""The paper's toy problem (§4): T regressions that differ in scale alone, `f_i(x) = σ_i tanh((B + ε_i) x)`.

The entries of `B` are N(0, 10), those of `ε_i` N(0, 3.5), read as standard deviations, as public reproductions do. The
metric is the sum over tasks of test loss over initial test loss, which no scale can dominate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradnorm_studies.analysis import claims
from gradnorm_studies.analysis.claims import Claim
from gradnorm_studies.analysis.metrics import VALIDATION, Metrics, Quantity
from gradnorm_studies.engine.experiment import Experiment, Job, Split, step_generator
from gradnorm_studies.engine.settings import ALPHA, RECORD_EVERY, STEPS, WEIGHT_LR, TrainingConfig, setting
from gradnorm_studies.engine.study import Study
from gradnorm_studies.networks import HardSharing

SIGMAS: dict[str, tuple[float, ...]] = {
    "T=10": (48, 3, 54, 16, 9, 30, 52, 26, 47, 81),
    "T=2": (1, 100),
}
INPUTS, OUTPUTS, WIDTH = 250, 100, 100
METRIC = Quantity("Σ test loss ratio")
EXTREMES = (Quantity("loss ratio, smallest σ"), Quantity("loss ratio, largest σ"))

GRID = ((1.9, 0.1), (1.98, 0.02), (1.998, 0.002), (1.9998, 0.0002), (1.99998, 0.00002))
"""Static weights for T = 2 beside equal ones, log-spaced since squared errors differ by 10⁴."""
BEST = "best grid"


@dataclass(frozen=True)
class ToyConfig(TrainingConfig):
    """The paper's settings, and those that it leaves open, chosen once, before any result was seen."""

    seeds: int = setting(
        3,
        "Number of seeds; each sets the problem, the network and the batches.",
        "The fewest that show a spread.",
        least=1,
    )
    steps: int = setting(25_000, STEPS, "As public reproductions; 2,500 show the beginning alone.", least=1)
    batch: int = setting(
        100, "Batch size; every step has new inputs, so there is no overfitting.", "Open in the paper.", least=1
    )
    test_size: int = setting(
        1000, "Number of held-out inputs, the same for every method with a seed.", "Open in the paper.", least=1
    )
    preactivation: float = setting(
        1.0,
        "Standard deviation of (B x)_k, which sets s in x ~ N(0, s² I); the network sees x / s, of unit variance.",
        "Open in the paper; with unit inputs 98 % of the targets saturate and are close to random signs. At 1 tanh is "
        "bent but can be learned.",
        above=0,
    )
    alpha: float = setting(0.12, ALPHA, "The paper's, §4.", least=0)
    weight_lr: float = setting(0.025, WEIGHT_LR, "The paper's, §5; the toy's own is not given.", above=0)
    record_every: int = setting(250, RECORD_EVERY, "100 points per curve.", least=1)


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
        self.held_out = {"test": self.sample(config.test_size, generator)}
        self.held_out["validation"] = self.sample(config.test_size, generator)

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs of unit variance [n, 250] and targets [T, n, 100]."""
        x = torch.randn(n, INPUTS, generator=generator)
        y = torch.tanh(x @ self._maps).unflatten(1, (-1, OUTPUTS)).transpose(0, 1)
        return x, self._sigmas * y

    def batch(self, n: int, step: int) -> tuple[Tensor, Tensor]:
        """The batch of a step: the same for every method, and after resuming."""
        return self.sample(n, step_generator(self._seed, step))


class Regression(Experiment):
    """Four fully connected ReLU layers of 100 units, then one affine head per task (§4)."""

    def __init__(self, config: ToyConfig, job: Job) -> None:
        self._config, self._job = config, job
        self._problem = Problem(config, SIGMAS[job.problem], job.seed)
        self.tasks = tasks(job.problem)
        sizes = [INPUTS, *[WIDTH] * 4]
        outputs = [OUTPUTS] * len(self.tasks)
        self.model = network = HardSharing(sizes, outputs, is_shared=job.method != "single")
        self.equip(job, config, network.last_shared)
        with torch.no_grad():
            self._initial = {split: self._errors(*data) for split, data in self._problem.held_out.items()}

    def losses(self, step: int) -> Tensor:
        """[T], mean squared errors on the batch of this step."""
        return self._errors(*self._problem.batch(self._config.batch, step))

    def evaluate(self, split: Split) -> dict[str, float]:
        """Loss over initial loss, by task and summed."""
        ratios = (self._errors(*self._problem.held_out[split]) / self._initial[split]).tolist()
        sigmas = SIGMAS[self._job.problem]
        extremes = (ratios[sigmas.index(pick(sigmas))] for pick in (min, max))
        return {
            METRIC.name: sum(ratios),
            **{quantity.name: ratio for quantity, ratio in zip(EXTREMES, extremes, strict=True)},
            **{f"ratio/{task}": ratio for task, ratio in zip(self.tasks, ratios, strict=True)},
        }

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
    *claims.both_beat("{} ends below equal weights", "§4, fig. 2", METRIC, "equal"),
    *claims.both_beat("{} ends below uncertainty weighting", "§4, fig. 2", METRIC, "uncertainty"),
    *claims.both_beat("{} ends below losses divided by their first values", "ours", METRIC, "divided"),
    Claim(
        "Uncertainty weighting is faster at first (a tenth of the run)",
        "§4, fig. 2",
        claims.faster_at_first(METRIC, "uncertainty", "gradnorm"),
    ),
    Claim("Uncertainty weighting deteriorates later", "§4, fig. 2", claims.deteriorated(METRIC, "uncertainty")),
    Claim("Uncertainty weighting's weights keep growing", "§4", claims.growing("uncertainty", tasks)),
    Claim("GradNorm's weights are stable and converge", "§4, fig. 2", claims.settled("gradnorm", tasks)),
    Claim("Static GradNorm weights end below equal weights", "§5.2", claims.beats(METRIC, "static", "equal")),
    *claims.both_beat("No static weights of a grid beat it: {} ends below the best", "§5.3", METRIC, BEST),
)


class Toy(Study[ToyConfig]):
    """Both sizes of the problem; for T = 2 also a grid of static weights."""

    name = "toy"
    title = "GradNorm on the paper's toy problem"
    summary = "The paper's toy problem (§4): regressions that differ in scale alone, T = 2 and T = 10."
    default = ToyConfig()
    problems = ("T=2", "T=10")
    metric = METRIC
    quantities = EXTREMES
    search_rates = (3e-4, 1e-3, 3e-3, 1e-2)
    claims = CLAIMS

    def tasks(self, problem: str) -> tuple[str, ...]:
        return tasks(problem)

    def jobs_of(self, problem: str, seed: int, methods: Sequence[str]) -> list[Job]:
        """The grid's weights beside all methods."""
        own = super().jobs_of(problem, seed, methods)
        if problem != "T=2" or "static" not in methods:
            return own
        labels = {f"grid {w[0]:.7g} : {w[1]:.7g}": w for w in GRID}
        return own + [
            Job(problem, "static", seed, self.lr(problem, label), label, weights=w) for label, w in labels.items()
        ]

    def experiment(self, job: Job) -> Regression:
        return Regression(self.config, job)

    def lead(self) -> str:
        config = self.config
        picked = (
            f" {BEST.capitalize()} is picked on validation data among {len(GRID) + 1} pairs of static weights, equal "
            f"ones among them."
        )
        return (
            f"Every task is the same kind of regression, f_i(x) = σ_i tanh((B + ε_i) x); only the scale σ_i differs. "
            f"The metric is the sum over tasks of test loss over initial test loss: T at the start, lower is better. "
            f"All methods with a seed but single start from the same initial values, and all see the same batches, for "
            f"{config.steps:,} steps.{picked if any(job.label for job in self.jobs()) else ''}"
        )

    def derive(self, metrics: Metrics) -> Metrics:
        """Show the best of the grid in place of all of it."""
        grid = [m for m in metrics.methods("T=2") if m.startswith("grid")]
        if not grid or "equal" not in metrics.methods("T=2"):
            return metrics
        validated = VALIDATION + METRIC.name
        means = {m: metrics.final("T=2", m, validated).mean() for m in [*grid, "equal"]}
        best = min(means, key=lambda m: np.nan_to_num(means[m], nan=np.inf))
        return metrics.renamed("T=2", best, BEST, drop=grid)
