"""The files of one item in every format; nibabel, Pillow and OpenCV are the oracles."""

import gzip
import io
import itertools
from dataclasses import replace

import cv2
import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PillowImage

from medclipsam.engine.archive.limits import Limits
from medclipsam.engine.archive.readers.nifti import make_grid, read_nifti_mask, voxels_to_frames
from medclipsam.engine.config import FORMATS
from medclipsam.engine.errors import ConfigError, InputError
from medclipsam.engine.outputs import (
    Labelled,
    encode_outputs,
    number_labels,
    output_path,
    read_map,
)
from medclipsam.engine.outputs.figure import overlay
from medclipsam.engine.outputs.labelmap import burn_labels
from medclipsam.engine.outputs.volumes import encode_volume, world
from medclipsam.engine.types import Grid, ItemRef

LIMITS = Limits()
RNG = np.random.default_rng(11)
FRAMES, HEIGHT, WIDTH = 3, 7, 5
LABELS = ("tumour", "left lung", "cyst")
INDEX = number_labels(LABELS)
MASKS = {label: RNG.random((FRAMES, HEIGHT, WIDTH)) > 0.6 for label in LABELS}
AFFINE_MM = 1e-4  # float32 in NIfTI-1 headers

DICOM_AFFINE = np.array(
    [[-0.5, 0.1, 0.4, 30.25], [-0.1, -0.8, 0.2, -12], [0.2, 0.1, 2.4, 401], [0, 0, 0, 1.0]]
)
PLACED = Grid("dicom", (0.8, 0.5), DICOM_AFFINE, (WIDTH, HEIGHT, FRAMES))


def item(grid=Grid("raster"), frames=FRAMES, path="a/b.png", **others) -> Labelled:  # noqa: B008
    values = {
        "ref": ItemRef(path),
        "frames": RNG.integers(0, 256, (frames, HEIGHT, WIDTH, 3), np.uint8),
        "grid": grid,
        "masks": {label: mask[:frames] for label, mask in MASKS.items()},
        "boxes": {label: [np.array([[1, 1, 4, 5]], np.int32)] * frames for label in LABELS},
        "prompts": {label: f"a {label}" for label in LABELS},
        "confidence": dict.fromkeys(LABELS, 0.5),
    }
    return Labelled(**values | others)


def files(labelled: Labelled, *formats: str, index=INDEX) -> dict[str, bytes]:
    pairs = encode_outputs(labelled, formats, index)
    found = {str(path): data for path, data in pairs}
    assert len(found) == len(pairs)
    return found


def pages(data: bytes) -> np.ndarray:
    """(F, H, W) by OpenCV, which keeps 16 bits."""
    _, found = cv2.imdecodemulti(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    return np.stack(found)


def volume(data: bytes) -> nibabel.Nifti1Image:
    return nibabel.Nifti1Image.from_bytes(gzip.decompress(data))


def nifti_item(shape, affine, **others) -> tuple[Labelled, dict[str, np.ndarray]]:
    """An item from a NIfTI source, and label → voxels in stored order."""
    voxels = {label: RNG.random(shape) > 0.5 for label in LABELS}
    frames = {label: voxels_to_frames(v, affine) for label, v in voxels.items()}
    axis = frames[LABELS[0]][1]
    masks = {label: mask for label, (mask, _) in frames.items()}
    grid = make_grid(shape, affine, axis)
    return item(grid, masks=masks, path="v.nii", **others), voxels


def orientations():
    """All 48 ways in which stored axes can lie, with an oblique turn and odd sizes."""
    c, s = np.cos(0.2), np.sin(0.2)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            affine = np.eye(4)
            axes = turn @ np.eye(3)[:, list(order)] @ np.diag(np.array(signs) * (0.7, 1.1, 2.9))
            affine[:3, :3], affine[:3, 3] = axes, (5, -40, 12.5)
            yield affine


@pytest.mark.parametrize("affine", list(orientations()))
def test_nifti_of_a_nifti_source_lies_where_the_source_lies(affine):
    labelled, voxels = nifti_item((4, 6, 5), affine)
    found = files(labelled, "nifti")
    assert set(found) == {f"nifti/{f}/v.nii.nii.gz" for f in ("tumour", "left_lung", "cyst")}
    for label, data in zip(LABELS, found.values(), strict=True):
        image = volume(data)
        np.testing.assert_allclose(image.affine, affine, atol=AFFINE_MM)
        np.testing.assert_array_equal(np.asarray(image.dataobj), voxels[label])
        again, _ = read_nifti_mask(data, LIMITS)
        np.testing.assert_array_equal(again, labelled.masks[label])


def test_nifti_of_a_dicom_source_has_its_geometry():
    for label, data in zip(LABELS, files(item(PLACED), "nifti").values(), strict=True):
        image = volume(data)
        assert image.shape == (WIDTH, HEIGHT, FRAMES)
        np.testing.assert_allclose(image.affine, DICOM_AFFINE, atol=AFFINE_MM)
        assert image.header["sform_code"] == 1
        frame, row, column = np.argwhere(MASKS[label])[0]
        assert image.dataobj[column, row, frame] == 1
        np.testing.assert_array_equal(
            np.asarray(image.dataobj), MASKS[label].transpose(2, 1, 0).astype(np.uint8)
        )


@pytest.mark.parametrize(
    ("grid", "diagonal"),
    [
        (Grid("raster"), (-1, -1, 1)),
        (Grid("dicom", spacing=(0.25, 0.75)), (-0.75, -0.25, 1)),
    ],
)
def test_nifti_without_a_known_geometry_is_as_itk_reads_a_picture(grid, diagonal):
    for frames in (1, FRAMES):
        image = volume(next(iter(files(item(grid, frames), "nifti").values())))
        np.testing.assert_allclose(image.affine, np.diag([*diagonal, 1]))
        assert nibabel.aff2axcodes(image.affine) == ("L", "P", "S")
        assert image.shape == (WIDTH, HEIGHT, frames)
        assert image.header["sform_code"] == image.header["qform_code"] == 2
        assert image.header.get_xyzt_units()[0] == "mm"
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=AFFINE_MM)
        assert image.get_data_dtype() == np.uint8


def test_withheld_labels_are_not_delivered():
    labelled = item(withheld=frozenset({"tumour"}))
    assert not any("tumour" in path for path in files(labelled, "nifti"))
    assert sum("tumour" in path for path in files(labelled, "overlay")) == 1


def test_label_maps_in_the_form_of_the_masks():
    expected = burn_labels(MASKS, INDEX)
    assert set(np.unique(expected)) == {0, 1, 2, 3}
    several = files(item(), "labelmap")
    assert list(several) == ["labelmaps/a/b.png.tif"]
    np.testing.assert_array_equal(pages(several["labelmaps/a/b.png.tif"]), expected)
    single = files(item(frames=1), "labelmap")
    assert list(single) == ["labelmaps/a/b.png"]
    np.testing.assert_array_equal(pages(single["labelmaps/a/b.png"])[0], expected[0])
    assert PillowImage.open(io.BytesIO(single["labelmaps/a/b.png"])).mode == "L"
    labelled, voxels = nifti_item((4, 6, 5), np.diag([-0.7, 1.1, 2.9, 1]))
    (data,) = files(labelled, "labelmap").values()
    np.testing.assert_array_equal(np.asarray(volume(data).dataobj), burn_labels(voxels, INDEX))


@given(st.permutations(LABELS), st.sets(st.sampled_from(LABELS)))
def test_overlap_and_what_is_withheld_pixel_by_pixel(order, withheld):
    burnt = burn_labels({label: MASKS[label] for label in order}, INDEX, withheld)
    assert burnt.dtype == np.uint8
    for at in np.ndindex(burnt.shape):
        claims = [label for label in LABELS if MASKS[label][at]]
        trusted = [label for label in claims if label not in withheld]
        expected = INDEX[trusted[0]] if trusted else 255 if claims else 0
        assert burnt[at] == expected


def test_numbers_hold_for_a_whole_run():
    assert number_labels(["b", "a", "b", "c"]) == {"b": 1, "a": 2, "c": 3}
    only = item(masks={"cyst": MASKS["cyst"]})
    (data,) = files(only, "labelmap").values()
    assert set(np.unique(pages(data))) == {0, 3}
    assert number_labels(map(str, range(254)))["253"] == 254
    with pytest.raises(ConfigError, match="at most 254 labels"):
        number_labels(map(str, range(255)))


LEVELS = np.arange(FRAMES * HEIGHT * WIDTH, dtype=np.uint16).reshape(FRAMES, HEIGHT, WIDTH) * 620


def test_saliency_keeps_all_sixteen_bits():
    assert LEVELS.max() > 64000
    saliency = {"left lung": LEVELS}
    several = files(item(saliency=saliency), "saliency")
    assert list(several) == ["saliency/left_lung/a/b.png.tif"]
    np.testing.assert_array_equal(pages(next(iter(several.values()))), LEVELS)
    single = files(item(frames=1, saliency={"left lung": LEVELS[:1]}), "saliency")
    assert list(single) == ["saliency/left_lung/a/b.png"]
    found = pages(single["saliency/left_lung/a/b.png"])
    np.testing.assert_array_equal(found, LEVELS[:1])
    assert found.dtype == np.uint16


def test_saliency_of_a_volume_reads_as_a_share():
    affine = np.diag([0.7, -1.1, 2.9, 1])
    voxels = RNG.integers(0, 65536, (4, 6, 5), np.uint16)
    voxels[0, 0, 0], voxels[1, 0, 0] = 0, 65535
    frames, axis = voxels_to_frames(voxels, affine)
    labelled = item(make_grid(voxels.shape, affine, axis), saliency={"cyst": frames}, path="v.nii")
    (data,) = files(labelled, "saliency").values()
    image = volume(data)
    assert image.get_data_dtype() == np.uint16
    np.testing.assert_array_equal(image.dataobj.get_unscaled(), voxels)
    np.testing.assert_allclose(image.get_fdata(), voxels / 65535, atol=1e-6)
    assert image.get_fdata().max() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(image.affine, affine, atol=AFFINE_MM)


def test_large_volumes_are_nifti_2_with_a_slope():
    frames = np.zeros((1, 1, 1 << 15), np.uint16)
    frames[0, 0, 7] = 65535
    data = gzip.decompress(encode_volume(frames, Grid("raster"), 1 / 65535))
    image = nibabel.Nifti2Image.from_bytes(data)
    assert image.shape == (1 << 15, 1, 1) and image.get_fdata()[7, 0, 0] == pytest.approx(1)


def test_masks_of_the_crf_are_stored_as_masks_are():
    labelled = item(crf=dict(MASKS), withheld=frozenset({"cyst"}))
    found = files(labelled, "crf")
    assert list(found) == [f"crf/{f}/a/b.png.tif" for f in ("tumour", "left_lung", "cyst")]
    for label, data in zip(LABELS, found.values(), strict=True):
        np.testing.assert_array_equal(pages(data), MASKS[label] * np.uint8(255))
    affine = np.diag([-0.7, 1.1, 2.9, 1])
    volumes, voxels = nifti_item((4, 6, 5), affine)
    (data, *_) = files(replace(volumes, crf=volumes.masks), "crf").values()
    np.testing.assert_array_equal(np.asarray(volume(data).dataobj), voxels["tumour"])
    assert not files(item(), "crf")


def test_maps_are_read_back_as_they_were_stored(tmp_path):
    affine = np.diag([-0.7, 1.1, 2.9, 1])
    frames, axis = voxels_to_frames(RNG.integers(0, 65536, (4, 6, 5), np.uint16), affine)
    placed = item(make_grid((4, 6, 5), affine, axis), saliency={"cyst": frames}, path="v.nii")
    plain = item(saliency={"cyst": LEVELS})
    for labelled in (placed, plain):
        ((name, data),) = files(labelled, "saliency").items()
        path = tmp_path / name.rpartition("/")[2]
        path.write_bytes(data)
        levels, grid = read_map(path)
        np.testing.assert_array_equal(levels, labelled.saliency["cyst"])
        assert levels.dtype == np.uint16 and levels.dtype.isnative
        assert grid.kind == labelled.grid.kind
    for content, words in ((b"GIF89a", "PNG, TIFF or NIfTI"), (colour_png(), "8 or 16 bits")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=words):
            read_map(path)


def colour_png() -> bytes:
    return cv2.imencode(".png", np.zeros((4, 5, 3), np.uint8))[1].tobytes()


def test_overlays_show_the_frame_with_the_largest_mask():
    labelled = item()
    found = files(labelled, "overlay")
    assert list(found) == [f"overlays/{f}/a/b.png" for f in ("tumour", "left_lung", "cyst")]
    for label, data in zip(LABELS, found.values(), strict=True):
        best = labelled.masks[label].sum((1, 2)).argmax()
        expected = overlay(
            labelled.frames[best], labelled.masks[label][best], labelled.boxes[label][best]
        )
        np.testing.assert_array_equal(np.array(PillowImage.open(io.BytesIO(data))), expected)


def test_only_dicom_becomes_dicom():
    assert not files(item(), "dicom-seg")
    labelled, _ = nifti_item((4, 6, 5), np.eye(4))
    assert not files(labelled, "dicom-seg")
    assert not files(item(Grid("dicom"), withheld=frozenset(LABELS)), "dicom-seg")


def test_equal_items_give_equal_bytes(monkeypatch):
    kinds = [item(frames=1), item(), item(PLACED), nifti_item((4, 6, 5), DICOM_AFFINE)[0]]
    formats = [name for name in FORMATS if name != "dicom-seg"]
    for labelled in kinds:
        saliency = {label: mask * np.uint16(40000) for label, mask in labelled.masks.items()}
        labelled = replace(labelled, saliency=saliency, crf=labelled.masks)
        if labelled.grid.kind == "nifti":
            shape = labelled.masks["cyst"].shape
            labelled = replace(labelled, frames=np.zeros((*shape, 3), np.uint8))
            labelled.boxes.update({k: [np.zeros((0, 4), np.int32)] * shape[0] for k in LABELS})
        first = files(labelled, *formats)
        assert len(first) == 1 + 4 * 3
        monkeypatch.setattr("time.time", lambda: 2e9)
        copied = {k: np.asfortranarray(m) for k, m in labelled.masks.items()}
        assert files(replace(labelled, masks=copied, crf=copied), *formats) == first


def test_unknown_formats_are_named():
    with pytest.raises(ValueError, match="dicom-seg"):
        encode_outputs(item(), ["jpeg"], INDEX)


def test_the_world_of_a_grid():
    np.testing.assert_array_equal(world(PLACED), DICOM_AFFINE)
    np.testing.assert_array_equal(world(Grid("raster")), np.diag([-1, -1, 1, 1]))


PARTS = st.lists(
    st.sampled_from(["a", "b", "~", "+", ".", "..", ".dcm", ".DCM", ".png", ".nii.gz", "#", ""]),
    max_size=4,
).map("".join)
ITEMS = st.lists(PARTS, min_size=1, max_size=4).map("/".join)


@given(
    st.lists(ITEMS, min_size=2, max_size=8, unique=True),
    st.sampled_from([".dcm", ".nii.gz", ".png"]),
)
def test_distinct_items_have_distinct_files_inside_their_folder(items, suffix):
    paths = [output_path(("top", "label"), ItemRef(path), suffix) for path in items]
    assert len(set(paths)) == len(paths)
    folders = {parent for path in paths for parent in path.parents}
    assert not folders & set(paths), "a file is never where a folder must be"
    for path in paths:
        assert path.parts[:2] == ("top", "label") and ".." not in path.parts
        assert path.name.endswith(suffix)


@pytest.mark.parametrize("suffix", [".dcm", ".nii.gz"])
def test_names_up_to_four_pieces_never_coincide(suffix):
    pieces = ["a", "~", "+", ".dcm", ".png", ".nii", ".nii.gz", ".DCM"]
    names = {"".join(p) for n in range(1, 5) for p in itertools.product(pieces, repeat=n)}
    assert len({output_path(("t",), ItemRef(name), suffix) for name in names}) == len(names)


def test_names_of_the_other_formats():
    def name(path, suffix):
        return str(output_path(("x",), ItemRef(path), suffix))

    assert name("a/b.dcm", ".dcm") == "x/a/b.dcm"
    assert name("IM1", ".dcm") == "x/IM1~.dcm"
    assert name("x.dcm/y.dcm", ".dcm") == "x/x.dcm+/y.dcm"
    assert name("x.dcm/y.dcm", ".png") == "x/x.dcm/y.dcm.png"
    assert name("../../y.png", ".png") == "x/..+/..+/y.png"
    digest = "3fb4e1c0" * 8
    assert name(digest, ".dcm") == f"x/{digest}~.dcm"
