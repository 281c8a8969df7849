"""How far `reduce="norms"` is from the exact norm: 2, 4 and 8 gloo processes on this machine, real digits.

Every process holds 32 scans a step. One balancer adds up gradients, which is exact and trains the network; another adds
up norms on the same network and losses. Compared: the gradient norm that each finds a task, and the weights in the end.

    python benchmarks/reduction.py
"""

import argparse
import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from sklearn.datasets import load_digits
from torch import Tensor, nn

from gradnorm import GradNorm

TASKS = ["digit", "ink", "picture"]
PER_PROCESS = 32
COLUMNS = ["processes", "when", *(f"{task}: mean of norms / norm of mean" for task in TASKS), "largest difference of w"]


class Network(nn.Module):
    """Class, amount of ink, and the picture itself, from one trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
        outputs = {"digit": 10, "ink": 1, "picture": 64}
        self.heads = nn.ModuleDict({name: nn.Linear(128, size) for name, size in outputs.items()})

    def losses(self, x: Tensor, digit: Tensor) -> dict[str, Tensor]:
        """Of one batch of scans, [B, 64] and [B]."""
        features = self.trunk(x)
        out = {name: head(features) for name, head in self.heads.items()}
        return {
            "digit": nn.functional.cross_entropy(out["digit"], digit),
            "ink": 100 * (out["ink"].squeeze(1) - x.mean(1)).square().mean(),
            "picture": (out["picture"] - x).square().mean(),
        }


def work(rank: int, world: int, steps: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    scans, digits = load_digits(return_X_y=True)
    x, digit = torch.tensor(scans / 16, dtype=torch.float32), torch.tensor(digits)
    torch.manual_seed(0)
    network = Network()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    shared = network.trunk[2]
    exact, norms = (GradNorm(TASKS, shared=shared, reduce=how, history=steps) for how in ("gradients", "norms"))
    order = torch.Generator().manual_seed(1)
    for _ in range(steps):
        mine = torch.randint(len(x), (world, PER_PROCESS), generator=order)[rank]
        for balancer in (norms, exact):
            optimizer.zero_grad()
            balancer(network.losses(x[mine], digit[mine])).backward()
            balancer.step()
        for parameter in network.parameters():  # what DistributedDataParallel does
            assert parameter.grad is not None
            dist.all_reduce(parameter.grad)
            parameter.grad.div_(world)
        optimizer.step()
    if rank == 0:
        # Norms of the unweighted losses: the two balancers' weights differ by now.
        raw = [
            torch.tensor([float(row["norm"]) / float(row["weight"]) for row in b.history.rows()])
            for b in (norms, exact)
        ]
        ratios = (raw[0] / raw[1]).view(-1, len(TASKS))
        found = {"ratios": ratios, "difference": (norms.weights - exact.weights).abs().max().item()}
        torch.save(found, f"{folder}/found")
    dist.barrier()
    os._exit(0)  # gloo's teardown aborts now and then after the work is done


def measure(world: int, steps: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        spawn = mp.get_context("spawn").Process
        workers = [spawn(target=work, args=(rank, world, steps, folder)) for rank in range(world)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return torch.load(f"{folder}/found")


def table(found: dict[int, dict], steps: int) -> str:
    lines = [
        f"{PER_PROCESS} scans a process and step, {steps} steps, made by "
        f"`python benchmarks/reduction.py --steps {steps}`; medians over a tenth of the steps, 1 is exact.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "| " + " | ".join("---" for _ in COLUMNS) + " |",
    ]
    for world, each in found.items():
        tenth = max(1, steps // 10)
        for when, part in (("start", each["ratios"][:tenth]), ("end", each["ratios"][-tenth:])):
            ratios = " | ".join(f"{ratio:.2f}" for ratio in part.median(0).values.tolist())
            difference = f"{each['difference']:.3f}" if when == "end" else ""
            lines.append(f"| {world} | {when} | {ratios} | {difference} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "reduction.md")
    arguments = parser.parse_args()
    found = {world: measure(world, arguments.steps) for world in arguments.processes}
    text = table(found, arguments.steps)
    arguments.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
