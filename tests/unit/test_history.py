"""The points that span a run, and the files they are written to."""

import csv
import json
import math
import re
from itertools import pairwise

import pytest
import torch

from gradnorm import ArgumentError, History, StepRecord


def filled(steps, capacity):
    history = History(["a", "b"], capacity)
    for step in range(steps):
        history.append(StepRecord(step, torch.full((2, 5), float(step)), torch.full((2, 2), step / 10)))
    return history


THINNED = [
    (0, 3, []),
    (2, 3, [0, 1]),
    (3, 3, [0, 1, 2]),
    (4, 3, [0, 2, 3]),
    (5, 3, [0, 2, 4]),
    (6, 3, [0, 4, 5]),
    (9, 4, [0, 4, 8]),
    (10, 4, [0, 4, 8, 9]),
    (12, 4, [0, 4, 8, 11]),
    (3, 1, [2]),
    (5, 2, [0, 4]),
]


@pytest.mark.parametrize(("steps", "capacity", "kept"), THINNED)
def test_a_longer_run_is_thinned_and_its_last_step_is_there(steps, capacity, kept):
    history = filled(steps, capacity)
    assert len(history) == len(kept)
    assert history.steps == kept
    assert [row["step"] for row in history.rows()] == [step for step in kept for _ in "ab"]
    assert [row["loss"] for row in history.rows()] == [float(step) for step in kept for _ in "ab"]
    assert [row["cosine"] for row in history.cosines()] == pytest.approx([step / 10 for step in kept])


@pytest.mark.parametrize("capacity", [2, 3, 7, 20])
def test_points_span_a_run_of_any_length_evenly(capacity):
    history = History(["a", "b"], capacity)
    for step in range(500):
        history.append(StepRecord(step, torch.full((2, 5), float(step)), None))
        kept = history.steps
        assert kept[0] == 0
        assert kept[-1] == step
        assert min(step + 1, capacity // 2 + 1) <= len(kept) <= capacity
        assert len({b - a for a, b in pairwise(kept[:-1])}) <= 1
    assert [row["loss"] for row in history.rows()[::2]] == [float(step) for step in kept]


def test_rarer_cosines_are_thinned_by_themselves():
    history = History(["a", "b"], 8)
    for step in range(100):
        cosines = torch.full((2, 2), step / 100) if step % 10 == 0 else None
        history.append(StepRecord(step, torch.zeros(2, 5), cosines))
    assert [row["step"] for row in history.cosines()] == [0, 20, 40, 60, 80, 90]
    table = history.mean_cosines()
    assert table is not None
    assert table.flatten().tolist() == pytest.approx([1.0, 2.9 / 6, 2.9 / 6, 1.0])


SET_BACK = [
    (8, 20, 3, [0, 1, 2, 3]),
    (8, 20, 7, [0, 1, 2, 3, 4, 5, 6, 7]),
    (8, 4, 5, [0, 4, 5]),
    (8, 4, 4, [0, 4]),
    (8, 4, 0, [0]),
    (8, 1, 2, [2]),
]


@pytest.mark.parametrize(("steps", "capacity", "back", "kept"), SET_BACK)
def test_a_run_that_is_set_back_forgets_what_comes_later(steps, capacity, back, kept):
    history = filled(steps, capacity)
    history.append(StepRecord(back, torch.full((2, 5), float(back)), None))
    assert history.steps == kept
    assert [row["loss"] for row in history.rows()[::2]] == [float(step) for step in kept]
    assert all(row["step"] < back for row in history.cosines())
    for step in range(back + 1, 500):
        history.append(StepRecord(step, torch.full((2, 5), float(step)), None))
        assert history.steps[-1] == step
    assert history.steps == sorted(set(history.steps))
    assert min(capacity // 2 + 1, capacity) <= len(history) <= capacity


def test_one_point_does_not_grow_with_the_run():
    assert filled(500, 1)._values._stride == 1


def test_a_lowest_weight_that_is_no_longer_recorded_is_remembered():
    history = History(["a", "b", "c"], 2)
    for step, weight in enumerate([1.0, 0.2, 0.9, 0.8, 1.0]):
        values = torch.full((3, 5), weight)
        values[1] = math.nan if step == 1 else weight
        values[2] = math.nan
        history.append(StepRecord(step, values, None))
    assert history.lowest_weights() == pytest.approx([0.2, 0.8, math.inf])


def test_a_history_follows_its_balancer_to_another_type_and_back():
    history = filled(5, 8)
    history.append(StepRecord(5, torch.full((2, 5), 5.0, dtype=torch.float64), None))
    assert [row["loss"] for row in history.rows()[::2]] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_a_history_is_read_whatever_the_default_type_and_device_are(tmp_path):
    history = filled(2000, 2000)
    history.save(tmp_path / "h.csv")
    shown = history._repr_html_()
    torch.set_default_dtype(torch.bfloat16)  # in which 1999 is 2000
    try:
        with torch.device("meta"):
            loaded = History.load(tmp_path / "h.csv")
            assert loaded.rows() == history.rows()
            assert loaded._repr_html_() == history._repr_html_() == shown
            assert History(["a", "b"], 3).rows() == []
    finally:
        torch.set_default_dtype(torch.float32)


def test_room_is_made_as_it_is_needed():
    long = filled(200, 10**12)
    assert len(long) == 200
    assert [row["loss"] for row in long.rows()] == [row["loss"] for row in filled(200, 200).rows()]


def test_capacity_zero_keeps_nothing():
    history = filled(3, capacity=0)
    assert history.rows() == []
    assert history.cosines() == []


def test_csv_and_jsonl_hold_the_rows(tmp_path):
    history = filled(2, capacity=3)
    history.save(tmp_path / "h.csv")
    history.save(tmp_path / "h.jsonl")
    with (tmp_path / "h.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["task"], float(row["rate"])) for row in rows] == [
        ("0", "a", 0.0),
        ("0", "b", 0.0),
        ("1", "a", 1.0),
        ("1", "b", 1.0),
    ]
    assert [json.loads(line) for line in (tmp_path / "h.jsonl").read_text().splitlines()] == history.rows()


def test_parquet_holds_the_rows(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    history = filled(2, capacity=3)
    history.save(tmp_path / "h.parquet")
    assert parquet.read_table(tmp_path / "h.parquet").to_pylist() == history.rows()


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_saved_history_is_loaded_as_it_was(suffix, tmp_path):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    history = filled(3, capacity=3)
    absent = torch.tensor([[0.1, 1.0, 2.0, torch.inf, -torch.inf], [torch.nan] * 5])
    history.append(StepRecord(7, absent, None))
    history.save(tmp_path / f"h.{suffix}")
    loaded = History.load(tmp_path / f"h.{suffix}")
    assert loaded.tasks == history.tasks
    assert str(loaded.rows()) == str(history.rows())  # as text, since NaN is not equal to itself
    assert len(loaded) == 3
    if suffix == "jsonl":
        assert not {"NaN", "Infinity"} & set(re.findall(r"(?<!\")\b\w+\b(?!\")", (tmp_path / "h.jsonl").read_text()))


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_any_names_are_saved_whatever_the_encoding_of_the_system(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr("io.text_encoding", lambda encoding, *_: encoding or "ascii")  # what pathlib asks
    names = ("a,b", "line\nbreak", ' "quoted" ', "<b>", "深度")
    history = History(names, 1)
    history.append(StepRecord(0, torch.ones(5, 5), None))
    history.save(tmp_path / f"h.{suffix}")
    assert History.load(tmp_path / f"h.{suffix}").tasks == names


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("h.txt", ""),
        ("h.csv", "step,loss\n0,1\n"),
        ("h.csv", "step,task,loss,weight,norm,target,rate\n0,a,1,1,1,1,none\n"),
        ("h.csv", "step,task,loss,weight,norm,target,rate\n0,a,1,1,1,1,1\n1,b,1,1,1,1,1\n"),
        ("h.jsonl", "[1]\n"),
        ("h.jsonl", "no JSON\n"),
    ],
)
def test_what_is_no_saved_history_is_an_error_that_names_the_file(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ArgumentError, match=rf"path must .*{name}"):
        History.load(tmp_path / name)


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r'pip install "gradnorm\[parquet\]"'):
        filled(1, 3).save(tmp_path / "h.parquet")


def test_a_data_frame_holds_the_rows():
    pytest.importorskip("pandas")
    history = filled(2, capacity=3)
    frame = history.to_pandas()
    assert frame.to_dict("records") == history.rows()
    assert list(filled(0, capacity=3).to_pandas().columns) == list(frame.columns)


def test_a_data_frame_without_pandas_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ImportError, match=r'pip install "gradnorm\[pandas\]"'):
        filled(1, 3).to_pandas()


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(ArgumentError, match=r"must end in .csv, .jsonl or .parquet, got 'h.txt'"):
        filled(1, 3).save(tmp_path / "h.txt")
