"""The benchmark measures what it says: every method trains, ratios and peaks are summed right, verdicts follow data."""

import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from gradnorm import GradNorm

pytest.importorskip("gradnorm_pytorch", reason="needs the extra gradnorm[bench]")
pytest.importorskip("torchjd", reason="needs the extra gradnorm[bench]")
pytest.importorskip("gradnorm_studies", reason="SegNet is theirs")
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import methods
import models
import overhead
import physics
import report
import rooms

TINY = {
    "mlp": lambda: models.regression(models.mlp(6, 8, 2, 3, 4), 5, 6, 3),
    "segnet": lambda: models.scenes(models.segnet((13, 1, 3), width=1 / 16), 2, 32, 8),
    "heavy": lambda: models.scenes(models.heavy_heads((13, 1, 3), width=4), 2, 16, 4),
    "transformer": lambda: models.texts(
        models.transformer((2, 3), 32, 1, vocabulary=11, length=4), 3, (2, 3), vocabulary=11, length=4
    ),
}


@pytest.mark.parametrize("network", TINY)
@pytest.mark.parametrize("method", methods.METHODS)
def test_every_method_trains_every_network(method, network):
    torch.manual_seed(0)
    training = methods.Training(TINY[network]())
    step = methods.METHODS[method].prepare(training)
    before = training.model.shared.detach().clone()
    step()
    step()
    after = training.model.shared.detach()
    assert after.isfinite().all()
    assert not torch.equal(before, after)


def test_floor_trains_as_equal_weights_do():
    trained = []
    for prepare in (methods.equal, methods.floor):
        torch.manual_seed(0)
        training = methods.Training(TINY["mlp"]())
        overhead.repeat(prepare(training), 3)
        trained.append([parameter.detach() for parameter in training.model.parameters()])
    assert_close(trained[0], trained[1])


def test_segnet_has_the_papers_size():
    with torch.device("meta"):
        model = models.segnet((13, 1, 3))
    assert abs(sum(parameter.numel() for parameter in model.parameters()) - 29e6) < 1e6


def test_ratios_are_paired_by_round():
    rounds = [
        {"equal": 1.0, "gradnorm": 1.1},
        {"equal": 2.0, "gradnorm": 2.4},
        {"equal": 10.0, "gradnorm": 13.0},
    ]
    figures = overhead.summarize(rounds, {"equal": 100, "gradnorm": 150})["gradnorm"]
    assert figures["time_ratio"] == pytest.approx(1.2)
    assert figures["time_ratio_low"] == pytest.approx(1.15)
    assert figures["time_ratio_high"] == pytest.approx(1.25)
    assert figures["extra_seconds"] == pytest.approx(0.4)
    assert figures["memory_ratio"] == 1.5


def test_peak_is_what_lived_during_the_marked_span():
    def memory(ts, amount):
        return {"name": "[memory]", "ph": "i", "ts": ts, "args": {"Bytes": amount}}

    span = {"name": "measured", "ph": "X", "ts": 10, "dur": 10}
    events = [memory(1, 900), memory(2, -800), span, memory(11, 50), memory(12, -50), memory(13, 20), memory(25, 999)]
    assert overhead.running_peak(events, "measured") == 150


def test_peak_of_a_step_is_deterministic():
    benchmark = models.Benchmark("tiny", TINY["mlp"], 4)
    peaks = {overhead.cpu_peak(benchmark, methods.METHODS["equal"]) for _ in range(2)}
    assert len(peaks) == 1
    assert peaks.pop() > 0


def test_every_ten_is_timed_over_whole_periods(monkeypatch):
    counts = dict.fromkeys(("equal", "gradnorm every=10"), 0)

    def count(step, burst, device):
        counts[step] += burst
        return 3.0 * burst

    monkeypatch.setattr(overhead, "timed", count)
    benchmark = models.Benchmark("tiny", TINY["mlp"], 4, burst=1, turns=2)
    chosen = {name: methods.METHODS[name] for name in counts}
    seconds = overhead.play_round(benchmark, chosen, {name: name for name in counts}, "cpu", overhead.random.Random(0))
    assert counts == {"equal": 2, "gradnorm every=10": 10}
    assert seconds == {"equal": 3.0, "gradnorm every=10": 3.0}


def measured(time_ratio, memory_ratio, tasks=3, extra=0.0):
    row = {
        "time_ratio": time_ratio,
        "time_ratio_low": time_ratio,
        "time_ratio_high": time_ratio,
        "memory_ratio": memory_ratio,
        "extra_seconds": extra,
        "seconds": 1.0,
        "peak_bytes": 100,
    }
    methods = dict.fromkeys(("equal", "gradnorm", "gradnorm closed-form"), row)
    return {"title": "net", "tasks": tasks, "methods": methods, "synchronizes": {}}


@pytest.mark.parametrize(
    ("ratio", "extra", "word"), [(1.0, 256.0, "met, "), (2.0, 2560.0, "missed by ")], ids=["met", "missed"]
)
def test_verdicts_follow_the_data(ratio, extra, word):
    benchmarks = {name: measured(ratio, ratio) for name in ("toy", "segnet", "heavy", "transformer")}
    benchmarks["linear-16"] = measured(ratio, ratio, 16, 16.0)
    benchmarks["linear-256"] = measured(ratio, ratio, 256, extra)
    assert all(verdict.text.startswith(word) for verdict in report.verdicts(benchmarks))


def test_what_was_not_run_has_no_verdict():
    assert {verdict.text for verdict in report.verdicts({})} == {"not measured"}


def test_report_is_written_whole(tmp_path):
    results = {
        "environment": overhead.environment(overhead.parse(["--models", "toy", "--out", str(tmp_path)])),
        "benchmarks": {"toy": measured(1.2, 1.0), "linear-16": measured(1.2, 1.0, 16)},
    }
    report.write(results, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "overhead.json",
        "overhead.md",
        "overhead.png",
        "overhead_tasks.png",
    }
    assert str(tmp_path) not in (tmp_path / "overhead.md").read_text()


@pytest.mark.parametrize("network", TINY)
def test_the_last_shared_layer_is_found_by_itself(network):
    workload = TINY[network]()
    balancer = GradNorm(len(workload.targets))
    balancer(workload.losses(workload.model(workload.inputs)))
    assert balancer.shared is not None
    assert balancer.shared[0] is workload.model.shared


def test_rooms_are_counted_by_the_second(monkeypatch):
    clock = iter([0.0, 9.0, 10.0, 12.0, 20.0, 24.0, 30.0, 32.0])
    monkeypatch.setattr(rooms.time, "perf_counter", lambda: next(clock))
    assert rooms.rate(8, lambda: None, rounds=3, device="cpu") == 4.0


def test_the_rooms_table_names_device_and_size():
    assert "| cpu | 32×32 → 8×8 | 1500 | 210 |" in rooms.table([("cpu", 32, 8, 1500.4, 210.3)], rounds=3)


def test_the_cost_of_physics_is_paired_and_leaves_out_the_first_round(monkeypatch):
    clock = [0.0]
    costs = {"equal": iter([50.0, 1.0, 2.0, 4.0]), "gradnorm": iter([900.0, 2.0, 4.0, 8.0])}
    monkeypatch.setattr(physics.time, "perf_counter", lambda: clock[0])

    def work(method):
        return lambda: clock.__setitem__(0, clock[0] + next(costs[method]))

    found = physics.ratios({method: work(method) for method in costs}, rounds=3)
    assert found == {"equal": (100.0, 1.0), "gradnorm": (200.0, 2.0)}
    shown = dict.fromkeys(physics.METHODS, (3.21, 1.5))
    assert "| Helmholtz | 5 | 3.2 ms | 1.50 | 1.50 | 1.50 |" in physics.table({"Helmholtz": shown}, rounds=3)
