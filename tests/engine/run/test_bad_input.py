"""A run over the bad-input corpus: each case by its name, and no neighbour changed by it."""

import json
import resource
from dataclasses import replace

import cv2
import numpy as np
import pytest
from bad_input import write_corpus

from medclipsam.engine.archive import Limits, open_archive
from medclipsam.engine.engine import Engine
from medclipsam.engine.prompts import make_prompts
from medclipsam.engine.run.ledger import Ledger
from medclipsam.engine.run.runner import RunOptions, run
from medclipsam.train.phantoms.phantoms import make_phantom

PROMPTS = make_prompts({"mass": "a mass"})
GROWTH = 1 << 20  # KiB by which the run's own process may grow; decoding happens elsewhere


@pytest.fixture(scope="module")
def engine(tiny_bundle_folder):
    settings = {"saliency": "gradcam"}
    return Engine.open(str(tiny_bundle_folder), "cpu", settings=settings, threads=2)


def write_neighbours(folder):
    folder.mkdir(exist_ok=True)
    for n in range(6):
        pixels = (make_phantom(n, size=(50 + n, 61)).pixels * 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{'amz'[n % 3]} neighbour {n}.png"), pixels)


def outcomes(folder):
    with Ledger(folder / "ledger.sqlite") as ledger:
        return {row.item: replace(row, seconds=0) for row in ledger.outcomes()}


@pytest.fixture(scope="module")
def mixed(engine, tmp_path_factory):
    """The corpus and its neighbours in one folder, run; and what is expected of it."""
    folder = tmp_path_factory.mktemp("mixed")
    expected = write_corpus(folder)
    write_neighbours(folder)
    options = RunOptions(limits=Limits(max_seconds=20, max_memory=3 << 30))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    out = tmp_path_factory.mktemp("run") / "run"
    summary = run(engine, open_archive(folder), PROMPTS, out, options)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GROWTH
    return summary, expected


def test_every_case_ends_as_it_must(mixed):
    summary, expected = mixed
    found = outcomes(summary.folder)
    assert found.keys() >= expected.keys() and summary.exit_code == 3
    for item, reasons in expected.items():
        row = found[item]
        reason = row.reason if row.status == "quarantined" else ""
        assert reason in reasons, (item, row.reason, row.message)
        assert (row.status == "quarantined") == (row.mask == "")


def test_neighbours_are_what_they_are_without_it(engine, mixed, tmp_path):
    summary, _ = mixed
    write_neighbours(tmp_path / "alone")
    alone = engine.run(tmp_path / "alone", PROMPTS.texts, tmp_path / "run").folder
    found = outcomes(summary.folder)
    for item, row in outcomes(alone).items():
        assert found[item] == row and row.status != "quarantined"
        assert (summary.folder / row.mask).read_bytes() == (alone / row.mask).read_bytes()


def test_all_is_told_and_nothing_of_a_header(mixed):
    summary, expected = mixed
    events = [json.loads(line) for line in (summary.folder / "log.jsonl").open()]
    logged = {e["item"]: e["reason"] for e in events if e["event"] == "quarantined"}
    assert logged == {
        item: row.reason
        for item, row in outcomes(summary.folder).items()
        if row.status == "quarantined"
    }
    for path in (summary.folder / "log.jsonl", summary.folder / "report" / "data.js"):
        assert "Secret" not in path.read_text("utf-8")
    assert expected.keys() - logged.keys(), "the corpus holds odd files that can be read, too"
