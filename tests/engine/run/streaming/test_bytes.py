"""Order, threads, budgets, deaths and signals do not change a byte of what a run writes."""

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
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from running.streamed import PROMPTS, committed, rows, same

from medclipsam.engine.archive import open_archive
from medclipsam.engine.config import FORMATS
from medclipsam.engine.outputs import read_mask
from medclipsam.engine.prompts import make_prompts
from medclipsam.engine.run import streaming
from medclipsam.engine.run.runner import RunOptions, run


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


@pytest.mark.own_decoders
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
        if parent == me and b"decoders.worker" in command:
            yield int(path.parent.name)


def test_the_smallest_budget_changes_nothing_but_the_pace(engine, archive, whole, tmp_path):
    options = RunOptions(outputs=FORMATS, memory=1)
    summary = engine.run(archive, PROMPTS, tmp_path / "run", options)
    deepest = {s.stage: s.deepest for s in summary.stages}
    assert deepest["read_image"] <= 1 and deepest["write_mask"] <= 1
    same(tmp_path / "run", whole)


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
    # what started these tests in the background may have let SIGINT be ignored
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
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
