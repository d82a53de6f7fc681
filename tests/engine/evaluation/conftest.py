"""The folders of a run and of its truth."""

import pytest


@pytest.fixture
def folders(tmp_path):
    return tmp_path / "run", tmp_path / "truth"
