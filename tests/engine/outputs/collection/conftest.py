"""An empty run folder for each test."""

import pytest
from running.collected import Run


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path / "my run!")
