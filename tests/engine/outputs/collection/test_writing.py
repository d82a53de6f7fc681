"""Collections are streamed, replaced as a whole, and survive kills and full disks."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from running.collected import LABELS, RASTER, left_behind, volume_grid

from medclipsam.engine.errors import ConfigError, OutputError
from medclipsam.engine.outputs import Case, collect, encode_mask

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # of pycocotools


def test_a_damaged_run_folder_is_refused(run):
    case = run.add("a.png")
    (run.folder / case.outcomes["cyst"].mask).write_bytes(b"")
    with pytest.raises(ConfigError, match="the run folder was altered"):
        run.collect("coco", "nnunet")
    (run.folder / case.outcomes["cyst"].mask).write_bytes(
        encode_mask(np.zeros((1, 3, 3), bool), RASTER)[1]
    )
    with pytest.raises(ConfigError, match="masks of one shape"):
        run.collect("coco", "nnunet")
    assert not left_behind(run.folder)


def snapshot(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if "masks" not in p.parts}


def test_collecting_again_replaces_and_gives_equal_bytes(run):
    for k in range(3):
        run.add(f"{k}.png")
    run.collect("coco", "nnunet")
    first = snapshot(run.folder)
    run.collect("coco", "nnunet")
    assert snapshot(run.folder) == first
    run.cases.pop()
    run.collect("coco", "nnunet")
    assert len(snapshot(run.folder)) == len(first) - 2


class Killed(BaseException):
    """What no handler may swallow."""


class Killer:
    """Lets a number of calls to the disk through; from then on nothing works any more."""

    CALLS = ("os.fsync", "os.mkdir", "os.replace", "os.unlink", "shutil.rmtree")

    def __init__(self, patch: pytest.MonkeyPatch, left: int):
        self.left = left
        for name in self.CALLS:
            module, _, function = name.partition(".")
            real = getattr({"os": os, "shutil": shutil}[module], function)
            patch.setattr(name, lambda *a, real=real, **k: self.call(real, *a, **k))

    def call(self, real, *args, **options):
        self.left -= 1
        if self.left < 0:
            raise Killed
        return real(*args, **options)


def visible(folder: Path) -> dict[str, bytes]:
    return {path: data for path, data in snapshot(folder).items() if not path.startswith(".")}


@pytest.mark.parametrize("again", [False, True], ids=["first", "again"])
def test_killed_at_any_write_leaves_no_half_collection(run, again):
    """Every call to the disk in turn is the last one; then it is done again."""
    for k in range(2):
        run.add(f"{k}.png")
        run.add(f"{k}.nii", grid=volume_grid())
    run.collect("coco", "nnunet")
    whole = visible(run.folder)
    for calls in range(100):
        if not again:
            shutil.rmtree(run.folder / "nnunet", ignore_errors=True)
            (run.folder / "coco.json").unlink(missing_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            Killer(patch, calls)
            with contextlib.suppress(Killed):
                run.collect("coco", "nnunet")
                break
        found = visible(run.folder)
        assert found.items() <= whole.items()
        datasets = found.keys() - {"coco.json"}
        assert not datasets or datasets == whole.keys() - {"coco.json"}
        assert not again or "coco.json" in found
    assert 25 < calls < 99
    assert visible(run.folder) == whole


def test_what_a_killed_collection_left_is_cleared(run):
    run.add("a.png")
    for name in (".growing-nnunet", ".replaced-nnunet"):
        (run.folder / name / "Dataset501_x").mkdir(parents=True)
    run.collect("nnunet")
    assert left_behind(run.folder) == {"nnunet"}


def test_a_full_disk_is_an_output_error(run, monkeypatch):
    run.add("a.png")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    for kind in ("coco", "nnunet"):
        with pytest.raises(OutputError, match="No space left"):
            run.collect(kind)
        assert not left_behind(run.folder)


def test_cases_are_streamed(run):
    """No case is asked for before the one before it is written, and none is kept."""
    import gc
    import weakref

    run.add("0.png")
    alive: list[weakref.ref] = []

    def cases() -> Iterator[Case]:
        for k in range(6):
            gc.collect()
            assert sum(ref() is not None for ref in alive) <= 2
            case = Case(f"{k}.png", run.cases[0].outcomes, lambda: run.pictures["0.png"])
            alive.append(weakref.ref(case))
            yield case

    assert collect(run.folder, ["coco", "nnunet"], cases(), LABELS).taken["coco"] == 6


def test_unknown_collections_are_named(run):
    with pytest.raises(ValueError, match="voc"):
        run.collect("voc")
