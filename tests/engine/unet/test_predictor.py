"""A task model through the runner: the same outcomes, outputs, ledger and resume as a prompt."""

import json
import random
import threading
from dataclasses import replace

import cv2
import nibabel
import numpy as np
import pytest
import torch
from brightness import LEVELS, brightness, grey_to_rgb, open_brightness
from click.testing import CliRunner

from medclipsam.engine.archive import open_archive
from medclipsam.engine.cli.main import main
from medclipsam.engine.engine import Engine
from medclipsam.engine.errors import BackendError, ConfigError
from medclipsam.engine.outputs import read_mask
from medclipsam.engine.prompts import PromptTable, make_prompts
from medclipsam.engine.run.ledger import Ledger
from medclipsam.engine.run.runner import RunOptions, fingerprint, run
from medclipsam.engine.types import Prompts
from medclipsam.engine.unet.model import UnetConfig, build_unet, open_task_model, write_task_model
from medclipsam.engine.unet.pipeline import UnetPipeline
from medclipsam.train.phantoms.archive import encode_dicom
from medclipsam.train.phantoms.phantoms import make_phantom

EVERYTHING = ("masks", "labelmaps", "nifti", "saliency", "overlays", "report/previews")
OUTPUTS = ("labelmap", "nifti", "saliency", "overlay")


def phantom(seed, size):
    return make_phantom(seed, "mri", size=size).pixels


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Seven pictures of several sizes, a volume, a DICOM file and a bad one."""
    root = tmp_path_factory.mktemp("scans")
    for n in range(7):
        cv2.imwrite(str(root / f"scan {n}.png"), grey_to_rgb(phantom(n, (60 + n, 83))))
    volume = np.stack([phantom(20 + n, (48, 50)) * 999 for n in range(5)], -1).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([1, 1, 3, 1])), root / "volume.nii.gz")
    deep = (phantom(30, (52, 64)) * 4095).astype(np.uint16)
    (root / "object.dcm").write_bytes(encode_dicom(deep, False))
    (root / "bad.png").write_bytes(b"nothing")
    return root


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return open_brightness(tmp_path_factory.mktemp("models") / "brightness")


@pytest.fixture(scope="module")
def whole(predictor, archive, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    return predictor.run(archive, out, RunOptions(outputs=OUTPUTS, trace=True))


def rows(folder):
    with Ledger(folder / "ledger.sqlite") as ledger:
        return [replace(outcome, seconds=0) for outcome in ledger.outcomes()]


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for name in EVERYTHING
        for path in sorted((folder / name).rglob("*"))
        if path.is_file()
    }


def same(out, whole):
    assert rows(out) == rows(whole.folder)
    assert contents(out) == contents(whole.folder)


def test_every_item_ends_as_one_outcome_per_label(whole):
    found = rows(whole.folder)
    assert [(o.item, o.label) for o in found] == sorted((o.item, o.label) for o in found)
    assert whole.items == 10 and len(found) == 20 and whole.exit_code == 3
    assert {o.item for o in found if o.status == "quarantined"} == {"bad.png"}
    done = [o for o in found if o.status == "done"]
    assert len(done) > 9 and {o.prompt for o in done} == set(LEVELS)
    for outcome in done:
        assert 0.5 < outcome.figures["confidence"] == outcome.figures["predicted_iou"] <= 1
        assert {outcome.figures[x] for x in ("contrast", "stability", "agreement")} == {None}
    assert {o.reason for o in found if o.status == "absent"} <= {"below-threshold"}


def test_masks_are_those_of_a_plain_loop(predictor, archive, whole):
    by_key = {(o.item, o.label): o for o in rows(whole.folder)}
    for n in range(7):
        rgb = cv2.imread(str(archive / f"scan {n}.png"))
        for label, segment in predictor.segment(rgb).items():
            outcome = by_key[f"scan {n}.png", label]
            np.testing.assert_array_equal(
                read_mask(whole.folder / outcome.mask)[0][0], segment.mask
            )
            stored = cv2.imread(
                str(whole.folder / "saliency" / label / f"scan {n}.png"), cv2.IMREAD_UNCHANGED
            )
            np.testing.assert_array_equal(stored, np.rint(segment.saliency * 65535))
            assert outcome.status == segment.status
            assert outcome.boxes == [segment.boxes.tolist()]


@pytest.mark.parametrize(("threads", "seed"), [(1, 0), (8, 1)])
def test_order_and_threads_do_not_change_a_byte(predictor, archive, whole, tmp_path, threads, seed):
    entries = list(open_archive(archive))
    random.Random(seed).shuffle(entries)
    shuffled = replace(open_archive(archive), walk=lambda sieve: iter(entries))
    other = replace(predictor, threads=threads)
    options = RunOptions(outputs=OUTPUTS, memory=1 if seed else 1 << 30)
    run(other, shuffled, predictor.prompts, tmp_path / "run", options)
    same(tmp_path / "run", whole)


def test_batches_are_full_but_for_the_last(predictor, archive, tmp_path):
    seen = []

    def watched(pixels):
        seen.append(int(pixels.flatten(1).any(1).sum()))
        assert len(pixels) == 3
        return brightness(pixels)

    pipeline = replace(predictor.pipeline, graph=watched)
    replace(predictor, pipeline=pipeline).run(archive, tmp_path / "run")
    assert sum(seen) == 7 + 5 + 1 and seen[:-1] == [3] * (len(seen) - 1)


def test_a_stopped_run_resumes(predictor, archive, whole, tmp_path):
    stop, out = threading.Event(), tmp_path / "run"
    options = RunOptions(outputs=OUTPUTS, memory=1)

    def observe(finished, counts):
        if finished >= 3:
            stop.set()

    first = run(predictor, open_archive(archive), predictor.prompts, out, options, observe, stop)
    assert first.exit_code == 130 and 3 <= first.items < 10
    assert not (out / "_SUCCESS").exists()
    again = run(predictor, open_archive(archive), predictor.prompts, out, options)
    assert again.resumed == first.items and again.items == 10
    same(out, whole)


STAGES = {"prepare": "fit_image", "run": "compute_saliency", "threshold": "refine_mask"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_failing_stage_costs_one_item(predictor, archive, whole, tmp_path, monkeypatch, stage):
    culprit = cv2.imread(str(archive / "scan 5.png"))
    target = predictor.pipeline.prepare(culprit)
    real = getattr(UnetPipeline, stage)

    def call(self, first, *others):
        if stage == "run":
            hit = any(torch.equal(pixels, target) for pixels in first)
        else:
            hit = np.array_equal(first, culprit)
        if hit:
            raise ZeroDivisionError("boom")
        return real(self, first, *others)

    monkeypatch.setattr(UnetPipeline, stage, call)
    predictor.run(archive, tmp_path / "run", RunOptions(outputs=OUTPUTS))
    before = {(o.item, o.label): o for o in rows(whole.folder)}
    for outcome in rows(tmp_path / "run"):
        if outcome.item == "scan 5.png":
            assert (outcome.status, outcome.reason) == ("quarantined", "failed")
            assert outcome.stage == STAGES[stage]
            assert "ZeroDivisionError: boom" in outcome.message
        else:
            assert outcome == before[outcome.item, outcome.label]
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").open()]
    assert [e["item"] for e in log if e["event"] == "failed"] == ["scan 5.png"]


def test_a_device_without_memory_says_what_to_lower(predictor, archive, tmp_path):
    def exhausted(pixels):
        raise torch.OutOfMemoryError("CUDA out of memory")

    poor = replace(predictor, pipeline=replace(predictor.pipeline, graph=exhausted))
    with pytest.raises(BackendError, match="lower it with --batch 1"):
        poor.run(archive, tmp_path / "run")
    assert predictor.run(archive, tmp_path / "run").items == 10


def test_masks_below_the_least_confidence_are_kept_apart(predictor, archive, whole, tmp_path):
    done = [o for o in rows(whole.folder) if o.status == "done"]
    least = float(np.median([o.figures["confidence"] for o in done]))
    predictor.run(archive, tmp_path / "run", RunOptions(min_confidence=least))
    low = {(o.item, o.label) for o in rows(tmp_path / "run") if o.reason == "low-confidence"}
    assert low == {(o.item, o.label) for o in done if o.figures["confidence"] < least} != set()


def test_another_model_does_not_resume_a_run(predictor, archive, whole, tmp_path):
    config = replace(predictor.model.config, thresholds=(0.4, 0.5))
    model = write_task_model(tmp_path / "brightness", config, torch.nn.Linear(1, 1), {})
    with pytest.raises(ConfigError, match=r"different model\.digest"):
        replace(predictor, model=model).run(archive, whole.folder, RunOptions(outputs=OUTPUTS))


@pytest.mark.parametrize(
    "prompts",
    [Prompts({"bright": ("bright",)}), PromptTable({}, "table.csv")],
    ids=["few", "table"],
)
def test_a_task_model_takes_no_prompts(predictor, archive, tmp_path, prompts):
    with pytest.raises(ConfigError, match="finds bright, dark and takes no prompts"):
        run(predictor, open_archive(archive), prompts, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_fingerprints_of_both_methods(predictor, tiny_bundle_folder, archive):
    """Those of zero-shot runs must not change, or no run could be resumed any more."""
    opened, common = open_archive(archive), {"archive", "selection", "labels", "prompts"}
    common |= {"outputs", "min_confidence", "hash_names", "device", "backend", "versions", "config"}
    engine = Engine.open(str(tiny_bundle_folder), "cpu", threads=1)
    found = fingerprint(engine, opened, make_prompts({"a": "b"}), RunOptions())
    assert set(found) == common | {"bundle"}
    assert found["bundle"] == {"name": engine.bundle.name, "digest": engine.bundle.digest}
    assert found["config"]["crf"]["tau"] == engine.config.crf.tau
    assert (found["device"], found["backend"]) == ("cpu", "torch")
    ours = fingerprint(predictor, opened, predictor.prompts, RunOptions())
    assert set(ours) == common | {"model", "runtime"} and ours["labels"] == ["bright", "dark"]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A real network; what it finds means nothing."""
    torch.manual_seed(1)
    config = UnetConfig(("mass", "cyst"), 32, channels=(4, 8), strides=(2,))
    folder = tmp_path_factory.mktemp("models") / "task"
    write_task_model(folder, config, build_unet(config), {})
    return folder


def invoke(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def predict(*words):
    return invoke("predict", *words, "--device", "cpu", "--threads", 1)


def test_the_command_line_from_images_to_data_sets(task, archive, tmp_path):
    out = tmp_path / "run"
    flags = ("--model", task, "-o", out, "--output", "saliency", "--output", "coco", "--profile")
    done = predict(archive, *flags)
    assert done.exit_code == 3, done.output
    assert "10 items:" in done.output and "compute_saliency" in done.output
    assert (out / "_SUCCESS").exists() and (out / "coco.json").exists()
    assert {o.label for o in rows(out)} == {"mass", "cyst"}
    report = (out / "report" / "data.js").read_text()
    assert open_task_model(task).digest[:12] in report
    head = json.loads(report.removeprefix("window.medclipsam = ").removesuffix(";\n"))
    assert dict(head["facts"])["prompts"] == ["mass", "cyst"]  # labels and texts at once
    status = invoke("status", out)
    assert "finished: 10 of 10 items" in status.output and "unreadable: 1" in status.output
    collected = invoke("collect", out, "--to", "nnunet")
    assert collected.exit_code == 0 and "nnunet: 9 cases" in collected.output
    again = predict(archive, *flags)
    assert "10 items were finished by an earlier attempt" in again.output


def test_wrong_folders_end_with_a_sentence(task, archive, tmp_path):
    done = predict(archive, "--model", archive, "-o", tmp_path / "run")
    assert done.exit_code == 1 and "is not a task model" in done.output
    done = predict(archive, "--model", task, "-o", tmp_path / "run", "--backend", "onnx")
    assert done.exit_code == 1 and "medclipsam export" in done.output
    done = predict(tmp_path / "none", "--model", task, "-o", tmp_path / "run")
    assert done.exit_code == 2 and "no archive" in done.output
    done = predict(archive, "--model", task, "-o", tmp_path / "run", "--output", "crf")
    assert done.exit_code == 2 and "has no CRF" in done.output
    assert not (tmp_path / "run").exists()
