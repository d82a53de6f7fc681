"""Where DICOM frames lie in the patient, by SimpleITK, and what is said where that is unknown."""

import gzip
import io
import itertools

import nibabel
import numpy as np
import pytest
import SimpleITK
from archives.drawn import deep, dicom
from pydicom import dcmread, uid
from pydicom.dataset import Dataset

from medclipsam.engine.archive import Decoders, decode, open_archive
from medclipsam.engine.archive.readers.dicom.geometry import Planes, make_affine
from medclipsam.engine.outputs.volumes import encode_volume, world
from medclipsam.engine.types import Grid

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning:pydicom.*")]

AXIAL, FEET_UP, CORONAL = [1.0, 0, 0, 0, 1, 0], [1.0, 0, 0, 0, -1, 0], [1.0, 0, 0, 0, 0, -1]
OBLIQUE = [0.8, 0.6, 0, -0.36, 0.48, 0.8]
SPOT, SPACING = [-10.0, 20, 33], [0.8, 0.6]
EXACT = 1e-6  # mm: decimal strings hold 16 signs
LPS = np.diag([-1.0, -1, 1])


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
