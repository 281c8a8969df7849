"""QM9: eleven properties of small molecules, standardized, from 34 simple descriptors, by one small network.

All losses have one scale, but rates are very unlike. The data are Ramakrishnan et al.'s (2014), as `pip install
qm9pack` brings them. Energies are less each element's usual share, as is common.
"""

from __future__ import annotations

import ast
import csv
import functools
import importlib.util
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gradnorm_studies.analysis import claims
from gradnorm_studies.analysis.claims import Claim
from gradnorm_studies.analysis.metrics import Metrics, Quantity
from gradnorm_studies.engine.errors import UsageError
from gradnorm_studies.engine.experiment import Experiment, Job, Split, step_generator
from gradnorm_studies.engine.settings import ALPHA, BATCH, RECORD_EVERY, STEPS, TrainingConfig, setting
from gradnorm_studies.engine.study import Extra, Study
from gradnorm_studies.networks import HardSharing, Rows, split_rows, standardize

TARGETS = {
    "μ": "Dipole_debye",
    "α": "Polarizability_bohr3",
    "HOMO": "HOMO_au",
    "LUMO": "LUMO_au",
    "R²": "R2_bohr2",
    "ZPVE": "ZPVE_au",
    "U0": "InternalEnergy_0K_au",
    "U": "InternalEnergy_298K_au",
    "H": "Enthalphy_298K_au",
    "G": "GibbsFreeEnergy_298K_au",
    "Cv": "Heatcapacity_Cv_cal_mol_K",
}
"""The column of each property, spelled as in the files."""
ENERGIES = ("U0", "U", "H", "G")
TASKS = tuple(TARGETS)
EXTRA = Extra("molecules", ("qm9pack",))

ELEMENTS = "HCNOF"
RADII = np.array([0.31, 0.76, 0.71, 0.66, 0.57])
"""Covalent, in Å."""
CHARGES = np.array([1, 6, 7, 8, 9])
BONDS = ("CH", "HN", "HO", "CC", "CN", "CO", "CF", "NN", "NO")
SIGNS = ("=", "#", "(", "@")
"""Of SMILES: double and triple bonds, branches, chirality."""
WIDTH = 128
EVERY = 6
"""One molecule in six is used, some 21,800: descriptors of all take a minute, and the errors hardly change."""


@functools.cache
def load() -> tuple[Tensor, Tensor]:
    """Descriptors [n, 34], and targets [n, 11] in float64 and their own units.

    Raises:
        UsageError: The package is there without its files.
    """
    files = _files()
    if not files:
        raise UsageError("The files of qm9pack are missing from its folder: pip install --force-reinstall qm9pack")
    inputs, targets = [], []
    for path in files:
        with path.open(newline="", encoding="utf-8") as file:
            for index, row in enumerate(csv.DictReader(file)):
                if index % EVERY == 0:
                    inputs.append(describe(row))
                    targets.append([float(row[column]) for column in TARGETS.values()])
    return torch.tensor(inputs), torch.tensor(targets, dtype=torch.float64)


def _files() -> list[Path]:
    """The tables that qm9pack brings; its own reader needs packages that a recent Python lacks."""
    found = importlib.util.find_spec("qm9pack")
    places = found.submodule_search_locations if found else None
    return sorted((Path(next(iter(places))) / "data").glob("qm9_part*.csv")) if places else []


def describe(row: dict[str, str]) -> list[float]:
    """34 numbers of a molecule: its composition, size and shape, bonds by kind, and signs of its SMILES."""
    kinds = np.array([ELEMENTS.index(symbol) for symbol in ast.literal_eval(row["Elements"])])
    at = np.array(json.loads(row["XYZ_Ang"]))
    counts = np.bincount(kinds, minlength=len(ELEMENTS))
    centered = at - at.mean(0)
    shape = np.sqrt(np.linalg.eigvalsh(centered.T @ centered / len(at)).clip(0))
    first, second = np.triu_indices(len(at), 1)
    apart = np.linalg.norm(at[first] - at[second], axis=1)
    repulsion = (CHARGES[kinds[first]] * CHARGES[kinds[second]] / apart).sum()
    bonded = apart < 1.3 * (RADII[kinds[first]] + RADII[kinds[second]])
    ends, lengths = np.stack([first, second])[:, bonded], apart[bonded]
    names = ["".join(sorted(ELEMENTS[kinds[i]] + ELEMENTS[kinds[j]])) for i, j in ends.T]
    number = Counter(names)
    degrees = np.bincount(ends.ravel(), minlength=len(at))[kinds > 0]
    extent = np.linalg.norm(centered, axis=1).max()
    rings = len(lengths) - len(at) + 1
    sizes = [len(at), (kinds > 0).sum(), extent, apart.max(initial=0), repulsion, rings]
    mean_lengths = [_mean_length(names, lengths, bond) for bond in ("CC", "CN", "CO")]
    neighbors = [(degrees == n).sum() for n in (1, 2, 3, 4)]
    signs = [row["SMILES"].count(sign) for sign in SIGNS]
    return [float(x) for x in (*counts, *sizes, *shape, *(number[b] for b in BONDS), *mean_lengths, *neighbors, *signs)]


def _mean_length(names: list[str], lengths: np.ndarray, bond: str) -> float:
    """Mean length of the bonds of one kind in Å; 0 without any."""
    found = [length for name, length in zip(names, lengths, strict=True) if name == bond]
    return float(np.mean(found)) if found else 0.0


@functools.lru_cache(maxsize=8)
def prepared(seed: int) -> tuple[Tensor, Tensor, Rows]:
    """Standardized descriptors [n, 34] and targets [n, 11], and the rows of each split."""
    x, y = load()
    rows = split_rows(len(x), seed)
    composition = torch.cat([x[:, : len(ELEMENTS)], torch.ones(len(x), 1)], 1).double()
    energies = [TASKS.index(name) for name in ENERGIES]
    usual = torch.linalg.lstsq(composition[rows.train], y[rows.train][:, energies]).solution
    y = y.clone()
    y[:, energies] -= composition @ usual
    return standardize(x, rows.train), standardize(y, rows.train), rows


@dataclass(frozen=True)
class MoleculesConfig(TrainingConfig):
    """Settings, chosen before any result was seen."""

    seeds: int = setting(
        5, "Number of seeds; each sets the split, the network and the batches.", "A run is under a minute.", least=1
    )
    steps: int = setting(5000, STEPS, "Errors hardly fall any more.", least=1)
    batch: int = setting(256, BATCH, "A common size.", least=1)
    record_every: int = setting(100, RECORD_EVERY, "50 points per curve.", least=1)
    alpha: float = setting(
        0.12, ALPHA, "The library's default; the sweep `alpha --on molecules` shows others.", least=0
    )


class Properties(Experiment):
    """One network for all properties, or one per property; squared errors."""

    tasks = TASKS

    def __init__(self, config: MoleculesConfig, job: Job) -> None:
        self._batch, self._seed = config.batch, job.seed
        self._x, self._y, self._rows = prepared(job.seed)
        sizes = [self._x.shape[1], WIDTH, WIDTH]
        self.model = network = HardSharing(sizes, [1] * len(TASKS), is_shared=job.method != "single")
        self.equip(job, config, network.last_shared, epoch=len(self._rows.train) // config.batch)

    def losses(self, step: int) -> Tensor:
        """[T], mean squared errors of standardized values."""
        train = self._rows.train
        rows = train[torch.randint(len(train), (self._batch,), generator=step_generator(self._seed, step))]
        return (torch.cat(self.model(self._x[rows]), 1) - self._y[rows]).square().mean(0)

    def evaluate(self, split: Split) -> dict[str, float]:
        """Mean absolute error of each property over its standard deviation in percent, and their mean."""
        rows = getattr(self._rows, split)
        output = torch.cat(self.model(self._x[rows]), 1)
        errors = [100 * F.l1_loss(output[:, i], self._y[rows, i]).item() for i in range(len(TASKS))]
        own = {quantity.name: error for quantity, error in zip(QUALITIES, errors, strict=True)}
        return {METRIC.name: sum(errors) / len(errors), **own}


METRIC = Quantity("mean error %")
DELTA = Quantity("Δm %", largest=True)
QUALITIES = tuple(Quantity(f"{task}: error %") for task in TASKS)
"""Mean absolute errors over the standard deviation of each property."""


class Molecules(Study[MoleculesConfig]):
    """Eleven regressions of equal scale and unlike rates."""

    name = "molecules"
    title = "GradNorm on eleven properties of molecules"
    summary = "QM9: eleven standardized regressions of very unlike rates, by one small network."
    default = MoleculesConfig()
    extra = EXTRA
    problems = ("QM9",)
    metric = METRIC
    quantities = (DELTA, *QUALITIES)
    is_papers = False
    claims = (
        *claims.both_beat("{} ends below equal weights", "ours", METRIC, "equal"),
        *claims.both_beat("{} ends below uncertainty weighting", "ours", METRIC, "uncertainty"),
        *claims.both_beat("{} ends below the geometric mean", "ours", METRIC, "geometric"),
        *claims.both_beat("{}: one network ends below one network per task", "ours", METRIC, "single"),
        Claim("Static GradNorm weights end below equal weights", "§5.2", claims.beats(METRIC, "static", "equal")),
    )

    def tasks(self, problem: str) -> tuple[str, ...]:
        return TASKS

    def experiment(self, job: Job) -> Properties:
        return Properties(self.config, job)

    def derive(self, metrics: Metrics) -> Metrics:
        return metrics.with_gains(DELTA.name, "QM9", QUALITIES)

    def lead(self) -> str:
        config = self.config
        return (
            f"One network of two layers of {WIDTH} predicts eleven properties of QM9's molecules from 34 descriptors, "
            f"all standardized: losses of one scale. One molecule in {EVERY} is used; three fifths of them train, a "
            f"fifth is for validation, a fifth for the test. {config.steps:,} steps of {config.batch}; all methods "
            f"with a seed but single start from the same initial values, and all see the same batches. "
            f"Errors are mean absolute ones over the property's standard deviation; Δm is the mean gain over one "
            f"network per task."
        )
