"""The vectors are what the literal updates compute, ours passes them, and each usual mistake fails one."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "vectors"
OURS = "vectors/adapters/ours.py"


@pytest.fixture(scope="module")
def scripts():
    """`check` and `write`, imported as `python vectors/….py` would; what they bring to the path is taken off again."""
    path = [*sys.path]
    sys.path[:0] = [str(FOLDER), str(FOLDER / "adapters")]  # the second for the adapter below
    import check
    import write

    yield check, write
    sys.path[:] = path
    for name in ("check", "write", "_pytorch", "adapters", "adapters._pytorch"):
        sys.modules.pop(name, None)


NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


def test_the_files_are_what_the_literal_updates_compute(scripts):
    check, write = scripts
    stored, written = check.read(), write.written()
    assert sorted(stored) == sorted(written) == NAMES
    for name, vector in written.items():
        head = {key: vector[key] for key in ("about", "source", "needs", "settings")}
        assert {key: stored[name][key] for key in head} == head
        for mine, theirs in zip(vector["steps"], stored[name]["steps"], strict=True):
            assert mine["batches"] == theirs["batches"]
            for field, value in theirs["expected"].items():
                assert check._close(mine["expected"][field], value, 1e-12), (name, field)


def test_the_files_are_written_without_the_library():
    code = f"import sys; sys.path.insert(0, {str(FOLDER)!r}); import write; write.written()\n"
    code += "sys.exit('gradnorm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("name", NAMES)
def test_ours_passes(scripts, name):
    check, _ = scripts
    assert check.check(check.read([name])[name], check.load(str(ROOT / OURS))) == check.Outcome("passes")


def algorithm(
    renormalizes=True, detaches=True, power=1, sign=1, is_mean=False, keeps=True, whole=True, leaks=False, early=False
):
    """Algorithm 1 as an adapter, with a mistake for each argument that is not its default."""

    def run(settings, steps, source=None):
        from _pytorch import batch_losses, layer

        W, initial, reports = layer(steps[0][0]), settings["initial_losses"], []
        w = torch.ones(len(steps[0][0]["losses"]), dtype=torch.float64, requires_grad=True)
        kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[settings["optimizer"]]
        optimizer = kind([w], lr=settings["lr"])
        for (batch,) in steps:
            L = torch.stack(batch_losses(W, batch, settings.get("curvature", 0.0)))
            initial = L.tolist() if initial is None else initial
            layer_of = W if whole else W[:1]
            G = torch.stack(
                [torch.cat(torch.autograd.grad(each, layer_of, create_graph=True)).norm() for each in w * L]
            )
            ratio = L.detach() / torch.tensor(initial, dtype=torch.float64)
            target = G.mean() * (ratio / ratio.mean()) ** (sign * settings["alpha"])
            distances = (G - (target.detach() if detaches else target)).abs() ** power
            L_grad = distances.mean() if is_mean else distances.sum()
            inputs = [w, *W] if leaks else [w]
            w.grad, *leaked = torch.autograd.grad(L_grad, inputs, retain_graph=True, allow_unused=True)
            if not keeps:
                optimizer = kind([w], lr=settings["lr"])
            before = w.detach().clone()
            optimizer.step()
            with torch.no_grad():
                if renormalizes:
                    w *= len(w) / w.sum()
            gradients = torch.autograd.grad(((w.detach() if early else before) * L).sum(), W)
            gradients = [a if b is None else a + b for a, b in zip(gradients, leaked or [None] * len(W), strict=True)]
            network = [gradient.tolist() for gradient in gradients]
            reports.append({"weights": w.tolist(), "network_gradient": network})
        return reports

    return run


def outcomes(check, run):
    vectors = {name: vector for name, vector in check.read().items() if vector["source"] == "Algorithm 1"}
    return {name: check.check(vector, run) for name, vector in vectors.items()}


def test_algorithm_1_as_written_here_passes(scripts):
    found = outcomes(scripts[0], algorithm())
    assert {outcome.verdict for outcome in found.values()} == {"passes"}
    assert len(found) == 9


@pytest.mark.parametrize(
    ("mistake", "caught_by"),
    [
        ({"renormalizes": False}, "sum-of-weights"),
        ({"detaches": False}, "first-step"),
        ({"power": 2}, "first-step"),
        ({"sign": -1}, "lagging-task"),
        ({"is_mean": True}, "sum-over-tasks"),
        ({"keeps": False}, "adam-keeps-its-state"),
        ({"whole": False}, "two-parameters"),
        ({"leaks": True}, "network-gradient"),
        ({"early": True}, "network-gradient"),
    ],
    ids=str,
)
def test_each_usual_mistake_fails_the_vector_that_is_about_it(scripts, mistake, caught_by):
    assert outcomes(scripts[0], algorithm(**mistake))[caught_by].verdict == "differs"


def test_a_report_that_does_not_fit_is_refused(scripts):
    check, _ = scripts
    vector = check.read(["first-step"])["first-step"]
    assert check.check(vector, lambda *_: []).why == "0 steps reported of 1"
    with pytest.raises(ValueError, match="must report the weights"):
        check.check(vector, lambda *_: [{}])
    with pytest.raises(ValueError, match="run\\(\\) reports weight; a step has"):
        check.check(vector, lambda *_: [{"weight": [1.0]}])
    with pytest.raises(SystemExit, match="there is no vector first; there are"):
        check.read(["first"])
    with pytest.raises(SystemExit, match="is no Python file"):
        check.load("nowhere.py")


def test_what_is_not_reported_is_not_passed(scripts):
    check, _ = scripts
    run = check.load(str(ROOT / OURS))
    vector = check.read(["network-gradient"])["network-gradient"]
    silent = check.check(vector, lambda *given: [{"weights": step["weights"]} for step in run(*given)])
    assert silent == check.Outcome("cannot run", "reports no network_gradient, which this vector is about")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise NotImplementedError('nothing')", "first-step  cannot run  nothing"),
        ("return [{'weight': [1.0] * 3}]", "adapter.py: run() reports weight; a step has"),
    ],
)
def test_an_adapter_that_does_nothing_fails(tmp_path, body, said):
    (tmp_path / "adapter.py").write_text(f"def run(settings, steps, source):\n    {body}\n")
    found = run_check(str(tmp_path / "adapter.py"), "--only", "first-step")
    assert found.returncode == 1
    assert said in found.stdout + found.stderr
    assert "Traceback" not in found.stderr


def test_an_error_of_the_adapter_itself_keeps_its_traceback(tmp_path):
    (tmp_path / "adapter.py").write_text("def run(settings, steps, source):\n    return float('lr')\n")
    found = run_check(str(tmp_path / "adapter.py"), "--only", "first-step")
    assert found.returncode == 1
    assert "return float('lr')" in found.stderr


def test_the_runner_needs_python_alone():
    tree = ast.parse((FOLDER / "check.py").read_text())
    names = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert names <= sys.stdlib_module_names


def run_check(*arguments):
    command = [sys.executable, "vectors/check.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_command_line():
    passed = run_check(OURS, "--only", "first-step", "priorities")
    assert passed.returncode == 0, passed.stderr
    assert [line.split() for line in passed.stdout.splitlines()] == [["first-step", "passes"], ["priorities", "passes"]]


def test_gradnorm_pytorch_does_what_the_table_says():
    found = run_check("vectors/adapters/lucidrains.py", "--mean")
    verdicts = [line.split()[:2] for line in found.stdout.splitlines()]
    table = (FOLDER / "README.md").read_text().split("[start:outcomes]")[1]
    rows = dict(re.findall(r"^\| `([\w-]+)` \| ([^|]+?) \|", table, flags=re.M))
    assert sorted(rows) == NAMES
    assert found.returncode == 3
    for name, verdict in verdicts:
        assert rows[name].startswith({"passes": "passes", "differs": "**", "cannot": "–"}[verdict]), name
