"""Habits of the tests themselves: names that fit a line, and nothing drawn by the clock."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for folder in ("tests", "studies/tests") for path in (ROOT / folder).rglob("*.py"))
LONGEST_NAME = 79
CLOCKS = {"time", "time_ns", "monotonic", "perf_counter", "now", "urandom", "getpid"}


def named(call):
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_fit_a_line_and_seeds_are_numbers_of_their_own(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert len(node.name) <= LONGEST_NAME, node.name
        if isinstance(node, ast.Call) and "seed" in named(node).lower():
            drawn = {named(each) for each in ast.walk(node) if isinstance(each, ast.Call)}
            assert not drawn & CLOCKS, f"line {node.lineno}"
