"""The report says what was measured."""

import math
from dataclasses import replace

from gradnorm_studies.analysis.metrics import Metrics
from gradnorm_studies.control import study as rl
from gradnorm_studies.control.dqn import SCORE, RlConfig
from gradnorm_studies.control.environments import TASKS
from gradnorm_studies.control.study import Rl
from gradnorm_studies.sweeps.learning_rate import Search

CONFIG = RlConfig(
    seeds=1, steps=60, record_every=30, num_envs=2, batch=8, buffer_size=64, learning_starts=8, eval_episodes=1
)


def test_normalised_is_the_share_of_the_way_from_random_play_to_an_agent_alone():
    def rows(chance, *returns):
        return [(0, f"return/{task}", r) for task, r in zip(TASKS, returns, strict=True)] + [
            (0, f"random/{task}", chance) for task in TASKS
        ]

    runs = {
        (rl.PROBLEM, "single", 0): rows(-150.0, 200.0, 0.0, -75.0),
        (rl.PROBLEM, "single", 1): rows(-50.0, 0.0, 0.0, -25.0),
        (rl.PROBLEM, "equal", 0): rows(-150.0, 0.0, -50.0, -25.0),
    }
    metrics = Metrics(runs)
    found = rl.normalized(metrics, metrics)
    shares = [found.final(rl.PROBLEM, "single", f"normalized/{task}").tolist() for task in TASKS]
    assert shares == [[150, 50], [100, 100], [50, 150]]
    assert [found.final(rl.PROBLEM, "equal", f"normalized/{task}").item() for task in TASKS] == [50, 50, 150]
    assert found.final(rl.PROBLEM, "equal", rl.WORST).item() == 50
    assert math.isclose(found.final(rl.PROBLEM, "equal", rl.MEAN).item(), 250 / 3)


def test_the_search_looks_at_the_same_share_as_the_study(tmp_path):
    search = Search(Rl(CONFIG))

    lucky = {1e-2: [0, 0, 0, 0, 0, 0, 0, 15], 3e-3: [0, 0, 0, 0, 0, 0, 10, 10]}
    runs = {job.key: [(i, SCORE, x) for i, x in enumerate(lucky.get(job.lr, [0.0] * 8))] for job in search.jobs()}
    assert {row[-1] for row in search.report(Metrics(runs), tmp_path).tables[0].rows} == {"0.003"}


def test_the_report_has_every_table_and_figure(tmp_path):
    study = Rl(replace(CONFIG, seeds=2))

    def rows(offset):
        values = {SCORE: 50.0 + offset}
        for task in TASKS:
            values |= {f"return/{task}": 10.0 + offset, f"random/{task}": 0.0, f"weight/{task}": 1.0 + offset}
        return [(step, name, value) for step in range(0, 61, 30) for name, value in values.items()]

    report = study.report(Metrics({job.key: rows(i) for i, job in enumerate(study.jobs())}), tmp_path)
    shares, returns, weights, asked = report.tables
    methods = ["gradnorm", "single", "equal", "uncertainty", "static"]
    assert [row[0] for row in shares.rows] == [row[0] for row in weights.rows] == methods
    assert [row[0] for row in returns.rows] == ["random play", *methods]
    assert shares.header == ("method", "mean over tasks %", "worst task %", *(f"{task} %" for task in TASKS))
    assert len(asked.rows) == len(rl.CLAIMS)
    assert all(figure.path.stat().st_size > 1000 for figure in report.figures)
