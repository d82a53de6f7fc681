"""What runs over the archive of every kind of item are asked, and what they have written."""

from dataclasses import replace

import numpy as np

from medclipsam.engine.errors import OutputError
from medclipsam.engine.run.ledger import Ledger
from medclipsam.train.phantoms.phantoms import make_phantom

PROMPTS = {"mass": "breast ultrasound showing a mass", "cyst": "a cyst"}


def grey(seed, size):
    return (make_phantom(seed, "ultrasound", size=size).pixels * 255).astype(np.uint8)


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


def same(out, whole):
    assert rows(out) == rows(whole.folder)
    assert contents(out, *EVERYTHING) == contents(whole.folder, *EVERYTHING)


def committed(out):
    try:
        with Ledger(out / "ledger.sqlite", readonly=True) as ledger:
            return ledger.items()
    except OutputError:
        return 0
