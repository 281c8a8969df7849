"""The two parts of `gradnorm data nyuv2`: what is there and what is missing, and writing a prepared file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from gradnorm_studies.engine.errors import UsageError
from gradnorm_studies.vision.data.nyuv2.dataset import OFFICIAL, find
from gradnorm_studies.vision.data.nyuv2.folders import CHANNELS, SPLIT_FOLDERS
from gradnorm_studies.vision.data.nyuv2.official import LABELED, MAPPING, SPLITS
from gradnorm_studies.vision.data.nyuv2.prepared import write
from gradnorm_studies.vision.data.nyuv2.scenes import Scenes

HEADER = ("form", "what", "found", "remedy")
SOURCES = {
    LABELED: '"Labeled dataset" (2.8 GB) of https://cs.nyu.edu/~silberman/datasets/nyu_depth_v2.html',
    SPLITS: "the same authors' page on indoor segmentation and support inference",
    MAPPING: "the repository ankurhanda/nyuv2-meta-data on GitHub",
}
MTAN = "the link in the repository lorenmt/mtan on GitHub; unpack it"
ONE = "not needed: another form is there"


class Line(NamedTuple):
    """One line of the check's table."""

    form: str
    what: str
    found: str
    remedy: str = ""


class Check(NamedTuple):
    """What is at a place."""

    lines: list[Line]
    is_usable: bool
    """Whether `--data nyuv2 --root` takes it."""


def check(root: Path) -> Check:
    """What of each form is at `root`, a folder or a prepared file, what is missing, and where to get it."""
    if root.is_file():
        return _read_all("prepared file", root)
    if not root.is_dir():
        return Check(
            [Line("any", str(root), "does not exist", "create the folder and put one of the forms into it")], False
        )
    forms = [_of_files(root), _of_folders(root)]
    lines = [line for form in forms for line in form]
    complete = [form[0].form for form in forms if not any(line.remedy for line in form)]
    if not complete:
        return Check([*lines, *_prepared_inside(root)], False)
    lines = [line._replace(remedy=ONE) if line.remedy else line for line in lines]
    read = _read_all(complete[0], root)
    return Check([*lines, *read.lines], read.is_usable)


def prepare(root: Path, out: Path, advance: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Write a prepared file from the official files or the preprocessed folders.

    Args:
        root: The folder.
        out: The file, which must not exist.
        advance: Called as `(done, total)` after each image; the official ones take 0.4 s each.

    Raises:
        UsageError: `root` holds neither form, or `out` exists, is not an .npz file, or its folder does not exist.
    """
    if out.suffix != ".npz":
        raise UsageError(f"--out {out}: give a file that ends in .npz.")
    if out.exists():
        raise UsageError(f"--out {out} exists. It is left as it is: give another --out.")
    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: create its folder {out.parent} first.")
    write(out, _splits(root), advance)


def _splits(root: Path) -> dict[str, Scenes]:
    return {"train": find(root, "train"), "test": find(root, "test")}


def _of_files(root: Path) -> list[Line]:
    return [_file(root / name, remedy) for name, remedy in SOURCES.items()]


def _file(path: Path, source: str) -> Line:
    if not path.exists():
        return Line("official files", path.name, "missing", source)
    return Line("official files", path.name, f"{path.stat().st_size / 1e6:,.1f} MB")


def _of_folders(root: Path) -> list[Line]:
    lines = []
    for split, name in SPLIT_FOLDERS.items():
        counts = {channel: len(list((root / name / channel).glob("*.npy"))) for channel in CHANNELS}
        found = ", ".join(f"{count} {channel}" for channel, count in counts.items())
        is_whole = min(counts.values()) == max(counts.values()) > 0
        remedy = "" if is_whole else f"{OFFICIAL[split]} files of each: {MTAN}"
        lines.append(Line("folders", f"{name}/", found if any(counts.values()) else "missing", remedy))
    return lines


def _prepared_inside(root: Path) -> list[Line]:
    """A prepared file is named itself, not its folder."""
    return [Line("prepared file", path.name, "there", f"give --root {path}") for path in sorted(root.glob("*.npz"))]


def _read_all(form: str, root: Path) -> Check:
    """Read both splits as a run would."""
    try:
        splits = _splits(root)
        for scenes in splits.values():
            scenes[0]
    except UsageError as error:
        return Check([Line(form, "reading", "fails", str(error))], False)
    counts = {split: len(scenes) for split, scenes in splits.items()}
    found = ", ".join(f"{count} {split}" for split, count in counts.items())
    whole = ", ".join(f"{count} {split}" for split, count in OFFICIAL.items())
    return Check([Line(form, "images", found, "" if counts == OFFICIAL else f"the whole data set has {whole}")], True)
