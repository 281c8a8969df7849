"""From measured figures to a table, verdicts and pictures; nothing here measures, nothing is judged in advance."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

Results = dict[str, Any]
OURS = "gradnorm"
COLORS = {"equal": "0.6", "gradnorm": "C0", "floor": "0.35"}
CLOSED_FORM = "gradnorm closed-form"
TIME_LIMITS = {
    ("toy", OURS): 1.45,
    ("toy", CLOSED_FORM): 1.35,
    ("linear-16", OURS): 1.60,
    ("segnet", OURS): 1.09,
    ("heavy", OURS): 1.13,
    ("transformer", OURS): 1.06,
}
MEMORY_LIMITS = {"toy": 1.05, "linear-256": 1.50, "segnet": 1.05, "heavy": 1.05, "transformer": 1.05}
FLAT_FROM, FLAT_TO, FLAT_FACTOR = 16, 256, 1.25


@dataclass(frozen=True)
class Verdict:
    """A target beside what was measured; without a measurement, `value` is None."""

    target: str
    limit: float
    value: float | None

    @property
    def text(self) -> str:
        """In words, with the distance to the limit."""
        if self.value is None:
            return "not measured"
        distance = abs(self.value - self.limit)
        return f"met, {distance:.2f} to spare" if self.value <= self.limit else f"missed by {distance:.2f}"


def per_task_cost(benchmark: Results, method: str) -> float:
    """Seconds that a task adds to a step of equal weights."""
    return benchmark["methods"][method]["extra_seconds"] / benchmark["tasks"]


def linear_benchmarks(benchmarks: Results) -> list[Results]:
    """The linear-heads benchmarks in order of T."""
    found = [benchmark for name, benchmark in benchmarks.items() if name.startswith("linear-")]
    return sorted(found, key=lambda benchmark: benchmark["tasks"])


def verdicts(benchmarks: Results) -> list[Verdict]:
    """Every target of the project, judged from the figures."""
    rows = []
    for (name, method), limit in TIME_LIMITS.items():
        rows.append(_verdict("time", "time_ratio", benchmarks.get(name), name, method, limit))
    for name, limit in MEMORY_LIMITS.items():
        rows.append(_verdict("peak memory", "memory_ratio", benchmarks.get(name), name, OURS, limit))
    costs = {row["tasks"]: per_task_cost(row, OURS) for row in linear_benchmarks(benchmarks)}
    growth = costs[FLAT_TO] / costs[FLAT_FROM] if {FLAT_FROM, FLAT_TO} <= costs.keys() else None
    rows.append(Verdict(f"cost per task at T={FLAT_TO} over T={FLAT_FROM}", FLAT_FACTOR, growth))
    return rows


def _verdict(what: str, figure: str, measured: Results | None, name: str, method: str, limit: float) -> Verdict:
    value = measured["methods"][method][figure] if measured else None
    return Verdict(f"{what}, {measured['title'] if measured else name}, {method}", limit, value)


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _columns(benchmarks: Results) -> list[str]:
    return list(dict.fromkeys(name for row in benchmarks.values() for name in row["methods"]))


def time_table(benchmarks: Results) -> str:
    """Median time ratio and its quartiles, benchmark by method."""
    columns = _columns(benchmarks)
    rows = []
    for row in benchmarks.values():
        cells = [row["title"], f"{1000 * row['methods']['equal']['seconds']:.1f} ms"]
        for name in columns[1:]:
            m = row["methods"].get(name)
            cells.append(f"{m['time_ratio']:.2f} ({m['time_ratio_low']:.2f}–{m['time_ratio_high']:.2f})" if m else "–")
        rows.append(cells)
    return table(["model", *columns], rows)


def memory_table(benchmarks: Results) -> str:
    """Peak memory ratio, benchmark by method."""
    columns = _columns(benchmarks)
    rows = []
    for row in benchmarks.values():
        cells = [row["title"], f"{row['methods']['equal']['peak_bytes'] / 2**20:.1f} MiB"]
        cells += [f"{row['methods'][n]['memory_ratio']:.2f}" if n in row["methods"] else "–" for n in columns[1:]]
        rows.append(cells)
    return table(["model", *columns], rows)


def markdown(results: Results) -> str:
    """The whole page."""
    about, benchmarks = results["environment"], results["benchmarks"]
    judged = [
        [v.target, f"≤ {v.limit:.2f}", "–" if v.value is None else f"{v.value:.2f}", v.text]
        for v in verdicts(benchmarks)
    ]
    pauses = [[row["title"], name] for row in benchmarks.values() for name, wait in row["synchronizes"].items() if wait]
    parts = [
        "# What a balanced step costs",
        f"`{about['command']}`: torch {about['torch']}, Python {about['python']}, {about['device']}, "
        f"{about['cores']} cores, {about['threads']} threads, {about['rounds']} rounds. "
        "What is measured and how: `benchmarks/README.md`.",
        "## Time per step, over equal weights: median of the rounds (quartiles)",
        time_table(benchmarks),
        "## Peak memory, over equal weights",
        memory_table(benchmarks),
        "## Targets",
        table(["target", "limit", "measured", "verdict"], judged),
        f"![Time ratios]({_name(results)}.png)",
    ]
    if linear_benchmarks(benchmarks):
        parts.append(f"![Cost per task]({_name(results)}_tasks.png)")
    if about["device"] != "cpu":
        waits = table(["model", "method"], pauses) if pauses else "None."
        parts += ["## Steps in which the host waits for the GPU", waits]
    return "\n\n".join(parts) + "\n"


def ratio_figure(benchmarks: Results) -> Figure:
    """One panel a benchmark: a dot a method with its quartiles, and a line at 1."""
    figure = Figure(figsize=(10, 0.6 + 2.4 * ((len(benchmarks) + 1) // 2)), layout="constrained")
    panels = figure.subplots((len(benchmarks) + 1) // 2, 2, squeeze=False).flat
    for row, panel in zip(benchmarks.values(), panels, strict=False):  # in this order zip takes no panel too many
        names = [name for name in row["methods"] if name != "equal"][::-1]
        for height, name in enumerate(names):
            m = row["methods"][name]
            color = COLORS.get(name, "C0" if name.startswith(OURS + " ") else "C1")
            panel.hlines(height, m["time_ratio_low"], m["time_ratio_high"], color=color, linewidth=3, alpha=0.4)
            panel.plot(m["time_ratio"], height, "o", color=color)
            panel.annotate(
                f"{m['time_ratio']:.2f}", (m["time_ratio"], height), (6, 4), textcoords="offset points", fontsize=7
            )
        panel.axvline(1.0, color="0.5", linewidth=1, linestyle="--")
        panel.set_yticks(range(len(names)), names, fontsize=8)
        panel.set_ylim(-0.6, len(names) - 0.2)
        panel.set_xlim(left=min(0.9, *(row["methods"][n]["time_ratio_low"] - 0.05 for n in names)))
        panel.margins(x=0.1)
        panel.set_title(row["title"], fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
    for spare in panels:
        spare.set_axis_off()
    figure.supxlabel("time per step / time of a step with equal weights")
    return figure


def tasks_figure(rows: list[Results]) -> Figure:
    """What each task adds to a step, against the number of tasks."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name in [n for n in rows[-1]["methods"] if n != "equal"]:
        costs = [1e6 * per_task_cost(row, name) for row in rows]
        axes.plot(range(len(rows)), costs, "o-", label=name)
    axes.set_xticks(range(len(rows)), [str(row["tasks"]) for row in rows])
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.set_xlabel("tasks, T (linear heads)")
    axes.set_ylabel("(time − equal weights) / T, µs")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def write(results: Results, folder: Path) -> None:
    """Table, figures and raw numbers into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    name = _name(results)
    (folder / f"{name}.json").write_text(json.dumps(results, indent=2) + "\n")
    (folder / f"{name}.md").write_text(markdown(results))
    ratio_figure(results["benchmarks"]).savefig(folder / f"{name}.png", dpi=150)
    if rows := linear_benchmarks(results["benchmarks"]):
        tasks_figure(rows).savefig(folder / f"{name}_tasks.png", dpi=150)


def _name(results: Results) -> str:
    """Of the files: figures of a GPU lie beside those of the CPU."""
    return "overhead" if results["environment"]["device"] == "cpu" else "overhead-cuda"
