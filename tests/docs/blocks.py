"""What the documentation's code blocks are, and how each kind is run."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PROJECTS = {
    folder: tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"] for folder in (".", "./studies")
}


class Block(NamedTuple):
    language: str
    title: str | None
    text: str


def blocks(path):
    """Every fenced block of a page, in order."""
    fences = re.findall(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', (ROOT / path).read_text(), re.M | re.S)
    return [Block(language, title or None, text) for language, title, text in fences]


def run(*command, cwd=ROOT, **kwargs):
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, **kwargs
    )


def check_command(command):
    """That a shell line names things that exist; raises for a kind of line it does not know."""
    words = shlex.split(command, comments=True)
    match words:
        case ["make", target]:
            assert run("make", "-n", target).returncode == 0, command
        case ["pip", "install", *packages]:
            for package in packages:
                folder, _, extras = package.rstrip("]").partition("[")
                assert {*filter(None, extras.split(","))} <= {*PROJECTS[folder]["optional-dependencies"]}, command
        case ["gradnorm", *arguments]:
            code = "from gradnorm_studies.cli import main; main()"
            result = run(sys.executable, "-c", code, *arguments, "--help")
            assert result.returncode == 0, result.stderr
            assert "Usage" in result.stdout, command
        case ["python", script, *arguments]:
            assert run(sys.executable, script, *arguments, "--help").returncode == 0, command
        case []:
            pass
        case _:
            pytest.fail(f"no check for {command!r}: teach this test what it is")
