"""Imports point down only, in both packages, and `import gradnorm` loads torch and nothing optional."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import gradnorm

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "gradnorm"
STUDIES = ROOT / "studies" / "src" / "gradnorm_studies"

LAYERS = [
    ["_types", "_errors", "_numerics", "_torch_private", "_html"],
    ["functional", "capture", "_arguments", "_state"],
    ["_optimizer"],
    ["_updates", "_history", "_distributed"],
    ["_loss_weights", "_advice"],
    ["_diagnosis", "_silence"],
    ["_balancer"],
    ["_monitor", "_live"],
    ["__init__"],
    ["plots", "lightning", "transformers", "torchjd"],
]
STUDIES_LAYERS = [
    ["weightings"],
    ["analysis"],
    ["engine"],
    ["networks"],
    ["toy", "molecules", "helmholtz", "faces", "control", "vision"],
    ["units"],
    ["sweeps"],
    ["studies", "cli_errors"],
    ["cli_data", "cli_plot"],
    ["cli"],
    ["__init__"],
]
RANKS = {
    SOURCE: {name: rank for rank, layer in enumerate(LAYERS) for name in layer},
    STUDIES: {name: rank for rank, layer in enumerate(STUDIES_LAYERS) for name in layer},
}
PUBLIC = {"gradnorm": {*gradnorm.__all__, "plots", "lightning", "transformers", "torchjd"}}
"""Modules of the library that the studies may import from, and what; any public name, where nothing is listed."""
PUBLIC |= dict.fromkeys(["gradnorm.functional", "gradnorm.plots", "gradnorm.lightning", "gradnorm.transformers"])
OPTIONAL = [
    "IPython",
    "matplotlib",
    "numpy",
    "rich",
    "sklearn",
    "torchjd",
    "typer",
    "pandas",
    "pyarrow",
    "lightning",
    "transformers",
    "h5py",
    "scipy",
    "gymnasium",
    "ray",
]


PATHS = [path for package in RANKS for path in sorted(package.rglob("*.py"))]


def package_of(path):
    return next(package for package in RANKS if package in path.parents)


def module(path):
    """Its full name; a package's is that of its folder."""
    names = path.relative_to(package_of(path).parent).with_suffix("").parts
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


MODULES = {module(path): path for path in PATHS}


def imports(path):
    """What is imported anywhere in a file, in functions and for types too, as (module, name or None)."""
    package = [path.parents[i].name for i in range(len(path.relative_to(package_of(path)).parts))][::-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *(node.module.split(".") if node.module else [])])
            yield from ((origin, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)


def imported(path):
    """The modules of either package that `path` imports."""
    for origin, name in imports(path):
        found = f"{origin}.{name}" if f"{origin}.{name}" in MODULES else origin
        if found in MODULES:
            yield found


def top(name):
    """The part of its package that a module is in."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


@pytest.mark.parametrize("path", PATHS, ids=module)
def test_imports_point_down(path):
    ranks, mine = RANKS[package_of(path)], top(module(path))
    assert mine in ranks, f"{mine} has no layer"
    for other in imported(path):
        if package_of(MODULES[other]) == package_of(path):
            assert top(other) == mine or ranks[top(other)] < ranks[mine], f"{path.name} imports {other}"
        else:
            assert package_of(path) == STUDIES, f"{path.name} imports {other}: the library knows no study"


@pytest.mark.parametrize("package", RANKS, ids=lambda folder: folder.name)
def test_no_import_circle_is_left(package):
    """Not even of imports within functions, or for types only; a package's face imports what is in it."""
    faces = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    modules = {name: {*imported(path)} - faces for name, path in MODULES.items() if package_of(path) == package}
    TopologicalSorter(modules).prepare()


@pytest.mark.parametrize("path", [path for path in PATHS if package_of(path) == STUDIES], ids=module)
def test_the_studies_import_the_librarys_public_names_only(path):
    for origin, name in imports(path):
        if origin.split(".")[0] == "gradnorm":
            assert origin in PUBLIC, f"{path.name} imports {origin}"
            names = PUBLIC[origin]
            assert name in names if names else name and not name.startswith("_"), f"{path.name}: {origin}.{name}"


def test_the_rule_knows_no_graph_and_the_graph_no_rule():
    rule = set(imported(SOURCE / "functional.py"))
    graph = {top(name) for path in (SOURCE / "capture").glob("*.py") for name in imported(path)}
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
