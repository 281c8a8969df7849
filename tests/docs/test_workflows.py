"""The workflows of a public CI, which cannot run here: each does only what a target of the Makefile does."""

import itertools
import re
import tomllib

import pytest
import yaml

from .blocks import ROOT

FOLDER = ROOT / ".github/workflows"
WORKFLOWS = sorted(path.name for path in FOLDER.glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), flags=re.M))
ACTIONS = {
    "actions/checkout@v4",
    "actions/download-artifact@v4",
    "actions/setup-python@v5",
    "actions/upload-artifact@v4",
    "pypa/gh-action-pypi-publish@release/v1",
}


def read(name):
    return yaml.safe_load((FOLDER / name).read_text())


def commands(job):
    """What its steps run, for every entry of its matrix."""
    matrix = job.get("strategy", {}).get("matrix", {})
    for values in itertools.product(*matrix.values()):
        for step in job["steps"]:
            if "run" in step:
                filled = step["run"]
                for name, value in zip(matrix, values, strict=True):
                    filled = filled.replace(f"${{{{ matrix.{name} }}}}", value)
                yield filled


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_command_is_a_target_of_the_makefile(name):
    found = [command for job in read(name)["jobs"].values() for command in commands(job)]
    assert found
    for command in found:
        program, *targets = command.split()
        assert program == "make", command
        assert targets, command
        assert set(targets) <= TARGETS, command


@pytest.mark.parametrize("name", WORKFLOWS)
def test_jobs_may_do_little_and_end(name):
    workflow = read(name)
    assert set(workflow) == {"name", True, "permissions", "jobs"} | (
        {"concurrency"} & set(workflow)
    )  # `on` is YAML's true
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 360
        assert {step["uses"] for step in job["steps"] if "uses" in step} <= ACTIONS
        assert set(job.get("needs", "").split()) <= set(workflow["jobs"])


def test_every_python_that_is_promised_is_tested():
    with open(ROOT / "pyproject.toml", "rb") as file:
        classifiers = tomllib.load(file)["project"]["classifiers"]
    promised = [found[1] for each in classifiers if (found := re.search(r":: (3\.\d+)$", each))]
    assert read("ci.yml")["jobs"]["test"]["strategy"]["matrix"]["python"] == promised


def test_both_packages_are_released_by_tag_without_a_token():
    workflow = read("release.yml")
    assert workflow[True] == {"push": {"tags": ["v*"]}}
    publish = workflow["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"}
    assert publish["needs"] == "build"
    assert "secrets." not in (FOLDER / "release.yml").read_text()


def test_the_citation_names_the_paper_and_the_projects_own_metadata():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    with open(ROOT / "pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    assert citation["title"] == project["name"]
    assert citation["abstract"] == project["description"]
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in project["authors"]]
    assert citation["license"] == project["license"]
    assert len(citation["references"][0]["authors"]) == 4


@pytest.mark.parametrize("name", ["bug_report.md", "feature_request.md"])
def test_issue_templates_have_a_head(name):
    _, head, body = (ROOT / ".github/ISSUE_TEMPLATE" / name).read_text().split("---\n", 2)
    assert set(yaml.safe_load(head)) == {"name", "about", "labels"}
    assert body.strip()
