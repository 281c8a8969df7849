"""Both forms of NYUv2, written once."""

import pytest

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
