"""An own model, written from the README alone: it is worth it, also after an install in a fresh environment."""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from .own_model import main

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("own_model.py")


def test_the_starved_task_is_learned_and_the_other_is_not_worse():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    errors = main()
    torch.set_num_threads(threads)
    equal, balanced = errors["equal weights"], errors["GradNorm"]
    assert balanced["shape"] < 0.75 * equal["shape"]
    assert balanced["energy"] < 1.05 * equal["energy"]


def test_it_uses_only_what_the_readme_shows():
    readme, script = (ROOT / "README.md").read_text(), SCRIPT.read_text()
    used = set(re.findall(r"from gradnorm import .*|balancer(?:\.\w+)?\(|GradNorm\(|update=[\w\"-]+", script))
    assert len(used) == 5
    assert not {words for words in used if words not in readme}


@pytest.mark.slow
def test_it_runs_in_a_fresh_environment_after_pip_install(tmp_path):
    """`pip install .` without an index: torch and the builder are lent to the environment."""
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    lent = subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], **TEXT)
    Path(lent.stdout.strip(), "lent.pth").write_text(sysconfig.get_path("purelib"))
    install = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", ROOT]
    subprocess.run([python, *install], **TEXT)
    shown = subprocess.run([python, "-I", SCRIPT, "1"], cwd=tmp_path, **TEXT).stdout
    assert re.findall(r"^(equal weights|GradNorm) +shape", shown, flags=re.M) == ["equal weights", "GradNorm"]
    where = subprocess.run([python, "-I", "-c", "import gradnorm; print(gradnorm.__file__)"], **TEXT).stdout
    assert where.startswith(str(tmp_path))


BARE = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
TEXT = {"capture_output": True, "text": True, "check": True, "env": {**BARE, "OMP_NUM_THREADS": "1"}}
