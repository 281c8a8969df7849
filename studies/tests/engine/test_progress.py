"""Progress is a live board in a terminal, and one plain line per finished run where output is piped."""

import io

import pytest
from rich.console import Console

from gradnorm_studies.engine import progress
from gradnorm_studies.engine.experiment import Job

JOBS = [Job("T=10", "static-closed-form", seed, 1e-3) for seed in range(2)]


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_each_finished_run_is_one_line(clock):
    file = io.StringIO()
    with progress.board(Console(file=file, width=20), "toy", 100, total=4, done=1) as board:
        for job, (queued, seconds) in zip(JOBS, [(0.0, 3.25), (7.0, 61.0)], strict=True):
            board.start(job)
            clock[0] += queued
            board.show(job, 0)
            clock[0] += seconds
            board.show(job, 80)
            board.finish(job)
    assert file.getvalue().splitlines() == [
        "2 of 4: T=10 static-closed-form, seed 0, 3.2 s",
        "3 of 4: T=10 static-closed-form, seed 1, 61 s",
    ]


def test_a_run_that_was_never_shown_took_the_time_since_it_was_submitted(clock):
    file = io.StringIO()
    board = progress.board(Console(file=file), "toy", 100, total=1, done=0)
    board.start(JOBS[0])
    clock[0] += 2.0
    board.finish(JOBS[0])
    assert file.getvalue().endswith(", 2.0 s\n")


def test_in_a_terminal_of_60_columns_every_line_is_whole():
    console = Console(file=io.StringIO(), width=60, force_terminal=True, color_system=None, record=True)
    board = progress.board(console, "toy-search", 25_000, total=120, done=60)
    assert isinstance(board, progress.Bars)
    for job in JOBS:
        board.show(job, 12_500)
    console.print(board._progress.get_renderable())
    lines = console.export_text().splitlines()
    assert len(lines) == 3
    assert "toy-search: 60 of 120 runs" in lines[0]
    assert "51%" in lines[0]
    for seed, line in enumerate(lines[1:]):
        assert f"T=10 static-closed-form, seed {seed}" in line
        assert "50%" in line
        assert line.rstrip().endswith(":--")  # the time left, unknown yet
    board.finish(JOBS[0])
    assert [*board._reached] == [JOBS[1].key]


def test_a_name_that_is_too_long_is_cut_and_not_what_follows_it():
    console = Console(file=io.StringIO(), width=40, force_terminal=True, color_system=None, record=True)
    board = progress.Bars(console, "vision", 100, total=1, done=0)
    board.show(JOBS[0], 50)
    console.print(board._progress.get_renderable())
    line = console.export_text().splitlines()[1]
    assert "T=10 static-closed-form, … " in line
    assert " 50% " in line
    assert line.rstrip().endswith("--:--")
