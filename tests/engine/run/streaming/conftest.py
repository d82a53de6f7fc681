"""An archive of every kind of item, an engine, and one whole run, made once a session."""

import io

import cv2
import nibabel
import numpy as np
import pydicom
import pytest
from running.streamed import PROMPTS, grey

from medclipsam.engine.archive import open_archive
from medclipsam.engine.config import FORMATS
from medclipsam.engine.engine import Engine
from medclipsam.engine.prompts import make_prompts
from medclipsam.engine.run.runner import RunOptions, run
from medclipsam.train.phantoms.archive import encode_dicom
from medclipsam.train.phantoms.phantoms import make_phantom

FAST = {"saliency": {"method": "gscorecam", "k": 4, "rows": 16}, "segment": {"batch": 3}}


@pytest.fixture(scope="session")
def engine(tiny_bundle_folder):
    return Engine.open(str(tiny_bundle_folder), "cpu", settings=FAST, threads=2)


@pytest.fixture(scope="session")
def archive(tmp_path_factory):
    """Nine pictures of four sizes, a volume, a DICOM file, a bad file, and one picture twice."""
    root = tmp_path_factory.mktemp("scans")
    for n in range(9):
        cv2.imwrite(str(root / f"scan {n}.png"), grey(n, (60 + n % 4, 83)))
    (root / "copy.png").write_bytes((root / "scan 3.png").read_bytes())
    volume = np.stack([grey(20 + n, (48, 40)) for n in range(5)], -1).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([1, 1, 3, 1])), root / "volume.nii.gz")
    deep = (make_phantom(30, "xray", ("nodule",), (52, 64)).pixels * 4095).astype(np.uint16)
    (root / "object.dcm").write_bytes(in_a_study(encode_dicom(deep, False)))
    (root / "bad.png").write_bytes((root / "scan 0.png").read_bytes()[:500])
    return root


def in_a_study(data):
    """A DICOM file that says which study and series it belongs to."""
    dataset = pydicom.dcmread(io.BytesIO(data))
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", "1.2.3.4"
    dataset.PatientName, dataset.PatientID, dataset.Modality = "Doe^Jane", "p1", "DX"
    for keyword in ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"):
        setattr(dataset, keyword, "")
    dataset.AccessionNumber = dataset.ReferringPhysicianName = ""
    dataset.SeriesNumber = dataset.InstanceNumber = 1
    dataset.FrameOfReferenceUID = "1.2.3.5"
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    dataset.SliceThickness, dataset.PositionReferenceIndicator = 1, ""
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


@pytest.fixture(scope="session")
def whole(engine, archive, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    options = RunOptions(outputs=FORMATS, trace=True)
    summary = run(engine, open_archive(archive), make_prompts(PROMPTS), out, options)
    return summary
