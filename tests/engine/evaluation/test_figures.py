"""Distances in millimetres, AUC of saliency maps, and masks of the CRF, against the truth."""

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from running.masks import save, save_nifti, square
from sklearn.metrics import roc_auc_score

from medclipsam.engine.errors import ConfigError
from medclipsam.engine.evaluation.evaluate import evaluate
from medclipsam.engine.evaluation.table import to_json


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
