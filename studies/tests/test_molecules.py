"""The properties of the files, made equal in scale; descriptors that say what a molecule is."""

import json

import pytest
import torch

from gradnorm_studies.engine.errors import UsageError
from gradnorm_studies.molecules import ELEMENTS, TASKS, describe, load, prepared

WATER = {
    "Elements": "['O', 'H', 'H']",
    "XYZ_Ang": json.dumps([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]]),
    "SMILES": "O",
}


def test_water_is_described():
    found = describe(WATER)
    assert len(found) == 34
    assert dict(zip(ELEMENTS, found[:5], strict=True)) == {"H": 2, "C": 0, "N": 0, "O": 1, "F": 0}
    assert found[5:7] == [3, 1]
    assert found[10] == 0  # no ring
    assert found[14:23] == [0, 0, 2, 0, 0, 0, 0, 0, 0]  # two bonds of hydrogen and oxygen


def test_targets_have_one_scale_on_the_training_rows():
    x, y, rows = prepared(0)
    assert x.shape[1] == 34
    assert y.shape[1] == len(TASKS) == 11
    torch.testing.assert_close(y[rows.train].mean(0), torch.zeros(11), atol=1e-3, rtol=0)
    torch.testing.assert_close(y[rows.train].std(0), torch.ones(11), atol=1e-3, rtol=0)
    assert torch.isfinite(x).all()


def test_without_its_files_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("gradnorm_studies.molecules._files", list)
    with pytest.raises(UsageError, match="pip install"):
        load.__wrapped__()
