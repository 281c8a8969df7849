"""The supplement's faces: landmarks, gender, smile, glasses and pose by the 40×40 network of Zhang et al. (2014).

The losses are of different kinds, so their balance is arbitrary: the same squared error of the landmarks is small in
crop units, and ten times as large over the distance between the eyes. These are two problems, run together or alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradnorm_studies.analysis import claims
from gradnorm_studies.analysis.claims import RULES, Claim, Evidence, Look, spread
from gradnorm_studies.analysis.metrics import Metrics, Quantity
from gradnorm_studies.analysis.report import Table
from gradnorm_studies.engine.errors import UsageError
from gradnorm_studies.engine.experiment import Experiment, Job, Split, step_generator
from gradnorm_studies.engine.settings import ALPHA, BATCH, RECORD_EVERY, STEPS, TrainingConfig, setting
from gradnorm_studies.engine.study import Study
from gradnorm_studies.faces import data
from gradnorm_studies.faces.data import ATTRIBUTES, POINTS, SIZE, Faces
from gradnorm_studies.weightings import AVERAGED

TASKS = ("landmarks", *ATTRIBUTES)
UNITS: dict[str, Callable[[Faces], Tensor]] = {
    "crop": lambda faces: torch.ones(len(faces)),
    "eye distance": lambda faces: faces.eye_distances,
}
"""The problems: the unit of the landmarks' loss, [n], as a share of the crop."""
BOTH = "both"

METRIC = Quantity("geometric mean error %")
GAIN = Quantity("Δm %", largest=True)
FAILURES = Quantity("failure rate %")
ERRORS = {
    "landmarks": Quantity("landmark error %"),
    **{name: Quantity(f"{name} error %") for name in ATTRIBUTES},
}
FAILURE = 10.0
"""A face whose landmarks' mean error is above this, in percent of the distance between the eyes, has failed."""

VALIDATION_SEED = 0
FEATURES = 100
"""Units of the shared fully connected layer."""
CHUNK = 500
"""Faces per forward in an evaluation."""

TABLE = {
    "equal": (8.3, 27.4, 20.3, 19.2),
    "uncertainty": (8.3, 27.2, 20.7, 18.5),
    "gradnorm": (8.0, 25.0, 17.3, 16.9),
}
"""The paper's table 3 at 40×40, by `COLUMNS`."""
COLUMNS = {
    "landmarks": ERRORS["landmarks"],
    "failure rate": FAILURES,
    "gender": ERRORS["gender"],
    "smile": ERRORS["smile"],
}
MAJORITY = {"glasses": 8.05, "pose": 39.07}
"""The error of the majority class on the official test faces, in percent."""


@dataclass(frozen=True)
class FacesConfig(TrainingConfig):
    """The paper's settings, and those that it leaves open, chosen before any of these methods was compared."""

    root: str = setting(
        "",
        "Path of MTFL: its official folder, or the file that `gradnorm data faces` writes from it.",
        "The package holds no data.",
        is_place=True,
    )
    seeds: int = setting(
        3, "Number of seeds; each sets the network and the batches.", "The fewest that show a spread.", least=1
    )
    steps: int = setting(10_000, STEPS, "Open in the paper; 71 epochs.", least=1)
    batch: int = setting(64, BATCH, "Open in the paper.", least=1)
    unit: str = setting(
        BOTH,
        "Unit of the landmarks' loss.",
        "The paper's is not known; each alone is half of the runs.",
        choices=(BOTH, *(unit.replace(" ", "-") for unit in UNITS)),
    )
    validation: int = setting(
        1000,
        "Training faces that are held out to choose rates and steps, the same for all runs.",
        "A tenth of the training faces.",
        least=1,
    )
    activation: str = setting(
        "abs-tanh",
        "Activation of the network.",
        "That of Zhang et al., whose network the paper took.",
        choices=("abs-tanh", "relu"),
    )
    alpha: float = setting(0.3, ALPHA, "The paper's, for 40×40.", least=0)
    record_every: int = setting(500, RECORD_EVERY, "20 points per curve.", least=1)


class Absolute(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


ACTIVATIONS: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "abs-tanh": (Absolute, nn.Tanh),
    "relu": (nn.Identity, nn.ReLU),
}
"""Activations in two parts, of which the second rises, so that it can follow the pooling, where it costs a quarter."""


def trunk(activation: str) -> nn.Sequential:
    """Zhang et al.'s network up to its features: [n, 1, 40, 40] → [n, 100].

    Four convolutions, max pooling after the first three, one fully connected layer; 40 → 36, 18 → 16, 8 → 6, 3 → 2.
    Plain convolutions: whether theirs share filters over the whole image or only locally is not clear from the text.
    """
    before, rising = ACTIVATIONS[activation]
    layers: list[nn.Module] = []
    channels = 1
    for kernel, filters, pooling in ((5, 16, 2), (3, 48, 2), (3, 64, 2), (2, 64, 1)):
        layers += [nn.Conv2d(channels, filters, kernel), before(), nn.MaxPool2d(pooling), rising()]
        channels = filters
    layers += [nn.Flatten(), nn.Linear(2 * 2 * channels, FEATURES), before(), rising()]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


class Network(nn.Module):
    """The trunk and one affine head per task; one trunk, or one per task.

    Landmarks are predicted relative to the mean face, in units of the crop whatever the unit of their loss, so that
    the problems differ in nothing else.
    """

    mean_face: Tensor

    def __init__(self, mean_face: Tensor, activation: str, trunks: int = 1) -> None:
        super().__init__()
        self.register_buffer("mean_face", mean_face)
        outputs = (2 * POINTS, *(2 for _ in ATTRIBUTES))
        self.heads = nn.ModuleList(nn.Linear(FEATURES, n) for n in outputs)
        self.trunks = nn.ModuleList(trunk(activation) for _ in range(trunks))

    @property
    def last_shared(self) -> nn.Module:
        """The fully connected layer, the paper's `W` where it is shared."""
        return next(layer for layer in self.trunks[0].children() if isinstance(layer, nn.Linear))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[n, 1, 40, 40] → landmarks [n, 5, 2] and scores [4, n, 2]."""
        features = [each(images) for each in self.trunks]
        outputs = [head(features[i % len(features)]) for i, head in enumerate(self.heads)]
        return self.mean_face + outputs[0].unflatten(1, (POINTS, 2)), torch.stack(outputs[1:])


class Recognition(Experiment):
    tasks = TASKS

    def __init__(self, config: FacesConfig, job: Job) -> None:
        self._unit, self._batch, self._seed = UNITS[job.problem], config.batch, job.seed
        faces = data.load(config.root)
        self._train, validation = hold_out(faces["train"], config.validation)
        self._held_out: dict[str, Faces] = {"test": faces["test"], "validation": validation}
        trunks = len(TASKS) if job.method == "single" else 1
        self.model = network = Network(self._train.points.mean(dim=0), config.activation, trunks)
        self.equip(job, config, network.last_shared, epoch=len(self._train) // config.batch)

    def losses(self, step: int) -> Tensor:
        """[T], the landmarks' mean squared error, and a cross entropy per attribute."""
        drawn = torch.randint(len(self._train), (self._batch,), generator=step_generator(self._seed, step))
        faces = self._train[drawn]
        points, scores = self.model(faces.images)
        distances = (points - faces.points) / self._unit(faces)[:, None, None]
        entropies = [F.cross_entropy(s, label) for s, label in zip(scores, faces.labels.T, strict=True)]
        return torch.stack([distances.square().mean(), *entropies])

    def evaluate(self, split: Split) -> dict[str, float]:
        """The errors in percent."""
        faces = self._held_out[split]
        parts = [self.model(images) for images in faces.images.split(CHUNK)]
        return measure(torch.cat([points for points, _ in parts]), torch.cat([s for _, s in parts], dim=1), faces)


def hold_out(faces: Faces, n: int) -> tuple[Faces, Faces]:
    """Training and validation faces: `n` of them at random, the same for every run.

    Raises:
        UsageError: None would be left.
    """
    if n >= len(faces):
        raise UsageError(f"--validation is {n}, but there are {len(faces)} training faces: give fewer.")
    order = torch.randperm(len(faces), generator=torch.Generator().manual_seed(VALIDATION_SEED))
    return faces[order[n:]], faces[order[:n]]


def measure(points: Tensor, scores: Tensor, faces: Faces) -> dict[str, float]:
    """The study's quantities, in percent.

    Args:
        points: [n, 5, 2], predicted landmarks.
        scores: [4, n, 2], predicted scores of the attributes.
        faces: The truth.
    """
    off = 100 * (points - faces.points).norm(dim=2).mean(dim=1) / faces.eye_distances
    wrong = 100 * (faces.labels != scores.argmax(dim=2).T).float().mean(dim=0)
    errors = dict(zip(TASKS, [off.mean().item(), *wrong.tolist()], strict=True))
    least = 50 / len(faces)  # half a face: an attribute without errors would hide all other tasks
    logs = [math.log(max(error, least)) for error in errors.values()]
    return {
        METRIC.name: math.exp(sum(logs) / len(logs)),
        FAILURES.name: 100 * (off > FAILURE).float().mean().item(),
        **{ERRORS[task].name: error for task, error in errors.items()},
    }


def stuck(task: str, method: str, tolerance: float = 1.0) -> Look:
    """Whether an attribute's error ends at most `tolerance`, in percent of the faces, below the majority class's."""

    def look(metrics: Metrics, problem: str) -> Evidence:
        ours = metrics.final(problem, method, ERRORS[task].name)
        found = f"{ERRORS[task].name}: {method} {spread(ours)}, majority {MAJORITY[task]:g}"
        return Evidence(ours - (MAJORITY[task] - tolerance), found)

    return look


CLAIMS = (
    *(
        claim
        for other, words in (("equal", "equal weights"), ("uncertainty", "uncertainty weighting"))
        for column, quantity in COLUMNS.items()
        for claim in claims.both_beat(f"{{}} ends below {words} in {column}", "table 3", quantity, other)
    ),
    *(
        Claim(f"{words} never learn{s} {task} beyond the majority class", "supplement", stuck(task, method))
        for task in MAJORITY
        for words, s, method in (("Equal weights", "", "equal"), ("GradNorm", "s", "gradnorm"))
    ),
    *(
        Claim(f"{rule}: its averages end below equal weights", "§5.2", claims.beats(METRIC, AVERAGED[method], "equal"))
        for rule, method in RULES.items()
    ),
    *claims.both_beat("{} ends below equal weights", "ours", METRIC, "equal"),
    *claims.both_beat("{} ends below uncertainty weighting", "ours", METRIC, "uncertainty"),
    *claims.both_beat("{} ends below losses divided by their first values", "ours", METRIC, "divided"),
    *claims.both_beat("{} ends below one network per task", "ours", METRIC, "single"),
)


class FacesStudy(Study[FacesConfig]):
    """Landmarks and attributes of MTFL, by both units of the landmarks' loss."""

    name = "faces"
    title = "GradNorm on faces"
    summary = "The supplement's table 3: landmarks, gender, smile, glasses and pose on MTFL, from --root."
    default = FacesConfig()
    metric = METRIC
    quantities = (GAIN, ERRORS["landmarks"], FAILURES, *(ERRORS[name] for name in ATTRIBUTES))
    claims = CLAIMS
    late = 0.1
    by_validation = True
    search_rates = (1e-4, 3e-4, 1e-3, 3e-3)
    default_lr = 3e-4

    def __init__(self, config: FacesConfig | None = None) -> None:
        super().__init__(config)
        unit = self.config.unit
        self.problems = tuple(UNITS) if unit == BOTH else (unit.replace("-", " "),)

    def tasks(self, problem: str) -> tuple[str, ...]:
        return TASKS

    def jobs(self) -> list[Job]:
        """As for all studies.

        Raises:
            UsageError: Data are missing, and as for all studies.
        """
        data.require(self.config.root)
        return super().jobs()

    def experiment(self, job: Job) -> Recognition:
        return Recognition(self.config, job)

    def derive(self, metrics: Metrics) -> Metrics:
        """Add Δm, the mean gain over one network per task in the tasks' own errors."""
        for problem in self.problems:
            metrics = metrics.with_gains(GAIN.name, problem, list(ERRORS.values()))
        return metrics

    def lead(self) -> str:
        config = self.config
        return (
            f"The network of Zhang et al. (2014) on MTFL, {SIZE}×{SIZE} grey pixels: {', '.join(TASKS)} (frontal or "
            f"not), all shared up to {FEATURES} features, {config.steps:,} steps of {config.batch} faces, without "
            f"augmentation. The landmarks' squared error is in units of the crop, 0 to 1 (crop), or over each face's "
            f"distance between the eyes (eye distance); nothing else differs. Landmark error: mean distance in percent "
            f"of the distance between the eyes; failure rate: faces above {FAILURE:g} %. The metric is the geometric "
            "mean of the five tasks' errors, in which the same relative gain counts the same in every task; Δm the "
            f"mean gain over one network per task. {config.validation:,} training faces are held out for choices. All "
            "methods with a seed but single start from the same initial values, and all see the same batches. A "
            "run's result is its record that is best on validation data, as where training is stopped early: rates "
            "were searched in fewer steps, and some methods do not hold theirs to the end. The end is the mean over "
            "the last tenth of the records."
        )

    def more_tables(self, metrics: Metrics) -> list[Table]:
        """Table 3 beside ours."""
        rows = [("the paper's", name, *(f"{value:g}" for value in values)) for name, values in TABLE.items()]
        for problem in self.problems:
            for name in [name for name in TABLE if name in metrics.methods(problem)]:
                ours = (spread(metrics.final(problem, name, quantity.name)) for quantity in COLUMNS.values())
                rows.append((problem, name, *ours))
        note = "In percent, lower is better. The paper's crops, steps and unit of the landmarks' loss are not known."
        return [Table("Table 3 at 40×40, and ours", ("", "method", *COLUMNS), rows, note, terminal=None)]
