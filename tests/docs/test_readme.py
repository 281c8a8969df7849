"""Every code block of the READMEs, run or checked from the file itself."""

import contextlib
import io
import re

import pytest
import torch

import gradnorm

from .blocks import ROOT, blocks, check_command

READMES = ["README.md", "README.zh-CN.md"]


def texts(name, language):
    return [block.text for block in blocks(name) if block.language == language]


def run_alone(block, name):
    """What a block prints, pasted into a fresh session, and its names."""
    namespace = {}
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(block, name, "exec"), namespace)
    return said.getvalue(), namespace


def test_the_first_block_makes_no_task_worse_and_one_much_better():
    """And no weight ends at the floor; on another machine figures may differ by a little from those shown."""
    block, shown = texts("README.md", "python")[0], texts("README.md", "text")[0]
    said, names = run_alone(block, "README.md")
    (equal, balanced), expected = ([read_shares(text) for text in lines(printed)] for printed in (said, shown))
    assert all(balanced[task] >= equal[task] - 2 for task in equal)
    assert max(balanced[task] - equal[task] for task in equal) > 50
    assert [equal, balanced] == [pytest.approx(shares, abs=5) for shares in expected]
    balancer = gradnorm.GradNorm(["depth", "normals"], update="closed-form")
    names["train"](balancer)
    assert balancer.weights.min() > 1e-5
    assert "floor" not in balancer.report()


def lines(text):
    return text.strip().splitlines()


def read_shares(line):
    """`{'depth': '99%'}` → numbers."""
    return {task: int(share) for task, share in re.findall(r"'(\w+)': '(-?\d+)%'", line)}


def test_diagnose_says_what_is_shown():
    torch.manual_seed(0)
    block, shown = texts("README.md", "python")[1], texts("README.md", "text")[1]
    said, _ = run_alone(block, "README.md")
    words = [re.sub(r"[-\d.,e+]+", "#", line) for line in lines(said)]
    assert [re.sub(r"[-\d.,e+]+", "#", line).split() for line in lines(shown)] == [line.split() for line in words]
    assert 'use update="closed-form"' in said


@pytest.mark.parametrize("name", READMES)
def test_commands_exist(name):
    commands = [line for block in texts(name, "bash") for line in block.splitlines()]
    assert {"make demo", "make test"} <= set(commands)
    for command in commands:
        check_command(command)


@pytest.mark.parametrize("name", READMES)
def test_links_and_pictures_exist(name):
    text = re.sub(r"^```.*?^```$", "", (ROOT / name).read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_both_readmes_have_the_same_code_and_figures():
    english, chinese = ((ROOT / name).read_text() for name in READMES)
    strip = re.compile(r"\s*#.*$", re.M)
    assert [strip.sub("", b) for b in texts(READMES[0], "python")] == [
        strip.sub("", b) for b in texts(READMES[1], "python")
    ]
    assert texts(READMES[0], "bash") == texts(READMES[1], "bash")
    numbers = re.compile(r"(?<![\w.])\d+\.\d+")
    assert sorted(numbers.findall(english)) == sorted(numbers.findall(chinese))


def test_the_readme_is_short():
    assert len([word for word in (ROOT / "README.md").read_text().split() if re.search("[a-z]", word, re.I)]) <= 900


@pytest.mark.parametrize("name", [*READMES, "results/README.md"])
def test_figures_are_those_of_the_tables_that_commands_wrote(name):
    figure = re.compile(r"-?[\d.]+ ± [\d.]+")
    written = {found for table in (ROOT / "results").glob("*/table.md") for found in figure.findall(table.read_text())}
    assert not {*figure.findall((ROOT / name).read_text())} - written
