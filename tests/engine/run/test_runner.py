"""Whole runs: every item accounted for, whatever happens on the way."""

import errno
import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace

import cv2
import nibabel
import numpy as np
import pyarrow.parquet
import pytest
from reading import read_image

from medclipsam.engine import durable
from medclipsam.engine.engine import Engine
from medclipsam.engine.errors import ConfigError, OutputError
from medclipsam.engine.outputs import read_mask
from medclipsam.engine.prompts import make_prompts, read_prompt_table
from medclipsam.engine.run.folder import RunFolder
from medclipsam.engine.run.ledger import Ledger
from medclipsam.engine.types import ItemRef
from medclipsam.train.phantoms.archive import encode_dicom
from medclipsam.train.phantoms.phantoms import make_phantom

FAST = {"saliency": {"method": "gscorecam", "k": 4, "rows": 16}, "segment": {"batch": 3}}
PROMPTS = {"mass": "breast ultrasound showing a mass", "cyst": "a cyst"}


@pytest.fixture(scope="module")
def engine(tiny_bundle_folder):
    return Engine.open(str(tiny_bundle_folder), "cpu", settings=FAST, threads=2)


def write_png(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = make_phantom(seed, "ultrasound", size=(61 + seed % 7, 83)).pixels
    assert cv2.imwrite(str(path), (pixels * 255).astype(np.uint8))


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Seven good files with awkward names, four bad ones, one that is none of our business."""
    root = tmp_path_factory.mktemp("archive")
    for n in range(7):
        write_png(root / ["", "a b/", "deep/er [1]/"][n % 3] / f"scan ({n}).png", n)
    (root / "empty.png").touch()
    (root / "text.png").write_text("not a picture")
    whole = (root / "scan (0).png").read_bytes()
    (root / "cut.png").write_bytes(whole[: len(whole) // 2])
    np.save(root / "nan.npy", np.zeros(1))
    voxels = np.full((9, 11, 3), np.nan, np.float32)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), root / "nan.nii.gz")
    return root


def rows(folder):
    """The ledger without what may differ between equal runs."""
    with Ledger(folder / "ledger.sqlite") as ledger:
        return [replace(outcome, seconds=0) for outcome in ledger.outcomes()]


def files(folder):
    """Relative path → bytes of every mask."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted((folder / "masks").rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def finished(engine, archive, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    return engine.run(archive, PROMPTS, out)


def test_every_item_has_one_outcome_per_prompt(finished, archive):
    found = rows(finished.folder)
    items = {p.relative_to(archive).as_posix() for p in archive.rglob("*") if p.is_file()}
    items.remove("nan.npy")
    assert Counter((o.item, o.label) for o in found) == Counter(
        (item, label) for item in items for label in PROMPTS
    )
    assert finished.ignored == {".npy": 1}
    assert finished.exit_code == 3


def test_bad_files_are_quarantined_with_stage_and_reason(finished):
    bad = {o.item: (o.stage, o.reason) for o in rows(finished.folder) if o.status == "quarantined"}
    assert bad == {
        "empty.png": ("read_image", "empty"),
        "text.png": ("read_image", "unreadable"),
        "cut.png": ("read_image", "truncated"),
        "nan.nii.gz": ("read_image", "non-finite"),
    }


def test_masks_lie_on_the_source_grid_and_agree_with_the_ledger(finished, archive):
    good = [o for o in rows(finished.folder) if o.status != "quarantined"]
    assert {o.status for o in good} >= {"done"}
    for outcome in good:
        mask, _ = read_mask(finished.folder / outcome.mask)
        image = read_image(archive, ItemRef(outcome.item))
        assert mask.shape == image.frames.shape[:3]
        assert int(mask.sum()) == outcome.area
        assert (outcome.area > 0) == (outcome.status == "done")
        assert bool(outcome.reason) == (outcome.status == "absent")


def test_manifest_equals_the_ledger(finished):
    table = pyarrow.parquet.read_table(finished.folder / "manifest.parquet").to_pylist()
    assert [(r["item"], r["label"], r["status"], r["mask"], r["area"]) for r in table] == [
        (o.item, o.label, o.status, o.mask, o.area) for o in rows(finished.folder)
    ]


def test_closing_files_are_there(finished):
    assert (finished.folder / "_SUCCESS").exists()
    assert (finished.folder / "report" / "index.html").exists()
    events = [json.loads(line) for line in (finished.folder / "log.jsonl").open()]
    assert events[0]["event"] == "start" and events[-1]["event"] == "end"
    named = [event["crf"] for event in events if event["event"] == "done"]
    known = {"bilateral-grid", "permutohedral-lattice", "none"}
    assert named and all(set(kinds) <= known for kinds in named)
    drawn = [e["crf"] for e in events if "done" in e.get("outcomes", {}).values()]
    assert drawn and all(kinds and kinds != ["none"] for kinds in drawn)


def test_running_again_changes_nothing(engine, archive, finished):
    before, masks = rows(finished.folder), files(finished.folder)
    again = engine.run(archive, PROMPTS, finished.folder)
    assert again.resumed == again.items == finished.items
    assert rows(finished.folder) == before and files(finished.folder) == masks


@pytest.mark.parametrize("batch", [1, 5])
def test_grouping_does_not_change_a_byte_of_the_pipeline(engine, archive, finished, batch):
    """Items share fixed-shape batches, so neighbours must not matter."""
    frames, prompts = [], []
    names = [o.item for o in rows(finished.folder) if o.label == "mass" and o.mask]
    for name in names:
        frames.append(read_image(archive, ItemRef(name)).frames[0])
        prompts.append(make_prompts(PROMPTS))
    for start in range(0, len(frames), batch):
        stop = start + batch
        found = engine.pipeline.segment(frames[start:stop], prompts[start:stop])
        for name, segments in zip(names[start:stop], found, strict=True):
            for label, segment in segments.items():
                mask, _ = read_mask(finished.folder / "masks" / label / name)
                np.testing.assert_array_equal(segment.mask, mask[0])


RUN = [sys.executable, "-m", "medclipsam.engine.cli", "run"]


def command(archive, out, bundle):
    flags = [f"-p{label}={text}" for label, text in PROMPTS.items()]
    settings = ["--set", "saliency.k=4", "--set", "saliency.rows=16", "--set", "segment.batch=3"]
    return [
        *RUN, str(archive), *flags, "-o", str(out), "--bundle", str(bundle),
        "--saliency", "gscorecam", "--device", "cpu", "--threads", "2", *settings,
    ]  # fmt: skip


def test_sigterm_stops_cleanly_and_says_how_to_resume(archive, tiny_bundle_folder, tmp_path):
    out = tmp_path / "stopped"
    process = subprocess.Popen(
        command(archive, out, tiny_bundle_folder), stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not (out / "ledger.sqlite").exists():
        time.sleep(0.01)
    process.terminate()
    _, errors = process.communicate(timeout=500)
    assert process.returncode == 130
    assert "again to resume" in errors and "Traceback" not in errors
    assert not (out / "_SUCCESS").exists()


def test_a_full_disk_stops_the_run_and_leaves_it_resumable(
    engine, archive, finished, tmp_path, monkeypatch
):
    real, calls = os.fsync, Counter()

    def fsync(handle):
        calls["n"] += 1
        if calls["n"] == 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    out = tmp_path / "full"
    monkeypatch.setattr(durable.os, "fsync", fsync)
    with pytest.raises(OutputError, match="No space left"):
        engine.run(archive, PROMPTS, out)
    assert not (out / "_SUCCESS").exists()
    assert len(rows(out)) < len(rows(finished.folder))
    assert not list(out.rglob(".writing-*"))
    monkeypatch.undo()
    engine.run(archive, PROMPTS, out)
    assert files(out) == files(finished.folder) and rows(out) == rows(finished.folder)


def test_another_run_is_refused_and_says_what_differs(engine, archive, finished):
    with pytest.raises(ConfigError, match=r"prompts.*another|different prompts"):
        engine.run(archive, {"mass": "something else"}, finished.folder)


def test_a_folder_with_other_things_is_refused(engine, archive, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match="neither empty nor a run folder"):
        engine.run(archive, PROMPTS, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_two_processes_cannot_share_a_folder(tmp_path):
    with RunFolder(tmp_path / "run", {"a": 1}), pytest.raises(ConfigError, match="another process"):
        RunFolder(tmp_path / "run", {"a": 1})


def test_one_failing_item_does_not_end_the_run(engine, archive, tmp_path, monkeypatch):
    """A bug that shows on one image only: it is named, its neighbours are untouched."""
    import medclipsam.engine.pipeline as pipeline

    real = pipeline.DenseCrf
    culprit = read_image(archive, ItemRef("scan (0).png")).frames.shape[1:3]

    def open_crf(rgb, *rest):
        if rgb.shape[:2] == culprit:
            raise ZeroDivisionError("boom")
        return real(rgb, *rest)

    monkeypatch.setattr(pipeline, "DenseCrf", open_crf)
    summary = engine.run(archive, {"mass": PROMPTS["mass"]}, tmp_path / "run")
    found = {o.item: o for o in rows(summary.folder)}
    assert found["scan (0).png"].reason == "failed"
    assert "ZeroDivisionError: boom" in found["scan (0).png"].message
    assert found["a b/scan (1).png"].status != "quarantined"


def test_prompts_per_item(engine, archive, tmp_path):
    table = tmp_path / "prompts.csv"
    table.write_text(
        "item,label,prompt\nscan (0).png,mass,a mass\nscan (0).png,cyst,a cyst\n"
        "a b/scan (1).png,mass,жук\nnowhere.png,mass,a mass\n"
    )
    summary = engine.run(archive, read_prompt_table(table), tmp_path / "run")
    found = {(o.item, o.label): o for o in rows(summary.folder)}
    assert found["scan (0).png", "mass"].prompt == "a mass"
    assert found["scan (0).png", "cyst"].status in ("done", "absent")
    unknown = found["a b/scan (1).png", "mass"]
    assert unknown.reason == "no-prompt" and "vocabulary" in unknown.message
    missing = found["scan (3).png", "target"]
    assert missing.reason == "no-prompt" and "no row" in missing.message
    assert summary.unmatched == ("nowhere.png",)


def orient(voxels, affine, code):
    """The same anatomy stored in another voxel order."""
    image = nibabel.Nifti1Image(voxels, affine)
    wanted = nibabel.orientations.axcodes2ornt(code)
    return image.as_reoriented(
        nibabel.orientations.ornt_transform(nibabel.io_orientation(affine), wanted)
    )


@pytest.mark.parametrize("code", ["LPS", "RAS", "PIR", "SAL", "ILP"])
def test_nifti_masks_lie_on_the_right_voxels_in_every_orientation(engine, code, tmp_path):
    """One volume stored in five voxel orders: the masks must be the same in the world."""
    slices = [make_phantom(n, "mri", ("tumor",), (64, 80)).pixels for n in (2, 5)]
    voxels = (np.stack(slices, -1) * 1000).transpose(1, 0, 2).astype(np.int16)
    lps = np.diag([-1.0, -1.2, 5.0, 1.0])
    plain, turned = tmp_path / "plain", tmp_path / code
    for root, image in (
        (plain, nibabel.Nifti1Image(voxels, lps)),
        (turned, orient(voxels, lps, code)),
    ):
        root.mkdir(exist_ok=True)
        nibabel.save(image, root / "v.nii.gz")
    masks = []
    for root in (plain, turned):
        out = tmp_path / f"run-{root.name}"
        engine.run(root, {"tumor": "a tumor"}, out)
        mask = nibabel.load(out / "masks" / "tumor" / "v.nii.gz")
        np.testing.assert_allclose(mask.affine, nibabel.load(root / "v.nii.gz").affine)
        masks.append(np.asarray(nibabel.as_closest_canonical(mask).dataobj))
    assert masks[0].any() and not masks[0].all()
    np.testing.assert_array_equal(masks[0], masks[1])


def test_monochrome1_gives_the_mask_of_monochrome2(engine, tmp_path):
    pixels = (make_phantom(3, "xray", ("nodule",), (75, 90)).pixels * 4095).astype(np.uint16)
    root = tmp_path / "dicom"
    root.mkdir()
    for name, inverted in (("two.dcm", False), ("one.dcm", True)):
        (root / name).write_bytes(encode_dicom(pixels, inverted))
    summary = engine.run(root, {"nodule": "a nodule"}, tmp_path / "run")
    assert summary.counts["quarantined"] == 0
    one, two = (
        read_mask(tmp_path / "run" / "masks" / "nodule" / f"{name}.dcm.png")[0]
        for name in ("one", "two")
    )
    assert one.shape == (1, 75, 90) and one.any()
    np.testing.assert_array_equal(one, two)


def test_archive_may_be_one_file_and_output_may_lie_inside(engine, archive, tmp_path):
    summary = engine.run(archive / "scan (0).png", PROMPTS, tmp_path / "single")
    assert summary.items == 1
    inside = tmp_path / "pictures"
    write_png(inside / "one.png", 1)
    engine.run(inside, {"mass": "a mass"}, inside / "run")
    again = engine.run(inside, {"mass": "a mass"}, inside / "run")
    assert again.items == 1
