"""Every page of the documentation: its blocks run when pasted, its links lead somewhere, the site knows it."""

import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import gradnorm
import gradnorm.lightning
import gradnorm.plots
import gradnorm.torchjd
import gradnorm.transformers

from .blocks import ROOT, blocks, check_command, run
from .page_checks import MARK

DOCS = ROOT / "docs"
PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
BIN = os.path.dirname(sys.executable)
KINDS = {("python", False), ("python", True), ("bash", False), ("text", False), ("diff", False)}
PROGRESS = {"frameworks/lightning.md", "frameworks/transformers.md", "frameworks/loggers.md"}
"""Pages on which trainers print their own tables and times."""
CHAOTIC = {"guide/choices.md", "guide/lbfgs.md", "settings/amp.md"}
"""Pages whose figures differ from machine to machine by more than a little."""
SLOW = {"guide/lbfgs.md"}
"""Pages whose blocks compute for half a minute."""
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d*)?(?:e[-+]?\d+)?")


def environment(folder):
    """As a user's, in an empty home; one thread, since tests share the machine."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV", "WANDB"))}
    paths = {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": f"{ROOT}/src:{ROOT}/studies/src"}
    return {
        **kept,
        **paths,
        "HOME": str(folder),
        "OMP_NUM_THREADS": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache"),
    }


ABORTED = "terminate called without an active exception"
"""What gloo's teardown now and then ends a process with after its work is done, with this package or without."""


def execute(command, folder, what, tries=3):
    try:
        result = run(*command, cwd=folder, env=environment(folder), timeout=170)
    except subprocess.TimeoutExpired:
        pytest.fail(f"{what} takes longer than 170 seconds")
    if result.returncode and ABORTED in result.stderr and tries > 1:
        return execute(command, folder, what, tries - 1)
    assert result.returncode == 0, f"{what}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    return result.stdout


def in_folder(line):
    """Whether a shell line runs a file of the page itself."""
    return re.match(r"(torchrun|python|accelerate launch) .*\b\w+\.py", line) and not (ROOT / line.split()[1]).is_file()


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.slow) if page in SLOW else page for page in PAGES]
)
def test_blocks_run_when_pasted(page, tmp_path):
    """Each prints what is shown below it, and none ends with a weight at the floor."""
    found = blocks(DOCS / page)
    inline = [block.text for block in found if block.language == "python" and block.title is None]
    for block in found:
        assert (block.language, block.title is not None) in KINDS, f"{page}: a block of kind {block.language!r}"
        if block.title is not None:
            (tmp_path / block.title).write_text(block.text)
    if inline:
        shutil.copy(Path(__file__).with_name("page_checks.py"), tmp_path)
        parts = ["import page_checks; page_checks.watch()"]
        for text in inline:
            parts += [text, "page_checks.end_of_block()"]
        (tmp_path / "page_blocks.py").write_text("\n".join([*parts, "page_checks.end_of_page()"]))
        said = execute([sys.executable, "page_blocks.py"], tmp_path, f"{page}: its python blocks").split(MARK)[:-1]
        assert "".join(said).strip() or "assert" in inline[-1], f"{page}: its blocks show nothing and check nothing"
        if page not in PROGRESS:
            for printed, shown in zip(said, shown_below(found), strict=True):
                assert_alike(printed, shown, page)
    for line in [line for block in found if block.language == "bash" for line in block.text.splitlines()]:
        if in_folder(line):
            execute(["bash", "-c", line], tmp_path, f"{page}: {line}")
        else:
            check_command(line)


def shown_below(found):
    """Of each block of Python that is run, the next block of the page, if it is its output."""
    for block, below in zip(found, [*found[1:], None], strict=True):
        if block.language == "python" and block.title is None:
            is_output = below is not None and below.language == "text" and not below.text.startswith("$")
            yield below.text if is_output else ""


def assert_alike(printed, shown, page):
    """The same words; figures may differ by a little on another machine."""
    printed = re.sub(r", device='\w+:\d+'", "", printed)
    words = [NUMBER.sub("#", text).split() for text in (printed, shown)]
    assert words[0] == words[1], f"{page}: a block prints\n{printed}\nand what is shown is\n{shown}"
    if page not in CHAOTIC:
        ours, theirs = ([float(n.replace(",", "") or 0) for n in NUMBER.findall(text)] for text in (printed, shown))
        assert ours == pytest.approx(theirs, rel=0.25, abs=0.1), f"{page}: a block prints\n{printed}"


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_exist(page):
    text = re.sub(r"^```.*?^```$", "", (DOCS / page).read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert ((DOCS / page).parent / target).exists(), target


def listed(entries):
    for entry in entries:
        value = next(iter(entry.values())) if isinstance(entry, dict) else entry
        yield from listed(value) if isinstance(value, list) else [value]


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    assert sorted(listed(yaml.safe_load(text)["nav"])) == PAGES


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    built = run(f"{BIN}/mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder), env=environment(folder))
    assert built.returncode == 0, built.stderr
    return folder


def test_the_site_builds_without_a_warning(site):
    assert (site / "index.html").exists()
    assert not list(dead_links(site))


def test_a_missing_page_leads_home(site):
    targets = re.findall(r'<li><a href="/([^"]+)">', (site / "404.html").read_text())
    assert len(targets) == 5
    assert all((site / target).exists() for target in targets)


def test_the_reference_has_every_public_name_with_its_signature(site):
    page = (site / "reference/api/index.html").read_text() + (site / "reference/functional/index.html").read_text()
    documented = set(re.findall(r'id="(gradnorm[\w.]*)"', page))
    names = {f"gradnorm.{name}" for name in gradnorm.__all__ if name != "functional"}
    names |= {f"gradnorm.functional.{name}" for name in gradnorm.functional.__all__}
    for module in (gradnorm.plots, gradnorm.lightning, gradnorm.torchjd, gradnorm.transformers):
        own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        names |= {f"{module.__name__}.{name}" for name in own if not name.startswith("_")}
    assert not names - documented
    text = re.sub(r"<[^>]+>", "", page).replace("&#34;", '"').replace("&quot;", '"')
    assert 'update: Update | "descent" | "closed-form" = "descent",' in text
    assert "shared: Parameter | Tensor | Module | Iterable[Tensor] | str | None = None," in text
    assert "alpha: float = 0.12," in text


def test_links_lead_to_the_repository_once_it_has_an_address(site, tmp_path):
    assert "/edit/main/" not in (site / "guide/alpha/index.html").read_text()
    assert 'class="md-source"' not in (site / "index.html").read_text()
    for path in ROOT.iterdir():
        if path.name != "pyproject.toml" and not path.name.startswith("."):
            (tmp_path / path.name).symlink_to(path)
    project = (ROOT / "pyproject.toml").read_text()
    assert "# [project.urls]\n# Repository" in project
    project = re.sub(
        r"# \[project.urls\]\n# .*",
        '[project.urls]\nRepository = "https://example.org/g"\nDocumentation = "https://example.org/d"',
        project,
    )
    (tmp_path / "pyproject.toml").write_text(project)
    command = [f"{BIN}/mkdocs", "build", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = run(*command, cwd=tmp_path, env=environment(tmp_path))
    assert built.returncode == 0, built.stderr
    page = (tmp_path / "site/guide/alpha/index.html").read_text()
    assert "https://example.org/g/edit/main/docs/guide/alpha.md" in page
    assert "https://example.org/g/" in (tmp_path / "site/index.html").read_text()
    assert 'href="/d/guide/faq/index.html"' in (tmp_path / "site/404.html").read_text()


def test_the_messages_that_the_questions_quote_are_those_of_the_code():
    source = "".join(path.read_text() for path in sorted((ROOT / "src").rglob("*.py")))
    said = re.sub(r"""["']\s*\n\s*f?["']""", "", source)
    quoted = re.findall(r"^> (.+)$", (DOCS / "guide/faq.md").read_text(), flags=re.M)
    assert len(quoted) > 10
    parts = [part.strip() for message in quoted for part in message.split("…")]
    assert not [part for part in parts if part not in said]


def dead_links(site):
    """What mkdocs does not see: links in files that a page includes."""
    for page in sorted(site.rglob("*.html")):
        for target in re.findall(r'(?:href|src)="([^"#?:]+)["#?]', page.read_text()):
            if not target.startswith("/") and not (page.parent / target).exists():
                yield f"{page.relative_to(site)}: {target}"


def test_the_glossary_names_the_rule_as_it_is():
    page = (DOCS / "reference/glossary.md").read_text()
    named = re.findall(r"`functional\.(\w+)`", page)
    helpers = {"initial_mean"}  # no symbol of the paper
    assert set(named) == set(gradnorm.functional.__all__) - helpers
    arguments = set(inspect.signature(gradnorm.GradNorm).parameters)
    assert set(re.findall(r"`GradNorm\((\w+)=\)`", page)) <= arguments
    assert all(hasattr(gradnorm.GradNorm, name) for name in re.findall(r"`balancer\.(\w+)\(\)`", page))
