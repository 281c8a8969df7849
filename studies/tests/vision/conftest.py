"""The forms of NYUv2, written once."""

import pytest

from gradnorm_studies.vision.data.nyuv2 import prepare

from .data.nyuv2_files import write_folders, write_official


@pytest.fixture(scope="session")
def official(tmp_path_factory):
    root = tmp_path_factory.mktemp("official")
    write_official(root)
    return root


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("folders")
    write_folders(root)
    return root


@pytest.fixture(scope="session")
def prepared(folders, tmp_path_factory):
    path = tmp_path_factory.mktemp("prepared") / "nyuv2.npz"
    prepare(folders, path)
    return path
