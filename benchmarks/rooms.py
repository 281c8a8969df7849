"""How many rooms a second are drawn, on this machine: the scenes in NumPy, and scenes, images and truth together.

A batch is what `Rooms.batch` gives. On the CPU with one thread, as in a data loader's worker; on CUDA if there is one.

    python benchmarks/rooms.py
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from gradnorm_studies.vision.data.rooms import Rooms

SIZES = ((32, 8), (64, 16), (128, 32), (320, 80))
"""Image and truth, in pixels."""
BATCH = {"cpu": 8, "cuda": 24}
COLUMNS = ["device", "image → truth", "scenes alone / s", "images / s"]


def rate(count: int, work: Callable[[], object], rounds: int, device: str) -> float:
    """Of `count` things done by `work`: the median over rounds, after one that does not count."""
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return count / median(seconds[1:])


def measure(device: str, size: int, out: int, rounds: int) -> tuple[float, float]:
    n = BATCH[device]
    rooms = Rooms("train", n, size=size, out=out)
    scenes = rate(n, lambda: [rooms.scene(i) for i in range(n)], rounds, device)
    return scenes, rate(n, lambda: rooms.batch(range(n), device), rounds, device)


def table(rows: list[tuple[str, int, int, float, float]], rounds: int) -> str:
    devices = ", ".join(f"{device}: batches of {BATCH[device]}" for device in dict.fromkeys(row[0] for row in rows))
    lines = [
        f"Rendered rooms per second, by `python benchmarks/rooms.py --rounds {rounds}`; one CPU thread; {devices}; "
        f"the median of {rounds} rounds. PyTorch {torch.__version__}.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "| " + " | ".join("---" for _ in COLUMNS) + " |",
    ]
    for device, size, out, scenes, images in rows:
        lines.append(f"| {device} | {size}×{size} → {out}×{out} | {scenes:.0f} | {images:.3g} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "rooms.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    rounds = arguments.rounds
    rows = [(device, size, out, *measure(device, size, out, rounds)) for device in devices for size, out in SIZES]
    text = table(rows, rounds)
    arguments.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
