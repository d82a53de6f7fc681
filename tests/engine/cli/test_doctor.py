"""The doctor finds faults, names them and never falls ill."""

import builtins
import time
from dataclasses import replace

import pytest
from rich.console import Console

from medclipsam.engine.archive import Decoders
from medclipsam.engine.cli import doctor
from medclipsam.engine.cli.doctor import examine, to_table

ONNX = {"onnx on cpu", "onnx on cuda", "onnx on tensorrt"}
OPTIONAL = {"cuda", "pydensecrf", "tensorrt", *ONNX}
PATIENCE = 600  # seconds; a free two-core machine takes about eight


@pytest.fixture(scope="module")
def checks():
    return {check.name: check for check in examine()}


def test_every_part_is_examined(checks):
    assert set(checks) > OPTIONAL
    for part in ("python", "processor", "torch", "numba", "open_clip", "sam", "parquet", "disk"):
        assert checks[part].state == "ok", checks[part]
    assert sum(name.startswith("decode ") for name in checks) == 9
    for check in checks.values():
        assert check.state in ("ok", "absent", "broken") and check.detail
        assert check.state != "absent" or check.name in OPTIONAL
        assert check.state != "broken" or check.advice


def test_this_machine_can_do_the_job(checks):
    assert [check for check in checks.values() if check.state == "broken"] == []


def test_one_examination_is_short(checks):
    start = time.monotonic()
    examine()
    assert time.monotonic() - start < PATIENCE


def test_a_missing_package_breaks_its_parts_only(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] in ("numba", "nibabel", "pydicom"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    states = {check.name: check for check in examine()}
    broken = {name for name, check in states.items() if check.state == "broken"}
    assert {"numba", "decode NIfTI", "decode DICOM", "decode DICOM RLE"} <= broken
    assert not broken & {"torch", "parquet", "decode PNG, 16 bits", "disk", *OPTIONAL}
    assert "No module named 'numba'" in states["numba"].detail
    assert "pip install" in states["numba"].advice


def test_wrong_pixels_are_a_fault(monkeypatch):
    real = Decoders.decode

    def darker(*args):
        decoded = real(*args)
        raster = decoded.grid.kind == "raster"
        return replace(decoded, frames=decoded.frames * 0) if raster else decoded

    monkeypatch.setattr(Decoders, "decode", darker)
    states = {check.name: check for check in examine()}
    assert states["decode TIFF"].state == states["decode JPEG"].state == "broken"
    assert "came out wrong" in states["decode TIFF"].detail
    assert states["decode DICOM"].state == "ok"


def test_a_device_that_cannot_compute_is_broken_with_advice(monkeypatch):
    import torch

    def out_of_order(*args, **kwargs):
        raise RuntimeError("CUDA error: no kernel image is available")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "ones", out_of_order)
    (cuda,) = [check for check in examine() if check.name == "cuda"]
    assert cuda.state == "broken" and "no kernel image" in cuda.detail and cuda.advice


def test_a_missing_option_is_absent_not_broken():
    check = doctor._optional("gadget", "no_such_module_here", "pip install gadget")
    assert (check.state, check.advice) == ("absent", "pip install gadget")
    assert "no_such_module_here" in check.detail


def test_a_full_disk_and_a_shared_cache_are_found(monkeypatch, tmp_path):
    tmp_path.chmod(0o777)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(doctor, "LOW_DISK", 1 << 62)
    states = {check.name: check for check in examine()}
    assert states["disk"].state == "broken" and "free" in states["disk"].advice
    assert states["numba"].state == "broken" and str(tmp_path) in states["numba"].detail


def test_the_table_shows_names_states_and_advice():
    checks = [
        doctor.Check("disk", "broken", "[red]0 GiB", "free space"),
        doctor.Check("torch", "ok", "2.9"),
    ]
    console = Console(width=100, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(to_table(checks))
    text = console.export_text()
    assert "[red]0 GiB" in text and "→ free space" in text and "broken" in text and "2.9" in text
