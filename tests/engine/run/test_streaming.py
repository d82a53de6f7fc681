"""The way of items through a run: grouping, order, failures, names, budgets, signals."""

import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pydicom
import pytest
import torch

from medclipsam.engine.archive import open_archive
from medclipsam.engine.engine import Engine
from medclipsam.engine.errors import BackendError, OutputError
from medclipsam.engine.outputs import FORMATS, read_mask
from medclipsam.engine.pipeline import Pipeline
from medclipsam.engine.prompts import make_prompts
from medclipsam.engine.run import streaming
from medclipsam.engine.run.folder import RunFolder
from medclipsam.engine.run.ledger import Ledger
from medclipsam.engine.run.runner import RunOptions, run
from medclipsam.engine.segment import Segmenter
from medclipsam.train.phantoms.archive import encode_dicom
from medclipsam.train.phantoms.phantoms import make_phantom

PROMPTS = {"mass": "breast ultrasound showing a mass", "cyst": "a cyst"}
FAST = {"saliency": {"method": "gscorecam", "k": 4, "rows": 16}, "segment": {"batch": 3}}


@pytest.fixture(scope="module")
def engine(tiny_bundle_folder):
    return Engine.open(str(tiny_bundle_folder), "cpu", settings=FAST, threads=2)


def grey(seed, size):
    return (make_phantom(seed, "ultrasound", size=size).pixels * 255).astype(np.uint8)


@pytest.fixture(scope="module")
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


def rows(folder):
    with Ledger(folder / "ledger.sqlite") as ledger:
        return [replace(outcome, seconds=0) for outcome in ledger.outcomes()]


def contents(folder, *names):
    """Relative path → bytes of all files in the named folders of a run."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for name in names
        for path in sorted((folder / name).rglob("*"))
        if path.is_file()
    }


EVERYTHING = ("masks", "labelmaps", "nifti", "dicom-seg", "saliency", "crf", "overlays")
EVERYTHING += ("report/previews",)


@pytest.fixture(scope="module")
def whole(engine, archive, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    options = RunOptions(outputs=FORMATS, trace=True)
    summary = run(engine, open_archive(archive), make_prompts(PROMPTS), out, options)
    return summary


def same(out, whole):
    assert rows(out) == rows(whole.folder)
    assert contents(out, *EVERYTHING) == contents(whole.folder, *EVERYTHING)


def shuffle(archive, seed):
    """The archive in another order."""
    entries = list(archive)
    random.Random(seed).shuffle(entries)
    return replace(archive, walk=lambda sieve: iter(entries))


@pytest.mark.parametrize(("threads", "seed"), [(1, 0), (8, 1), (3, 2)])
def test_order_and_threads_do_not_change_a_byte(engine, archive, whole, tmp_path, threads, seed):
    shuffled = shuffle(open_archive(archive), seed)
    options = RunOptions(outputs=FORMATS)
    other = replace(engine, threads=threads)
    run(other, shuffled, make_prompts(PROMPTS), tmp_path / "run", options)
    same(tmp_path / "run", whole)


def test_the_plain_loop_gives_the_same_masks(engine, archive, whole):
    """The pipeline written as a loop over the same stages is the truth about the runner."""
    found = {(o.item, o.label): o for o in rows(whole.folder)}
    for entry in open_archive(archive):
        if entry.ref.id == "bad.png":
            continue
        with streaming.Decoders(1) as decoders:
            frames = decoders.decode(entry).frames
        for n, frame in enumerate(frames):
            for label, segment in engine.segment(np.ascontiguousarray(frame), PROMPTS).items():
                path = found[entry.ref.id, label].mask
                for part, expected in (("masks", segment.mask), ("crf", segment.crf_mask)):
                    mask = read_mask(whole.folder / path.replace("masks/", f"{part}/", 1))[0]
                    if entry.ref.id.endswith(".nii.gz"):
                        assert int(mask[n].sum()) == int(expected.sum())
                    else:
                        np.testing.assert_array_equal(mask[n], expected)


def test_every_format_is_there_for_every_item(whole):
    made = contents(whole.folder, *EVERYTHING)
    count = Counter(path.partition("/")[0] for path in made)
    good = 12
    assert count["masks"] == count["nifti"] == count["saliency"] == count["overlays"] == 2 * good
    assert count["crf"] == 2 * good
    assert count["labelmaps"] == good and count["dicom-seg"] == 1


def test_duplicates_are_reported(whole):
    assert whole.duplicates == 1
    with (whole.folder / "duplicates.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["item"] for row in table] == ["copy.png", "scan 3.png"]
    assert len({row["digest"] for row in table}) == 1


def test_where_the_time_went(whole):
    stages = {stage.stage: stage for stage in whole.stages}
    frames = 9 + 1 + 5 + 1
    assert stages["encode_image"].items == stages["refine_mask"].items == frames
    assert stages["read_image"].items == stages["commit"].items == 13
    # Padding apart, the score rows of all frames: two prompts share up to 2 × 4 channels.
    assert frames * 4 <= stages["compute_saliency"].items <= frames * 8
    assert all(stage.busy > 0 for stage in whole.stages)
    events = json.loads((whole.folder / "trace.json").read_text())
    spans = Counter(event["name"] for event in events if event["ph"] == "X")
    assert spans["refine_mask"] == frames
    logged = [json.loads(line) for line in (whole.folder / "log.jsonl").open()]
    assert next(e for e in logged if e["event"] == "stages")["stages"][0]["stage"] == "read_image"


def test_batches_are_full_while_more_is_to_come(engine, archive, tmp_path, monkeypatch):
    """Rows are only padded in the last batch; SAM's encoder sees three frames at a time."""
    seen = []
    real = Segmenter.encode_image

    def encode(self, images):
        seen.append(len(images))
        return real(self, images)

    monkeypatch.setattr(Segmenter, "encode_image", encode)
    summary = engine.run(archive, PROMPTS, tmp_path / "run")
    scored = {s.stage: s for s in summary.stages}["compute_saliency"]
    assert sum(seen) <= 16 and max(seen) <= 3
    assert seen.count(3) >= len(seen) - 3
    assert scored.items > 16


STAGES = {
    "ask": "encode_image",
    "score": "compute_saliency",
    "refine": "refine_mask",
    "encode_image": "segment_encode",
    "segment": "segment_decode",
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_failing_stage_costs_one_item(engine, archive, whole, tmp_path, monkeypatch, stage):
    """Whatever breaks on one picture: it is named, and its neighbours' bytes do not change."""
    culprit = read_pixels(archive / "scan 5.png")

    def fails_on(real, pictures_of):
        def call(self, *args):
            if any(np.array_equal(p, culprit) for p in pictures_of(self, *args)):
                raise ZeroDivisionError("boom")
            return real(self, *args)

        return call

    if stage == "ask":
        patch = fails_on(Pipeline.ask, lambda self, rgb, prompts: [rgb])
        monkeypatch.setattr(Pipeline, "ask", patch)
    elif stage == "refine":
        patch = fails_on(Pipeline.refine, lambda self, rgb, prompts, answer: [rgb])
        monkeypatch.setattr(Pipeline, "refine", patch)
    elif stage == "encode_image":
        patch = fails_on(Segmenter.encode_image, lambda self, images: images)
        monkeypatch.setattr(Segmenter, "encode_image", patch)
    elif stage == "segment":
        embedding = engine.pipeline.segmenter.encode_image([culprit])[0]
        real = Segmenter.segment

        def segment(self, embeddings, shapes, boxes):
            if any(torch.equal(e, embedding) for e in embeddings):
                raise ZeroDivisionError("boom")
            return real(self, embeddings, shapes, boxes)

        monkeypatch.setattr(Segmenter, "segment", segment)
    else:
        break_one_question(engine, culprit, monkeypatch)
    engine.run(archive, PROMPTS, tmp_path / "run")
    before = {(o.item, o.label): o for o in rows(whole.folder)}
    for outcome in rows(tmp_path / "run"):
        if outcome.item == "scan 5.png":
            assert (outcome.status, outcome.reason) == ("quarantined", "failed")
            assert outcome.stage == STAGES[stage]
            assert "ZeroDivisionError: boom" in outcome.message
        else:
            assert outcome == before[outcome.item, outcome.label]
    masks = contents(tmp_path / "run", "masks")
    assert masks == {k: v for k, v in contents(whole.folder, "masks").items() if "scan 5" not in k}
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").open()]
    assert [e["item"] for e in log if e["event"] == "failed"] == ["scan 5.png"]


def break_one_question(engine, culprit, monkeypatch):
    """Rows of one picture fail in the batch that they share with others."""
    from medclipsam.engine import saliency

    target = engine.pipeline.ask(culprit, make_prompts(PROMPTS)).image
    real = saliency._open_probe

    def open_probe(model, question, config):
        probe = real(model, question, config)
        if not torch.equal(question.image, target):
            return probe

        def make(start, stop):
            raise ZeroDivisionError("boom")

        return replace(probe, make=make)

    monkeypatch.setattr(saliency, "_open_probe", open_probe)


def read_pixels(path):
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def test_a_device_without_memory_stops_and_says_what_to_lower(
    engine, archive, tmp_path, monkeypatch
):
    def encode(self, images):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Segmenter, "encode_image", encode)
    with pytest.raises(BackendError, match=r"segment\.batch=1"):
        engine.run(archive, PROMPTS, tmp_path / "run")
    monkeypatch.undo()
    assert engine.run(archive, PROMPTS, tmp_path / "run").items == 13


def test_masks_below_the_least_confidence_are_kept_apart(engine, archive, whole, tmp_path):
    done = [o for o in rows(whole.folder) if o.status == "done"]
    least = float(np.median([o.figures["confidence"] for o in done]))
    options = RunOptions(outputs=("labelmap",), min_confidence=least)
    summary = engine.run(archive, PROMPTS, tmp_path / "run", options)
    found = {(o.item, o.label): o for o in rows(tmp_path / "run")}
    low = {key for key, o in found.items() if o.reason == "low-confidence"}
    assert low == {(o.item, o.label) for o in done if o.figures["confidence"] < least}
    assert low and summary.exit_code == 3
    for key in low:
        outcome, before = found[key], {(o.item, o.label): o for o in done}[key]
        assert outcome.status == "quarantined" and outcome.stage == "segment"
        assert outcome.mask == before.mask.replace("masks/", "quarantine/", 1)
        kept = (tmp_path / "run" / outcome.mask).read_bytes()
        assert kept == (whole.folder / before.mask).read_bytes()
        assert not (tmp_path / "run" / before.mask).exists()
        assert outcome.figures == before.figures


def test_hashed_names_leave_no_name_of_the_archive(engine, archive, whole, tmp_path):
    formats = tuple(name for name in FORMATS if name != "dicom-seg")
    options = RunOptions(outputs=formats, hash_names=True)
    out = tmp_path / "run"
    first = engine.run(archive, PROMPTS, out, options)
    assert first.items == 13
    names = [entry.ref.path for entry in open_archive(archive)]
    for path in out.rglob("*"):
        if path.is_file() and "private" not in path.parts:
            assert not any(name.encode() in path.read_bytes() for name in names), path
            assert not any(name in path.as_posix() for name in names), path
    with (out / "private" / "names.csv").open(newline="") as file:
        back = {row["name"]: row["item"] for row in csv.DictReader(file)}
    plain = {(o.item, o.label): o for o in rows(whole.folder)}
    for outcome in rows(out):
        original = plain[back[outcome.item], outcome.label]
        assert outcome.figures == original.figures and outcome.reason == original.reason
        if original.mask:
            data = (out / outcome.mask).read_bytes()
            assert data == (whole.folder / original.mask).read_bytes()
    again = engine.run(archive, PROMPTS, out, options)
    assert again.resumed == 13


def test_a_decode_process_may_die_at_any_time(engine, archive, whole, tmp_path):
    """Killed over and over from outside, the run still gives the same bytes."""
    stop, killed, runs = threading.Event(), Counter(), []

    def kill():
        chance = random.Random(0)
        while not stop.wait(0.5 + chance.random()):
            for pid in [*decode_processes()][:1]:
                os.kill(pid, signal.SIGKILL)
                killed["n"] += 1

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        while killed["n"] < 4:
            out = tmp_path / f"run{len(runs)}"
            engine.run(archive, PROMPTS, out, RunOptions(outputs=FORMATS))
            runs.append(out)
            assert len(runs) < 100, "nothing was killed"
    finally:
        stop.set()
        thread.join()
    for out in runs:
        lost = {o.item for o in rows(out) if o.reason == "crashed"}
        assert not lost
        same(out, whole)


def decode_processes():
    """Children of this process that decode."""
    me = os.getpid()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            command = (path.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == me and b"archive.worker" in command:
            yield int(path.parent.name)


def test_the_smallest_budget_changes_nothing_but_the_pace(engine, archive, whole, tmp_path):
    options = RunOptions(outputs=FORMATS, memory=1)
    summary = engine.run(archive, PROMPTS, tmp_path / "run", options)
    deepest = {s.stage: s.deepest for s in summary.stages}
    assert deepest["read_image"] <= 1 and deepest["write_mask"] <= 1
    same(tmp_path / "run", whole)


def test_a_stalled_disk_stalls_the_run_without_growing_it(engine, tmp_path, monkeypatch):
    """Nothing is let in beyond the budget while the first mask hangs in its write."""
    root = tmp_path / "many"
    root.mkdir()
    for n in range(40):
        cv2.imwrite(str(root / f"{n:02d}.png"), grey(n, (40, 40)))
    go, loaded = threading.Event(), Counter()
    real_write, real_read = RunFolder.write_all, streaming.read_image

    def write_all(self, files):
        go.wait(500)
        real_write(self, files)

    def read(*args):
        loaded["n"] += 1
        return real_read(*args)

    monkeypatch.setattr(RunFolder, "write_all", write_all)
    monkeypatch.setattr(streaming, "read_image", read)
    options = RunOptions(memory=6 * streaming.FLOOR)
    answers = []
    thread = threading.Thread(
        target=lambda: answers.append(engine.run(root, PROMPTS, tmp_path / "run", options))
    )
    thread.start()
    until = time.monotonic() + 200
    while loaded["n"] < 2 and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(4)  # forty would come if nothing held them back
    assert 2 <= loaded["n"] <= 6
    go.set()
    thread.join(500)
    assert answers[0].items == 40


def test_an_item_listed_twice_is_done_once(engine, archive, tmp_path):
    table = tmp_path / "list.csv"
    picked = [str(archive / name) for name in ("scan 1.png", "scan 2.png", "scan 1.png")]
    table.write_text("item\n" + "\n".join([*picked, str(tmp_path / "gone.png")]) + "\n")
    summary = engine.run(table, PROMPTS, tmp_path / "run")
    assert summary.items == 3 and summary.repeated == 1
    assert {o.reason for o in rows(tmp_path / "run")} >= {"vanished"}


def test_rows_that_cannot_be_committed_stop_the_run(engine, archive, whole, tmp_path, monkeypatch):
    def commit(self, outcomes):
        raise OutputError("the ledger is gone")

    monkeypatch.setattr(Ledger, "commit", commit)
    before = set(threading.enumerate())
    with pytest.raises(OutputError, match="ledger is gone"):
        engine.run(archive, PROMPTS, tmp_path / "run")
    assert not (tmp_path / "run" / "_SUCCESS").exists()
    assert set(threading.enumerate()) <= before  # the engine's own had been started by ``whole``


@pytest.mark.slow
def test_signals_finish_what_is_in_flight(archive, whole, tiny_bundle_folder, tmp_path):
    """SIGINT: rows of what was begun, exit 130, and the same command ends the run."""
    out = tmp_path / "run"
    flags = [f"-p{label}={text}" for label, text in PROMPTS.items()]
    flags += [f"--output={name}" for name in FORMATS]
    command = [
        *(sys.executable, "-m", "medclipsam.engine.cli", "run", str(archive), *flags),
        *("-o", str(out), "--bundle", str(tiny_bundle_folder), "--device", "cpu"),
        *("--threads", "2", "--memory", "8M", "--saliency", "gscorecam"),
        *("--set", "saliency.k=4", "--set", "saliency.rows=16", "--set", "segment.batch=3"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not committed(out):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=500)
    assert process.returncode == 130, errors
    assert "Finishing what is in flight" in errors and "again to resume" in errors
    assert "Traceback" not in errors and not (out / "_SUCCESS").exists()
    events = [json.loads(line)["event"] for line in (out / "log.jsonl").open()]
    assert events[-1] == "interrupted"
    assert 1 <= len({o.item for o in rows(out)}) < 13
    assert subprocess.run(command, capture_output=True).returncode == 3
    same(out, whole)


def committed(out):
    try:
        with Ledger(out / "ledger.sqlite", readonly=True) as ledger:
            return ledger.items()
    except OutputError:
        return 0


def test_the_most_downstream_full_batch_goes_first(whole, engine):
    """At the start of no device step did a full batch wait further down."""
    events = json.loads((whole.folder / "trace.json").read_text())
    timed = sorted((e for e in events if "ts" in e), key=lambda e: (e["ts"], e["ph"] == "X"))
    order = ("encode_image", "compute_saliency", "segment_encode", "segment_decode")
    full = {"compute_saliency": 16, "segment_encode": 3}  # rows and frames, as in FAST
    waiting, steps = Counter(), 0
    for event in timed:
        if event["ph"] == "C":
            waiting[event["name"].removeprefix("waiting for ")] = event["args"]["waiting"]
        elif event["name"] in order:
            steps += 1
            for later in order[order.index(event["name"]) + 1 :]:
                # Work that is taken out of its queue before the clock starts cannot count.
                assert waiting[later] < full.get(later, 10**9), (event, dict(waiting))
    assert steps > 20


def test_a_hanging_read_does_not_hold_up_the_others(engine, tmp_path, monkeypatch):
    """Parts of batches wait a second for what is on its way, then they are run."""
    root = tmp_path / "scans"
    root.mkdir()
    for n in range(5):
        cv2.imwrite(str(root / f"{n}.png"), grey(n, (40, 40)))
    go, real = threading.Event(), streaming.read_image

    def read(entry, *more):
        if entry.ref.path == "2.png":
            go.wait(500)
        return real(entry, *more)

    monkeypatch.setattr(streaming, "read_image", read)
    out = tmp_path / "run"
    thread = threading.Thread(target=lambda: engine.run(root, PROMPTS, out))
    thread.start()
    until = time.monotonic() + 300
    while committed(out) < 4 and time.monotonic() < until:
        time.sleep(0.1)
    assert committed(out) == 4
    go.set()
    thread.join(500)
    assert committed(out) == 5
