"""Every code block of the READMEs, run or checked from the file itself."""

import re

import pytest
import torch

from .blocks import ROOT, blocks, check_command

READMES = ["README.md", "README.zh-CN.md"]


def texts(name, language):
    return [block.text for block in blocks(name) if block.language == language]


@pytest.mark.parametrize("name", READMES)
def test_python_blocks_run_in_order_and_do_what_they_say(name, capsys):
    torch.manual_seed(0)
    namespace = {}
    found = texts(name, "python")
    assert len(found) == 4
    for block in found:
        exec(compile(block, name, "exec"), namespace)
    depth, normals = namespace["balancer"].weights.tolist()
    assert depth < 1 < normals
    said = capsys.readouterr().out
    assert "tensor(" in said
    assert "Shared layer: 2.weight (32, 32)" in said


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


@pytest.mark.parametrize("name", [*READMES, "results/README.md"])
def test_figures_are_those_of_the_tables_that_commands_wrote(name):
    figure = re.compile(r"-?[\d.]+ ± [\d.]+")
    written = {found for table in (ROOT / "results").glob("*/table.md") for found in figure.findall(table.read_text())}
    found = figure.findall((ROOT / name).read_text())
    assert found
    assert not {*found} - written
