"""A training that is killed, wherever it happens to be, and goes on from its last checkpoint, gives the same bits."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

STEPS = 300
SCRIPT = """
import os, sys
import torch
from gradnorm import GradNorm

steps, path = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
torch.manual_seed(0)
trunk = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Dropout(0.1), torch.nn.Linear(8, 8))
heads = torch.nn.ModuleList(torch.nn.Linear(8, 1) for _ in range(3))
parameters = [*trunk.parameters(), *heads.parameters()]
optimizer = torch.optim.Adam(parameters, lr=1e-2)
balancer = GradNorm(3, shared=trunk[3], initial_losses=3)
balancer.attach(optimizer)
first = 0
if os.path.exists(path):
    state = torch.load(path, weights_only=True)
    for part, saved in zip((trunk, heads, optimizer, balancer), state["parts"]):
        part.load_state_dict(saved)
    first = state["step"]
    torch.set_rng_state(state["random"])
print("from", first, flush=True)
for step in range(first, steps):
    features = trunk(torch.randn(16, 6))
    losses = [10**i * (head(features) - 1).square().mean() for i, head in enumerate(heads)]
    if step % 7 == 3:
        losses[1] = None
    if step % 50 == 20:
        losses[2] = losses[2] * float("nan")
    loss = balancer(losses)
    optimizer.zero_grad()
    loss.backward()
    for p in parameters:
        if p.grad is not None:
            p.grad.nan_to_num_()
    optimizer.step()
    if step % 10 == 9:
        parts = [part.state_dict() for part in (trunk, heads, optimizer, balancer)]
        torch.save({"step": step + 1, "parts": parts, "random": torch.get_rng_state()}, path + ".part")
        os.replace(path + ".part", path)
        print(step + 1, flush=True)
with open(path + ".history", "w") as file:
    print(*balancer.history.rows(), balancer.time_averaged_weights(), sep="\\n", file=file)
"""


def training(path, steps=STEPS):
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(steps), str(path)]
    environment = {"PYTHONPATH": str(Path(__file__).parents[2] / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def lines_until(process, wanted):
    for line in process.stdout:
        if line.strip() == str(wanted):
            return


def test_killed_twice_and_resumed_is_uninterrupted_bitwise(tmp_path):
    whole = training(tmp_path / "whole")
    seed = time.time_ns()
    print("seed", seed)  # shown if the test fails
    draw = random.Random(seed)
    for part in range(2):
        process = training(tmp_path / "killed")
        lines_until(process, 10 * draw.randint(1 + 9 * part, 9 + 9 * part))
        time.sleep(draw.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    reached = torch.load(tmp_path / "killed", weights_only=True)["step"]
    assert 0 < reached < STEPS
    last = training(tmp_path / "killed")
    said, _ = last.communicate(timeout=120)
    assert last.returncode == 0
    assert f"from {reached}" in said
    whole.communicate(timeout=120)
    wanted, found = (torch.load(tmp_path / name, weights_only=True)["parts"] for name in ("whole", "killed"))
    for a, b in zip(_tensors(wanted), _tensors(found), strict=True):
        assert torch.equal(a, b)
    whole_history, history = (
        Path(tmp_path, f"{name}.history").read_text().splitlines() for name in ("whole", "killed")
    )
    assert len(history) > 1
    assert history == whole_history[-len(history) :], "what the resumed part recorded"
    assert found[3]["_loss_weights.skipped"] == STEPS // 50


def _tensors(state):
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict | list):
        for value in state.values() if isinstance(state, dict) else state:
            yield from _tensors(value)
