"""Collections of a run folder: pycocotools reads one, the other obeys what nnU-Net checks."""

import contextlib
import csv
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PillowImage
from pycocotools import mask as codes
from pycocotools.coco import COCO

from medclipsam.engine.archive.readers.nifti import make_grid, voxels_to_frames
from medclipsam.engine.errors import ConfigError, InputError, OutputError
from medclipsam.engine.outputs import Case, collect, encode_mask, mask_path
from medclipsam.engine.outputs.cases import reason_against
from medclipsam.engine.outputs.coco import open_coco
from medclipsam.engine.outputs.nnunet import RESERVED
from medclipsam.engine.types import Grid, ItemRef, Outcome

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # of pycocotools

LABELS = ("tumour", "cyst")
RNG = np.random.default_rng(2)
HEIGHT, WIDTH = 11, 7
SHEARED = np.array([[0, -0.8, 0.3, 3], [0.7, 0, 0, -5], [0, 0, 2.5, 9], [0, 0, 0, 1.0]])
RASTER = Grid("raster")


def volume_grid(shape=(WIDTH, HEIGHT, 4)) -> Grid:
    affine = SHEARED
    return make_grid(shape, affine, voxels_to_frames(np.zeros(shape, bool), affine)[1])


class Run:
    """A run folder with masks, the outcomes and the pictures that belong to it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.cases: list[Case] = []
        self.masks: dict[str, dict[str, np.ndarray]] = {}
        self.pictures: dict[str, tuple[np.ndarray, Grid]] = {}

    def add(self, item, frames=1, grid=RASTER, colour=False, labels=LABELS, **changes) -> Case:
        shape = (frames, HEIGHT, WIDTH)
        if grid.kind == "nifti":
            shape = voxels_to_frames(np.zeros(grid.shape, bool), grid.affine)[0].shape
        rgb = RNG.integers(0, 256, (*shape, 3 if colour else 1), np.uint8)
        self.pictures[item] = (np.broadcast_to(rgb, (*shape, 3)), grid)
        self.masks[item] = {label: RNG.random(shape) > 0.5 for label in labels}
        outcomes = {}
        for label, mask in self.masks[item].items():
            change = changes.get(label, {})
            if change.get("status") == "absent":
                mask[:] = False
            suffix, data = encode_mask(mask, grid)
            path = self.folder / str(mask_path(label, ItemRef(item), suffix))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            values = {
                "status": "done",
                "mask": str(path.relative_to(self.folder)),
                "figures": {"confidence": 0.75},
            }
            outcomes[label] = Outcome(item=item, label=label, **values | change)
        self.cases.append(Case(item, outcomes, lambda: self.pictures[item]))
        return self.cases[-1]

    def collect(self, *formats, labels=LABELS, **options):
        return collect(self.folder, formats, iter(self.cases), labels, **options)

    def coco(self) -> COCO:
        with contextlib.redirect_stdout(io.StringIO()):
            return COCO(str(self.folder / "coco.json"))

    def dataset(self, number: int) -> Path:
        (found,) = (self.folder / "nnunet").glob(f"Dataset{number}_*")
        return found


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path / "my run!")


def left_behind(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"masks"}


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


def test_a_damaged_run_folder_is_refused(run):
    case = run.add("a.png")
    (run.folder / case.outcomes["cyst"].mask).write_bytes(b"")
    with pytest.raises(ConfigError, match="the run folder was altered"):
        run.collect("coco", "nnunet")
    (run.folder / case.outcomes["cyst"].mask).write_bytes(
        encode_mask(np.zeros((1, 3, 3), bool), RASTER)[1]
    )
    with pytest.raises(ConfigError, match="masks of one shape"):
        run.collect("coco", "nnunet")
    assert not left_behind(run.folder)


def snapshot(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if "masks" not in p.parts}


def test_collecting_again_replaces_and_gives_equal_bytes(run):
    for k in range(3):
        run.add(f"{k}.png")
    run.collect("coco", "nnunet")
    first = snapshot(run.folder)
    run.collect("coco", "nnunet")
    assert snapshot(run.folder) == first
    run.cases.pop()
    run.collect("coco", "nnunet")
    assert len(snapshot(run.folder)) == len(first) - 2


class Killed(BaseException):
    """What no handler may swallow."""


class Killer:
    """Lets a number of calls to the disk through; from then on nothing works any more."""

    CALLS = ("os.fsync", "os.mkdir", "os.replace", "os.unlink", "shutil.rmtree")

    def __init__(self, patch: pytest.MonkeyPatch, left: int):
        self.left = left
        for name in self.CALLS:
            module, _, function = name.partition(".")
            real = getattr({"os": os, "shutil": shutil}[module], function)
            patch.setattr(name, lambda *a, real=real, **k: self.call(real, *a, **k))

    def call(self, real, *args, **options):
        self.left -= 1
        if self.left < 0:
            raise Killed
        return real(*args, **options)


def visible(folder: Path) -> dict[str, bytes]:
    return {path: data for path, data in snapshot(folder).items() if not path.startswith(".")}


@pytest.mark.parametrize("again", [False, True], ids=["first", "again"])
def test_killed_at_any_write_leaves_no_half_collection(run, again):
    """Every call to the disk in turn is the last one; then it is done again."""
    for k in range(2):
        run.add(f"{k}.png")
        run.add(f"{k}.nii", grid=volume_grid())
    run.collect("coco", "nnunet")
    whole = visible(run.folder)
    for calls in range(100):
        if not again:
            shutil.rmtree(run.folder / "nnunet", ignore_errors=True)
            (run.folder / "coco.json").unlink(missing_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            Killer(patch, calls)
            with contextlib.suppress(Killed):
                run.collect("coco", "nnunet")
                break
        found = visible(run.folder)
        assert found.items() <= whole.items()
        datasets = found.keys() - {"coco.json"}
        assert not datasets or datasets == whole.keys() - {"coco.json"}
        assert not again or "coco.json" in found
    assert 25 < calls < 99
    assert visible(run.folder) == whole


def test_what_a_killed_collection_left_is_cleared(run):
    run.add("a.png")
    for name in (".growing-nnunet", ".replaced-nnunet"):
        (run.folder / name / "Dataset501_x").mkdir(parents=True)
    run.collect("nnunet")
    assert left_behind(run.folder) == {"nnunet"}


def test_a_full_disk_is_an_output_error(run, monkeypatch):
    run.add("a.png")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    for kind in ("coco", "nnunet"):
        with pytest.raises(OutputError, match="No space left"):
            run.collect(kind)
        assert not left_behind(run.folder)


def test_cases_are_streamed(run):
    """No case is asked for before the one before it is written, and none is kept."""
    import gc
    import weakref

    run.add("0.png")
    alive: list[weakref.ref] = []

    def cases() -> Iterator[Case]:
        for k in range(20):
            gc.collect()
            assert sum(ref() is not None for ref in alive) <= 2
            case = Case(f"{k}.png", run.cases[0].outcomes, lambda: run.pictures["0.png"])
            alive.append(weakref.ref(case))
            yield case

    assert collect(run.folder, ["coco", "nnunet"], cases(), LABELS).taken["coco"] == 20


def test_unknown_collections_are_named(run):
    with pytest.raises(ValueError, match="voc"):
        run.collect("voc")
