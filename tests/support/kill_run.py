"""Runs one archive in children that are killed at random moments, until enough were.

    python kill_run.py BUNDLE ARCHIVE FOLDER KILLS SEED

The engine is opened once and inherited by every child. A run is killed and resumed four
times at most, then it may end. Says as JSON how many runs were completed, and which of
them differ from an uninterrupted one.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from fault_run import state

from medclipsam.engine.engine import Engine

PROMPTS = {"mass": "a mass", "cyst": "a cyst"}
KILLS_PER_RUN = 4  # on a busy machine, where every child may be too slow, a run ends all the same


def child(engine, archive, out):
    """One attempt in a process of its own; its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        engine.run(archive, PROMPTS, out)
    except BaseException as exc:
        print(exc, file=sys.stderr)
        os._exit(1)
    os._exit(0)


def ends_within(pid, seconds):
    """The exit status if the child ends in time, else None."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return status
        time.sleep(0.001)
    return None


def difference(found, whole):
    """What a run holds that an uninterrupted one does not, and the other way round."""
    files = sorted(found[0].items() ^ whole[0].items())
    rows = [row for row in (*found[1], *whole[1]) if row not in found[1] or row not in whole[1]]
    return f"files {sorted({name for name, _ in files})}, rows {rows}"


def main(bundle, archive, folder, kills, seed):
    torch.set_num_threads(1)
    engine = Engine.open(bundle, "cpu", settings={"saliency": "gradcam"}, threads=1)
    root, chance = Path(folder), random.Random(seed)
    began = time.monotonic()
    os.waitpid(child(engine, archive, root / "whole"), 0)
    usual = time.monotonic() - began
    whole = state(root / "whole")
    wrong, killed, runs = [], 0, 0
    while killed < kills:
        out, status = root / f"run{runs}", None
        for _ in range(min(KILLS_PER_RUN, kills - killed)):
            pid = child(engine, archive, out)
            status = ends_within(pid, chance.random() * usual)
            if status is not None:
                break
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            killed += 1
        if status is None:
            status = os.waitpid(child(engine, archive, out), 0)[1]
        runs += 1
        if status:
            wrong.append(f"run {runs}: ended with {status}")
        elif state(out) != whole:
            wrong.append(f"run {runs}: {difference(state(out), whole)}")
    print(json.dumps({"killed": killed, "runs": runs, "wrong": wrong}))


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:]))
