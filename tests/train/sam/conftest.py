"""Samples and folders that several tests of SAM's training share."""

import pytest
from sam_cases import write_data
from sam_samples import padded_samples, phantoms


@pytest.fixture(scope="module")
def drawn():
    return phantoms(12, 64)


@pytest.fixture(scope="module")
def padded():
    return padded_samples()


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data")
