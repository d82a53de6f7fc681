"""Folders of masks against folders of truth: who meets whom, and that nobody is lost."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from sklearn.metrics import roc_auc_score

from medclipsam.engine.errors import ConfigError
from medclipsam.engine.evaluation.evaluate import evaluate
from medclipsam.engine.evaluation.table import to_json, to_table, write_cases_csv
from medclipsam.engine.outputs import mask_path
from medclipsam.engine.types import ItemRef


def square(top=4, left=5, side=6, shape=(19, 23)):
    mask = np.zeros(shape, dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


def save(path, mask=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = square() if mask is None else mask
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)


def save_nifti(path, mask, spacing):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), np.diag([*spacing, 1.0])), path)


@pytest.fixture
def folders(tmp_path):
    return tmp_path / "run", tmp_path / "truth"


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


def save_map(path, levels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).save(path)


def ramp(shape=(19, 23)):
    return (np.arange(np.prod(shape)).reshape(shape) * 150).astype(np.uint16)


def test_hd95_is_measured_and_infinite_distances_are_counted(folders):
    run, truth = folders
    save(run / "masks/mass/near.png", square(left=8))
    save(run / "masks/mass/empty.png", np.zeros((19, 23), bool))
    save(run / "masks/mass/both.png", np.zeros((19, 23), bool))
    for name in ("near", "empty", "lost"):
        save(truth / f"mass/{name}.png")
    save(truth / "mass/both.png", np.zeros((19, 23), bool))
    evaluation = evaluate(run, truth)
    distances = {case.item: case.hd95 for case in evaluation.cases}
    assert distances == {"near.png": 3, "empty.png": np.inf, "lost.png": np.inf, "both.png": 0}
    row = evaluation.summary()[0]
    assert (row.hd95.mean, row.hd95.undefined, row.n) == (1.5, 2, 4)
    assert str(row.hd95) == "1.500 [0.000, 3.000] (2 undefined)"
    assert to_json(evaluation)["overall"]["hd95"]["undefined"] == 2


def test_hd95_of_volumes_is_in_millimetres(folders):
    run, truth = folders
    volume = np.zeros((20, 24, 3), dtype=bool)
    volume[5:12, 6:15] = True
    save_nifti(run / "masks/liver/ct.nii.gz", np.roll(volume, 1, axis=0), (2.5, 0.5, 4.0))
    save_nifti(truth / "liver/ct.nii.gz", volume, (2.5, 0.5, 4.0))
    (case,) = evaluate(run, truth).cases
    assert case.hd95 == pytest.approx(2.5)


def test_auc_of_the_saliency_maps_of_a_run(folders):
    run, truth = folders
    masks = {"deep": square(), "shallow": square(left=9), "without": square(), "withheld": square()}
    maps = {"deep": ramp(), "shallow": (ramp() // 300).astype(np.uint8), "withheld": ramp()}
    for name, mask in masks.items():
        save(truth / f"mass/{name}_mask.png", mask)
        if name != "withheld":
            save(run / f"masks/mass/{name}.dcm.png", mask)
        if name in maps:
            save_map(run / f"saliency/mass/{name}.dcm.png", maps[name])
    cases = {case.item.removesuffix("_mask.png"): case for case in evaluate(run, truth).cases}
    for name, levels in maps.items():
        expected = roc_auc_score(masks[name].ravel(), levels.ravel())
        assert cases[name].auc == pytest.approx(expected, abs=1e-12)
    assert np.isnan(cases["without"].auc) and cases["without"].status == "scored"
    assert cases["withheld"].status == "missing" and cases["withheld"].dice == 0
    row = evaluate(run, truth).summary()[0]
    assert row.auc.undefined == 1 and row.auc.mean == pytest.approx(
        np.mean([cases[name].auc for name in maps])
    )


def test_maps_of_volumes_are_read_in_the_order_of_their_truth(folders):
    run, truth = folders
    rng = np.random.default_rng(3)
    levels = rng.integers(0, 65536, (9, 7, 5)).astype(">u2")  # a big-endian file
    mask = rng.random((9, 7, 5)) > 0.7
    affine = np.diag([-1.5, 2.0, 3.0, 1.0])
    for path, voxels in (("saliency", levels), ("masks", mask.astype(np.uint8))):
        (run / path / "liver").mkdir(parents=True)
        image = nib.Nifti1Image(voxels, affine, dtype=voxels.dtype)
        image.header.set_slope_inter(1 / 65535 if path == "saliency" else 1, 0)
        nib.save(image, run / path / "liver/ct.nii.gz")
    (truth / "liver").mkdir(parents=True)
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), affine), truth / "liver/ct.nii.gz")
    (case,) = evaluate(run, truth).cases
    assert case.auc == pytest.approx(roc_auc_score(mask.ravel(), levels.ravel()), abs=1e-12)
    assert case.dice == 1


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        (np.zeros((18, 23), np.uint16), "expected the shape"),
        (np.zeros((19, 23, 3), np.uint8), "grey values of 8 or 16 bits"),
        (None, "no AUC"),
    ],
)
def test_a_map_that_cannot_be_used_costs_its_own_figure_only(folders, levels, words):
    run, truth = folders
    save(run / "masks/mass/1.png")
    save(truth / "mass/1.png")
    if levels is None:
        (run / "saliency/mass").mkdir(parents=True)
        (run / "saliency/mass/1.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    else:
        save_map(run / "saliency/mass/1.png", levels)
    evaluation = evaluate(run, truth)
    (case,) = evaluation.cases
    assert case.status == "scored" and case.dice == 1 and np.isnan(case.auc)
    assert case.message.startswith("no AUC: ") and words in case.message
    assert [p["message"] for p in to_json(evaluation)["problems"]] == [case.message]


def test_the_masks_of_the_crf_can_be_judged_instead(folders):
    run, truth = folders
    save(run / "masks/mass/1.png", square(left=8))
    save(run / "crf/mass/1.png", square())
    save_map(run / "saliency/mass/1.png", ramp())
    save(truth / "mass/1.png")
    (mask,), (crf,) = (evaluate(run, truth, part=part).cases for part in ("mask", "crf"))
    assert (mask.dice, crf.dice) == (0.5, 1)
    assert mask.auc == crf.auc and not np.isnan(crf.auc)
    with pytest.raises(ConfigError, match="no folder crf/; expected a run made with --output crf"):
        evaluate(run / "masks", truth, part="crf")
    with pytest.raises(ConfigError, match="the part is one of mask, crf, got 'sam'"):
        evaluate(run, truth, part="sam")
