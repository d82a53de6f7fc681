"""nnU-Net finds datasets that it can verify, one for each kind of picture."""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image as PillowImage
from running.collected import HEIGHT, LABELS, RASTER, WIDTH, left_behind, volume_grid

from medclipsam.engine.archive.readers.nifti import voxels_to_frames
from medclipsam.engine.errors import ConfigError, InputError
from medclipsam.engine.outputs import Case
from medclipsam.engine.outputs.nnunet import RESERVED
from medclipsam.engine.types import Grid

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # of pycocotools


def identifiers(dataset: Path) -> dict[str, str]:
    with (dataset / "cases.csv").open(newline="", encoding="utf-8") as file:
        return {row["item"]: row["case"] for row in csv.DictReader(file)}


def check_as_nnunet(dataset: Path) -> Iterator[tuple[str, list[np.ndarray], np.ndarray]]:
    """What nnUNetv2_plan_and_preprocess --verify_dataset_integrity asserts, and each case.

    After nnunetv2/experiment_planning/verify_dataset_integrity.py of version 2.8.
    """
    page = json.loads((dataset / "dataset.json").read_text("utf-8"))
    assert page.keys() >= {"labels", "channel_names", "numTraining", "file_ending"}
    numbers = list(page["labels"].values())
    assert numbers == list(range(len(numbers))) and page["labels"]["background"] == 0
    ending = page["file_ending"]
    channel = re.compile(r"(.+)_(\d{4})" + re.escape(ending))
    images = [channel.fullmatch(p.name) for p in sorted((dataset / "imagesTr").iterdir())]
    names = sorted({match[1] for match in images})
    assert names == sorted(p.name[: -len(ending)] for p in (dataset / "labelsTr").iterdir())
    assert len(names) == page["numTraining"] and names == sorted(identifiers(dataset).values())
    for name in names:
        files = [dataset / "imagesTr" / match[0] for match in images if match[1] == name]
        label_file = dataset / "labelsTr" / f"{name}{ending}"
        if ending == ".png":
            (file,) = files
            picture = np.array(PillowImage.open(file))
            channels = [picture] if picture.ndim == 2 else list(np.moveaxis(picture, -1, 0))
            label = np.array(PillowImage.open(label_file))
        else:
            volumes = [nibabel.load(file) for file in (*files, label_file)]
            for volume in volumes:
                assert volume.ndim == 3
                np.testing.assert_allclose(volume.affine, volumes[-1].affine)
            *channels, label = (np.asarray(volume.dataobj) for volume in volumes)
        assert len(channels) == len(page["channel_names"])
        assert all(each.shape == label.shape for each in channels)
        assert set(np.unique(label)) <= set(numbers)
        yield name, channels, label


def burnt(masks: dict[str, np.ndarray], labels=LABELS) -> np.ndarray:
    out = np.zeros(next(iter(masks.values())).shape, np.uint8)
    for number, label in reversed(list(enumerate(labels, start=1))):
        if label in masks:
            out[masks[label]] = number
    return out


def test_nnunet_has_a_dataset_for_each_kind_of_picture(run):
    solid, flat = volume_grid(), volume_grid((WIDTH, HEIGHT))
    placed = Grid("dicom", affine=np.diag([-1, 2, 3, 1.0]), shape=(WIDTH, HEIGHT, 3))
    kinds = {
        501: [run.add("a/b.png"), run.add("x.dcm", grid=Grid("dicom", (1, 2)))],
        502: [
            run.add("v.nii.gz", grid=solid),
            run.add("flat.nii", grid=flat),
            run.add("ct", frames=3, grid=placed),
            run.add("pages.tif", frames=2),
        ],
        503: [run.add("c.jpg", colour=True, cyst={"status": "absent"})],
        504: [run.add("cine.dcm", frames=3, grid=Grid("dicom"), colour=True)],
    }
    done = run.collect("nnunet")
    assert done.paths == {"nnunet": run.folder / "nnunet"} and done.taken == {"nnunet": 8}
    assert len(list((run.folder / "nnunet").iterdir())) == 4
    for number, cases in kinds.items():
        dataset = run.dataset(number)
        assert dataset.name == f"Dataset{number}_my-run"
        contents = {name: found for name, *found in check_as_nnunet(dataset)}
        cases_by_item = identifiers(dataset)
        assert set(cases_by_item) == {case.item for case in cases}
        for case in cases:
            channels, label = contents[cases_by_item[case.item]]
            frames, grid = run.pictures[case.item]
            truth = burnt(run.masks[case.item])
            if number in (502, 504):
                if grid.kind == "nifti":
                    channels, label = (
                        [voxels_to_frames(v, grid.affine)[0] for v in channels],
                        voxels_to_frames(label, grid.affine)[0],
                    )
                else:
                    channels, label = [v.transpose(2, 1, 0) for v in channels], label.T
            np.testing.assert_array_equal(label, truth if number in (502, 504) else truth[0])
            for k, channel in enumerate(channels):
                expected = frames[..., k] if number in (502, 504) else frames[0, ..., k]
                np.testing.assert_array_equal(channel, expected)


def test_what_nnunet_reads_each_ending_with(run):
    run.add("a.png")
    run.add("v.nii", grid=volume_grid())
    run.collect("nnunet", name="Breast US (2)")
    for number, reader in ((501, "NaturalImage2DIO"), (502, "NibabelIOWithReorient")):
        dataset = run.dataset(number)
        page = json.loads((dataset / "dataset.json").read_text())
        assert page["overwrite_image_reader_writer"] == reader
        assert dataset.name == f"Dataset{number}_Breast-US-2"
        assert page["labels"] == {"background": 0, "tumour": 1, "cyst": 2}


def test_labels_that_were_not_asked_are_background(run):
    run.add("a.png", labels=("cyst",))
    run.collect("nnunet")
    ((_, _, label),) = check_as_nnunet(run.dataset(501))
    np.testing.assert_array_equal(label, 2 * run.masks["a.png"]["cyst"][0])


def test_case_names_are_safe_and_never_coincide(run):
    items = ["a/x.png", "b/x.png", "X.png", "a x.png", "a/x_0000.png", "ü.png", "n" * 300 + ".png"]
    for item in items:
        run.add(item)
    run.collect("nnunet")
    names = identifiers(run.dataset(501))
    assert list(names) == items
    assert len({name.casefold() for name in names.values()}) == len(items)
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}", name) for name in names.values())
    assert len(list(check_as_nnunet(run.dataset(501)))) == len(items)


def test_a_picture_that_is_gone_or_changed_is_left_out_and_counted(run):
    def vanished():
        raise InputError("read_image", "vanished", "gone")

    gone = run.add("gone.png")
    run.cases[-1] = Case(gone.item, gone.outcomes, vanished)
    run.add("changed.png")
    run.pictures["changed.png"] = (np.zeros((1, 3, 3, 3), np.uint8), RASTER)
    run.add("kept.png")
    done = run.collect("coco", "nnunet")
    assert done.taken == {"coco": 3, "nnunet": 1}
    assert done.left_out == {
        "nnunet, read_image: vanished": 1,
        "nnunet, read_image: unreadable": 1,
    }
    assert set(identifiers(run.dataset(501))) == {"kept.png"}


def test_labels_that_nnunet_keeps_for_itself(run):
    run.add("a.png")
    for label in RESERVED:
        with pytest.raises(ConfigError, match="another name"):
            run.collect("nnunet", labels=("tumour", label))
    with pytest.raises(ConfigError, match="at most 254"):
        run.collect("nnunet", labels=[str(k) for k in range(300)])
    assert not left_behind(run.folder)
