"""Items have every output, a name, and one outcome each, however they are listed."""

import csv
from collections import Counter

import numpy as np
from running.streamed import EVERYTHING, PROMPTS, contents, rows

from medclipsam.engine.archive import open_archive
from medclipsam.engine.config import FORMATS
from medclipsam.engine.run.runner import RunOptions


def test_every_format_is_there_for_every_item(whole):
    made = contents(whole.folder, *EVERYTHING)
    count = Counter(path.partition("/")[0] for path in made)
    good = 12
    assert count["masks"] == count["nifti"] == count["saliency"] == count["overlays"] == 2 * good
    assert count["crf"] == 2 * good
    assert count["labelmaps"] == good and count["dicom-seg"] == 1


def test_duplicates_are_reported(whole):
    assert whole.duplicates == 1
    with (whole.folder / "duplicates.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["item"] for row in table] == ["copy.png", "scan 3.png"]
    assert len({row["digest"] for row in table}) == 1


def test_masks_below_the_least_confidence_are_kept_apart(engine, archive, whole, tmp_path):
    done = [o for o in rows(whole.folder) if o.status == "done"]
    least = float(np.median([o.figures["confidence"] for o in done]))
    options = RunOptions(outputs=("labelmap",), min_confidence=least)
    summary = engine.run(archive, PROMPTS, tmp_path / "run", options)
    found = {(o.item, o.label): o for o in rows(tmp_path / "run")}
    low = {key for key, o in found.items() if o.reason == "low-confidence"}
    assert low == {(o.item, o.label) for o in done if o.figures["confidence"] < least}
    assert low and summary.exit_code == 3
    for key in low:
        outcome, before = found[key], {(o.item, o.label): o for o in done}[key]
        assert outcome.status == "quarantined" and outcome.stage == "segment"
        assert outcome.mask == before.mask.replace("masks/", "quarantine/", 1)
        kept = (tmp_path / "run" / outcome.mask).read_bytes()
        assert kept == (whole.folder / before.mask).read_bytes()
        assert not (tmp_path / "run" / before.mask).exists()
        assert outcome.figures == before.figures


def test_hashed_names_leave_no_name_of_the_archive(engine, archive, whole, tmp_path):
    formats = tuple(name for name in FORMATS if name != "dicom-seg")
    options = RunOptions(outputs=formats, hash_names=True)
    out = tmp_path / "run"
    first = engine.run(archive, PROMPTS, out, options)
    assert first.items == 13
    names = [entry.ref.path for entry in open_archive(archive)]
    for path in out.rglob("*"):
        if path.is_file() and "private" not in path.parts:
            assert not any(name.encode() in path.read_bytes() for name in names), path
            assert not any(name in path.as_posix() for name in names), path
    with (out / "private" / "names.csv").open(newline="") as file:
        back = {row["name"]: row["item"] for row in csv.DictReader(file)}
    plain = {(o.item, o.label): o for o in rows(whole.folder)}
    for outcome in rows(out):
        original = plain[back[outcome.item], outcome.label]
        assert outcome.figures == original.figures and outcome.reason == original.reason
        if original.mask:
            data = (out / outcome.mask).read_bytes()
            assert data == (whole.folder / original.mask).read_bytes()
    again = engine.run(archive, PROMPTS, out, options)
    assert again.resumed == 13


def test_an_item_listed_twice_is_done_once(engine, archive, tmp_path):
    table = tmp_path / "list.csv"
    picked = [str(archive / name) for name in ("scan 1.png", "scan 2.png", "scan 1.png")]
    table.write_text("item\n" + "\n".join([*picked, str(tmp_path / "gone.png")]) + "\n")
    summary = engine.run(table, PROMPTS, tmp_path / "run")
    assert summary.items == 3 and summary.repeated == 1
    assert {o.reason for o in rows(tmp_path / "run")} >= {"vanished"}
