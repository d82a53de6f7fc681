"""A run tells the truth: it ends, it counts, it blames the stage that failed and no image for
a device that broke."""

import json
import os
import subprocess
import sys
import threading
import tracemalloc
from dataclasses import replace
from pathlib import Path
from threading import Event

import cv2
import numpy as np
import pytest
import torch

from medclipsam.engine import boxes, pipeline
from medclipsam.engine.archive import Decoders, open_archive
from medclipsam.engine.archive.containers.seen import Seen
from medclipsam.engine.backends.faults import refuse_broken
from medclipsam.engine.engine import Engine
from medclipsam.engine.errors import BackendError, ConfigError, OutputError
from medclipsam.engine.pipeline import Pipeline
from medclipsam.engine.prompts import make_prompts
from medclipsam.engine.run import commit, streaming
from medclipsam.engine.run import zero_shot as zero_shot_executor
from medclipsam.engine.run.budget import Budget
from medclipsam.engine.run.executor import Executor
from medclipsam.engine.run.folder import RunFolder
from medclipsam.engine.run.ledger import Ledger
from medclipsam.engine.run.meter import Meter, Trace
from medclipsam.engine.run.naming import PlainNames
from medclipsam.engine.run.runner import RunOptions, run
from medclipsam.engine.run.streak import LIMIT
from medclipsam.engine.run.work import Work
from medclipsam.engine.saliency.rows import RowQueue
from medclipsam.engine.segment import Segmenter
from medclipsam.engine.types import Image, ItemRef
from medclipsam.train.phantoms.phantoms import make_phantom

PROMPTS = {"mass": "breast ultrasound showing a mass", "cyst": "a cyst"}
SETTINGS = {
    "saliency": {"method": "gscorecam", "k": 2, "rows": 8},
    "segment": {"batch": 2, "boxes": 4},
}
OPTIONS = RunOptions(outputs=("saliency", "labelmap"))
COUNT = 24
BOUND = 240  # seconds; a run here takes two


@pytest.fixture(scope="module")
def engine(tiny_bundle_folder):
    return Engine.open(str(tiny_bundle_folder), "cpu", settings=SETTINGS, threads=2)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """24 pictures of several sizes, half of them in colour."""
    root = tmp_path_factory.mktemp("scans")
    for n in range(COUNT):
        phantom = make_phantom(n, "ultrasound", size=(41 + n % 3, 52))
        grey = (phantom.pixels * 255).astype(np.uint8)
        colour = np.stack([grey, grey // 2, 255 - grey], axis=2)
        cv2.imwrite(str(root / f"{n:02}.png"), colour if n % 2 else grey)
    return root


@pytest.fixture(scope="module")
def whole(engine, archive, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    attempt(engine, archive, out)
    return out


def attempt(engine, archive, out, options=OPTIONS, **more):
    """A run on a thread of its own, which must end within ``BOUND``."""
    ended = []

    def drive():
        try:
            listed = open_archive(archive) if isinstance(archive, Path) else archive
            ended.append(run(engine, listed, make_prompts(PROMPTS), out, options, **more))
        except BaseException as exc:
            ended.append(exc)

    thread = threading.Thread(target=drive, daemon=True)
    thread.start()
    thread.join(BOUND)
    assert ended, "the run did not end"
    if isinstance(ended[0], BaseException):
        raise ended[0]
    return ended[0]


def rows(out):
    if not (out / "ledger.sqlite").exists():
        return []
    with Ledger(out / "ledger.sqlite") as ledger:
        return [replace(row, seconds=0) for row in ledger.outcomes()]


def items(out):
    return {row.item for row in rows(out)}


def files(out):
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for name in ("masks", "saliency", "labelmaps", "report/previews")
        for path in sorted((out / name).rglob("*"))
        if path.is_file()
    }


def equal(out, whole):
    assert rows(out) == rows(whole)
    assert files(out) == files(whole)
    assert (out / "_SUCCESS").exists()


def events(out, name):
    lines = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == name]


# Every step of every stage: (where it is looked up, its name, the stage that a failure names;
# none where no item is to blame).
STEPS = [
    (Decoders, "decode", "read_image"),
    (streaming, "weigh", None),
    (Executor, "load", None),
    (Pipeline, "ask", "encode_image"),
    (pipeline, "open_probe", "encode_image"),
    (RowQueue, "run", "compute_saliency"),
    (RowQueue, "finished", "compute_saliency"),
    (zero_shot_executor, "to_numpy", "compute_saliency"),
    (Pipeline, "refine", "refine_mask"),
    (pipeline, "select_boxes", "extract_boxes"),
    (zero_shot_executor, "quantise", "refine_mask"),
    (Segmenter, "encode_image", "segment_encode"),
    (Segmenter, "segment", "segment_decode"),
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
    out = tmp_path / "run"

    def broken(*args, **more):
        raise ZeroDivisionError("broken for good")

    monkeypatch.setattr(where, name, broken)
    with pytest.raises((BackendError, ZeroDivisionError), match="broken for good") as caught:
        attempt(engine, archive, out)
    if stage:
        assert f"{LIMIT} items in a row failed in {stage} " in str(caught.value)
        assert not items(out)
    assert not (out / "_SUCCESS").exists()
    monkeypatch.undo()
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


@pytest.mark.parametrize("kind", ["illegal access", "unknown"])
@pytest.mark.parametrize(
    ("where", "name", "stage"), DEVICE_STEPS, ids=[f"{s[2]}-{s[1]}" for s in DEVICE_STEPS]
)
def test_a_device_that_breaks_for_good_stops_the_run(
    engine, archive, whole, tmp_path, monkeypatch, where, name, stage, kind
):
    """From the fifth call on every call fails: exit 1, no image blamed, resumable."""
    real, calls = getattr(where, name), []
    error = {**BREAKS, "unknown": lambda: ValueError("the device is gone")}[kind]

    def breaks(*args, **more):
        calls.append(None)
        if len(calls) >= 5:
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
    monkeypatch.undo()
    attempt(engine, archive, out)
    equal(out, whole)


def test_a_few_failures_in_a_row_cost_these_items_only(
    engine, archive, whole, tmp_path, monkeypatch
):
    """One less than too many, then the stage works again: they are to blame themselves."""
    bad = {f"{n:02}.png" for n in range(6, 6 + LIMIT - 1)}
    pictures = [cv2.cvtColor(cv2.imread(str(archive / b)), cv2.COLOR_BGR2RGB) for b in sorted(bad)]
    real = Pipeline.refine

    def refine(self, rgb, prompts, answer):
        if any(np.array_equal(rgb, picture) for picture in pictures):
            raise ValueError("odd")
        return real(self, rgb, prompts, answer)

    monkeypatch.setattr(Pipeline, "refine", refine)
    summary = attempt(engine, archive, tmp_path / "run")
    found = rows(tmp_path / "run")
    assert {r.item for r in found if r.status == "quarantined"} == bad
    assert summary.items == COUNT and summary.listing["committed"] == COUNT


def test_failures_at_the_very_end_are_rows_too(engine, archive, tmp_path, monkeypatch):
    """All of an archive smaller than the limit fails: nothing comes after it that could tell."""
    few = tmp_path / "few"
    few.mkdir()
    for n in range(LIMIT - 1):
        (few / f"{n}.png").write_bytes((archive / f"{n:02}.png").read_bytes())

    def refine(self, rgb, prompts, answer):
        raise ValueError("odd")

    monkeypatch.setattr(Pipeline, "refine", refine)
    summary = attempt(engine, few, tmp_path / "run")
    assert summary.counts == {"quarantined": 2 * (LIMIT - 1)}
    assert summary.exit_code == 3 and (tmp_path / "run" / "_SUCCESS").exists()


def test_items_that_wait_for_their_verdict_hold_no_memory(engine, archive, tmp_path, monkeypatch):
    """With a budget for one item, a held item must not keep the next one out."""
    calls, real = [], Pipeline.refine

    def refine(self, rgb, prompts, answer):
        calls.append(None)
        if 3 < len(calls) < 3 + LIMIT:
            raise ValueError("odd")
        return real(self, rgb, prompts, answer)

    monkeypatch.setattr(Pipeline, "refine", refine)
    options = RunOptions(memory=1)
    summary = attempt(engine, archive, tmp_path / "run", options=options)
    assert summary.items == COUNT and summary.counts["quarantined"] == 2 * (LIMIT - 1)


def test_the_first_wish_to_stop_ends_a_waiting_run(engine, archive, tmp_path, monkeypatch):
    """Reads that hang, and a listing that hangs: neither keeps a stopped run."""
    go, stop, started = Event(), Event(), Event()

    def decode(self, entry, keep=False):
        started.set()
        go.wait(BOUND)
        raise BackendError("the decoders are closed")

    monkeypatch.setattr(Decoders, "decode", decode)
    threading.Thread(target=lambda: (started.wait(BOUND), stop.set()), daemon=True).start()
    summary = attempt(engine, archive, tmp_path / "a", stop=stop)
    assert summary.exit_code == 130 and not items(tmp_path / "a")
    go.set()
    monkeypatch.undo()

    listing, stop, real = Event(), Event(), open_archive(archive)

    def walk(sieve):
        yield from list(real.walk(sieve))[:3]
        stop.set()
        listing.wait(BOUND)

    summary = attempt(engine, replace(real, walk=walk), tmp_path / "b", stop=stop)
    listing.set()
    assert summary.exit_code == 130


def test_progress_that_fails_is_switched_off_and_loses_no_row(engine, archive, whole, tmp_path):
    calls = []

    def observer(finished, counts):
        calls.append(finished)
        raise BrokenPipeError(32, "Broken pipe")

    out = tmp_path / "run"
    summary = attempt(engine, archive, out, observer=observer)
    assert summary.exit_code == 0 and len(calls) == 1
    equal(out, whole)
    (event,) = events(out, "progress off")
    assert "Broken pipe" in event["error"]


def test_a_log_that_cannot_be_written_loses_no_row(engine, archive, whole, tmp_path, monkeypatch):
    out, real = tmp_path / "run", RunFolder._enter

    class Full:
        closed = False

        def write(self, text):
            raise OSError(28, "No space left on device")

        def close(self):
            raise OSError(28, "No space left on device")

    def enter(self, fingerprint):
        real(self, fingerprint)
        self._log.close()
        self._log = Full()

    monkeypatch.setattr(RunFolder, "_enter", enter)
    summary = attempt(engine, archive, out)
    assert "log.jsonl cannot be written" in summary.silenced and "No space left" in summary.silenced
    monkeypatch.undo()
    equal(out, whole)


def test_a_trace_that_cannot_be_written_any_more_is_switched_off(tmp_path):
    trace = Trace(tmp_path / "trace.json")
    trace._file.close()
    trace._file = open("/dev/full", "w", buffering=1)  # noqa: SIM115 - closed by the trace
    meter = Meter(trace)
    for _ in range(3):
        with meter.work("commit"):
            pass
    trace.close()
    assert "trace.json" in trace.failure and "No space" in trace.failure


def test_success_is_refused_where_an_entry_got_lost(engine, archive, tmp_path, monkeypatch):
    real = Executor.load

    def load(self, work):
        if work.ref.id != "11.png":
            real(self, work)

    out = tmp_path / "run"
    monkeypatch.setattr(Executor, "load", load)
    with pytest.raises(OutputError, match=f"listed {COUNT} entries and {COUNT - 1} are accounted"):
        attempt(engine, archive, out)
    assert not (out / "_SUCCESS").exists()


@pytest.mark.parametrize("threads", [1, 4])
def test_how_often_an_item_is_listed_does_not_depend_on_time(engine, archive, tmp_path, threads):
    """Counted against the list itself, whether the first one is in flight or long committed."""
    order = np.random.default_rng(threads).permutation(np.repeat(np.arange(8), 3))
    table = tmp_path / "list.csv"
    table.write_text("item\n" + "".join(f"{archive / f'{n:02}.png'}\n" for n in order))
    other = replace(engine, threads=threads)
    summary = attempt(other, table, tmp_path / "run")
    assert summary.items == 8 and summary.repeated == 16
    expected = {"listed": 24, "committed": 8, "resumed": 0, "repeated": 16}
    assert summary.listing == expected
    assert json.loads((tmp_path / "run" / "_SUCCESS").read_text()) == expected
    again = attempt(other, table, tmp_path / "run")
    assert again.listing == {"listed": 24, "committed": 0, "resumed": 8, "repeated": 16}
    assert again.repeated == 16


def test_a_run_that_ended_while_we_came_is_compared_as_well(tmp_path, monkeypatch):
    """Another process writes its fingerprint between our first look and our lock."""
    real = RunFolder._take_lock

    def take(self):
        lock = real(self)
        (self.path / "run.json").write_text(json.dumps({"labels": ["other"]}))
        return lock

    monkeypatch.setattr(RunFolder, "_take_lock", take)
    with pytest.raises(ConfigError, match="labels"):
        RunFolder(tmp_path / "run", {"labels": ["mine"]})
    monkeypatch.undo()
    with RunFolder(tmp_path / "run", {"labels": ["other"]}):
        pass
    assert json.loads((tmp_path / "run" / "run.json").read_text()) == {"labels": ["other"]}


@pytest.mark.parametrize(("labels", "colour"), [(1, False), (10, False), (10, True)])
@pytest.mark.parametrize("formats", [(), ("saliency", "crf")])
def test_the_weight_of_an_item_covers_what_its_stages_hold(engine, labels, colour, formats):
    """numpy's own count of bytes, from the map to what is kept; the CRF's filter apart."""
    side = 512
    rgb = np.random.default_rng(0).integers(0, 256, (side, side, 3 if colour else 1), np.uint8)
    frames = rgb[None] if colour else np.broadcast_to(rgb[None], (1, side, side, 3))
    prompts = make_prompts({f"label {n}": f"wording {n}" for n in range(labels)})
    work = Work(ItemRef("a"), prompts, Image(ItemRef("a"), frames, None))
    weight = streaming.weigh(work, formats, threads=1)
    cells = np.random.default_rng(1).random((labels, 12, 12)).astype(np.float32)
    free = replace(engine.pipeline, config=replace(engine.pipeline.config, crf=no_crf()))
    list(free.refine(frames[0], prompts, (cells, np.ones(labels, np.float32))))  # compiled
    tracemalloc.start()
    try:
        kept, drawn = [], []
        found = free.refine(frames[0], prompts, (cells, np.ones(labels, np.float32)))
        for one in found:
            kept.append(one.crf_mask)
            if "saliency" in formats:
                kept.append(zero_shot_executor.quantise(one.saliency))
            drawn.append(one.crf_mask.copy())  # as large as SAM's mask
        stacks = [np.stack([mask]) for mask in (kept if formats else kept[:1])]
        peak = tracemalloc.get_traced_memory()[1] + rgb.nbytes
    finally:
        tracemalloc.stop()
    assert len(stacks) and peak <= weight + streaming.FLOOR
    assert weight <= 3 * peak + streaming.FLOOR  # and is no wild guess


def no_crf():
    from medclipsam.engine.crf import CrfConfig

    return CrfConfig(iterations=0)


def test_sam_s_masks_at_source_size_are_never_held_together(engine, monkeypatch):
    """Forty boxes of one image: one float map at a time, and the union of all of them."""
    sizes, real = [], Segmenter.to_source

    def to_source(self, logits, shape):
        sizes.append(tuple(logits.shape[:1]))
        return real(self, logits, shape)

    monkeypatch.setattr(Segmenter, "to_source", to_source)
    segmenter = engine.pipeline.segmenter
    rgb = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    many = np.array([[n, n, n + 40, n + 30] for n in range(40)], np.int32)
    embedding = segmenter.encode_image([rgb])[0]
    (found,) = segmenter.segment([embedding], [rgb.shape[:2]], [many])
    assert set(sizes) == {(1,)}
    monkeypatch.undo()
    logits, _ = segmenter.decode([embedding], [rgb.shape[:2]], [many])
    full = segmenter.to_source(logits, rgb.shape[:2])
    np.testing.assert_array_equal(found.mask, (full > 0).any(0).numpy())
    above, below = (full > 1).sum((1, 2)), (full > -1).sum((1, 2))
    assert found.stability == pytest.approx(float((above / below.clamp_min(1)).mean()), abs=1e-6)


@pytest.mark.slow
def test_a_lost_terminal_costs_no_row(archive, tiny_bundle_folder, tmp_path):
    """Standard error is closed after its first byte, standard output at once."""
    many = tmp_path / "many"
    many.mkdir()
    for n in range(220):
        os.link(archive / f"{n % COUNT:02}.png", many / f"{n:03}.png")
    out = tmp_path / "run"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "medclipsam.engine.cli", "run", str(many), "-p", "a mass"),
            *("-o", str(out), "--bundle", str(tiny_bundle_folder), "--device", "cpu"),
            *("--saliency", "gradcam"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    process.stdout.close()
    assert process.stderr.read(1)
    process.stderr.close()
    assert process.wait(timeout=BOUND) == 0
    assert len(rows(out)) == 220
    assert json.loads((out / "_SUCCESS").read_text())["committed"] == 220


def test_boxes_are_looked_up_where_the_test_replaces_them():
    """The list of steps above must name what the code really calls."""
    assert pipeline.select_boxes is boxes.select_boxes
