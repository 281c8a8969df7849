"""One thread: the nets are small, and machines that run tests are busy. And both forms of NYUv2, written once."""

from collections.abc import Iterator

import pytest
import torch

from .data.nyuv2_files import write_folders, write_official


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
