"""Imports point down only, and `import gradnorm` loads torch and nothing optional."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "gradnorm"

LAYERS = [
    ["_types", "_errors", "_numerics", "_torch_private"],
    ["functional", "capture", "_arguments", "_state"],
    ["_optimizer"],
    ["_updates", "_history", "_distributed"],
    ["_loss_weights", "_advice"],
    ["_diagnosis", "_silence"],
    ["_balancer"],
    ["__init__"],
    ["plots", "report"],
    ["lightning", "transformers", "study"],
    ["cli"],
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
OPTIONAL = [
    "matplotlib",
    "numpy",
    "rich",
    "sklearn",
    "torchjd",
    "typer",
    "pyarrow",
    "lightning",
    "transformers",
    "h5py",
    "scipy",
    "gymnasium",
    "ray",
]


def parts():
    return sorted(path for path in SOURCE.rglob("*.py") if path.name != "__main__.py")


def top(path):
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path):
    """The top-level parts of this package that `path` imports."""
    package = ["gradnorm", *path.relative_to(SOURCE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            full = [*base, *(node.module.split(".") if node.module else [])]
            if full[:1] != ["gradnorm"]:
                continue
            if len(full) > 1:
                yield full[1]
            else:
                yield from (alias.name if alias.name in RANK else "__init__" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("gradnorm."))


@pytest.mark.parametrize("path", parts(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down(path):
    mine = top(path)
    assert mine in RANK, f"{mine} has no layer"
    for other in imported(path):
        assert other == mine or RANK[other] < RANK[mine], f"{path.name} imports {other}"


def test_the_rule_knows_no_graph_and_the_graph_no_rule():
    rule = set(imported(SOURCE / "functional.py"))
    graph = {name for path in (SOURCE / "capture").glob("*.py") for name in imported(path)}
    assert not rule
    assert graph <= {"capture", "_errors", "_numerics", "_torch_private", "_types"}


def test_import_gradnorm_loads_nothing_optional():
    code = (
        "import sys, torch; before = set(sys.modules); import gradnorm\n"
        f"loaded = {{m.split('.')[0] for m in set(sys.modules) - before}}\n"
        f"sys.exit(', '.join(sorted(loaded & set({OPTIONAL!r}))) or 0)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
