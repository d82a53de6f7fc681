"""Windows, rescaling, tables and colours of DICOM show values as pydicom does."""

import io

import numpy as np
import pydicom
import pytest
from dicoms.ramps import (
    COLUMNS,
    HEIGHT,
    LIMITS,
    NOISE,
    RAMP,
    ROUNDING,
    ROWS,
    WIDTH,
    dataset,
    shown,
    to_bytes,
)
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_windowing

from medclipsam.engine.archive.readers.dicom.dicom import read_dicom
from medclipsam.engine.archive.readers.dicom.grayscale import look_up, window

# pytest overrides the filter that the engine installs against pydicom's remarks.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom.*")


def by_pydicom(ds: Dataset) -> np.ndarray:
    """The window as pydicom applies it, scaled to 0–255 by the ends of its own range."""
    copy = pydicom.dcmread(io.BytesIO(to_bytes(ds)))
    values = apply_modality_lut(copy.pixel_array, copy)
    with np.errstate(over="ignore"):  # of exp, far from a sigmoid's centre
        ends = apply_windowing(np.array([-1e5, 1e5]), copy)
        out = (apply_windowing(values, copy) - ends[0]) / (ends[1] - ends[0])
    return np.rint(255 * out).astype(int)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("rescale", [(1, 0), (1, -1024), (0.5, 7), (-2, 3000)])
@pytest.mark.parametrize("center, width", [(700, 900), (49.5, 300.5), (1800, 3600)])
def test_windows_agree_with_pydicom(function, rescale, center, width):
    ds = dataset(RAMP, WindowCenter=center, WindowWidth=width, VOILUTFunction=function)
    ds.RescaleSlope, ds.RescaleIntercept = rescale
    expected = by_pydicom(ds)
    assert np.abs(shown(ds)[0, ..., 0] - expected).max() <= ROUNDING


def test_the_first_of_several_windows():
    one = dataset(RAMP, WindowCenter=700, WindowWidth=900)
    two = dataset(RAMP, WindowCenter=[700, 50], WindowWidth=[900, 10])
    np.testing.assert_array_equal(shown(one), shown(two))


def test_windows_that_hide_everything_or_make_no_sense_are_not_used():
    robust = shown(dataset(RAMP))
    assert robust.min() == 0 and robust.max() == 255
    for center, width, function in ((-5000, 10, "LINEAR"), (5, 0, "LINEAR"), (5, 9, "ODD")):
        ds = dataset(RAMP, WindowCenter=center, WindowWidth=width, VOILUTFunction=function)
        np.testing.assert_array_equal(shown(ds), robust)
    assert window(RAMP, 5, -3, "LINEAR_EXACT") is None
    np.testing.assert_array_equal(window(np.array([3, 9]), 5, 1, "LINEAR"), [0, 255])


@pytest.mark.parametrize("windowed", [True, False])
def test_monochrome1_is_the_same_picture_as_monochrome2(windowed):
    two = dataset(RAMP)
    one = dataset((4095 - RAMP).astype(np.uint16), PhotometricInterpretation="MONOCHROME1")
    if windowed:
        two.WindowCenter, one.WindowCenter = 1000, 4095 - 1000 + 1
        two.WindowWidth = one.WindowWidth = 1500
    difference = shown(one).astype(int) - shown(two)
    assert np.abs(difference).max() <= ROUNDING


def test_signed_values_and_rescale_do_not_wrap():
    signed = (RAMP.astype(np.int16) - 1000).astype(np.int16)
    expected = shown(dataset(RAMP))
    np.testing.assert_array_equal(shown(dataset(signed, bits=16)), expected)
    ds = dataset(RAMP, RescaleSlope=2, RescaleIntercept=-1024)
    np.testing.assert_array_equal(shown(ds), expected)
    ds = dataset(RAMP, RescaleSlope=-1, RescaleIntercept=0)
    assert np.abs(shown(ds).astype(int) - (255 - expected)).max() <= ROUNDING


def test_eight_bits_are_shown_as_stored():
    grey = (ROWS + COLUMNS).astype(np.uint8)
    np.testing.assert_array_equal(shown(dataset(grey, bits=8))[0, ..., 0], grey)


def test_padding_does_not_darken_the_picture():
    padded = (RAMP.astype(np.int16) + 100).astype(np.int16)
    padded[:8] = -2000
    shade = shown(dataset(padded, bits=16, PixelPaddingValue=-2000))[0, ..., 0]
    assert (shade[:8] == 0).all()
    inner = dataset(padded[8:].copy(), bits=16)
    np.testing.assert_array_equal(shade[8:], shown(inner)[0, ..., 0])


def lut(first: int, table: list[int], bits: int) -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [len(table), first, bits]
    item.LUTData = table
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "US"
    return item


def test_voi_and_modality_tables():
    table = [min(255, int(255 * (k / 3599) ** 2)) for k in range(3600)]
    item = lut(50, table, 8)
    expected = np.array(table)[np.clip(RAMP.astype(int) - 50, 0, 3599)]
    ds = dataset(RAMP, VOILUTSequence=[item], WindowCenter=5, WindowWidth=9)
    np.testing.assert_array_equal(shown(ds)[0, ..., 0], np.rint(expected * 255 / max(table)))
    ds = dataset(RAMP, ModalityLUTSequence=[item], WindowCenter=128, WindowWidth=256)
    np.testing.assert_array_equal(shown(ds)[0, ..., 0], expected)
    # The value 4000 does not fit the 8-bit table, and must not wrap around in it.
    assert look_up(np.array([4000, -5]), np.array([1, 2, 3], np.uint8), 0).tolist() == [3, 1]


def test_frames_and_windows_of_their_own():
    stack = np.stack([RAMP, RAMP[::-1], NOISE])
    frames = shown(dataset(stack))
    assert frames.shape == (3, HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(frames[0], frames[1, ::-1])
    ds = dataset(np.stack([RAMP, RAMP]))
    ds.PerFrameFunctionalGroupsSequence = []
    for center in (600, 1800):
        voi, group = Dataset(), Dataset()
        voi.WindowCenter, voi.WindowWidth = center, 1000
        group.FrameVOILUTSequence = [voi]
        ds.PerFrameFunctionalGroupsSequence.append(group)
    both = shown(ds)
    for frame, center in zip(both, (600, 1800), strict=True):
        alone = shown(dataset(RAMP, WindowCenter=center, WindowWidth=1000))
        np.testing.assert_array_equal(frame, alone[0])


def test_colour_palette_and_ybr():
    rgb = np.stack([ROWS * 9, COLUMNS * 12, 255 - ROWS * 5], axis=-1).astype(np.uint8)
    np.testing.assert_array_equal(shown(dataset(rgb, bits=8))[0], rgb)
    deep = rgb.astype(np.uint16) * 257
    np.testing.assert_array_equal(shown(dataset(deep, bits=16))[0], rgb)
    ds = dataset((ROWS % 4).astype(np.uint8), bits=8, PhotometricInterpretation="PALETTE COLOR")
    table = np.array([[0, 255, 10, 90], [5, 0, 255, 90], [7, 0, 0, 200]], np.uint16)
    for name, column in zip(("Red", "Green", "Blue"), table, strict=True):
        setattr(ds, f"{name}PaletteColorLookupTableDescriptor", [4, 0, 16])
        setattr(ds, f"{name}PaletteColorLookupTableData", (column * 257).tobytes())
    np.testing.assert_array_equal(shown(ds)[0], table.T[ROWS % 4])
    luma = np.stack([ROWS * 9, np.full_like(ROWS, 128), np.full_like(ROWS, 128)], axis=-1)
    ds = dataset(luma.astype(np.uint8), bits=8, PhotometricInterpretation="YBR_FULL")
    np.testing.assert_array_equal(shown(ds)[0], np.dstack([ROWS * 9] * 3))


def test_spacing_from_wherever_it_is_told():
    def spacing(**elements):
        return read_dicom(to_bytes(dataset(RAMP, **elements)), LIMITS)[1].spacing

    assert spacing() is None
    assert spacing(ImagerPixelSpacing=[0.2, 0.1]) == (0.2, 0.1)
    assert spacing(PixelSpacing=[0.5, 0.25], ImagerPixelSpacing=[0.2, 0.1]) == (0.5, 0.25)
    assert spacing(PixelSpacing=[0, 0.25]) is None
    measures, shared = Dataset(), Dataset()
    measures.PixelSpacing = [0.7, 0.6]
    shared.PixelMeasuresSequence = [measures]
    assert spacing(SharedFunctionalGroupsSequence=[shared]) == (0.7, 0.6)
    region = Dataset()
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX, region.PhysicalDeltaY = 0.01, 0.02
    assert spacing(SequenceOfUltrasoundRegions=[region]) == pytest.approx((0.2, 0.1))
