"""A wish to stop ends a run; a lost log, trace, observer or terminal does not, and loses no row."""

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from threading import Event

import pytest
from running.attempts import BOUND, COUNT, attempt, equal, events, items, rows

from medclipsam.engine.archive import Decoders, open_archive
from medclipsam.engine.errors import BackendError
from medclipsam.engine.run.folder import RunFolder
from medclipsam.engine.run.meter import Meter, Trace


@pytest.mark.own_decoders
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
