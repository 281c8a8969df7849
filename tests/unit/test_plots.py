"""Figures: what they say, in every format, and nothing of the user's matplotlib changed."""

import re
import subprocess
import sys
from io import BytesIO
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from gradnorm import ArgumentError, GradNorm, History, StateError, StepRecord, diagnose, plots
from gradnorm._history import FIELDS

from .networks import Net, batch, trained

NAMES = ["a", "b", "c"]
ONE_PANEL = [plots.weights, plots.gradient_norms, plots.losses, plots.rates]


def recorded(steps, value=lambda step, task, field: 1.0 + step, tasks="ab"):
    history = History(list(map(str, tasks)), 2000)
    for step in range(steps):
        table = [[value(step, task, field) for field in FIELDS] for task in range(len(tasks))]
        history.append(StepRecord(step, torch.tensor(table, device="cpu"), None))
    return history


def lines(ax):
    """Of each task, the values and their medians."""
    drawn = [np.asarray(line.get_ydata()) for line in ax.get_lines() if line.get_linestyle() == "-"]
    return drawn[::2], drawn[1::2]


# --------------------------------------------------------------------------------------------------------- labels


def test_names_beside_curves_neither_overlap_nor_leave_the_panel():
    ax = Figure().subplots()
    ax.set_ylim(0, 1)
    plots.label_ends(ax, [(value, str(value), "k") for value in (1.0, 0.995, 0.99, 0.0, 0.01, 0.5, float("nan"))])
    heights = {text.get_text(): text.get_position()[1] for text in ax.texts}
    assert set(heights) == {"1.0", "0.995", "0.99", "0.0", "0.01", "0.5"}
    assert heights["0.0"] == pytest.approx(0)
    assert heights["0.5"] == pytest.approx(0.5)
    ordered = sorted(heights.values())
    assert max(ordered) <= 1
    assert min(b - a for a, b in pairwise(ordered)) > 0.06


def test_names_of_many_tasks_stay_beside_their_panel(tmp_path):
    for ax in plots.training(
        recorded(3, lambda step, task, field: 1.0 + step + task, range(40)), tmp_path / "a.png"
    ).axes:
        heights = [text.get_position()[1] for text in ax.texts]
        assert len(heights) == 40
        assert 0 <= min(heights) < max(heights) <= 1


def test_every_axis_names_its_quantity():
    net, balancer = trained(5)
    found = diagnose(net.losses(batch()))
    drawn = [draw(balancer) for draw in (plots.training, *ONE_PANEL)]
    axes = [ax for figure in (*drawn, plots.diagnosis(found), plots.cosines(found)) for ax in figure.axes]
    assert len(axes) == 4 + 4 + 2 + 1
    for ax in axes:
        assert ax.get_xlabel()
        assert ax.get_ylabel()
        assert ax.get_title(loc="left")


# ------------------------------------------------------------------------------------------------------ what is drawn


@pytest.mark.parametrize("draw", [plots.weights, plots.rates])
@pytest.mark.parametrize(("ratio", "scale"), [(20, "linear"), (1000, "log"), (0, "linear")])
def test_weights_and_rates_decades_apart_are_drawn_on_a_log_axis(draw, ratio, scale):
    history = recorded(3, lambda step, task, field: 1.0 if task else float(ratio))
    assert draw(history).axes[0].get_yscale() == scale


def test_names_of_tasks_are_no_formulas(tmp_path):
    tasks = ["$\\frac$", "a$b", "c"]
    run = recorded(3, tasks=tasks)
    drawn = plots.training(run, tmp_path / "a.svg")
    assert {text.get_text().replace("\\$", "$") for text in drawn.axes[0].texts} == {*tasks}


def test_an_svg_is_short_in_its_coordinates_and_whole_in_its_text(tmp_path):
    figure, (ax,) = plots.panels(1, 1, width=3, height=2)
    ax.plot(np.sqrt(np.arange(50.0)))
    ax.set_title("0.5678 m")
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        written = plots.save(figure, tmp_path / "a.svg").read_text()
    assert "0.5678 m</text>" in written
    assert not re.search(r"\d\.\d{3}", re.sub(r">[^<]*<", "><", written))


def test_the_whole_run_is_drawn():
    history = recorded(5000)
    figure = plots.training(history)
    for ax in figure.axes:
        raw, medians = lines(ax)
        assert len(raw) == len(medians) == 2
        assert 1000 < len(raw[0]) <= 2000
        assert ax.get_xlim() == (0, 4999)
    assert [text.get_text() for text in figure.axes[0].texts] == ["a", "b"]


def test_a_running_median_leaves_out_a_single_spike():
    values = np.ones(400)
    values[200] = 100.0
    assert (plots.running_median(values) == 1).all()
    ramp = np.arange(400.0)
    assert plots.running_median(ramp)[50:350] == pytest.approx(ramp[50:350])
    assert (plots.running_median(np.arange(10.0)) == np.arange(10.0)).all(), "few points are drawn as they are"


def test_a_task_is_drawn_where_it_was_present():
    history = recorded(6, lambda step, task, field: float("nan") if task and step % 2 else 1.0 + step)
    raw, _ = lines(plots.weights(history).axes[0])
    assert [list(values) for values in raw] == [[1, 2, 3, 4, 5, 6], [1, 3, 5]]


def test_losses_are_relative_to_the_first_and_plain_where_one_is_not_positive():
    balancer = GradNorm(["a", "b"], initial_losses=[2.0, 4.0])
    balancer.history = recorded(3)
    ax = plots.losses(balancer).axes[0]
    assert [list(values) for values in lines(ax)[0]] == [[0.5, 1.0, 1.5], [0.25, 0.5, 0.75]]
    assert (ax.get_ylabel(), ax.get_yscale()) == ("loss / initial loss", "log")
    assert [list(values) for values in lines(plots.losses(balancer.history).axes[0])[0]] == [[1, 2, 3]] * 2
    ax = plots.losses(recorded(3, lambda step, task, field: 1.0 - step)).axes[0]
    assert [list(values) for values in lines(ax)[0]] == [[1, 0, -1]] * 2
    assert (ax.get_ylabel(), ax.get_yscale()) == ("loss $L_i$", "linear")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
@pytest.mark.parametrize("steps", [1, 5])
def test_bad_numbers_can_be_drawn(value, steps, tmp_path):
    plots.training(recorded(steps, lambda *_: value), tmp_path / "training.png")


def test_an_empty_history_is_said_to_be_so():
    with pytest.raises(StateError, match="no step is in the history: train first"):
        plots.training(GradNorm(2))


# ---------------------------------------------------------------------------------------------------- figure and file


@pytest.mark.parametrize("draw", ONE_PANEL, ids=lambda draw: draw.__name__)
def test_one_panel_is_drawn_on_axes_that_are_given(draw):
    history = recorded(3)
    mine = Figure()
    left, right = mine.subplots(1, 2)
    assert draw(history, ax=right) is mine
    assert not left.lines
    assert len(right.lines) >= 4
    nested = Figure()
    assert draw(history, ax=nested.subfigures(1, 2)[0].subplots()) is nested
    assert draw(history).axes[0].get_ylabel() == right.get_ylabel()


BEGINNINGS = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF", "PNG": b"\x89PNG"}


@pytest.mark.parametrize("suffix", BEGINNINGS)
def test_the_suffix_gives_the_format(suffix, tmp_path):
    history = recorded(30)
    for name in ("first", "second"):
        figure = plots.training(history, str(tmp_path / f"{name}.{suffix}"))
        assert isinstance(figure, Figure)
    first, second = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in ("first", "second"))
    assert first.startswith(BEGINNINGS[suffix])
    assert first == second, "the same figure gives the same file"
    if suffix == "svg":
        assert b"<image" not in first, "vectors, not a picture of them"


def test_another_suffix_is_refused(tmp_path):
    for name in ("a.jpg", "a"):
        with pytest.raises(ArgumentError, match=f"path must end in .png, .svg or .pdf, got '{name}'"):
            plots.training(recorded(2), tmp_path / name)


def test_cosines_of_a_diagnosis_are_drawn_alone():
    found = diagnose(Net().losses(batch()))
    (ax,) = plots.cosines(found).axes
    assert [text.get_text() for text in ax.texts] == [f"{value:.2f}" for value in found.cosines.flatten().tolist()]


def test_a_diagnosis_whose_norms_overflow_is_drawn(tmp_path):
    losses = Net().losses(batch())
    found = diagnose({**losses, "b": losses["b"] * 1e25})
    bars = plots.diagnosis(found, tmp_path / "a.png").axes[0]
    assert [text.get_text() for text in bars.texts][1] == "inf"


# ----------------------------------------------------------------------------------------------- the user's matplotlib

BACKEND = """
import sys
import matplotlib
matplotlib.use("svg")                                           # as a notebook has its own
before = dict(matplotlib.rcParams)
from gradnorm import GradNorm, plots
from tests.unit.test_plots import recorded
figure = plots.training(recorded(3), sys.argv[1])
assert matplotlib.get_backend() == "svg", matplotlib.get_backend()
assert dict(matplotlib.rcParams) == before
assert "matplotlib.pyplot" not in sys.modules
from matplotlib import pyplot
assert pyplot.get_fignums() == [], "nothing is kept alive by pyplot"
"""
LACKING = """
import sys
sys.modules["matplotlib"] = None
from gradnorm import plots
"""


def run(code, *arguments):
    root = str(__import__("pathlib").Path(__file__).parents[2])
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def test_neither_backend_nor_settings_nor_pyplot_are_touched(tmp_path):
    found = run(BACKEND, str(tmp_path / "training.png"))
    assert found.returncode == 0, found.stderr


def test_without_matplotlib_the_error_names_the_command():
    found = run(LACKING)
    assert (
        """ImportError: 'matplotlib' is needed here and not installed: pip install "gradnorm[plots]\"""" in found.stderr
    )


def test_a_notebook_shows_the_figure_in_its_style_without_pyplot():
    shown = plots.weights(recorded(3))._repr_png_()
    assert shown.startswith(b"\x89PNG")
    with matplotlib.rc_context({"font.size": 20, "savefig.dpi": 50}):  # ticks are made when a figure is drawn
        assert plots.weights(recorded(3))._repr_png_() == shown


def test_a_figure_that_others_draw_keeps_its_style():
    files = []
    for settings in ({}, {"font.size": 20}):
        file = BytesIO()
        figure = plots.weights(recorded(3))
        with matplotlib.rc_context(settings):  # ticks are made when a figure is drawn
            figure.savefig(file, format="png", dpi=80)
        files.append(file.getvalue())
    assert files[0] == files[1]


def test_the_cosines_of_a_balancer_are_those_of_its_report():
    _, balancer = trained(2, cosines_every=1)
    report = balancer.report()
    drawn = [[text.get_text() for text in plots.cosines(found).axes[0].texts] for found in (balancer, report)]
    assert drawn[0] == drawn[1] == [f"{value:.2f}" for value in report.cosines.flatten().tolist()]
    report.cosines = None
    with pytest.raises(StateError, match="16 tasks"):
        plots.cosines(report)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (plots.training, "balancer must be a GradNorm or History, got Linear"),
        (plots.weights, "balancer must be a GradNorm or History, got Linear"),
        (plots.diagnosis, "found must be a Diagnosis, got Linear"),
    ],
)
def test_other_objects_are_refused(draw, message):
    with pytest.raises(ArgumentError, match=message):
        draw(torch.nn.Linear(1, 1))
