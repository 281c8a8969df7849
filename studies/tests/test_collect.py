"""`results/collect.py` takes finished studies, and says so where there is none."""

import shutil
import subprocess
import sys
from pathlib import Path

COLLECT = Path(__file__).parents[2] / "results" / "collect.py"
PAGE = "".join(f"<!-- {name}: written by collect.py -->\n<!-- end of {name} -->\n" for name in ("studies", "claims"))


def collected(folder, run, where=None):
    (folder / "results").mkdir(parents=True)
    (folder / "docs/images").mkdir(parents=True)
    shutil.copyfile(COLLECT, folder / "results/collect.py")
    (folder / "results/README.md").write_text(PAGE)
    command = [sys.executable, str(folder / "results/collect.py"), run]
    return subprocess.run(command, cwd=where or folder, capture_output=True, text=True, check=False)


def test_a_folder_without_a_finished_study_is_refused(tmp_path):
    done = collected(tmp_path, "runs/typo")
    assert done.returncode == 1
    assert "typo holds no finished study: give a folder" in done.stderr
    assert not (tmp_path / "results/typo").exists()


def test_a_run_is_taken_by_its_name_from_wherever_it_is_called(tmp_path):
    run = tmp_path / "runs/toy"
    (run / "figures").mkdir(parents=True)
    (run / "table.md").write_text("# Toy")
    (run / "config.json").write_text("{}")
    (run / "figures/gain.svg").write_bytes(b"")
    assert collected(tmp_path, ".", where=run).returncode == 0
    assert (tmp_path / "results/toy/table.md").read_text() == "# Toy"
    assert (tmp_path / "docs/images/toy-gain.svg").exists()


def test_images_of_nyuv2_are_left_where_they_are(tmp_path):
    for name, data in (("rooms", "rooms"), ("nyuv2", "nyuv2")):
        run = tmp_path / "runs" / name
        (run / "figures").mkdir(parents=True)
        (run / "table.md").write_text("")
        (run / "config.json").write_text(f'{{"data": "{data}"}}')
        for picture in ("pictures.png", "losses.svg"):
            (run / "figures" / picture).write_bytes(b"")
        assert collected(tmp_path / name, str(run)).returncode == 0
    taken = {path.name for path in tmp_path.glob("*/docs/images/*")}
    assert taken == {"rooms-pictures.png", "rooms-losses.svg", "nyuv2-losses.svg"}
