"""What is released: built, installed beside torch alone, and run, each from its own file."""

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import gradnorm

ROOT = Path(__file__).parents[2]
LARGEST_WHEEL = 150_000
"""Bytes, so that nothing else than code slips in."""


def run(*command, **kwargs):
    found = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, **kwargs)
    assert found.returncode == 0, f"{found.stdout[-3000:]}\n{found.stderr[-3000:]}"
    return found.stdout


def build(project, folder, *targets):
    """Builds without an environment of its own, so without a network."""
    options = [word for target in targets for word in ("-t", target)]
    run(sys.executable, "-m", "hatchling", "build", *options, "-d", str(folder), cwd=project)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The sdist unpacked, and the wheel."""
    folder = tmp_path_factory.mktemp("library")
    wheel, sdist = build(ROOT, folder, "sdist", "wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return folder / sdist.name.removesuffix(".tar.gz"), wheel


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    (wheel,) = build(ROOT / "studies", tmp_path_factory.mktemp("studies"), "wheel")
    return wheel


def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        return message_from_bytes(archive.read(name))


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {info.filename: info.CRC for info in archive.infolist() if not info.filename.endswith("/RECORD")}


def test_the_wheel_is_small_and_holds_the_library_alone(library):
    _, wheel = library
    assert wheel.stat().st_size <= LARGEST_WHEEL
    tops = {name.split("/")[0] for name in contents(wheel)}
    assert tops == {"gradnorm", f"gradnorm-{gradnorm.__version__}.dist-info"}
    assert not any(name.endswith("entry_points.txt") for name in contents(wheel))


def test_it_needs_torch_alone(library):
    needed = [Requirement(text) for text in metadata(library[1]).get_all("Requires-Dist")]
    assert [each.name for each in needed if each.marker is None] == ["torch"]
    extras = {*metadata(library[1]).get_all("Provides-Extra")}
    assert {"lightning", "transformers", "torchjd", "plots", "pandas", "parquet"} <= extras


def test_both_packages_have_the_librarys_version(library, studies):
    versions = {metadata(wheel)["Version"] for wheel in (library[1], studies)}
    assert versions == {gradnorm.__version__}


def test_the_command_is_that_of_the_studies(studies):
    with zipfile.ZipFile(studies) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "gradnorm = gradnorm_studies.cli:main" in archive.read(name).decode()


def test_the_readme_on_an_index_has_no_relative_link(library):
    text = metadata(library[1]).get_payload()
    assert "## The change to your loop" in text
    outside = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    targets = re.findall(r"\]\(([^)]+)\)", outside)
    assert targets
    assert all(target.startswith("https://") for target in targets), targets


def test_links_lead_to_the_repository_once_it_has_an_address(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from hatch_build import standalone

    text = "[a](docs/a.md) ![b](docs/b.png) [c](https://c)\n```\nx[0](y)\n```\n"
    assert standalone(text) == "a  [c](https://c)\n```\nx[0](y)\n```\n"
    assert standalone(text, "https://r") == (
        "[a](https://r/blob/main/docs/a.md) ![b](https://r/raw/main/docs/b.png) [c](https://c)\n```\nx[0](y)\n```\n"
    )


def beside_torch(folder):
    """Links to torch and what it needs, and to nothing else that is installed here."""
    folder.mkdir()
    waiting, seen = ["torch"], set()
    while waiting:
        name = canonicalize_name(waiting.pop())
        try:
            found = distribution(name)
        except PackageNotFoundError:  # only needed elsewhere
            continue
        if name in seen:
            continue
        seen.add(name)
        for top in {file.parts[0] for file in found.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(str(found.locate_file(top))).resolve())
        needed = map(Requirement, found.requires or [])
        waiting += [each.name for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]
    return folder


def test_the_wheel_runs_the_readmes_blocks_beside_torch_alone(library, tmp_path):
    site = tmp_path / "site"
    run(
        sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site),
        str(library[1]),
    )  # fmt: skip
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), flags=re.M | re.S)
    alone = beside_torch(tmp_path / "alone")
    code = "\n".join(
        [
            f"import sys; sys.path += [{str(site)!r}, {str(alone)!r}]",
            *blocks,
            "import gradnorm, importlib.util",
            f"assert gradnorm.__file__.startswith({str(site)!r})",
            "assert not importlib.util.find_spec('pytest')",
        ]
    )
    (tmp_path / "loop.py").write_text(code)
    said = run(sys.executable, "-I", "-S", str(tmp_path / "loop.py"))
    assert "variance explained, GradNorm" in said
    assert "Shared layer: 2.weight" in said


def test_the_sdist_has_its_own_readmes_and_builds_the_same_wheel(library, tmp_path):
    source, wheel = library
    pages = {str(path.relative_to(source)) for path in source.rglob("*.md")}
    assert pages == {"README.md", "README.zh-CN.md", "CHANGELOG.md"}
    (again,) = build(source, tmp_path, "wheel")
    assert contents(again) == contents(wheel)


def test_the_tests_of_the_sdist_can_be_run(library):
    source, _ = library
    names = [*(source / "tests").iterdir()]
    assert {"unit", "oracle", "settings", "distributed"} <= {path.name for path in names}
    environment = {"PYTHONPATH": str(source / "src"), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    assert "error" not in run(*command, "--collect-only", cwd=source, env=environment).splitlines()[-1]
    assert "passed" in run(*command, "tests/unit/test_functional.py", cwd=source, env=environment)


def test_the_python_versions_are_named():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    least = re.search(r"3\.(\d+)", project["requires-python"])
    named = [int(minor) for minor in re.findall(r"Python :: 3\.(\d+)", "\n".join(project["classifiers"]))]
    assert least is not None
    assert named == [*range(int(least[1]), named[-1] + 1)]
