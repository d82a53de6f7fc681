"""Runs one small archive over and over, each time with another I/O call failing.

    LD_PRELOAD=faults.so python fault_run.py BUNDLE ARCHIVE FOLDER EVERY

Says as JSON, for each kind of failure, how many calls a run makes and what was wrong. One
process for all, because opening an engine takes seconds.
"""

import ctypes
import errno
import json
import sys
from pathlib import Path

import torch
from running.kept import keeping

from medclipsam.engine.archive import Decoders, Limits
from medclipsam.engine.engine import Engine
from medclipsam.engine.errors import OutputError
from medclipsam.engine.run import streaming
from medclipsam.engine.run.ledger import Ledger
from medclipsam.engine.run.runner import RunOptions

PROMPTS = {"mass": "a mass"}
MOST = 2000  # calls of one run; there are some hundred
KINDS = {
    f"{errno.errorcode[number]} {how}": (number, forever)
    for number in (errno.ENOSPC, errno.EIO)
    for how, forever in (("once", 0), ("for good", 1))
}


def state(out):
    """Masks and other derived files by content, rows without their durations."""
    files = {
        str(p.relative_to(out)): p.read_bytes()
        for name in ("masks", "labelmaps", "report/previews")
        for p in sorted((out / name).rglob("*"))
        if p.is_file()
    }
    with Ledger(out / "ledger.sqlite", readonly=True) as ledger:
        rows = [{**vars(row), "seconds": 0} for row in ledger.outcomes()]
    return files, rows


def vouched(out, whole):
    """What is wrong with the rows of a run that was stopped, if anything."""
    if not (out / "ledger.sqlite").exists():
        return None
    try:
        files, rows = state(out)
    except OutputError as exc:  # the schema was not written yet
        return None if "no such table" in str(exc) or "version 0" in str(exc) else str(exc)
    for row in rows:
        if row not in whole[1]:
            return f"a row of its own: {row}"
        if row["mask"] and files.get(row["mask"]) != whole[0][row["mask"]]:
            return f"a row without its mask: {row['mask']}"
    return None


def fail_each(attempt, root, whole, number, forever, every):
    """How many calls a run makes, and what was wrong after one of them had failed."""
    shim = ctypes.CDLL(None)
    wrong = []
    for n in range(1, MOST, every):
        out = root / f"run{n}"
        shim.fault_arm(str(out).encode(), n, number, forever)
        failed = False
        try:
            attempt(out)
        except OutputError:
            failed = True
        except BaseException as exc:
            failed = True
            wrong.append(f"call {n}: {type(exc).__name__}: {exc}")
        calls = shim.fault_disarm()
        if not failed and state(out) != whole:
            wrong.append(f"call {n}: success was said, and it was none")
        if failed and (out / "_SUCCESS").exists() and state(out) != whole:
            wrong.append(f"call {n}: _SUCCESS vouches for what is not there")
        if problem := vouched(out, whole):
            wrong.append(f"call {n}: {problem}")
        try:
            attempt(out)
            if state(out) != whole or not (out / "_SUCCESS").exists():
                wrong.append(f"call {n}: resuming gave something else")
        except BaseException as exc:
            wrong.append(f"call {n}: not resumable: {type(exc).__name__}: {exc}")
        if calls < n:
            break
    return {"calls": calls, "wrong": wrong}


def main(bundle, archive, folder, every):
    torch.set_num_threads(1)
    engine = Engine.open(bundle, "cpu", settings={"saliency": "gradcam"}, threads=1)
    decoders = Decoders(1, Limits())
    streaming.Decoders = keeping(decoders)
    options = RunOptions(outputs=("labelmap",))
    root = Path(folder)

    def attempt(out):
        engine.run(archive, PROMPTS, out, options)

    attempt(root / "whole")
    whole = state(root / "whole")
    found = {
        name: fail_each(attempt, root / name, whole, *kind, every) for name, kind in KINDS.items()
    }
    decoders.close()
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]))
