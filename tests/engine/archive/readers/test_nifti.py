"""NIfTI: orientation above all; world coordinates through the affine are the oracle."""

import gzip
import io
import itertools

import nibabel
import numpy as np
import pytest
from nibabel.affines import apply_affine

from medclipsam.engine.archive.limits import Limits
from medclipsam.engine.archive.readers.nifti import (
    frames_to_voxels,
    read_nifti,
    read_nifti_mask,
    voxels_to_frames,
)
from medclipsam.engine.errors import InputError
from medclipsam.engine.outputs import encode_mask

LIMITS = Limits()
SHAPE = (5, 7, 9)
NOISE = np.random.default_rng(7).integers(0, 1000, SHAPE).astype(np.int16)
ORIENTATIONS = [
    (order, signs)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def affine_of(order, signs, sizes=(1.0, 1.1, 1.2), tilt=0.0) -> np.ndarray:
    """Voxel axis k runs along world axis ``order[k]``; tilt in radians about z."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for k, (axis, sign) in enumerate(zip(order, signs, strict=True)):
        affine[axis, k] = sign * sizes[axis]
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]]
    affine = turn @ affine
    affine[:3, 3] = (-30, 20, 11)
    return affine


def to_bytes(voxels: np.ndarray, affine: np.ndarray, kind=nibabel.Nifti1Image) -> bytes:
    return kind(voxels, affine).to_bytes()


def refused(data: bytes, limits: Limits = LIMITS) -> str:
    with pytest.raises(InputError) as caught:
        read_nifti(data, limits)
    assert caught.value.stage == "read_image"
    return caught.value.reason


@pytest.mark.parametrize("order, signs", ORIENTATIONS)
def test_a_mask_on_the_landmark_lands_on_its_world_coordinates(order, signs):
    for spot, thick, tilt in (((1, 5, 2), None, 0.0), ((4, 0, 8), 0, 0.3), ((0, 3, 7), 1, -0.3)):
        sizes = [1.0, 1.1, 1.2]
        if thick is not None:
            sizes[thick] = 4.0
        affine = affine_of(order, signs, sizes, tilt)
        voxels = np.zeros(SHAPE, np.int16)
        voxels[spot] = 500
        frames, grid = read_nifti(to_bytes(voxels, affine), LIMITS)
        assert grid.axis == (2 if thick is None else thick)
        mask = frames[..., 0] == 255
        assert mask.sum() == 1
        suffix, data = encode_mask(mask, grid)
        assert suffix == ".nii.gz"
        written = nibabel.Nifti1Image.from_bytes(gzip.decompress(data))
        ((*found,),) = np.argwhere(np.asarray(written.dataobj))
        np.testing.assert_allclose(
            apply_affine(written.affine, found), apply_affine(affine, spot), atol=1e-4
        )
        assert written.shape == SHAPE and tuple(found) == spot
        again, grid_again = read_nifti_mask(data, LIMITS)
        np.testing.assert_array_equal(again, mask)
        assert grid_again.axis == grid.axis


# World (RAS) direction of one step down and one step to the right on the display.
DISPLAY = {
    0: ((0, 0, -1), (0, -1, 0)),  # sagittal: top → bottom, front → back
    1: ((0, 0, -1), (-1, 0, 0)),  # coronal: top → bottom, patient's right → left
    2: ((0, -1, 0), (-1, 0, 0)),  # axial: front → back, patient's right → left
}


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("order, signs", ORIENTATIONS)
def test_the_display_is_radiological(order, signs, axis):
    sizes = [1.0, 1.1, 1.2]
    sizes[axis] = 5.0
    affine = affine_of(order, signs, sizes)
    world = np.moveaxis(np.indices(SHAPE), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    planes = [voxels_to_frames(world[..., k], affine)[0] for k in range(3)]
    world_shown = np.stack(planes, axis=-1)  # (F, H, W, 3): where each shown pixel lies
    down, right = DISPLAY[axis]
    _, grid = read_nifti(to_bytes(NOISE, affine), LIMITS)
    assert grid.axis == axis
    steps = np.diff(world_shown, axis=1), np.diff(world_shown, axis=2)
    for step, direction, spacing in zip(steps, (down, right), grid.spacing, strict=True):
        expected = np.broadcast_to(np.multiply(direction, spacing), step.shape)
        np.testing.assert_allclose(step, expected, atol=1e-6)


@pytest.mark.parametrize("order, signs", ORIENTATIONS[::5])
def test_frames_and_voxels_are_inverse(order, signs):
    affine = affine_of(order, signs, tilt=0.2)
    _, grid = read_nifti(to_bytes(NOISE, affine), LIMITS)
    frames, axis = voxels_to_frames(NOISE, affine)
    assert axis == grid.axis
    np.testing.assert_array_equal(frames_to_voxels(frames, grid), NOISE)


def test_two_axes_and_single_slices():
    flat = NOISE[:, :, 0]
    affine = affine_of((0, 1, 2), (1, 1, 1))
    for voxels in (flat, flat[..., None]):
        frames, grid = read_nifti(to_bytes(voxels, affine), LIMITS)
        assert frames.shape == (1, 7, 5, 3) and grid.axis == 2 and grid.shape == voxels.shape
        mask = frames[..., 0] > 100
        _, data = encode_mask(mask, grid)
        written = nibabel.Nifti1Image.from_bytes(gzip.decompress(data))
        assert written.shape == voxels.shape
        np.testing.assert_array_equal(read_nifti_mask(data, LIMITS)[0], mask)
    frames, grid = read_nifti(to_bytes(NOISE[:1], affine), LIMITS)
    assert frames.shape == (1, 9, 7, 3) and grid.axis == 0
    frames, grid = read_nifti(to_bytes(NOISE[..., None], affine), LIMITS)
    assert frames.shape == (9, 7, 5, 3)
    assert grid.shape == SHAPE


@pytest.mark.parametrize("dtype", ["u1", "i2", ">i2", "u2", "i4", "f4", "f8", ">f4"])
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_voxel_types_show_the_same(dtype, zipped, kind):
    voxels = (NOISE % 250).astype(dtype)
    order = dtype[0] if dtype[0] == ">" else "<"
    header = kind.header_class(endianness=order)
    header.set_data_dtype(voxels.dtype)
    data = kind(voxels, np.eye(4), header).to_bytes()
    expected, _ = read_nifti(to_bytes((NOISE % 250).astype(np.int16), np.eye(4)), LIMITS)
    frames, _ = read_nifti(gzip.compress(data) if zipped else data, LIMITS)
    np.testing.assert_array_equal(frames, expected)


def test_scaled_and_inverted_values():
    expected, _ = read_nifti(to_bytes(NOISE, np.eye(4)), LIMITS)
    for slope, inverted in ((0.01, False), (-3.0, True)):
        image = nibabel.Nifti1Image(NOISE, np.eye(4))
        image.header.set_slope_inter(slope, 12)
        data = bytearray(image.to_bytes())
        data[112:120] = np.array([slope, 12], "<f4").tobytes()
        frames, _ = read_nifti(bytes(data), LIMITS)
        difference = frames.astype(int) - (255 - expected.astype(int) if inverted else expected)
        assert np.abs(difference).max() <= 1


def test_kinds_that_are_not_supported():
    series = np.stack([NOISE, NOISE], axis=-1)
    assert refused(to_bytes(series, np.eye(4))) == "unsupported"
    assert refused(to_bytes(NOISE[:, 0, 0], np.eye(4))) == "unsupported"
    assert refused(to_bytes(NOISE.astype(np.complex64), np.eye(4))) == "unsupported"
    rgb = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert refused(to_bytes(rgb, np.eye(4))) == "unsupported"
    flat = np.diag([1.0, 1.0, 0.0, 1.0])
    parallel = np.eye(4)
    parallel[:3, 1] = parallel[:3, 0]
    for affine in (flat, parallel, np.full((4, 4), np.nan)):
        image = nibabel.Nifti1Image(NOISE, np.eye(4))
        image.header.set_sform(np.eye(4), code=1)
        data = bytearray(image.to_bytes())
        data[280:328] = affine[:3].astype("<f4").tobytes()
        assert refused(bytes(data)) == "unsupported"


def test_values_that_make_no_picture():
    assert refused(to_bytes(np.full(SHAPE, 3, np.int16), np.eye(4))) == "constant"
    assert refused(to_bytes(np.zeros((1, 1, 1), np.int16), np.eye(4))) == "constant"
    for bad in (np.nan, -np.inf):
        voxels = NOISE.astype(np.float32)
        voxels[1, 2, 3] = bad
        assert refused(to_bytes(voxels, np.eye(4))) == "non-finite"
    assert refused(to_bytes(np.zeros((0, 4, 4), np.int16), np.eye(4))) in ("empty", "unreadable")


def test_sizes_are_checked_from_the_header():
    header = bytearray(to_bytes(NOISE, np.eye(4)))
    header[42:48] = np.array([30000, 30000, 30000], "<i2").tobytes()
    assert refused(bytes(header)) == "too-large"
    assert refused(gzip.compress(bytes(header))) == "too-large"
    assert refused(to_bytes(NOISE, np.eye(4)), Limits(max_pixels=NOISE.size - 1)) == "too-large"
    for offset in (1e30, -400.0, np.nan):
        header = bytearray(to_bytes(NOISE, np.eye(4)))
        header[108:112] = np.array([offset], "<f4").tobytes()
        assert refused(bytes(header)) in ("unreadable", "truncated")


def test_a_deflate_bomb_is_not_inflated():
    stream = io.BytesIO()
    with gzip.GzipFile(fileobj=stream, mode="wb") as file:
        file.write(to_bytes(NOISE, np.eye(4)))
        for _ in range(64):
            file.write(bytes(1 << 20))
    assert refused(stream.getvalue()) == "too-large"


@pytest.mark.parametrize("zipped", [False, True])
def test_files_cut_off_anywhere_are_refused(zipped):
    data = to_bytes(NOISE, np.eye(4))
    data = gzip.compress(data) if zipped else data
    for cut in {len(data) * tenth // 10 for tenth in range(10)} | {3, 100, 349, len(data) - 1}:
        assert refused(data[:cut]) in ("truncated", "unreadable")
    assert refused(data[: len(data) // 2]) == "truncated"


def test_garbage_after_the_magic_bytes():
    rng = np.random.default_rng(8)
    good = to_bytes(NOISE, np.eye(4))
    assert refused(b"\x1f\x8b" + rng.bytes(500)) == "unreadable"
    assert refused(gzip.compress(b"not an image" * 100)) == "unsupported"
    assert refused(gzip.compress(good[:300])) == "unreadable"
    for _ in range(50):
        start = bytearray(rng.bytes(344)) + good[344:]
        try:
            frames, _ = read_nifti(bytes(start), LIMITS)
        except InputError:
            continue
        assert frames.size
    damaged = bytearray(gzip.compress(good))
    damaged[len(damaged) // 2] ^= 255
    assert refused(bytes(damaged)) in ("unreadable", "truncated")
