"""What a built wheel holds: code under one name, the phantom bundle, the report's page."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("engine", "export", "train", "benchmarks")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that no build folder is left in the project."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    subprocess.run([*command, "-w", out, copy], check=True)
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_everything_lies_under_one_name(wheel):
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"medclipsam"}


def test_every_module_and_data_file_is_inside(wheel):
    inside = set(wheel.namelist())
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            assert f"medclipsam/{path.relative_to(ROOT).as_posix()}" in inside
    for folder in ("bundles", "report/page"):
        for path in (ROOT / "engine" / folder).rglob("*"):
            if path.is_file():
                assert f"medclipsam/{path.relative_to(ROOT).as_posix()}" in inside
    assert "medclipsam/train/phantoms/vocabulary.txt" in inside
    assert "medclipsam/train/recipes/busi.toml" in inside


def test_one_console_script(wheel):
    entry = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert wheel.read(entry).decode().split() == [
        "[console_scripts]",
        "medclipsam",
        "=",
        "medclipsam.engine.cli.main:main",
    ]
