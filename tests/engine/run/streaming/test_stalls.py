"""A write or a read that hangs neither grows a run nor holds up other items."""

import threading
import time
from collections import Counter

import cv2
from running.streamed import PROMPTS, committed, grey

from medclipsam.engine.run import streaming
from medclipsam.engine.run.folder import RunFolder
from medclipsam.engine.run.runner import RunOptions


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
