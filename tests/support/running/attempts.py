"""Runs that must end within a bound, and what they have accounted for."""

import json
import threading
from dataclasses import replace
from pathlib import Path

from medclipsam.engine.archive import open_archive
from medclipsam.engine.prompts import make_prompts
from medclipsam.engine.run.ledger import Ledger
from medclipsam.engine.run.runner import RunOptions, run

PROMPTS = {"mass": "breast ultrasound showing a mass", "cyst": "a cyst"}
OPTIONS = RunOptions(outputs=("saliency", "labelmap"))
COUNT = 24
BOUND = 240  # seconds; a run here takes two


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
