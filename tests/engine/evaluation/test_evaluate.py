"""Masks meet their truth by label and name, and none is lost or compared twice."""

import csv
import json

import numpy as np
import pytest
from rich.console import Console
from running.masks import save, save_nifti, square

from medclipsam.engine.errors import ConfigError
from medclipsam.engine.evaluation.evaluate import evaluate
from medclipsam.engine.evaluation.table import to_json, to_table, write_cases_csv
from medclipsam.engine.outputs import mask_path
from medclipsam.engine.types import ItemRef


def statuses(evaluation):
    return {(c.label, c.item): c.status for c in evaluation.cases}


def test_a_run_folder_is_scored_by_label_and_overall(folders):
    run, truth = folders
    save(run / "masks/mass/a/1.png", square())
    save(run / "masks/mass/a/2.png", square(left=8))  # half of the square overlaps
    save(run / "masks/cyst/a/1.png", square())
    save(run / "report/previews/mass/a/1.png")  # not a mask
    for name in ("mass/a/1.png", "mass/a/2.png", "cyst/a/1.png"):
        save(truth / name)
    evaluation = evaluate(run, truth)
    scores = {(c.label, c.item): (c.dice, c.iou) for c in evaluation.cases}
    assert scores == {
        ("mass", "a/1.png"): (1, 1),
        ("mass", "a/2.png"): (0.5, 1 / 3),
        ("cyst", "a/1.png"): (1, 1),
    }
    cyst, mass, overall = evaluation.summary()
    assert (cyst.label, cyst.n, cyst.dice.mean) == ("cyst", 1, 1)
    assert np.isnan(cyst.dice.low)
    assert (mass.label, mass.n, mass.dice.mean) == ("mass", 2, 0.75)
    assert (mass.dice.low, mass.dice.high) == (0.5, 1)
    assert (overall.label, overall.n) == ("overall", 3)
    assert overall.dice.mean == pytest.approx(2.5 / 3)
    assert overall.missing == overall.unreadable == evaluation.unmatched == 0


def test_missing_predictions_count_as_zero_and_are_named(folders):
    run, truth = folders
    save(run / "masks/mass/1.png")
    save(run / "masks/mass/other.png")
    save(truth / "mass/1.png")
    save(truth / "mass/2.png")
    save(truth / "cyst/1.png")  # a label that was never predicted
    evaluation = evaluate(run, truth)
    assert statuses(evaluation) == {
        ("mass", "1.png"): "scored",
        ("mass", "2.png"): "missing",
        ("cyst", "1.png"): "missing",
    }
    assert evaluation.unmatched == 1
    _, mass, overall = evaluation.summary()
    assert (mass.n, mass.missing, mass.dice.mean, mass.iou.mean, mass.nsd.mean) == (
        2,
        1,
        *[0.5] * 3,
    )
    assert overall.missing == 2


def test_masks_that_cannot_be_compared_count_as_zero(folders):
    run, truth = folders
    save(run / "masks/mass/shape.png", square(shape=(20, 23)))
    save(run / "masks/mass/broken.png")
    (run / "masks/mass/broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    save(run / "masks/mass/true.png")
    for name in ("shape", "broken", "true"):
        save(truth / f"mass/{name}.png")
    (truth / "mass/true.png").write_bytes(b"GIF89a")
    evaluation = evaluate(run, truth)
    assert set(statuses(evaluation).values()) == {"unreadable"}
    assert [(c.dice, c.iou, c.nsd) for c in evaluation.cases] == [(0, 0, 0)] * 3
    messages = {c.item: c.message for c in evaluation.cases}
    assert "(1, 19, 23)" in messages["shape.png"] and "(1, 20, 23)" in messages["shape.png"]
    assert messages["broken.png"] and messages["true.png"]


def test_one_label_meets_a_truth_folder_without_label_level(folders):
    run, truth = folders
    save(run / "masks/mass/benign/1.png")
    save(run / "masks/mass/malignant/2.png")
    save(truth / "benign/1_mask.png")
    save(truth / "malignant/2.png")
    assert statuses(evaluate(run, truth)) == {
        ("mass", "benign/1_mask.png"): "scored",
        ("mass", "malignant/2.png"): "scored",
    }


def test_plain_folders_without_any_label_level(folders):
    run, truth = folders
    save(run / "1.png")
    save(run / "sub/2.png")
    save(truth / "1-mask.png")
    save(truth / "sub/2_SEG.png")
    (truth / "README.md").write_text("not a mask")
    assert statuses(evaluate(run, truth)) == {
        ("run", "1-mask.png"): "scored",
        ("run", "sub/2_SEG.png"): "scored",
    }


def test_a_label_with_blanks_finds_the_truth_of_its_own_name(folders):
    run, truth = folders
    save(run / "masks/breast_tumor/1.png")
    save(truth / "breast tumor/1.png")
    assert statuses(evaluate(run, truth)) == {("breast_tumor", "1.png"): "scored"}


@pytest.mark.parametrize(
    ("item", "suffix", "truth_name"),
    [
        ("a/b.png", ".png", "a/b.png"),
        ("a/b.jpg", ".png", "a/b.png"),
        ("a/b.dcm", ".png", "a/b_mask.tif"),
        ("IM1", ".png", "IM1.png"),
        ("IM1", ".png", "IM1_seg.png"),
        ("b.dcm.png", ".png", "b.png"),
        ("scan.v2.JPG", ".png", "scan.v2_mask.png"),
        ("benign (1).png", ".png", "benign (1)_mask.png"),
        ("back\\slash.png", ".png", "back\\slash.png"),
        ("latin-\udce9.png", ".png", "latin-\udce9_mask.png"),
    ],
)
def test_truth_finds_what_the_run_writes(folders, item, suffix, truth_name):
    run, truth = folders
    save(run / mask_path("mass", ItemRef(item), suffix))
    save(truth / "mass" / truth_name)
    assert set(statuses(evaluate(run, truth)).values()) == {"scored"}


def test_other_names_are_not_taken_for_a_match(folders):
    run, truth = folders
    for name in ("ok.png", "1.png", "unmask.png", "x/2.png"):
        save(run / "masks/mass" / name)
    for name in ("ok.png", "1_mask_1.png", "un.png", "y/2.png"):
        save(truth / "mass" / name)
    assert sorted(statuses(evaluate(run, truth)).values()) == ["missing"] * 3 + ["scored"]


def test_ambiguous_matches_name_both(folders):
    run, truth = folders
    save(run / "masks/mass/1.png")
    save(run / "masks/mass/1.jpg.png")
    save(truth / "mass/1.png")
    assert set(statuses(evaluate(run, truth)).values()) == {"scored"}  # the exact name decides
    (truth / "mass/1.png").rename(truth / "mass/1_mask.png")
    with pytest.raises(ConfigError, match=r"1\.jpg\.png and 1\.png|1\.png and 1\.jpg\.png"):
        evaluate(run, truth)


def test_images_beside_their_masks_are_noticed(folders):
    run, truth = folders
    save(run / "masks/mass/1.png")
    save(truth / "mass/1.png")
    save(truth / "mass/1_mask.png")
    with pytest.raises(ConfigError, match=r"1\.png and 1_mask\.png"):
        evaluate(run, truth)


def test_volumes_are_measured_in_millimetres(folders):
    run, truth = folders
    volume = np.zeros((20, 24, 3), dtype=bool)
    volume[5:12, 6:15] = True
    moved = np.roll(volume, 1, axis=0)
    for spacing, expected in (((0.5, 0.5, 1.0), 1.0), ((3.0, 3.0, 1.0), None)):
        save_nifti(run / "masks/liver/ct.nii.gz", moved, spacing)
        save_nifti(truth / "liver/ct.nii.gz", volume, spacing)
        (case,) = evaluate(run, truth, tolerance=0.6).cases
        assert case.dice == pytest.approx(6 / 7)
        assert case.nsd == expected if expected else case.nsd < 0.9


@pytest.mark.parametrize(
    ("predicted", "true", "words"),
    [
        ([], ["mass/1.png"], "found no masks under .*run"),
        (["mass/1.png"], [], "found no masks under .*truth"),
        (["mass/1.png", "cyst/1.png"], ["a/1.png"], "expected cyst/, mass/, got a/"),
        (["mass/1.png", "cyst/1.png"], ["mass/1.png", "2.png"], "outside of them, such as 2.png"),
        (["mass/1.png"], ["2.png"], "none of the 1 masks"),
    ],
)
def test_folders_that_do_not_fit_are_refused(folders, predicted, true, words):
    run, truth = folders
    run.mkdir()
    truth.mkdir()
    for name in predicted:
        save(run / "masks" / name)
    for name in true:
        save(truth / name)
    with pytest.raises(ConfigError, match=words):
        evaluate(run, truth)


def test_wrong_arguments_are_refused(folders):
    run, truth = folders
    with pytest.raises(ConfigError, match="no folder of predictions"):
        evaluate(run, truth)
    run.mkdir()
    with pytest.raises(ConfigError, match="no folder of truth"):
        evaluate(run, truth)
    with pytest.raises(ConfigError, match="tolerance"):
        evaluate(run, run, tolerance=float("nan"))


def test_csv_json_and_table_tell_the_same(folders, tmp_path):
    run, truth = folders
    save(run / "masks/mass/1,a.png")
    save(truth / "mass/1,a.png")
    save(truth / "mass/[red]2.png")
    evaluation = evaluate(run, truth)
    write_cases_csv(evaluation, tmp_path / "cases.csv")
    rows = list(csv.DictReader((tmp_path / "cases.csv").read_text().splitlines()))
    assert [(r["item"], r["status"], float(r["dice"])) for r in rows] == [
        ("1,a.png", "scored", 1.0),
        ("[red]2.png", "missing", 0.0),
    ]
    facts = json.loads(json.dumps(to_json(evaluation), allow_nan=False))
    assert facts["labels"][0]["label"] == "mass" and facts["labels"][0]["missing"] == 1
    assert facts["overall"]["dice"]["mean"] == 0.5
    assert [p["item"] for p in facts["problems"]] == ["[red]2.png"]
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(to_table(evaluation))
    assert "0.500 [0.000, 1.000]" in console.export_text()
    assert "AUC" not in console.export_text()
