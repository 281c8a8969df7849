"""What a balanced training step costs, in time and in peak memory, as a ratio to plain equal weights.

Time is paired: in every round every method takes its turns in random order in this one process, and is divided by
what equal weights took in the same round, so that a machine that slows down slows both. Memory is counted, not
sampled: on a CPU every tensor allocation of the step, from the profiler; on a GPU the caching allocator's peak.

Run `python benchmarks/overhead.py`; the results land in `benchmarks/results/`.
"""

import argparse
import gc
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

import report
from methods import METHODS, Method, Step, Training
from models import BENCHMARKS, Benchmark

RESULTS = Path(__file__).parent / "results"
WARM_UP = 2
Tick = Callable[[], None]


def prepare(benchmark: Benchmark, method: Method, device: str) -> Step:
    """A method's step on a fresh copy of the workload; every copy starts from the same values."""
    torch.manual_seed(0)
    return method.prepare(Training(benchmark.build().to(device)))


def repeat(step: Step, count: int) -> None:
    for _ in range(count):
        step()


def timed(step: Step, count: int, device: str) -> float:
    """Seconds for `count` steps, on the device's own clock where it has one."""
    if device == "cpu":
        start = time.perf_counter()
        repeat(step, count)
        return time.perf_counter() - start
    start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start_event.record()
    repeat(step, count)
    end_event.record()
    torch.cuda.synchronize()
    return start_event.elapsed_time(end_event) / 1000


def running_peak(events: Sequence[dict[str, Any]], marker: str) -> int:
    """The largest number of bytes alive while `marker` ran, from a profiler trace's allocations and releases."""
    span = next(event for event in events if event["name"] == marker and event["ph"] == "X")
    alive = peak = 0
    for event in sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"]):
        if event["ts"] > span["ts"]:
            peak = max(peak, alive)
        if event["ts"] > span["ts"] + span["dur"]:
            break
        alive += event["args"]["Bytes"]
    return max(peak, alive)


def cpu_peak(benchmark: Benchmark, method: Method) -> int:
    """Peak bytes of tensors in a step: parameters, gradients, optimizer state, activations and all.

    The profiler watches from before the network exists, so every tensor's birth is in the trace and the sum is exact.
    Garbage collection waits meanwhile, so that the count never depends on when it happens to run.
    """
    gc.collect()
    gc.disable()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step = prepare(benchmark, method, "cpu")
        repeat(step, WARM_UP * method.period)
        gc.collect()
        with torch.profiler.record_function("measured"):
            repeat(step, method.period)
    gc.enable()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    return running_peak([event for event in events if "name" in event], "measured")


def cuda_peak(benchmark: Benchmark, method: Method) -> int:
    """Peak bytes of the caching allocator in a step, less what was allocated before (library workspaces)."""
    gc.collect()
    before = torch.cuda.memory_allocated()
    step = prepare(benchmark, method, "cuda")
    repeat(step, WARM_UP * method.period)
    torch.cuda.reset_peak_memory_stats()
    repeat(step, method.period)
    return torch.cuda.max_memory_allocated() - before


def synchronizes(step: Step, count: int) -> bool:
    """Whether `count` steps make the host wait for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        repeat(step, count)
    except RuntimeError as error:
        if "synchronizing" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False


def measure_memory(benchmark: Benchmark, methods: dict[str, Method], device: str, tick: Tick) -> dict[str, int]:
    """Peak bytes by method, one method at a time."""
    peaks = {}
    peak = cpu_peak if device == "cpu" else cuda_peak
    if device == "cuda":
        repeat(prepare(benchmark, METHODS["equal"], device), 1)  # allocates the libraries' workspaces
    for name, method in methods.items():
        peaks[name] = peak(benchmark, method)
        tick()
    return peaks


def play_round(
    benchmark: Benchmark, methods: dict[str, Method], steps: dict[str, Step], device: str, shuffle: random.Random
) -> dict[str, float]:
    """Seconds per step by method; whole periods of each method, its bursts spread over the round."""
    turns = {name: max(benchmark.turns, method.period // benchmark.burst) for name, method in methods.items()}
    order = [name for name, count in turns.items() for _ in range(count)]
    shuffle.shuffle(order)
    seconds = dict.fromkeys(methods, 0.0)
    for name in order:
        seconds[name] += timed(steps[name], benchmark.burst, device)
    return {name: seconds[name] / (turns[name] * benchmark.burst) for name in methods}


def summarize(rounds: Sequence[dict[str, float]], peaks: dict[str, int]) -> dict[str, dict[str, float]]:
    """Median and quartiles of the per-round ratios, seconds and bytes, by method."""
    summary = {}
    for name in rounds[0]:
        ratios = [seconds[name] / seconds["equal"] for seconds in rounds]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        summary[name] = {
            "time_ratio": middle,
            "time_ratio_low": low,
            "time_ratio_high": high,
            "seconds": statistics.median(seconds[name] for seconds in rounds),
            "extra_seconds": statistics.median(seconds[name] - seconds["equal"] for seconds in rounds),
            "peak_bytes": peaks[name],
            "memory_ratio": peaks[name] / peaks["equal"],
        }
    return summary


def measure(benchmark: Benchmark, rounds: int, device: str, tick: Tick) -> dict[str, Any]:
    """All figures of one benchmark."""
    methods = {name: method for name, method in METHODS.items() if benchmark.peers or not method.peer}
    peaks = measure_memory(benchmark, methods, device, tick)
    steps = {name: prepare(benchmark, method, device) for name, method in methods.items()}
    for step in steps.values():
        repeat(step, WARM_UP)
    syncs = {}
    if device == "cuda":
        syncs = {name: synchronizes(steps[name], method.period) for name, method in methods.items()}
    shuffle = random.Random(0)
    results = []
    for _ in range(rounds):
        results.append(play_round(benchmark, methods, steps, device, shuffle))
        tick()
    summary = summarize(results, peaks)
    return {"title": benchmark.title, "tasks": benchmark.tasks, "methods": summary, "synchronizes": syncs}


def command(arguments: argparse.Namespace) -> str:
    """The command that repeats the run; where its results went is nobody's business."""
    defaults, given = vars(parse([])), vars(arguments)
    words = ["python", "benchmarks/overhead.py"]
    for name in ("models", "rounds", "device", "threads"):
        if given[name] != defaults[name]:
            value = given[name]
            words += [f"--{name}", ",".join(value) if isinstance(value, list) else str(value)]
    return " ".join(words)


def environment(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a reader needs to repeat the run."""
    on_gpu = arguments.device == "cuda"
    return {
        "command": command(arguments),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "rounds": arguments.rounds,
    }


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--models", default=",".join(BENCHMARKS), help="comma-separated, of: %(default)s")
    parser.add_argument("--rounds", type=int, default=8, help="paired rounds per model (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="two rounds: a look, not a measurement")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="of torch on the CPU (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    arguments = parser.parse_args(argv)
    arguments.models = arguments.models.split(",")
    if unknown := set(arguments.models) - set(BENCHMARKS):
        parser.error(f"--models: unknown {sorted(unknown)}; choose from {list(BENCHMARKS)}")
    if arguments.quick:
        arguments.rounds = 2
    if arguments.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {arguments.rounds}")
    return arguments


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    results: dict[str, Any] = {"environment": environment(arguments), "benchmarks": {}}
    with Progress() as progress:
        for name in arguments.models:
            benchmark = BENCHMARKS[name]
            memory_ticks = sum(benchmark.peers or not method.peer for method in METHODS.values())
            bar = progress.add_task(benchmark.title, total=memory_ticks + arguments.rounds)
            tick = lambda bar=bar: progress.advance(bar)  # noqa: E731
            results["benchmarks"][name] = measure(benchmark, arguments.rounds, arguments.device, tick)
            report.write(results, arguments.out)  # after each network, so that a run cut short leaves its figures
    print(report.markdown(results))


if __name__ == "__main__":
    main()
