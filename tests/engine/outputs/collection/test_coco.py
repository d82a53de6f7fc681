"""COCO gives every mask back, of whole cases that review and status let in."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as codes
from running.collected import LABELS, volume_grid

from medclipsam.engine.outputs import Case
from medclipsam.engine.outputs.cases import reason_against
from medclipsam.engine.outputs.coco import open_coco
from medclipsam.engine.types import Grid, Outcome

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # of pycocotools


def test_coco_gives_every_mask_back(run):
    run.add("a/b.png")
    run.add("ü cine.dcm", frames=3, grid=Grid("dicom"))
    run.add("v.nii", grid=volume_grid(), tumour={"status": "absent"})
    assert run.collect("coco").taken == {"coco": 3}
    coco = run.coco()
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(LABELS)
    expected = {
        (item, frame, label): mask
        for item, masks in run.masks.items()
        for label, stack in masks.items()
        for frame, mask in enumerate(stack)
    }
    pictures = coco.loadImgs(coco.getImgIds())
    assert [p["id"] for p in pictures] == list(range(1, 1 + 1 + 3 + 4))
    assert {(p["file_name"], p["frame"]) for p in pictures} == {key[:2] for key in expected}
    found = {}
    for picture in pictures:
        for one in coco.loadAnns(coco.getAnnIds(picture["id"])):
            label = coco.cats[one["category_id"]]["name"]
            mask = coco.annToMask(one).astype(bool)
            assert mask.shape == (picture["height"], picture["width"])
            rows, columns = np.nonzero(mask)
            corner = [columns.min(), rows.min()]
            size = [np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert one["bbox"] == [*corner, *size] and one["area"] == mask.sum()
            assert one["iscrowd"] == 0 and one["score"] == 0.75
            found[picture["file_name"], picture["frame"], label] = mask
    assert set(found) == {key for key, mask in expected.items() if mask.any()}
    for key, mask in found.items():
        np.testing.assert_array_equal(mask, expected[key])


def test_an_empty_coco_file_is_valid(run):
    run.add("a.png", tumour={"status": "quarantined", "reason": "truncated", "mask": ""})
    done = run.collect("coco")
    assert done.taken == {"coco": 0} and done.left_out == {"quarantined: truncated": 1}
    assert run.coco().getImgIds() == []


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_any_mask_survives_its_code(tmp_path_factory, height, width, seed):
    mask = np.random.default_rng(seed).random((1, height, width)) > 0.5
    folder = tmp_path_factory.mktemp("coco")
    with open_coco(folder, ["m"]) as file:
        file.add(Case("a", {"m": Outcome("a", "m", "done")}), {"m": mask})
    page = json.loads((folder / "coco.json").read_text())
    for one in page["annotations"]:
        np.testing.assert_array_equal(codes.decode(one["segmentation"]), mask[0])
        assert one["score"] is None
    assert bool(page["annotations"]) == mask.any()


QUARANTINED = {"status": "quarantined", "reason": "low-confidence"}


@pytest.mark.parametrize(
    ("change", "decision", "reason"),
    [
        ({}, None, ""),
        ({}, "accept", ""),
        ({}, "reject", "rejected in review"),
        ({}, "unsure", "unsure in review"),
        ({"status": "absent"}, None, ""),
        ({"status": "absent"}, "reject", "rejected in review"),
        (QUARANTINED, None, "quarantined: low-confidence"),
        (QUARANTINED, "accept", ""),
        (QUARANTINED, "reject", "rejected in review"),
        (QUARANTINED | {"reason": "failed", "mask": ""}, "accept", "quarantined: failed"),
    ],
)
def test_one_label_decides_about_the_whole_case(run, change, decision, reason):
    case = run.add("a.png", cyst=change)
    run.add("b.png")
    decisions = {("a.png", "cyst"): decision} if decision else {}
    assert reason_against(case, decisions) == reason
    done = run.collect("coco", "nnunet", decisions=decisions)
    taken = 1 if reason else 2
    assert done.taken == {"coco": taken, "nnunet": taken}
    assert done.left_out == ({reason: 1} if reason else {})
    pictures = run.coco().loadImgs(run.coco().getImgIds())
    assert ("a.png" in {p["file_name"] for p in pictures}) == (not reason)
