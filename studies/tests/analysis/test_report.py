"""The report is one file that needs no other, and says what the tables say."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from gradnorm_studies.analysis import figures
from gradnorm_studies.analysis.report import Figure, StudyReport, Table


@pytest.fixture
def report(tmp_path: Path) -> StudyReport:
    panel = figures.Curves("T=2", np.arange(3.0), {"equal": np.ones((2, 3)), "gradnorm": np.zeros((2, 3))}, "loss")
    ends = figures.Ends("T=2", {"equal": np.ones(2), "other": np.zeros(2)}, "loss")
    pictures = [
        Figure(figures.over_time(tmp_path / "a.png", [panel]), "over time <1>"),
        Figure(figures.finals(tmp_path / "b.png", [ends, ends]), "ends"),
        Figure(figures.images(tmp_path / "c.png", {"row": [np.eye(4), np.eye(4)]}), "samples"),
    ]
    table = Table("Claims", ("claim", "verdict"), [("a < b & c", "holds"), ("|x|", "does not hold")], "a note")
    settings = Table("Settings", ("setting",), [("steps",)])
    return StudyReport("Title", "gradnorm reproduce toy", ["Lead."], [table], pictures, settings)


def test_html_refers_to_nothing_outside_itself(report: StudyReport):
    page = report.html()
    assert re.findall(r"""(?:src|href)=["'](?!data:)""", page) == []
    assert "url(" not in page
    assert "http" not in page
    assert "<script" not in page
    assert page.count("data:image/png;base64,") == 3


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


def test_markdown_has_every_row_and_the_command(report: StudyReport):
    text = report.markdown()
    assert "`gradnorm reproduce toy`" in text
    assert "| a < b & c | holds |" in text
    assert r"| \|x\| | does not hold |" in text
    assert "a note" in text


def test_figures_are_the_same_bytes_each_time(tmp_path: Path):
    ends = figures.Ends("T=2", {"equal": np.ones(2)}, "loss")
    first, second = (figures.finals(tmp_path / name, [ends]).read_bytes() for name in ("a.png", "b.png"))
    assert first == second
