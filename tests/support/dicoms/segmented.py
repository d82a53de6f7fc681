"""Source images of DICOM segmentations, and what is read back from them."""

import io

import highdicom
import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset

from medclipsam.engine.outputs.dicomseg import encode_dicom_seg

FRAMES, HEIGHT, WIDTH = 4, 13, 9  # 117 pixels: frames do not end at bytes
SPACING = (0.75, 1.25)  # rows, columns
ANGLE = 0.3
AXES = [np.cos(ANGLE), np.sin(ANGLE), 0.0, -np.sin(ANGLE), np.cos(ANGLE), 0.0]
NORMAL = np.cross(AXES[:3], AXES[3:])
START, STEP = np.array([-31.5, 12.25, 400.0]), -2.5
SPOTS = [np.round(START + k * STEP * NORMAL, 4).tolist() for k in range(FRAMES)]
RNG = np.random.default_rng(5)
MASKS = {label: RNG.random((FRAMES, HEIGHT, WIDTH)) > 0.8 for label in ("liver mass", "Zyste ü")}
MASKS["Zyste ü"][1] = False
PROMPTS = {"liver mass": "a mass in the liver", "Zyste ü": "a cyst"}
POSITION_MM = 1e-3  # decimal strings of DICOM hold 16 signs


def image(kind: str, **elements) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = kind
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.PatientName, ds.PatientID = "Süß^Jörg", "P1"
    ds.PatientBirthDate, ds.PatientSex = "19600229", "M"
    ds.AccessionNumber, ds.StudyID, ds.ReferringPhysicianName = "A1", "S1", ""
    ds.StudyDate, ds.StudyTime = "20190405", "101112.5"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.826.1", "1.2.826.1.7"
    ds.SeriesNumber, ds.InstanceNumber = 3, 1
    ds.Modality = "CT"
    ds.Rows, ds.Columns, ds.SamplesPerPixel = HEIGHT, WIDTH, 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    ds.SOPInstanceUID = "1.2.826.1.7.1"
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    size = HEIGHT * WIDTH * int(ds.get("NumberOfFrames") or 1)
    ds.PixelData = (np.arange(size + size % 2) % 251).astype(np.uint8).tobytes()
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    return ds


def to_bytes(ds: Dataset) -> bytes:
    stream = io.BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def series(**elements) -> list[Dataset]:
    return [
        image(
            uid.CTImageStorage,
            SOPInstanceUID=f"1.2.826.1.7.{k + 1}",
            InstanceNumber=k + 1,
            FrameOfReferenceUID="1.2.826.1.9",
            ImagePositionPatient=SPOTS[k],
            ImageOrientationPatient=AXES,
            PixelSpacing=list(SPACING),
            **{"SliceThickness": 2.5} | elements,
        )
        for k in range(FRAMES)
    ]


def group(**sequences: dict) -> Dataset:
    ds = Dataset()
    for keyword, elements in sequences.items():
        item = Dataset()
        for name, value in elements.items():
            setattr(item, name, value)
        setattr(ds, keyword, [item])
    return ds


def enhanced(spots=SPOTS, shared: bool = True, **elements) -> Dataset:
    """An enhanced multi-frame MR; ``shared`` or, as some vendors do, said for each frame."""
    common = {
        "PlaneOrientationSequence": {"ImageOrientationPatient": AXES},
        "PixelMeasuresSequence": {"PixelSpacing": list(SPACING), "SliceThickness": 2.5},
    }
    frames = [
        group(
            PlanePositionSequence={"ImagePositionPatient": spot},
            FrameContentSequence={"DimensionIndexValues": [k + 1]},
            **({} if shared else common),
        )
        for k, spot in enumerate(spots)
    ]
    return image(
        uid.EnhancedMRImageStorage,
        NumberOfFrames=len(spots),
        FrameOfReferenceUID="1.2.826.1.9",
        SharedFunctionalGroupsSequence=[group(**(common if shared else {}))],
        PerFrameFunctionalGroupsSequence=frames,
        **elements,
    )


def cine(frames: int = FRAMES, **elements) -> Dataset:
    kind = uid.UltrasoundMultiFrameImageStorage
    return image(kind, NumberOfFrames=frames, Modality="US", **elements)


def encode(sources: list[Dataset], masks=MASKS, prompts=PROMPTS) -> bytes:
    return encode_dicom_seg([to_bytes(ds) for ds in sources], masks, prompts)


def read(data: bytes) -> highdicom.seg.Segmentation:
    return highdicom.seg.segread(io.BytesIO(data))


def by_instance(seg, sources) -> np.ndarray:
    """(F, H, W, S) as highdicom finds it by what each source file is called."""
    return seg.get_pixels_by_source_instance([ds.SOPInstanceUID for ds in sources])


def by_frame(seg, source, count=FRAMES) -> np.ndarray:
    """(F, H, W, S) as highdicom finds it by the frames of the source; left-out ones are empty."""
    return seg.get_pixels_by_source_frame(
        source.SOPInstanceUID, list(range(1, count + 1)), assert_missing_frames_are_empty=True
    )


def stacked(masks=MASKS) -> np.ndarray:
    return np.stack(list(masks.values()), axis=-1)


def places(seg: Dataset) -> set[tuple]:
    """(segment, x, y, z) in the patient of every set pixel, by DICOM's equation C.7.6.2.1-1."""
    shared = seg.SharedFunctionalGroupsSequence[0]
    axes = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    down, right = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    pixels = seg.pixel_array.reshape(-1, HEIGHT, WIDTH)
    found = set()
    for plane, frame in zip(pixels, seg.PerFrameFunctionalGroupsSequence, strict=True):
        spot = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        owner = shared if "SegmentIdentificationSequence" in shared else frame
        number = owner.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        for row, column in np.argwhere(plane):
            at = spot + axes[:3] * right * column + axes[3:] * down * row
            found.add((number, *(round(float(v) / POSITION_MM) for v in at)))
    return found


def expected_places(masks) -> set[tuple]:
    axes = np.array(AXES)
    found = set()
    for number, mask in enumerate(masks.values(), start=1):
        for frame, row, column in np.argwhere(mask):
            at = SPOTS[frame] + axes[:3] * SPACING[1] * column + axes[3:] * SPACING[0] * row
            found.add((number, *(round(float(v) / POSITION_MM) for v in at)))
    return found
