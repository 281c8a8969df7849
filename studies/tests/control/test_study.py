"""The report says what was measured."""

import math
from dataclasses import replace

import pytest

from gradnorm_studies.analysis.metrics import VALIDATION, Metrics
from gradnorm_studies.control.agent import SOLVED
from gradnorm_studies.control.environments import GAMES
from gradnorm_studies.control.study import CLAIMS, MEAN, POSITIVE, WORST, Rl, normalized
from gradnorm_studies.sweeps.learning_rate import Search
from gradnorm_studies.weightings import METHODS

from .agents import CONFIG


def returns_of(chance, *returns):
    """Rows of one record."""
    return [(0, f"return/{game}", r) for game, r in zip(GAMES, returns, strict=True)] + [
        (0, f"random/{game}", chance) for game in GAMES
    ]


RUNS = {
    ("DQN", "single", 0): returns_of(-150.0, 200.0, 0.0, -75.0),
    ("DQN", "single", 1): returns_of(-50.0, 0.0, 0.0, -25.0),
    ("DQN", "equal", 0): returns_of(-150.0, 0.0, -50.0, -25.0),
}


def rows(study, job, offset):
    """Records of a run whose every value is its offset, more or less."""
    values = {SOLVED: 50.0 + offset}
    for game in GAMES:
        values |= {f"return/{game}": 10.0 + offset, f"random/{game}": 0.0}
    values |= {VALIDATION + name: value for name, value in values.items()}
    values |= {f"weight/{task}": 1.0 + offset for task in study.tasks(job.problem)}
    return [(step, name, value) for step in range(0, 61, 30) for name, value in values.items()]


def metrics_of(study):
    return Metrics({job.key: rows(study, job, i) for i, job in enumerate(study.jobs())})


def test_normalized_is_the_share_of_the_way_from_random_play_to_an_agent_alone():
    found = normalized(Metrics(RUNS), "DQN")
    shares = [found.final("DQN", "single", f"normalized/{game}").tolist() for game in GAMES]
    assert shares == [[150, 50], [100, 100], [50, 150]]
    assert [found.final("DQN", "equal", f"normalized/{game}").item() for game in GAMES] == [50, 50, 150]
    assert found.final("DQN", "equal", WORST.name).item() == 50
    assert math.isclose(found.final("DQN", "equal", MEAN.name).item(), 250 / 3)


def test_where_an_agent_alone_is_no_better_than_random_play_no_share_is_known():
    alike = {("DQN", "single", 0): returns_of(-150.0, 200.0, -150.0, -75.0)}
    found = normalized(Metrics(alike), "DQN")
    assert all(math.isnan(found.final("DQN", "single", quantity.name).item()) for quantity in (MEAN, WORST))


def test_without_single_the_normalized_returns_are_left_out(tmp_path):
    study = Rl(replace(CONFIG, methods="gradnorm,equal"))
    report = study.report(metrics_of(study), tmp_path)
    assert all(MEAN.name not in cell for table in report.tables for cell in table.header)
    asked = {finding["text"] for finding in report.data["claims.json"]}
    of_both = ("GradNorm: Pendulum", "GradNorm raises")  # the closed form was not run
    assert asked == {claim.text for claim in CLAIMS if claim.text.startswith(of_both)}


def test_the_actor_critic_is_without_methods_that_need_positive_losses():
    study = Rl(replace(CONFIG, methods=",".join(METHODS)))
    methods = {p: [job.method for job in study.jobs() if job.problem == p] for p in study.problems}
    assert methods["DQN"] == list(METHODS)
    assert methods["PPO"] == [method for method in METHODS if method not in POSITIVE]
    assert ", ".join(POSITIVE) in study.lead()


@pytest.mark.parametrize(("steps", "played"), [(16, 16), (17, 24)])
def test_the_report_counts_the_transitions(steps, played):
    lead = Rl(replace(CONFIG, steps=steps, updates=8, rollout_steps=4)).lead()
    assert f"{2 * steps} transitions per game for DQN, {played} for PPO" in lead


def test_the_search_looks_at_the_same_share_as_the_study(tmp_path):
    search = Search(Rl(CONFIG))
    lucky = {1e-3: [0, 0, 0, 0, 0, 0, 0, 15], 3e-4: [0, 0, 0, 0, 0, 0, 10, 10]}
    name = VALIDATION + SOLVED
    runs = {job.key: [(i, name, x) for i, x in enumerate(lucky.get(job.lr, [0.0] * 8))] for job in search.jobs()}
    assert {row[-1] for row in search.report(Metrics(runs), tmp_path).tables[0].rows} == {"0.0003, the smallest"}


def test_the_report_has_every_table_and_figure(tmp_path):
    study = Rl(replace(CONFIG, seeds=2))
    report = study.report(metrics_of(study), tmp_path)
    tables = {table.title: table for table in report.tables}
    for problem in study.problems:
        methods = [job.method for job in study.jobs() if job.seed == 0 and job.problem == problem]
        ends = tables[f"Where each method ends: {problem}"]
        assert [row[0] for row in ends.rows] == methods
        assert ends.header[2:5] == (f"{SOLVED} ↑", f"{MEAN.name} ↑", f"{WORST.name} ↑")
        assert [row[0] for row in tables[f"The games: {problem}"].rows] == list(GAMES)
    assert len(report.data["claims.json"]) > len(CLAIMS)  # on either agent
    assert all(figure.path.stat().st_size > 1000 for figure in report.figures)
