"""Every code block of the READMEs, run or checked from the file itself."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
READMES = ["README.md", "README.zh-CN.md"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def blocks(name, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / name).read_text(), re.M | re.S)


def run(*command):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("name", READMES)
def test_python_blocks_run_in_order_and_do_what_they_say(name, capsys):
    torch.manual_seed(0)
    namespace = {}
    found = blocks(name, "python")
    assert len(found) == 3
    for block in found:
        exec(compile(block, name, "exec"), namespace)
    depth, normals = namespace["balancer"].weights.tolist()
    assert depth < 1 < normals
    assert "tensor(" in capsys.readouterr().out


def check(command):
    words = shlex.split(command, comments=True)
    match words:
        case ["make", target]:
            assert run("make", "-n", target).returncode == 0, command
        case ["pip", "install", package]:
            extra = re.search(r"\[(.+)\]", package)
            assert package.split("[")[0] == PROJECT["name"]
            assert extra is None or extra[1] in PROJECT["optional-dependencies"], command
        case ["gradnorm", *arguments]:
            result = run(sys.executable, "-m", "gradnorm.cli", *arguments, "--help")
            assert result.returncode == 0, result.stderr
        case ["python", script, *arguments]:
            assert run(sys.executable, script, *arguments, "--help").returncode == 0, command
        case []:
            pass
        case _:
            pytest.fail(f"no check for {command!r}: teach this test what it is")


@pytest.mark.parametrize("name", READMES)
def test_commands_exist(name):
    commands = [line for block in blocks(name, "bash") for line in block.splitlines()]
    assert {"make demo", "make test"} <= set(commands)
    for command in commands:
        check(command)


@pytest.mark.parametrize("name", READMES)
def test_links_and_pictures_exist(name):
    text = re.sub(r"^```.*?^```$", "", (ROOT / name).read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_both_readmes_have_the_same_code_and_figures():
    english, chinese = ((ROOT / name).read_text() for name in READMES)
    strip = re.compile(r"\s*#.*$", re.M)
    assert [strip.sub("", b) for b in blocks(READMES[0], "python")] == [
        strip.sub("", b) for b in blocks(READMES[1], "python")
    ]
    assert blocks(READMES[0], "bash") == blocks(READMES[1], "bash")
    numbers = re.compile(r"(?<![\w.])\d+\.\d+")
    assert sorted(numbers.findall(english)) == sorted(numbers.findall(chinese))


def test_version_is_one():
    import gradnorm

    assert gradnorm.__version__ == PROJECT["version"]
