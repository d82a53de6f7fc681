"""Which slices make a volume, in which order, and where it lies, by SimpleITK."""

import hashlib
import random

import numpy as np
import pytest
import SimpleITK
from archives.drawn import deep, dicom

from medclipsam.engine.archive import decode, open_archive
from medclipsam.engine.archive.readers.dicom.stacks import Slice, make_stacks

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning:pydicom.*")]

AXIAL, FEET_UP, CORONAL = [1.0, 0, 0, 0, 1, 0], [1.0, 0, 0, 0, -1, 0], [1.0, 0, 0, 0, 0, -1]
OBLIQUE = [0.8, 0.6, 0, -0.36, 0.48, 0.8]
SPOT, SPACING = [-10.0, 20, 33], [0.8, 0.6]
SERIES = "1.2.826.0.1.3680043.8.498.1"


def one(name, height, kind="s", turn=AXIAL, spacing=SPACING, echo=(), marks=(), moment=()):
    position = () if height is None else (1.0, 2.0, float(height))
    return Slice(name, kind, tuple(turn), tuple(spacing), tuple(echo), position,
                 tuple(marks), tuple(moment))  # fmt: skip


def names(slices, seed=None) -> list[list[str]]:
    slices = list(slices)
    if seed is not None:
        random.Random(seed).shuffle(slices)
    return sorted([each.name for each in stack] for stack in make_stacks(slices))


def turned(by: float) -> list[float]:
    return [np.cos(by), np.sin(by), 0, -np.sin(by), np.cos(by), 0]


STACKS = {
    "rounding of cosines": (
        [one(f"a{k}", k, turn=np.round(turned(0.03162 + 1e-6 * (k % 2)), 3 + k % 3))
         for k in range(9)],
        [[f"a{k}" for k in range(9)]],
    ),
    "rounding of spacing": (
        [one(f"a{k}", k, spacing=[[0.703125] * 2, [0.7031] * 2, [0.703] * 2][k % 3])
         for k in range(6)],
        [[f"a{k}" for k in range(6)]],
    ),
    "another direction": (
        [one(f"a{k}", k, turn=turned(0.002 * (k % 2))) for k in range(6)],
        [["a0", "a2", "a4"], ["a1", "a3", "a5"]],
    ),
    "a scout of another spacing": (
        [one(f"a{k}", k, spacing=[2, 2] if k == 3 else SPACING) for k in range(6)],
        [["a0", "a1", "a2", "a4", "a5"], ["a3"]],
    ),
    "echoes": (
        [one(f"{e}{k}", k, echo=[5.0 + 20 * e + 0.03 * (k % 2)]) for e in range(2)
         for k in range(4)],
        [["00", "01", "02", "03"], ["10", "11", "12", "13"]],
    ),
    "a mark that tells times apart": (
        [one(f"{t}{k}", k, marks=["x", 7 * t], moment=[k]) for t in range(3) for k in range(4)],
        [[f"{t}{k}" for k in range(4)] for t in range(3)],
    ),
    "times that jitter, so that each slice has its own": (
        [one(f"{t}{k}", k, marks=[30.0 * t + k], moment=[30.0 * t + k]) for t in range(3)
         for k in range(4)],
        [[f"{t}{k}" for k in range(4)] for t in range(3)],
    ),
    "a last time that was cut short": (
        [one(f"{t}{k}", k, moment=[t]) for t in range(3) for k in range(4) if t < 2 or k < 2],
        [["00", "01", "02", "03"], ["10", "11", "12", "13"], ["20", "21"]],
    ),
    "one slice twice": (
        [one(f"a{k}", k, moment=[k]) for k in range(5)] + [one("b", 2.02, moment=[9])],
        [["a0", "a1", "a2", "a3", "a4"], ["b"]],
    ),
    "thin slices are no repetition": (
        [one(f"a{k}", 0.05 * k) for k in range(9)], [[f"a{k}" for k in range(9)]],
    ),
    "a missing slice tears nothing": (
        [one(f"a{k}", 3 * k) for k in (0, 1, 2, 5, 6)], [["a0", "a1", "a2", "a5", "a6"]],
    ),
    "no positions": (
        [one(f"a{k}", None, moment=[-k]) for k in range(3)] + [one("b", 1)],
        [["a2", "a1", "a0"], ["b"]],
    ),
    "other kinds": (
        [one(f"{kind}{k}", k, kind=kind) for kind in "st" for k in range(2)],
        [["s0", "s1"], ["t0", "t1"]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STACKS)
def test_slices_of_one_volume_are_found_in_any_order(name):
    slices, expected = STACKS[name]
    assert names(slices) == sorted(expected)
    for seed in range(5):
        assert names(slices, seed) == sorted(expected)


def write(folder, slices, uid_=SERIES) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, elements in slices:
        pixels = np.roll(deep(), int(elements.get("InstanceNumber", 0)), 0)
        data = dicom(pixels, **{"SeriesInstanceUID": uid_, "SliceThickness": 3,
                                "ImageOrientationPatient": AXIAL, "PixelSpacing": SPACING,
                                **elements})  # fmt: skip
        (folder / name).write_bytes(data)


def entries(folder):
    return {
        entry.ref.id: [f.name for f in entry.files] for entry in open_archive(folder, series=True)
    }


def test_each_file_is_in_one_item_and_sound_series_keep_their_ids(tmp_path):
    places = [{"ImagePositionPatient": [0, 0, 3 * k], "InstanceNumber": k + 1} for k in range(5)]
    write(tmp_path / "sound", [(f"{k}.dcm", place) for k, place in enumerate(places)])
    ((sound, _),) = entries(tmp_path / "sound").items()
    text = f"{SERIES}|48|48|{[float(cosine) for cosine in AXIAL]}"
    assert sound == f"series-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    scout = {"ImagePositionPatient": [0, 0, 1.5], "PixelSpacing": [2, 2]}
    write(tmp_path / "scout", [("s.dcm", scout), *((f"{k}", p) for k, p in enumerate(places))])
    found = entries(tmp_path / "scout")
    assert found == {sound: ["0", "1", "2", "3", "4"], "s.dcm": ["s.dcm"]}
    local = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "ImagePositionPatient": [0, 0, 15]}
    write(tmp_path / "local", [("l.dcm", local), *((f"{k}", p) for k, p in enumerate(places))])
    assert entries(tmp_path / "local") == {sound: ["0", "1", "2", "3", "4"], "l.dcm": ["l.dcm"]}
    echoes = [(f"{e}-{k}", p | {"EchoTime": 2 + 5 * e, "EchoNumbers": e + 1})
              for e in range(2) for k, p in enumerate(places)]  # fmt: skip
    write(tmp_path / "echoes", echoes)
    found = entries(tmp_path / "echoes")
    assert sorted(found.values()) == [[f"{e}-{k}" for k in range(5)] for e in range(2)]
    assert sound not in found and found == entries(tmp_path / "echoes")
    for files in found.values():
        grid = decode([tmp_path / "echoes" / name for name in files]).grid
        assert grid.affine[2, 2] == pytest.approx(3) and not grid.doubt
    times = [(f"{t}-{k}", p | {"TemporalPositionIdentifier": t, "AcquisitionTime": f"1010{t:02}"})
             for t in range(3) for k, p in enumerate(places)]  # fmt: skip
    write(tmp_path / "times", times)
    assert sorted(entries(tmp_path / "times").values()) == [
        [f"{t}-{k}" for k in range(5)] for t in range(3)
    ]


@pytest.mark.parametrize("turn", [AXIAL, CORONAL, OBLIQUE])
def test_a_series_lies_where_simpleitk_says(turn, tmp_path):
    normal = np.cross(turn[:3], turn[3:])
    write(tmp_path, [
        (f"{5 * k % 7}.dcm", {"ImageOrientationPatient": turn, "InstanceNumber": k + 1,
         "SOPInstanceUID": f"1.2.{k + 1}",
         "ImagePositionPatient": [round(float(v), 6) for v in SPOT + 2.25 * k * normal]})
        for k in range(7)])  # fmt: skip
    (entry,) = open_archive(tmp_path, series=True)
    ours = decode(entry.files).grid
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in entry.files])
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    np.testing.assert_allclose(ours.affine, np.diag([-1.0, -1, 1, 1]) @ affine, atol=1e-5)
    assert ours.shape == image.GetSize()
