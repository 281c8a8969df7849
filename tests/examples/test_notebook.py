"""The notebook: its cells run in order, what a cell ends in is shown, and nothing is stored beside the source."""

import ast
import json
from pathlib import Path

import pytest
import torch

FILE = Path(__file__).parents[2] / "examples" / "own_model.ipynb"
NOTEBOOK = json.loads(FILE.read_text(encoding="utf-8"))
CELLS = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def run_cell(source, names):
    """Runs a cell and returns the value of the expression that it ends in, as a notebook does."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, str(FILE), "exec"), names)
    return eval(compile(ast.Expression(last.value), str(FILE), "eval"), names) if last else None


@pytest.fixture(scope="module")
def ran():
    """The notebook's names, and what each cell shows."""
    threads, names = torch.get_num_threads(), {}
    torch.set_num_threads(1)
    shown = [run_cell(source, names) for source in CELLS]
    torch.set_num_threads(threads)
    return names, shown


def test_each_cell_shows_what_its_text_says(ran):
    _, shown = ran
    _, diagnosis, balancer, report, figure, _ = shown
    for each in (diagnosis, balancer, report):
        assert "<table" in each._repr_html_()
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert "price" in str(diagnosis)


def test_balancing_helps_the_starved_task_and_does_not_hurt_the_other(ran):
    errors = ran[0]["errors"]
    equal, balanced, static = (errors[method] for method in ("equal weights", "GradNorm", "static"))
    assert balanced["kind, wrong"] < 0.5 * equal["kind, wrong"]
    assert balanced["price, off by"] < equal["price, off by"]
    assert balanced["kind, wrong"] < static["kind, wrong"] < 0.9 * equal["kind, wrong"]


def test_nothing_is_stored_but_the_source():
    assert FILE.stat().st_size < 10_000
    for cell in NOTEBOOK["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
