"""The report is one file that needs no other, and says what the tables say."""

import html
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from gradnorm_studies.analysis import figures
from gradnorm_studies.analysis.claims import RULES
from gradnorm_studies.analysis.report import Figure, StudyReport, Table
from gradnorm_studies.weightings import METHODS

VISIONS = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
"""What is seen of linear RGB (Machado et al., 2009, severity 1)."""


def lab(color: str, vision: np.ndarray) -> np.ndarray:
    """[3], a color in CIELAB as it is seen."""
    rgb = np.array(to_rgb(color))
    linear = np.clip(vision @ np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4), 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = (np.cbrt(v) if v > 0.008856 else 7.787 * v + 16 / 116 for v in to_xyz @ linear / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.fixture
def report(tmp_path: Path) -> StudyReport:
    panel = figures.Curves("T=2", np.arange(3.0), {"equal": np.ones((2, 3)), "gradnorm": np.zeros((2, 3))}, "loss")
    ends = figures.Ends("T=2", {"equal": np.ones(2), "other": np.zeros(2)}, "loss")
    pictures = [
        Figure(figures.over_time(tmp_path / "a.svg", [panel]), "over time <1>"),
        Figure(figures.finals(tmp_path / "b.png", [ends, ends]), "ends"),
    ]
    table = Table("Claims", ("claim", "verdict"), [("a < b & c", "holds"), ("|x|", "does not hold")], "a note")
    settings = Table("Settings", ("setting",), [("steps",)])
    lines = ["Compared: 2 methods.", "gradnorm ends best.", "Verdicts: holds 1."]
    made = "Trained 2026-01-31 in 3 s; commit abc."
    return StudyReport(
        "Title", "gradnorm reproduce toy", ["Lead."], [table], pictures, settings, summary=lines, made=made
    )


def test_html_refers_to_nothing_outside_itself(report: StudyReport):
    page = report.html()
    assert re.findall(r"""(?:src|href)=["'](?!data:)""", page) == []
    assert "url(" not in page
    assert "http" not in page
    assert "<script" not in page
    assert page.count("data:image/png;base64,") == 1
    assert page.count("data:image/svg+xml;base64,") == 1
    sizes = [tuple(map(int, size)) for size in re.findall(r'width="(\d+)" height="(\d+)"', page)]
    assert sizes[0] == (506, 352)  # 4.6 by 3.2 inches


def test_html_is_well_formed_and_escaped(report: StudyReport):
    class Checker(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []

        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "img"):
                self.open.append(tag)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    checker = Checker()
    checker.feed(report.html())
    assert checker.open == []
    assert "a &lt; b &amp; c" in report.html()
    assert 'class="holds">holds' in report.html()
    assert 'class="fails">does not hold' in report.html()


def test_the_page_leads_with_the_summary_and_a_figure(report: StudyReport):
    page = report.html()
    order = ["<h1>", *report.summary, "<figure>", "Lead.", "Trained 2026-01-31", "<table>", "ends</figcaption>"]
    places = [page.index(html.escape(part)) if "<" not in part else page.index(part) for part in order]
    assert places == sorted(places)
    text = report.markdown()
    assert text.index("- Verdicts: holds 1.") < text.index("Lead.")
    assert report.made not in text  # tables are the same wherever they are made


def test_the_page_has_a_dark_scheme_and_figures_stay_on_white(report: StudyReport):
    page = report.html()
    assert "prefers-color-scheme: dark" in page
    dark = page[page.index("prefers-color-scheme: dark") :]
    for name in re.findall(r"var\((--\w+)\)", page):
        assert f"{name}:" in page, name
    light = re.findall(r"(--\w+): #", page[: page.index("prefers-color-scheme: dark")])
    assert light == re.findall(r"(--\w+): #", dark)  # every color has its other one
    assert re.search(r"figure img \{[^}]*background: #fff", page)


def test_markdown_has_every_row_and_the_command(report: StudyReport):
    text = report.markdown()
    assert "`gradnorm reproduce toy`" in text
    assert "| a < b & c | holds |" in text
    assert r"| \|x\| | does not hold |" in text
    assert "a note" in text


def test_every_method_has_a_color_of_its_own_for_color_blind_readers_too():
    assert {*METHODS} <= {*figures.COLORS}
    for matrix in VISIONS.values():
        seen = [lab(color, np.array(matrix)) for color in figures.COLORS.values()]
        distances = [np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i]]
        assert min(distances) > 15


def test_the_two_updates_are_saturated_and_the_others_muted():
    chroma = {name: np.hypot(*lab(color, np.eye(3))[1:]) for name, color in figures.COLORS.items()}
    others = [value for name, value in chroma.items() if name not in figures.LEADING]
    assert tuple(RULES.values()) == figures.LEADING
    assert min(chroma[name] for name in figures.LEADING) > 40
    assert np.mean(others) < 30


def test_curves_of_the_updates_are_on_top_of_eleven_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append(figure) or path)
    values = {name: np.full((2, 3), float(i)) for i, name in enumerate(METHODS)}
    figures.over_time(tmp_path / "a.png", [figures.Curves("T=2", np.arange(3.0), values, "loss")])
    (ax,) = drawn[0].axes
    lines = dict(zip(values, ax.lines, strict=True))
    others = [line for name, line in lines.items() if name not in figures.LEADING]
    for name in figures.LEADING:
        assert lines[name].get_zorder() > max(line.get_zorder() for line in others)
        assert lines[name].get_linewidth() > max(line.get_linewidth() for line in others)
    assert [line.get_color() for line in ax.lines] == [figures.COLORS[name] for name in METHODS]


def test_ticks_of_a_logarithmic_axis_are_plain_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append(figure) or path)
    panel = figures.Curves("w", np.arange(3.0), {"a": np.array([[0.2, 1.0, 5.0]])}, "weight", log=True)
    figures.over_time(tmp_path / "a.svg", [panel])
    (ax,) = drawn[0].axes
    ax.figure.canvas.draw()
    labels = [label.get_text() for label in ax.get_yticklabels(which="both")]
    assert {"1", "0.2"} <= {*labels}


def test_figures_are_the_same_bytes_each_time(tmp_path: Path):
    ends = figures.Ends("T=2", {"equal": np.ones(2)}, "loss")
    first, second = (figures.finals(tmp_path / name, [ends]).read_bytes() for name in ("a.png", "b.png"))
    assert first == second


def test_what_json_has_no_number_for_is_null(report: StudyReport, tmp_path: Path):
    replace(report, data={"claims.json": [{"margin": math.nan, "ends": (1.0, math.inf)}]}).write(tmp_path)
    assert json.loads((tmp_path / "claims.json").read_text()) == [{"margin": None, "ends": [1.0, None]}]
