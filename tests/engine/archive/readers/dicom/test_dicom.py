"""DICOM: what is shown, in which spacing, and what is refused; pydicom is the oracle."""

import io
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_modality_lut, apply_windowing
from reading import read_dicom_anywhere

from medclipsam.engine.archive.limits import Limits
from medclipsam.engine.archive.readers.codestream import read_frame
from medclipsam.engine.archive.readers.dicom.dicom import read_dicom
from medclipsam.engine.archive.readers.dicom.grayscale import look_up, window
from medclipsam.engine.errors import BackendError, InputError

# pytest overrides the filter that the engine installs against pydicom's remarks.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom.*")

LIMITS = Limits()
SAMPLES = Path(pydicom.__file__).parent / "data" / "test_files"
ROUNDING = 1  # grey levels: two ways to the same window may round apart
LOSSY = 3  # mean grey levels between two JPEG colour decoders
LOSSLESS = (uid.RLELossless, uid.JPEGLSLossless, uid.JPEG2000Lossless, uid.JPEGLosslessSV1)
REFUSALS = ("unreadable", "truncated", "constant", "unsupported", "crashed")
HEIGHT, WIDTH = 24, 20
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
RAMP = (ROWS * 150 + COLUMNS * 11).astype(np.uint16)  # 12 bits
NOISE = np.random.default_rng(3).integers(0, 4096, (HEIGHT, WIDTH), np.uint16)


def dataset(pixels: np.ndarray, bits: int = 12, **elements) -> Dataset:
    """A Secondary Capture object around (H, W), (F, H, W) or (H, W, 3) pixels."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = uid.SecondaryCaptureImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = uid.generate_uid()
    ds.PatientName = "Secret^Patient"
    colour = pixels.ndim == 3 and pixels.shape[-1] == 3
    ds.SamplesPerPixel = 3 if colour else 1
    ds.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        ds.PlanarConfiguration = 0
    elif pixels.ndim == 3:
        ds.NumberOfFrames = len(pixels)
    ds.Rows, ds.Columns = pixels.shape[:2] if colour else pixels.shape[-2:]
    ds.BitsAllocated = 8 * pixels.itemsize
    ds.BitsStored = bits
    ds.HighBit = bits - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    data = pixels.tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    return ds


def to_bytes(ds: Dataset) -> bytes:
    stream = io.BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def shown(source: Dataset | bytes) -> np.ndarray:
    data = source if isinstance(source, bytes) else to_bytes(source)
    frames, grid = read_dicom_anywhere(data, LIMITS)
    assert grid.kind == "dicom" and frames.dtype == np.uint8 and frames.shape[-1] == 3
    return frames


def refused(source: Dataset | bytes, limits: Limits = LIMITS) -> tuple[str, str]:
    data = source if isinstance(source, bytes) else to_bytes(source)
    with pytest.raises(InputError) as caught:
        read_dicom_anywhere(data, limits)
    assert caught.value.stage == "read_image"
    assert "Secret" not in str(caught.value)
    return caught.value.reason, str(caught.value)


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


def compressed(ds: Dataset, syntax: uid.UID, folder: Path) -> bytes:
    """``ds`` in a lossless syntax: by pydicom where it can, else by gdcm."""
    if syntax in (uid.RLELossless, uid.JPEGLSLossless):
        copy = pydicom.dcmread(io.BytesIO(to_bytes(ds)))
        copy.compress(syntax)
        return to_bytes(copy)
    import gdcm

    (folder / "plain.dcm").write_bytes(to_bytes(ds))
    reader, change, writer = (
        gdcm.ImageReader(),
        gdcm.ImageChangeTransferSyntax(),
        gdcm.ImageWriter(),
    )
    reader.SetFileName(str(folder / "plain.dcm"))
    assert reader.Read()
    number = gdcm.TransferSyntax.GetTSType(str.__str__(syntax))
    change.SetTransferSyntax(gdcm.TransferSyntax(number))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(folder / "compressed.dcm"))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return (folder / "compressed.dcm").read_bytes()


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda syntax: syntax.keyword)
@pytest.mark.parametrize("kind", ["grey", "frames", "colour"])
def test_lossless_syntaxes_show_the_same(syntax, kind, tmp_path):
    rgb = np.stack([ROWS * 9, COLUMNS * 12, 255 - ROWS * 5], axis=-1).astype(np.uint8)
    pixels = {"grey": NOISE, "frames": np.stack([NOISE, RAMP]), "colour": rgb}[kind]
    plain = dataset(pixels, bits=8 if kind == "colour" else 12)
    data = compressed(plain, syntax, tmp_path)
    assert pydicom.dcmread(io.BytesIO(data)).file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(shown(data), shown(plain))


def test_jpeg_lossless_is_decoded_in_decode_processes_only(tmp_path):
    with pytest.raises(BackendError, match=r"archive\.Decoders"):
        read_dicom(compressed(dataset(NOISE), uid.JPEGLosslessSV1, tmp_path), LIMITS)


def test_damaged_jpeg_lossless_streams_never_end_this_process(tmp_path):
    rng = np.random.default_rng(11)
    good = compressed(dataset(NOISE), uid.JPEGLosslessSV1, tmp_path)
    start = good.index(b"\xff\xd8")
    for _ in range(60):
        bad = bytearray(good)
        for at in rng.integers(start, start + 120, 3):
            bad[at] = rng.integers(256)
        try:
            shown(bytes(bad))
        except InputError as error:
            assert error.reason in REFUSALS


def test_a_j2k_stream_of_another_sign_than_the_header():
    # A sign correction in place, on pixels that must be writable for it.
    shown((SAMPLES / "J2K_pixelrep_mismatch.dcm").read_bytes())


def test_a_folder_called_dl_does_not_break_gdcm(tmp_path):
    (tmp_path / "dl").mkdir()
    (tmp_path / "x.dcm").write_bytes(compressed(dataset(NOISE), uid.JPEGLosslessSV1, tmp_path))
    program = (
        "from pathlib import Path; from medclipsam.engine.archive import read_image\n"
        "read_image(Path('x.dcm'))"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)


def test_gdcm_never_enters_this_process():
    """Loaded before OpenCV it corrupts the heap (``free(): invalid pointer``)."""
    program = """
import sys
from medclipsam.engine.archive import read_image
import medclipsam.engine.run.runner, medclipsam.train.demo, medclipsam.engine.cli.doctor
assert "gdcm" not in sys.modules
import cv2, numpy
for side in range(40):
    cv2.imencode(".png", numpy.full((200 + side, 250 - side), side, numpy.uint8))
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_jpeg_baseline_in_colour():
    frames = shown((SAMPLES / "SC_rgb_dcmtk_+eb+cy+np.dcm").read_bytes())
    plain = shown((SAMPLES / "SC_rgb_rle.dcm").read_bytes())
    assert np.abs(frames.astype(int) - plain).mean() <= LOSSY


def test_big_endian_and_implicit_files_show_the_same():
    little = shown((SAMPLES / "MR_small.dcm").read_bytes())
    for name in ("MR_small_bigendian", "MR_small_implicit", "MR_small_padded", "MR_small_RLE"):
        np.testing.assert_array_equal(shown((SAMPLES / f"{name}.dcm").read_bytes()), little)


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


def test_objects_without_pixels():
    ds = dataset(RAMP)
    del ds.PixelData
    assert refused(ds)[0] == "no-pixels"


def test_sizes_are_checked_from_the_header():
    assert refused(dataset(RAMP, Rows=0))[0] == "empty"
    assert refused(dataset(RAMP, Rows=65000, Columns=65000))[0] == "too-large"
    assert refused(dataset(RAMP, NumberOfFrames=10**6))[0] == "too-large"
    assert refused(dataset(RAMP, NumberOfFrames=2))[0] == "truncated"
    assert refused(dataset(RAMP, SamplesPerPixel=4))[0] == "unsupported"
    assert refused(dataset(np.full_like(RAMP, 7)))[0] == "constant"


@pytest.mark.parametrize("syntax", LOSSLESS[1:], ids=lambda syntax: syntax.keyword)
def test_a_compressed_frame_may_not_claim_another_size(syntax, tmp_path):
    ds = pydicom.dcmread(io.BytesIO(compressed(dataset(NOISE), syntax, tmp_path)))
    ds.Rows += 1
    reason, message = refused(ds)
    assert reason == "unreadable" and "25 × 20" in message and "24 × 20" in message


def test_a_stream_that_is_cut_off_inside_a_whole_file(tmp_path):
    ds = pydicom.dcmread(io.BytesIO(compressed(dataset(NOISE), uid.JPEGLosslessSV1, tmp_path)))
    (stream,) = pydicom.encaps.generate_frames(ds.PixelData, number_of_frames=1)
    frame = read_frame(stream)
    assert frame is not None and (frame.rows, frame.columns) == (HEIGHT, WIDTH)
    ds.PixelData = pydicom.encaps.encapsulate([stream[: len(stream) // 2]])
    assert refused(ds)[0] == "truncated"
    ds.NumberOfFrames = 2
    ds.PixelData = pydicom.encaps.encapsulate([stream])
    assert refused(ds)[0] == "truncated"


def test_syntaxes_without_a_decoder_name_what_to_install():
    ds = dataset(NOISE)
    ds.compress(uid.RLELossless)
    ds.file_meta.TransferSyntaxUID = uid.MPEG2MPML
    reason, message = refused(ds)
    assert reason == "unsupported" and "MPEG2" in message
    reason, message = refused((SAMPLES / "JPGExtended.dcm").read_bytes())
    assert reason == "unsupported" and "pylibjpeg-libjpeg" in message


def variants(folder: Path) -> dict[str, bytes]:
    found = {"plain": to_bytes(dataset(NOISE))}
    for syntax in LOSSLESS:
        found[syntax.keyword] = compressed(dataset(np.stack([NOISE, RAMP])), syntax, folder)
    ds = dataset(NOISE)
    ds.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    found["deflated"] = to_bytes(ds)
    found["baseline"] = (SAMPLES / "SC_rgb_dcmtk_+eb+cy+np.dcm").read_bytes()
    return found


def test_files_cut_off_anywhere_are_refused_or_whole(tmp_path):
    for name, data in variants(tmp_path).items():
        whole = shown(data)
        cuts = {len(data) * tenth // 10 for tenth in range(10)}
        cuts |= {len(data) - k for k in (1, 2, 3, 7, 8, 9, 10, 20)} | set(range(132, 900, 37))
        reasons = []
        for cut in sorted(cuts):
            try:
                frames, _ = read_dicom_anywhere(data[:cut], LIMITS)
            except InputError as error:
                reasons.append(error.reason)
            else:
                np.testing.assert_array_equal(frames, whole, err_msg=f"{name} cut at {cut}")
        assert "truncated" in reasons, name


def test_garbage_after_the_magic_bytes():
    rng = np.random.default_rng(5)
    for size in (0, 10, 1000):
        for _ in range(5):
            refused(bytes(128) + b"DICM" + rng.bytes(size))
    head = to_bytes(dataset(NOISE))[:500]
    for _ in range(5):
        refused(head + rng.bytes(300))


def test_a_deflate_bomb_stops_at_the_limit():
    data = to_bytes(dataset(NOISE))
    ds = dataset(NOISE)
    ds.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    deflated = to_bytes(ds)
    np.testing.assert_array_equal(shown(deflated), shown(data))
    body = 132 + 12 + pydicom.dcmread(io.BytesIO(deflated)).file_meta.FileMetaInformationGroupLength
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = compressor.compress(bytes(1 << 24)) + compressor.flush()
    assert refused(deflated[:body] + bomb, Limits(max_bytes=1 << 20))[0] == "too-large"


def test_no_patient_is_ever_parsed(monkeypatch):
    seen = []
    parse = pydicom.dcmread

    def watch(*args, **kwargs):
        seen.append(parse(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr("medclipsam.engine.archive.readers.dicom.dicom.dcmread", watch)
    shown(dataset(RAMP))
    assert "Rows" in seen[0] and "PatientName" not in seen[0]
