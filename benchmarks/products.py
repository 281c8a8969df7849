"""When T vector–Jacobian products are better taken as one: the measurement behind `MOST_BATCHED`.

The path is what most often lies between the heads and `W`: an activation and a layer. Both ways are timed in turn in
one process, on several sizes of the features; the table has the median time of T single products over that of one
batched product, so that above 1 the batched one wins.

Run `python benchmarks/products.py`, with `--device cuda` on a GPU.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from gradnorm.capture._operations import Path as Kind
from gradnorm.capture._products import batched_product, product
from report import table

TASKS = (2, 4, 10, 16, 64)
LAYERS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "linear 32 × 64": lambda: (nn.Linear(64, 64), torch.randn(32, 64)),
    "linear 100 × 100": lambda: (nn.Linear(100, 100), torch.randn(100, 100)),
    "linear 128 × 256": lambda: (nn.Linear(256, 256), torch.randn(128, 256)),
    "linear 512 × 512": lambda: (nn.Linear(512, 512), torch.randn(512, 512)),
    "linear 4096 × 1024": lambda: (nn.Linear(1024, 1024), torch.randn(4096, 1024)),
    "conv 8 × 16 × 16²": lambda: (nn.Conv2d(16, 16, 3, padding=1), torch.randn(8, 16, 16, 16)),
    "conv 8 × 64 × 32²": lambda: (nn.Conv2d(64, 64, 3, padding=1), torch.randn(8, 64, 32, 32)),
}
MOST = 2**26
"""Numbers in all T gradients, above which nothing is tried."""


def seconds(run: Callable[[], object], device: str) -> float:
    """The time of one run, the device's included."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def ratio(build: Callable[[], tuple[nn.Module, Tensor]], tasks: int, device: str, rounds: int) -> tuple[int, float]:
    """Numbers in all T gradients, and the time of single products over that of a batched one."""
    layer, x = build()
    layer, x = layer.to(device), x.to(device)
    features = layer(x.requires_grad_()).relu()
    node, _ = get_gradient_edge(features)[:2]
    used = [layer.get_parameter("weight")]
    gradients = [{0: torch.randn_like(features)} for _ in range(tasks)]
    count = tasks * features.numel()
    if count > MOST:
        return count, float("nan")
    single = lambda: [product(node, each, used, Kind.BATCHED, is_again=True) for each in gradients]  # noqa: E731
    batched = lambda: batched_product(node, gradients, used)  # noqa: E731
    for run in (single, batched, single, batched):
        run()
    times = [(seconds(single, device), seconds(batched, device)) for _ in range(rounds)]
    return count, statistics.median(one for one, _ in times) / statistics.median(other for _, other in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    rows = []
    for name, build in LAYERS.items():
        cells = [name]
        for tasks in TASKS:
            count, value = ratio(build, tasks, arguments.device, arguments.rounds)
            cells.append("–" if value != value else f"{value:.2f} ({count / 2**10:,.0f} k)")
        rows.append(cells)
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu, 2 threads"
    option = " --device cuda" if arguments.device == "cuda" else ""
    page = "\n\n".join(
        (
            "# T products, or one",
            f"`python benchmarks/products.py{option}`: torch {torch.__version__}, {device}. Time of T single products "
            "over that of one batched product (above 1 the batched one wins); in brackets the numbers in all T "
            "gradients, by which `MOST_BATCHED` in `src/gradnorm/capture/_products.py` decides.",
            table(["features", *(f"T={tasks}" for tasks in TASKS)], rows),
        )
    )
    (arguments.out / f"products-{arguments.device}.md").write_text(page + "\n")
    print(page)


if __name__ == "__main__":
    main()
