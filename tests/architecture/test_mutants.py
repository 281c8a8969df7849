"""The table of `make mutants` fits the source: what it breaks stands there once, and the tests that it names exist."""

import shlex

import pytest

from ..mutants import MUTANTS, ROOT, SOURCE


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.file}: {mutant.text}")
def test_what_a_mutant_breaks_stands_there_once(mutant):
    assert (SOURCE / mutant.file).read_text().count(mutant.text) == 1
    for part in shlex.split(mutant.tests):
        assert "/" not in part or (ROOT / "tests" / part.split("::")[0]).exists()
