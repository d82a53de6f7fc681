"""Mask files: their bytes, their names, and reading them back."""

import gzip
import io
import itertools
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image as PillowImage

from medclipsam.engine.errors import ConfigError, InputError
from medclipsam.engine.outputs import (
    MASK_SUFFIXES,
    check_folder,
    encode_mask,
    label_folders,
    mask_path,
    output_path,
    preview_path,
    read_mask,
    safe_label,
)
from medclipsam.engine.types import Grid, ItemRef

RASTER = Grid("raster")
MASK = np.random.default_rng(0).random((4, 13, 10)) > 0.6
AFFINE = np.array([[0, -0.8, 0, 3], [0.7, 0, 0, -5], [0, 0, 2.5, 9], [0, 0, 0, 1.0]])
VOLUME = Grid("nifti", affine=AFFINE, shape=(10, 13, 4), axis=2)
SUFFIXES = (".png", ".tif", ".nii.gz")


def read_back(folder: Path, suffix: str, data: bytes) -> tuple[np.ndarray, Grid]:
    path = folder / f"mask{suffix}"
    path.write_bytes(data)
    return read_mask(path)


@pytest.mark.parametrize("mask", [MASK[:1], MASK, np.zeros_like(MASK[:1]), np.ones_like(MASK)])
def test_raster_masks_come_back(mask, tmp_path):
    suffix, data = encode_mask(mask, RASTER)
    assert suffix == (".png" if len(mask) == 1 else ".tif")
    again, grid = read_back(tmp_path, suffix, data)
    np.testing.assert_array_equal(again, mask)
    assert again.dtype == bool and grid.kind == "raster"
    picture = PillowImage.open(io.BytesIO(data))
    assert picture.mode == "L" and getattr(picture, "n_frames", 1) == len(mask)
    assert set(np.unique(np.array(picture))) <= {0, 255}


@pytest.mark.parametrize("mask", [MASK[:, :10, :13], np.zeros((4, 10, 13), bool)])
def test_nifti_masks_come_back_on_the_grid_of_their_source(mask, tmp_path):
    grid = Grid("nifti", affine=AFFINE, shape=(10, 13, 4), axis=2)
    frames = np.swapaxes(np.resize(mask, (4, 10, 13)), 1, 2).swapaxes(1, 2)
    suffix, data = encode_mask(frames, grid)
    again, found = read_back(tmp_path, suffix, data)
    np.testing.assert_array_equal(again, frames)
    assert found.axis == 2 and found.shape == (10, 13, 4)
    image = nibabel.load(tmp_path / "mask.nii.gz")
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-6)
    assert image.get_data_dtype() == np.uint8
    assert image.header["sform_code"] == image.header["qform_code"] == 1
    assert image.header.get_xyzt_units()[0] == "mm"


def test_sheared_axes_leave_the_quaternion_out():
    sheared = AFFINE.copy()
    sheared[0, 2] = 1.0
    grid = Grid("nifti", affine=sheared, shape=(10, 13, 4), axis=2)
    _, data = encode_mask(np.zeros((4, 10, 13), bool), grid)
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(data))
    assert image.header["qform_code"] == 0
    np.testing.assert_allclose(image.affine, sheared, atol=1e-6)


@pytest.mark.parametrize("grid", [RASTER, VOLUME], ids=["raster", "nifti"])
def test_equal_masks_give_equal_bytes(grid, monkeypatch):
    mask = MASK[:, :10, :10].repeat(2, axis=2)[:, :, :13]
    first = encode_mask(mask, grid)
    monkeypatch.setattr("time.time", lambda: 2e9)
    assert encode_mask(mask.copy(order="F"), grid) == first


def test_only_masks_are_encoded():
    for wrong in (MASK[0], MASK.astype(np.uint8)):
        with pytest.raises(ValueError, match="expected a bool mask"):
            encode_mask(wrong, RASTER)


def test_masks_made_elsewhere(tmp_path):
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4) % 3
    palette = PillowImage.fromarray(labels)
    palette.putpalette([9, 9, 9, 0, 0, 0, 255, 0, 0])  # index 0 is not black, index 1 is
    deep = PillowImage.fromarray(labels.astype(np.uint16))
    red = PillowImage.fromarray(np.dstack([labels, labels * 0, labels * 0]))
    bits = PillowImage.fromarray(labels > 0)
    for name, picture in {"p": palette, "d": deep, "r": red, "b": bits}.items():
        picture.save(tmp_path / f"{name}.png")
        mask, _ = read_mask(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(mask[0], labels > 0)
    square = np.zeros((32, 32), np.uint8)
    square[8:24, 8:24] = 255
    PillowImage.fromarray(square).save(tmp_path / "m.jpg", quality=60)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.jpg")[0][0], square > 0)


def test_files_that_are_no_masks(tmp_path):
    reasons = {}
    (tmp_path / "text").write_bytes(b"hello world")
    (tmp_path / "cut.png").write_bytes(encode_mask(MASK[:1], RASTER)[1][:-20])
    for name in ("text", "cut.png", "missing"):
        with pytest.raises(InputError) as caught:
            read_mask(tmp_path / name)
        reasons[name] = caught.value.reason
    assert reasons == {"text": "unreadable", "cut.png": "truncated", "missing": "vanished"}


def test_names_mirror_the_archive():
    def name(path, suffix=".png"):
        return str(mask_path("mass", ItemRef(path), suffix)).removeprefix("masks/mass/")

    assert name("a/b.png") == "a/b.png"
    assert name("a/b (1).jpg") == "a/b (1).jpg.png"
    assert name("a/b.PNG") == "a/b.PNG.png"
    assert name("b.dcm") == "b.dcm.png"
    assert name("b.dcm", ".tif") == "b.dcm.tif"
    assert name("s.nii.gz", ".nii.gz") == "s.nii.gz"
    assert name("s.nii", ".nii.gz") == "s.nii.nii.gz"
    assert name("IM0001") == "IM0001~.png"
    assert name("1.2.840.7") == "1.2.840.7~.png"
    assert name("b.dcm.png") == "b.dcm+.png"
    assert name("x.png/y.png") == "x.png+/y.png"
    assert name(os.fsdecode(b"r\xf6.png")) == r"r\xf6.png"
    assert str(mask_path("left lung", ItemRef("x.png"), ".png")) == "masks/left_lung/x.png"


def test_long_names_fit_into_a_file_system(tmp_path):
    for sign in ("n", os.fsdecode(b"\xb7")):
        stem = sign * 240
        paths = {mask_path("m", ItemRef(f"{stem}{k}.dcm"), ".png") for k in range(3)}
        assert len(paths) == 3
        for path in paths:
            assert path.suffix == ".png"
            (tmp_path / path.name).write_bytes(b"")


DEEP = ["d" * 200] * 25
HOLDERS = [("masks", "m"), ("quarantine", "x" * 240), ("labelmaps",), ("dicom-seg",)]


@pytest.mark.parametrize("suffix", [*MASK_SUFFIXES, ".dcm"])
@pytest.mark.parametrize("holder", HOLDERS, ids=len)
@pytest.mark.parametrize(
    "folders", [DEEP, ["d"] * 3000, [os.fsdecode(b"\xb7")] * 900, ["é" * 130] * 9, ["d"] * 20]
)
def test_paths_of_any_depth_can_be_written(folders, holder, suffix, tmp_path):
    folder = "/".join(folders)
    items = [f"{folder}/{name}" for name in ("a.png", "b.png", "a.dcm", "n" * 300)]
    items += [f"{folder}x/a.png", f"x{folder}/a.png", f"{folder}/a/a.png"]
    paths = [output_path(holder, ItemRef(item), suffix) for item in items]
    assert len(set(paths)) == len(items)
    assert paths == [output_path(holder, ItemRef(item), suffix) for item in items]
    for path in paths:
        assert path.parts[: len(holder)] == holder and path.name.endswith(suffix)
        assert len(str(path).encode()) <= 1000
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"")
    for label in ("m", "x" * 240):
        for item in items:
            preview = tmp_path / preview_path(label, ItemRef(item).id)
            preview.parent.mkdir(parents=True, exist_ok=True)
            preview.write_bytes(b"")


@pytest.mark.parametrize(
    "item", ["/".join([*DEEP, "a.png"]), "n" * 300 + ".png", "d" * 300 + "/a.png"]
)
def test_nobody_else_is_given_the_name_of_a_cut_one(item):
    taken = mask_path("m", ItemRef(item), ".png")
    again = mask_path("m", ItemRef(str(taken).removeprefix("masks/m/")), ".png")
    assert again != taken


def test_an_output_folder_too_deep_for_its_files_is_refused(tmp_path):
    check_folder(tmp_path)
    with pytest.raises(ConfigError, match="nearer to the root"):
        check_folder(Path("/".join(["/d", *["d" * 200] * 16])))


PARTS = st.lists(
    st.sampled_from(
        ["a", "b", "~", "+", ".", ".dcm", ".PNG", "\\", "\\xf6", "\udcf6", "#", *SUFFIXES]
    ),
    min_size=1,
    max_size=5,
).map("".join)
ITEMS = st.lists(PARTS, min_size=1, max_size=3).map("/".join)


@given(st.lists(ITEMS, min_size=2, max_size=8, unique=True), st.data())
@example(["b.dcm", "b.dcm.png", "b", "b.png", "b~.png", "b+.png", "b.dcm+.png"], None)
def test_distinct_items_have_distinct_masks(items, data):
    suffixes = [data.draw(st.sampled_from(SUFFIXES)) if data else ".png" for _ in items]
    paths = [str(mask_path("m", ItemRef(i), s)) for i, s in zip(items, suffixes, strict=True)]
    assert len(set(paths)) == len(paths)
    for path, suffix in zip(paths, suffixes, strict=True):
        assert path.endswith(suffix)
        path.encode()  # printable
    folders = {str(parent) for path in paths for parent in Path(path).parents}
    assert not folders & set(paths), "a mask is never where a folder must be"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_names_up_to_four_pieces_never_coincide(suffix):
    pieces = ["a", "~", "+", ".dcm", ".png", ".nii", ".nii.gz", ".tif"]
    names = {"".join(p) for n in range(1, 5) for p in itertools.product(pieces, repeat=n)}
    assert len({mask_path("m", ItemRef(name), suffix) for name in names}) == len(names)


@given(st.text(max_size=20))
def test_labels_are_safe_folder_names(label):
    folder = safe_label(label)
    assert all(sign.isalnum() or sign in "-_" for sign in folder)
    assert safe_label(folder) == folder


def test_labels_that_cannot_be_told_apart():
    assert label_folders(["mass", "left lung"]) == {"mass": "mass", "left lung": "left_lung"}
    for labels in (["a b", "a_b"], ["Mass", "mass"], [""], ["x" * 300]):
        with pytest.raises(ConfigError, match="rename"):
            label_folders(labels)
