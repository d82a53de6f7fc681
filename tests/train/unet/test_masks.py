"""What a training may take from a run: reviews, confidences, absences, and what is left out."""

import json
import shutil
from dataclasses import replace

import cv2
import nibabel
import numpy as np
import pytest
from brightness import grey_to_rgb, open_brightness

from medclipsam.engine.errors import ConfigError
from medclipsam.engine.outputs import read_mask
from medclipsam.engine.run.collecting import Selection
from medclipsam.engine.run.folder import RunFolder
from medclipsam.engine.run.ledger import Ledger
from medclipsam.engine.run.runner import RunOptions
from medclipsam.train.patients import PatientRule, compile_pattern
from medclipsam.train.phantoms.phantoms import make_phantom
from medclipsam.train.unet.masks import open_run_masks


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return open_brightness(tmp_path_factory.mktemp("models") / "brightness")


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    root = tmp_path_factory.mktemp("scans")
    for n in range(5):
        pixels = make_phantom(n, "mri", size=(50 + n, 61)).pixels
        cv2.imwrite(str(root / f"scan {n}.png"), grey_to_rgb(pixels))
    cv2.imwrite(str(root / "plain.png"), grey_to_rgb(np.linspace(0.24, 0.31, 900).reshape(30, 30)))
    frames = [make_phantom(20 + n, "mri", size=(48, 50)).pixels * 999 for n in range(4)]
    volume = nibabel.Nifti1Image(np.stack(frames, -1).astype(np.int16), np.diag([1, 1, 3, 1]))
    nibabel.save(volume, root / "volume.nii.gz")
    (root / "bad.png").write_bytes(b"nothing")
    return root


@pytest.fixture(scope="module")
def finished(predictor, archive, tmp_path_factory):
    return predictor.run(archive, tmp_path_factory.mktemp("runs") / "run").folder


def outcomes(folder):
    with Ledger(folder / "ledger.sqlite", readonly=True) as ledger:
        return {(o.item, o.label): o for o in ledger.outcomes()}


def read(folder, *args, **kwargs):
    """(items by digest, left out) of a run."""
    with open_run_masks(folder, *args, **kwargs) as run:
        found = {item.digest: item for item in run}
        assert run.items == len(found)
        return found, {k: sorted(v) for k, v in run.left_out.items()}


def review(path, decisions):
    listed = [{"item": i, "label": n, "decision": d} for (i, n), d in decisions.items()]
    path.write_text(json.dumps({"medclipsam_review": 1, "decisions": listed}))
    return Selection(path)


def test_every_sound_item_is_given_with_its_masks(finished, archive):
    found, left = read(finished)
    rows = outcomes(finished)
    assert len(found) == 7 and left == {
        "quarantined: unreadable": ["bad.png [bright]", "bad.png [dark]"]
    }
    for (item, label), row in rows.items():
        if item == "bad.png":
            continue
        given = found[row.digest]
        np.testing.assert_array_equal(given.masks[label], read_mask(finished / row.mask)[0])
        assert given.frames.shape[:3] == given.masks[label].shape
        expected = row.figures["confidence"] if row.status == "done" else 1.0
        assert given.confidence[label] == expected
        if item.endswith(".png"):
            np.testing.assert_array_equal(given.frames[0], cv2.imread(str(archive / item)))
    plain = found[rows["plain.png", "bright"].digest]
    assert rows["plain.png", "bright"].status == "absent" and not plain.masks["bright"].any()
    assert found[rows["volume.nii.gz", "dark"].digest].frames.shape[0] == 4


def test_only_the_labels_asked_for(finished):
    with open_run_masks(finished, ["dark"]) as run:
        assert run.labels == ("dark",)
        assert all(set(item.masks) == {"dark"} for item in run)
        assert run.left_out == {"quarantined: unreadable": ["bad.png [dark]"]}
    with open_run_masks(finished, ["dark", "bright"]) as run:
        assert run.labels == ("bright", "dark")


def test_a_person_has_the_last_word(finished, tmp_path):
    decisions = {
        ("scan 0.png", "bright"): "reject",
        ("scan 1.png", "dark"): "unsure",
        ("scan 2.png", "dark"): "accept",
        ("plain.png", "bright"): "reject",
    }
    found, left = read(finished, selection=review(tmp_path / "review.json", decisions))
    rows = outcomes(finished)
    assert left["rejected in review"] == ["plain.png [bright]", "scan 0.png [bright]"]
    assert left["unsure in review"] == ["scan 1.png [dark]"]
    assert set(found[rows["scan 0.png", "dark"].digest].masks) == {"dark"}
    accepted = found[rows["scan 2.png", "dark"].digest]
    assert accepted.confidence["dark"] == 1.0 > accepted.confidence["bright"]
    wrong = review(tmp_path / "other.json", {("elsewhere.png", "dark"): "accept"})
    with pytest.raises(ConfigError, match=r"elsewhere\.png"):
        read(finished, selection=wrong)


def test_masks_below_the_least_confidence(finished, tmp_path):
    done = {k: o.figures["confidence"] for k, o in outcomes(finished).items() if o.status == "done"}
    least = float(np.median(list(done.values())))
    low = sorted(f"{i} [{n}]" for (i, n), c in done.items() if c < least)
    _, left = read(finished, selection=Selection(min_confidence=least))
    assert left["quarantined: low-confidence"] == low and low
    key = min(done, key=done.get)
    picked = replace(review(tmp_path / "r.json", {key: "accept"}), min_confidence=least)
    _, left = read(finished, selection=picked)
    assert f"{key[0]} [{key[1]}]" not in left["quarantined: low-confidence"]


def test_quarantined_masks_come_back_when_they_are_accepted(predictor, archive, tmp_path):
    out = predictor.run(archive, tmp_path / "run", RunOptions(min_confidence=1.0)).folder
    low = [k for k, o in outcomes(out).items() if o.reason == "low-confidence"]
    found, left = read(out)
    assert len(left["quarantined: low-confidence"]) == len(low) > 3
    assert all(not mask.any() for item in found.values() for mask in item.masks.values())
    found, left = read(out, selection=review(tmp_path / "r.json", dict.fromkeys(low, "accept")))
    assert set(left) == {"quarantined: unreadable"}
    assert any(mask.any() for item in found.values() for mask in item.masks.values())


def test_hashed_names_lead_back_for_patients_only(predictor, archive, tmp_path):
    out = predictor.run(archive, tmp_path / "run", RunOptions(hash_names=True)).folder
    rule = PatientRule(pattern=compile_pattern(r"scan (\d)"))
    with open_run_masks(out, rule=rule) as run:
        assert len(list(run)) == 7
        assert run.told == {"pattern": 5, "nothing": 2}
        assert not any("bad" in name for names in run.left_out.values() for name in names)


def test_pictures_that_changed_or_went_are_named(predictor, archive, tmp_path):
    copied = shutil.copytree(archive, tmp_path / "copied")
    out = predictor.run(copied, tmp_path / "run").folder
    cv2.imwrite(str(copied / "scan 0.png"), np.eye(50, 61, dtype=np.uint8) * 9)
    (copied / "scan 1.png").unlink()
    (copied / "scan 2.png").write_bytes(b"spoilt")
    shutil.copy(copied / "scan 3.png", copied / "new.png")
    found, left = read(out)
    assert len(found) == 4
    assert left["changed since the run"] == ["scan 0.png"]
    assert left["not in the archive any more"] == ["scan 1.png"]
    assert left["cannot be read any more: unreadable"] == ["scan 2.png"]
    assert left["not in the run"] == ["new.png"]


def test_a_moved_archive_is_found_where_it_is_said_to_be(predictor, archive, tmp_path):
    copied = shutil.copytree(archive, tmp_path / "copied")
    out = predictor.run(copied, tmp_path / "run").folder
    copied.rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match=r"no archive.*say where with --archive"):
        read(out)
    found, _ = read(out, archive=str(tmp_path / "moved"))
    assert len(found) == 7


def test_reasons_are_counted_and_named(finished):
    with open_run_masks(finished) as run:
        assert list(run.report()) == []
        list(run)
        lines = list(run.report())
        assert lines == ["left out, quarantined: unreadable: 2 (bad.png [bright], bad.png [dark])"]
        run.left_out["x"] = [str(n) for n in range(9)]
        assert list(run.report())[-1] == "left out, x: 9 (0, 1, 2, 3, 4 and 4 more)"


def test_runs_that_cannot_be_read(finished, tmp_path):
    with pytest.raises(ConfigError, match="not a run folder"):
        read(tmp_path)
    with pytest.raises(ConfigError, match="no label 'mass'; it has bright, dark"):
        read(finished, ["mass"])
    half = shutil.copytree(finished, tmp_path / "half")
    (half / "_SUCCESS").unlink()
    with pytest.raises(ConfigError, match="not finished; repeat its command"):
        read(half)
    facts = json.loads((finished / "run.json").read_text())
    going = shutil.copytree(finished, tmp_path / "going")
    with RunFolder(going, facts), pytest.raises(ConfigError, match="going on"):
        read(going)
    spoilt = shutil.copytree(finished, tmp_path / "spoilt")
    cv2.imwrite(str(spoilt / "masks" / "dark" / "scan 3.png"), np.zeros((5, 5), np.uint8))
    with pytest.raises(ConfigError, match="shape"):
        read(spoilt)
    (spoilt / "masks" / "dark" / "scan 3.png").unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        read(spoilt)
