"""Whichever step fails, the run ends, names the stage, and blames no item for a broken device."""

import cv2
import pytest
import torch
from running.attempts import attempt, equal, events, items, rows

from medclipsam.engine import boxes, pipeline
from medclipsam.engine.archive import Decoders
from medclipsam.engine.archive.containers.seen import Seen
from medclipsam.engine.backends.faults import refuse_broken
from medclipsam.engine.errors import BackendError
from medclipsam.engine.pipeline import Pipeline
from medclipsam.engine.run import commit, streaming
from medclipsam.engine.run.budget import Budget
from medclipsam.engine.run.device import zero_shot as zero_shot_executor
from medclipsam.engine.run.device.executor import Executor
from medclipsam.engine.run.folder import RunFolder
from medclipsam.engine.run.ledger import Ledger
from medclipsam.engine.run.naming import PlainNames
from medclipsam.engine.run.streak import LIMIT
from medclipsam.engine.saliency.rows import RowQueue
from medclipsam.engine.segment import Segmenter

# Every step of every stage: (where it is looked up, its name, the stage that a failure names;
# none where no item is to blame).
STEPS = [
    (Decoders, "decode", "read_image"),
    (streaming, "weigh", None),
    (Executor, "load", None),
    (Pipeline, "fit", "fit_image"),
    (Pipeline, "embed_squares", "encode_image"),
    (Pipeline, "open_probe", "compute_saliency"),
    (pipeline, "open_probe", "compute_saliency"),
    (RowQueue, "launch", "compute_saliency"),
    (RowQueue, "finished", "compute_saliency"),
    (zero_shot_executor, "to_numpy", "compute_saliency"),
    (Pipeline, "refine", "refine_mask"),
    (pipeline, "select_boxes", "extract_boxes"),
    (zero_shot_executor, "quantise", "refine_mask"),
    (Segmenter, "resize", "segment_encode"),
    (Segmenter, "encode_resized", "segment_encode"),
    (Segmenter, "draw", "segment_decode"),
    (Segmenter, "gather", "segment_decode"),
    (Pipeline, "to_segmentation", "segment_decode"),
    (streaming, "finish_work", None),
    (RunFolder, "write_all", None),
    (PlainNames, "name", None),
    (PlainNames, "record", None),
    (Ledger, "holds", None),
    (Ledger, "commit", None),
    (Seen, "add", None),
    (Budget, "take", None),
    (Budget, "correct", None),
    (Budget, "give", None),
    (commit.Committer, "_log", None),
]
NAMES = [
    f"{getattr(where, '__name__', where)}.{name}".split("engine.")[-1] for where, name, _ in STEPS
]


@pytest.mark.parametrize(("where", "name", "stage"), STEPS, ids=NAMES)
def test_a_step_that_raises_for_good_ends_the_run(
    engine, archive, whole, tmp_path, monkeypatch, where, name, stage
):
    """No step may hang the run or lose a row, and the same command mends it."""
    out, real = tmp_path / "run", getattr(where, name)

    def broken(*args, **more):
        raise ZeroDivisionError("broken for good")

    monkeypatch.setattr(where, name, broken)
    with pytest.raises((BackendError, ZeroDivisionError), match="broken for good") as caught:
        attempt(engine, archive, out)
    if stage:
        assert f"{LIMIT} items in a row failed in {stage} " in str(caught.value)
        assert not items(out)
    assert not (out / "_SUCCESS").exists()
    monkeypatch.setattr(where, name, real)
    attempt(engine, archive, out)
    equal(out, whole)


NAMED = [
    (*step[:2], step[2] or "write_mask") for step in STEPS if step[2] or step[1] == "finish_work"
]


@pytest.mark.parametrize(("where", "name", "stage"), NAMED, ids=[f"{s[2]}-{s[1]}" for s in NAMED])
def test_the_stage_that_is_named_is_the_stage_that_failed(
    engine, archive, tmp_path, monkeypatch, where, name, stage
):
    """Two pictures are no reason to suspect the machine: they are quarantined, for this stage."""
    few = tmp_path / "few"
    few.mkdir()
    for n in range(2):
        (few / f"{n}.png").write_bytes((archive / f"{n:02}.png").read_bytes())
    real = getattr(where, name)

    def broken(work, *args, **more):
        if name == "finish_work" and work.error is not None:  # the rows of a lost item
            return real(work, *args, **more)
        raise ZeroDivisionError("on this one")

    monkeypatch.setattr(where, name, broken)
    summary = attempt(engine, few, tmp_path / "run")
    found = rows(tmp_path / "run")
    assert summary.exit_code == 3 and len(found) == 4
    assert {(r.status, r.stage, r.reason) for r in found} == {("quarantined", stage, "failed")}
    assert {r.message for r in found} == {"ZeroDivisionError: on this one"}
    assert [e["stage"] for e in events(tmp_path / "run", "failed")] == [stage, stage]


def onnx_failure():
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail

    return Fail("[ONNXRuntimeError] : 1 : FAIL : CUDA failure 999: unknown error")


def chained():
    try:
        raise RuntimeError("CUDA error: unspecified launch failure")
    except RuntimeError as exc:
        error = KeyError("a consequence")
        error.__cause__ = exc
        return error


BREAKS = {
    "illegal access": lambda: RuntimeError("CUDA error: an illegal memory access was encountered"),
    "accelerator": lambda: torch.AcceleratorError("CUDA error: device-side assert triggered"),
    "cudnn": lambda: RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    "cublas": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling"),
    "onnxruntime": onnx_failure,
    "tensorrt": lambda: BackendError("TensorRT could not run its plan of 'score'"),
    "cause": chained,
    "host memory": lambda: MemoryError(),
    "torch's host memory": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"
    ),
    "opencv's host memory": lambda: cv2.error(
        "OpenCV(5.0) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate 9 bytes"
    ),
}


@pytest.mark.parametrize("kind", BREAKS)
def test_what_breaks_a_machine_is_no_fault_of_an_item(kind):
    with pytest.raises(BackendError):
        refuse_broken(BREAKS[kind](), "--set segment.batch=1")


@pytest.mark.parametrize(
    "exc",
    [ValueError("shapes"), RuntimeError("size mismatch at CUDA-free code"), KeyError("error")],
    ids=repr,
)
def test_what_may_be_an_item_s_fault_is_let_pass(exc):
    refuse_broken(exc, "")


DEVICE_STEPS = [
    step for step in STEPS if step[2] and step[2] not in ("read_image", "extract_boxes")
]


@pytest.mark.parametrize(
    "kind", ["illegal access", pytest.param("unknown", marks=pytest.mark.long)]
)
@pytest.mark.parametrize(
    ("where", "name", "stage"), DEVICE_STEPS, ids=[f"{s[2]}-{s[1]}" for s in DEVICE_STEPS]
)
def test_a_device_that_breaks_for_good_stops_the_run(
    engine, archive, whole, tmp_path, monkeypatch, where, name, stage, kind
):
    """From the fifth call on every call fails: exit 1, no image blamed, resumable."""
    real, calls = getattr(where, name), []
    first = 1 if name == "embed_squares" else 5  # one batch of it holds the whole archive
    error = {**BREAKS, "unknown": lambda: ValueError("the device is gone")}[kind]

    def breaks(*args, **more):
        calls.append(None)
        if len(calls) >= first:
            raise error()
        return real(*args, **more)

    out = tmp_path / "run"
    monkeypatch.setattr(where, name, breaks)
    with pytest.raises(BackendError) as caught:
        attempt(engine, archive, out)
    assert ("again" in str(caught.value)) or ("lower it with" in str(caught.value))
    done = rows(out)
    assert not [row for row in done if row.status == "quarantined"]
    assert all(row in rows(whole) for row in done)
    assert not (out / "_SUCCESS").exists()
    monkeypatch.setattr(where, name, real)
    attempt(engine, archive, out)
    equal(out, whole)


def test_boxes_are_looked_up_where_the_test_replaces_them():
    """The list of steps above must name what the code really calls."""
    assert pipeline.select_boxes is boxes.select_boxes
