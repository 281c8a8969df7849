"""Take the small results of finished studies into this folder, and write the tables of all studies and claims.

    python results/collect.py runs/units runs/toy   # folders of `gradnorm reproduce`; none: only the tables again

Of each run: `table.md`, `claims.json` and `ends.json` (or a search's `learning_rates.json`), `config.json` and
`manifest.json`, in a folder of the same name; its pictures, SVG and PNG, into `docs/images`.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
from scipy.stats import ttest_1samp

from gradnorm_studies.analysis.claims import RULES, verdict

RESULTS = Path(__file__).parent
IMAGES = RESULTS.parent / "docs" / "images"
RIVALS = ("equal", "divided", "uncertainty", "geometric", "dwa", "random", "single")
WORDS = {"holds": "better", "does not hold": "worse", "undecided": "≈", "not enough to say": "?", "a run diverged": "!"}
SURE = 0.95
"""A decided difference is bold if Student's t leaves no more than the rest to chance."""
SHOWS_IMAGES = "pictures.png"
"""The picture that shows images of the data set, which are not ours to publish if they are NYUv2's."""
KEPT = ("table.md", "claims.json", "ends.json", "learning_rates.json", "manifest.json", "config.json")


def take(run: Path) -> None:
    """Copy the small files of one run, and its pictures as `NAME-PICTURE.png`."""
    if not (run / "table.md").is_file():
        raise SystemExit(f"{run} holds no finished study: give a folder that `gradnorm reproduce` wrote.")
    folder = RESULTS / run.name
    folder.mkdir(exist_ok=True)
    for name in KEPT:
        if (run / name).exists():
            shutil.copyfile(run / name, folder / name)
    is_theirs = json.loads((run / "config.json").read_text(encoding="utf-8")).get("data") == "nyuv2"
    for picture in [*(run / "figures").glob("*.svg"), *(run / "figures").glob("*.png")]:
        if not (is_theirs and picture.name == SHOWS_IMAGES):
            shutil.copyfile(picture, IMAGES / f"{run.name}-{picture.name}")


def claims_table() -> str:
    """Every finding of every study, those on one claim together."""
    rows = []
    for path in sorted(RESULTS.glob("*/claims.json")):
        table = (path.parent / "table.md").read_text(encoding="utf-8")
        command = table.split("Made by `")[1].split("`")[0]
        commit = json.loads((path.parent / "manifest.json").read_text(encoding="utf-8"))["commit"]
        for finding in json.loads(path.read_text(encoding="utf-8")):
            rows.append({**finding, "command": command, "commit": commit, "study": path.parent.name})
    order = {text: place for place, text in enumerate(dict.fromkeys(row["text"] for row in rows))}
    rows.sort(key=lambda row: order[row["text"]])
    lines = ["| claim | from | study | we found | seeds | verdict | command | commit |", "| --- " * 8 + "|"]
    for row in rows:
        decided = f"**{row['verdict']}**" if row["verdict"] == "holds" else row["verdict"]
        where = f"{row['study']}: {row['problem']}"
        cells = (row["text"], row["source"], where, row["found"], str(row["seeds"]), decided)
        lines.append(
            "| " + " | ".join((*cells, f"`{row['command']}`", row["commit"])).replace("|cos|", r"\|cos\|") + " |"
        )
    return "\n".join(lines)


def matrix() -> str:
    """Both updates against every other method, on every study that compares methods."""
    header = ["study: problem", "compared by", "update", *RIVALS]
    lines = ["| " + " | ".join(header) + " |", "| --- " * len(header) + "|"]
    for path in sorted(RESULTS.glob("*/ends.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        for problem, ends in found["ends"].items():
            for rule, update in RULES.items():
                if update not in ends or "random" not in ends:  # a sweep
                    continue
                cells = [_against(ends, update, rival, found) for rival in RIVALS]
                first = (f"{path.parent.name}: {problem}", found["quantity"], rule)
                lines.append("| " + " | ".join((*first, *cells)) + " |")
    return "\n".join(lines)


def _against(ends: dict, update: str, rival: str, found: dict) -> str:
    """A word for the paired differences."""
    if rival not in ends:
        return ""
    margins = np.array(ends[update]) - np.array(ends[rival])
    found_so = "not enough to say" if found["short"] else verdict(margins if found["largest"] else -margins)
    is_sure = found_so in ("holds", "does not hold") and ttest_1samp(margins, 0.0).pvalue < 1 - SURE
    return f"**{WORDS[found_so]}**" if is_sure else WORDS[found_so]


def written(text: str, name: str, table: str) -> str:
    """The text with the table between the comments of that name."""
    start, end = f"<!-- {name}: written by collect.py -->", f"<!-- end of {name} -->"
    before, rest = text.split(start)
    return f"{before}{start}\n{table}\n{end}{rest.split(end)[1]}"


def main() -> None:
    """Take the runs that are named, and write the tables."""
    for run in sys.argv[1:]:
        take(Path(run).resolve())  # of which the name is known
    page = RESULTS / "README.md"
    text = page.read_text(encoding="utf-8")
    page.write_text(written(written(text, "studies", matrix()), "claims", claims_table()), encoding="utf-8")


if __name__ == "__main__":
    main()
