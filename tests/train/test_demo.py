"""The demo, and the accuracy that the shipped bundle is sold with, on a few phantoms."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from medclipsam.benchmarks.phantoms import (
    FIRST_SEED,
    draw,
    examine,
    follows_prompt,
    summarise,
    to_markdown,
)
from medclipsam.engine.cli.main import main
from medclipsam.engine.engine import Engine
from medclipsam.engine.weights.bundle import SHIPPED, open_bundle
from medclipsam.train.phantoms.archive import write_phantom_archive
from medclipsam.train.phantoms.phantoms import MODALITIES

SMALLEST_DSC = 0.5  # per modality; 50 phantoms each are measured in benchmarks/results
MEGABYTES = 20


@pytest.fixture(scope="module")
def cases():
    engine = Engine.open("phantom", "cpu", threads=2)
    lesion = {m: examine(engine, draw(4, m, FIRST_SEED + 5000, "lesion")) for m in MODALITIES}
    empty = {m: examine(engine, draw(1, m, FIRST_SEED + 6000, "none")) for m in MODALITIES}
    return lesion, empty


@pytest.mark.slow
def test_shipped_bundle_segments_unseen_phantoms(cases):
    figures = summarise(*cases)
    assert all(figures[m]["dsc"]["mean"] >= SMALLEST_DSC for m in MODALITIES), to_markdown(
        {"default": figures}
    )


@pytest.mark.slow
def test_masks_follow_the_prompt(cases):
    two = [case for group in cases[0].values() for case in group if len(case.phantom.masks) == 2]
    assert len(two) == 6
    assert np.mean([follows_prompt(case) for case in two]) >= 0.6


def test_shipped_bundle_is_small_and_whole():
    folder = SHIPPED / "phantom"
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert size <= MEGABYTES * 2**20
    assert open_bundle("phantom").description["notes"]["training"]["clip"]["seed"] == 0


def test_phantom_archive_is_the_same_every_time(tmp_path):
    first, second = (write_phantom_archive(tmp_path / name, 2) for name in ("a", "b"))
    names = [p.relative_to(first.archive) for p in first.archive.rglob("*") if p.is_file()]
    assert len(names) == 7
    for name in names:
        if not str(name).endswith(".gz"):  # gzip stores the time
            assert (first.archive / name).read_bytes() == (second.archive / name).read_bytes()


@pytest.mark.long
def test_demo_ends_with_figures_and_a_report(tmp_path):
    out = tmp_path / "demo"
    words = ["demo", "-o", str(out), "--per-modality", "4", "--device", "cpu"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert "overall" in result.output and "open " in result.output
    data = (out / "run" / "report" / "data.js").read_text()
    shown = json.loads(data[data.index("{") : data.rindex("}") + 1])
    assert shown["evaluation"]["overall"]["n"] == 24
    assert (out / "run" / "_SUCCESS").exists()
