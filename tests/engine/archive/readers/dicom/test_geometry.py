"""Where DICOM objects lie; SimpleITK is the oracle of origin, spacing and direction."""

import gzip
import hashlib
import io
import itertools
import random

import nibabel
import numpy as np
import pytest
import SimpleITK
from bad_input import deep, dicom
from pydicom import dcmread, uid
from pydicom.dataset import Dataset

from medclipsam.engine.archive import Decoders, decode, open_archive
from medclipsam.engine.archive.readers.dicom.geometry import Planes, make_affine
from medclipsam.engine.archive.readers.dicom.stacks import Slice, make_stacks
from medclipsam.engine.outputs.volumes import encode_volume, world
from medclipsam.engine.types import Grid

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning:pydicom.*")]

AXIAL, FEET_UP, CORONAL = [1.0, 0, 0, 0, 1, 0], [1.0, 0, 0, 0, -1, 0], [1.0, 0, 0, 0, 0, -1]
OBLIQUE = [0.8, 0.6, 0, -0.36, 0.48, 0.8]
SPOT, SPACING = [-10.0, 20, 33], [0.8, 0.6]
EXACT = 1e-6  # mm: decimal strings hold 16 signs
LPS = np.diag([-1.0, -1, 1])
SERIES = "1.2.826.0.1.3680043.8.498.1"


def stored(kind, frames=4, size=(19, 26), **elements) -> bytes:
    pixels = deep()[: size[0], : size[1]]
    pixels = pixels if frames == 1 else np.stack([np.roll(pixels, k, 0) for k in range(frames)])
    found = dcmread(io.BytesIO(dicom(pixels, **elements)))
    found.SOPClassUID = found.file_meta.MediaStorageSOPClassUID = kind
    stream = io.BytesIO()
    found.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def oracle(path) -> np.ndarray:
    """(4, 4) from (column, row, frame) to RAS mm, by SimpleITK, which speaks LPS."""
    image = SimpleITK.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return np.diag([-1.0, -1, 1, 1]) @ affine


def detector(turn, spot=SPOT) -> Dataset:
    found = Dataset()
    found.ImageOrientationPatient, found.ImagePositionPatient = turn, spot
    return found


PLACED = {"ImagePositionPatient": SPOT, "PixelSpacing": SPACING}
DOSE = {"Modality": "RTDOSE", "FrameIncrementPointer": 0x3004000C, **PLACED}
NUCLEAR = {"Modality": "NM", "PixelSpacing": SPACING, "FrameIncrementPointer": 0x00540080}
OBJECTS = {
    f"dose {name} {step}": (
        uid.RTDoseStorage,
        {"ImageOrientationPatient": turn, "GridFrameOffsetVector": [k * step for k in range(4)]}
        | DOSE,
    )
    for (name, turn), step in itertools.product(
        {"axial": AXIAL, "oblique": OBLIQUE, "feet up": FEET_UP}.items(), (2.5, -1.25)
    )
}
OBJECTS["dose absolute"] = (
    uid.RTDoseStorage,
    {"ImageOrientationPatient": AXIAL, "GridFrameOffsetVector": [33 + 3 * k for k in range(4)]}
    | DOSE,
)
OBJECTS |= {
    f"nuclear {name} {step}": (
        uid.NuclearMedicineImageStorage,
        {"DetectorInformationSequence": [detector(turn)], "SpacingBetweenSlices": step}
        | {"ImageType": ["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"], "SliceThickness": 4}
        | {"SliceVector": [1, 2, 3, 4], "NumberOfSlices": 4}
        | NUCLEAR,
    )
    for (name, turn), step in itertools.product(
        {"axial": AXIAL, "oblique": OBLIQUE, "coronal": CORONAL}.items(), (3.0, -2.25)
    )
}


@pytest.mark.parametrize("name", OBJECTS)
def test_multi_frame_objects_lie_where_simpleitk_says(name, tmp_path):
    kind, elements = OBJECTS[name]
    path = tmp_path / "a.dcm"
    path.write_bytes(stored(kind, **elements))
    grid = decode([path]).grid
    np.testing.assert_allclose(grid.affine, oracle(path), atol=EXACT)
    assert (grid.shape, grid.spacing, grid.doubt) == ((26, 19, 4), tuple(SPACING), "")
    with Decoders(1) as pool:
        (entry,) = open_archive(path)
        np.testing.assert_array_equal(pool.decode(entry).grid.affine, grid.affine)


@pytest.mark.parametrize("kind", [uid.CTImageStorage, uid.MRImageStorage])
@pytest.mark.parametrize("turn", [AXIAL, CORONAL, OBLIQUE])
def test_a_single_slice_is_as_deep_as_slices_are_apart(kind, turn, tmp_path):
    path = tmp_path / "a.dcm"
    modality = "CT" if kind == uid.CTImageStorage else "MR"
    placed = {"ImageOrientationPatient": turn, "Modality": modality, **PLACED}
    path.write_bytes(stored(kind, 1, SliceThickness=5, SpacingBetweenSlices=3.5, **placed))
    np.testing.assert_allclose(decode([path]).grid.affine, oracle(path), atol=EXACT)
    path.write_bytes(stored(kind, 1, SliceThickness=5, **placed))
    assert np.linalg.norm(decode([path]).grid.affine[:3, 2]) == pytest.approx(5)


@pytest.mark.parametrize(
    ("kind", "keyword", "modality"),
    [
        (uid.ComputedRadiographyImageStorage, "ImagerPixelSpacing", "CR"),
        (uid.SecondaryCaptureImageStorage, "NominalScannedPixelSpacing", "OT"),
        (uid.CTImageStorage, "PixelSpacing", "CT"),
    ],
)
def test_pictures_have_the_spacing_that_simpleitk_says(kind, keyword, modality, tmp_path):
    path = tmp_path / "a.dcm"
    path.write_bytes(stored(kind, 1, Modality=modality, **{keyword: [0.25, 0.125]}))
    grid = decode([path]).grid
    assert SimpleITK.ReadImage(str(path)).GetSpacing()[:2] == (0.125, 0.25)
    assert (grid.spacing, grid.affine, grid.doubt) == ((0.25, 0.125), None, "")


def region(across, down, units=3, shape=1) -> Dataset:
    found = Dataset()
    found.RegionSpatialFormat = shape
    found.PhysicalUnitsXDirection, found.PhysicalUnitsYDirection = units, 3
    found.PhysicalDeltaX, found.PhysicalDeltaY = across, down
    return found


@pytest.mark.parametrize(
    ("regions", "spacing"),
    [
        ([region(0.02, 0.03)], (0.3, 0.2)),
        ([region(0.02, -0.03), region(0.02, 0.03)], (0.3, 0.2)),
        ([region(0.02, 0.03), region(0.1, 0.5, units=4, shape=2)], (0.3, 0.2)),
        ([region(0.02, 0.03), region(0.02, 0.04)], None),
        ([region(0.02, 0.03, units=4)], None),
        ([region(0.02, 0.03, shape=3)], None),
        ([region(0, 0.03)], None),
        ([], None),
    ],
)
def test_ultrasound_regions_tell_a_spacing_where_they_agree(regions, spacing):
    grid = decode(stored(uid.UltrasoundImageStorage, 1, SequenceOfUltrasoundRegions=regions)).grid
    assert grid.spacing == (None if spacing is None else pytest.approx(spacing))
    assert grid.doubt == ("" if spacing else "the file tells no pixel spacing")


def test_a_known_ratio_of_pixels_is_kept_where_millimetres_are_made_up():
    grid = decode(stored(uid.SecondaryCaptureImageStorage, 1, PixelAspectRatio=[3, 2])).grid
    assert (grid.spacing, grid.aspect, grid.doubt) == (None, 1.5, "the file tells no pixel spacing")
    np.testing.assert_array_equal(world(grid), np.diag([-1, -1.5, 1, 1]))


@pytest.mark.parametrize(
    ("elements", "words"),
    [
        ({}, "where its frames lie"),
        ({"ImageOrientationPatient": OBLIQUE}, "how far the others are"),
        ({"ImageOrientationPatient": OBLIQUE, "SpacingBetweenSlices": 0}, "how far"),
        (
            {"ImageOrientationPatient": OBLIQUE, "SpacingBetweenSlices": 2}
            | {"FrameIncrementPointer": 0x00181063},
            "how far",
        ),
        ({"ImageOrientationPatient": OBLIQUE, "GridFrameOffsetVector": [5, 6, 7, 8]}, "begin"),
        ({"ImageOrientationPatient": AXIAL, "GridFrameOffsetVector": [0, 1, 2, 4]}, "1 to 2 mm"),
        ({"ImageOrientationPatient": AXIAL, "GridFrameOffsetVector": [0, 1, 1, 2]}, "same place"),
        (
            {"ImagePositionPatient": None}
            | {"DetectorInformationSequence": [detector(AXIAL), detector(AXIAL)]},
            "how far the others are",
        ),
        (
            {"ImagePositionPatient": None, "SpacingBetweenSlices": 2}
            | {"DetectorInformationSequence": [detector(AXIAL), detector(CORONAL)]},
            "where its frames lie",
        ),
        (
            {"ImageOrientationPatient": AXIAL, "SpacingBetweenSlices": 2}
            | {"RotationVector": [1, 1, 2, 2]},
            "several sides",
        ),
        (
            {"ImageOrientationPatient": AXIAL, "SpacingBetweenSlices": 2}
            | {"SliceVector": [1, 2, 1, 2]},
            "same place",
        ),
        (
            {"ImageOrientationPatient": AXIAL, "GridFrameOffsetVector": [0, 2, 1, 3]},
            "not in the order",
        ),
    ],
)
def test_what_is_unknown_of_frames_is_said(elements, words):
    grid = decode(stored(uid.NuclearMedicineImageStorage, **{**PLACED, **elements})).grid
    assert words in grid.doubt and grid.affine is None and grid.spacing == tuple(SPACING)


def planes(positions, turn=OBLIQUE) -> Planes:
    return Planes(np.array(positions, float), *np.reshape(turn, (2, 3)), tuple(SPACING))


@pytest.mark.parametrize("turn", [AXIAL, CORONAL, OBLIQUE])
@pytest.mark.parametrize("step", [3.0, 0.7, 0.05, -2.0])
def test_even_slices_make_a_grid_within_a_tenth_of_a_millimetre(turn, step):
    normal = np.cross(turn[:3], turn[3:])
    exact = np.array([SPOT + k * step * normal for k in range(9)])
    tolerance = min(0.1, 0.1 * abs(step))
    for off, even in ((0.9 * tolerance, True), (1.2 * tolerance, False)):
        bent = exact.copy()
        bent[4] += off * normal
        affine = make_affine(planes(bent, turn))
        if even:
            index = np.array([[0, 0, k, 1] for k in range(9)]).T
            assert np.abs((affine @ index)[:3].T - exact @ LPS).max() < 1e-9
        else:
            assert affine.endswith("mm apart")


def test_slices_that_make_no_grid_say_why():
    normal = np.cross(OBLIQUE[:3], OBLIQUE[3:])
    across = np.array(OBLIQUE[:3])
    even = [SPOT + 3 * k * normal for k in range(5)]
    assert make_affine(planes(even[:2] + even[3:])) == "its slices lie 3 to 6 mm apart"
    assert "same place" in make_affine(planes([*even, even[1]]))
    assert "beside each other" in make_affine(planes([*even, even[1] + 30 * across]))
    assert "order" in make_affine(planes([even[0], even[2], even[1], even[3]]))
    shifted = [place + (k % 2) * across for k, place in enumerate(even)]
    assert "shifted" in make_affine(planes(shifted))
    flat = [SPOT + k * (3 * across + 0.02 * normal) for k in range(4)]
    assert "beside each other" in make_affine(planes(flat))


@pytest.mark.parametrize("degrees", [-20, 7, 30])
def test_a_tilted_gantry_shears_the_grid_and_nifti_says_so(degrees):
    step = np.array([0, np.tan(np.radians(degrees)), 1.0]) * 2.5
    affine = make_affine(planes([SPOT + k * step for k in range(6)], AXIAL))
    np.testing.assert_allclose(affine[:3, 2], LPS @ step, atol=EXACT)
    grid = Grid("dicom", tuple(SPACING), affine, (5, 4, 6))
    data = encode_volume(np.ones((6, 4, 5), np.uint8), grid)
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(data))
    np.testing.assert_allclose(image.affine, affine, atol=1e-4)
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 0)


@pytest.mark.parametrize("shape", [(7, 6, 5), (5, 9, 1), (8, 6)])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_a_nifti_without_form_codes_is_in_doubt_and_its_masks_claim_nothing(shape, kind):
    voxels = (np.arange(np.prod(shape)) % 251).astype(np.uint8).reshape(shape)
    source = kind(voxels, None)
    source.header.set_zooms((0.7, 1.3, 2.5)[: len(shape)])
    assert source.header["sform_code"] == source.header["qform_code"] == 0
    decoded = decode(source.to_bytes())
    assert "no position" in decoded.grid.doubt
    data = gzip.decompress(encode_volume(decoded.frames[..., 0], decoded.grid))
    mask = nibabel.Nifti1Image.from_bytes(data)
    assert mask.header["sform_code"] == mask.header["qform_code"] == 0
    np.testing.assert_allclose(mask.affine, source.header.get_best_affine(), atol=1e-5)
    placed = kind(voxels, np.diag([0.7, 1.3, 2.5, 1]))
    assert not decode(placed.to_bytes()).grid.doubt


# What is known of slices, and which of them make a volume.


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
