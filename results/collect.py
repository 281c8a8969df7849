"""Take the small results of finished studies into this folder, and write the table of all claims.

    python results/collect.py runs/units runs/toy   # folders of `gradnorm reproduce`; none: only the table again

Of each run: `table.md`, `claims.json` (or a search's `learning_rates.json`), `config.json` and `manifest.json`, in a
folder of the same name; its pictures into `docs/images`.
"""

import json
import shutil
import sys
from pathlib import Path

RESULTS = Path(__file__).parent
IMAGES = RESULTS.parent / "docs" / "images"
START, END = "<!-- claims: written by collect.py -->", "<!-- end of claims -->"
KEPT = ("table.md", "claims.json", "learning_rates.json", "manifest.json", "config.json")


def take(run: Path) -> None:
    """Copy the small files of one run, and its pictures as `NAME-PICTURE.png`."""
    folder = RESULTS / run.name
    folder.mkdir(exist_ok=True)
    for name in KEPT:
        if (run / name).exists():
            shutil.copyfile(run / name, folder / name)
    for picture in (run / "figures").glob("*.png"):
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
        verdict = f"**{row['verdict']}**" if row["verdict"] == "holds" else row["verdict"]
        where = f"{row['study']}: {row['problem']}"
        cells = (row["text"], row["source"], where, row["found"], str(row["seeds"]), verdict)
        lines.append(
            "| " + " | ".join((*cells, f"`{row['command']}`", row["commit"])).replace("|cos|", r"\|cos\|") + " |"
        )
    return "\n".join(lines)


def main() -> None:
    """Take the runs that are named, and write the table."""
    for run in map(Path, sys.argv[1:]):
        take(run)
    page = RESULTS / "README.md"
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(START)
    page.write_text(f"{before}{START}\n{claims_table()}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
