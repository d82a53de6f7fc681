"""From runs to data sets: reviews, confidences, pictures, and what is left out."""

import json

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from pycocotools.coco import COCO

from medclipsam.engine.archive import open_archive
from medclipsam.engine.cli.main import main
from medclipsam.engine.engine import Engine
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.outputs import read_mask
from medclipsam.engine.prompts import make_prompts
from medclipsam.engine.run.folder import RunFolder
from medclipsam.engine.run.ledger import Ledger
from medclipsam.engine.run.runner import RunOptions, run
from medclipsam.train.phantoms.phantoms import make_phantom

PROMPTS = {"mass": "breast ultrasound showing a mass", "cyst": "a cyst"}


@pytest.fixture(scope="module")
def engine(tiny_bundle_folder):
    settings = {"saliency": "gradcam"}
    return Engine.open(str(tiny_bundle_folder), "cpu", settings=settings, threads=2)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    root = tmp_path_factory.mktemp("scans")
    for n in range(6):
        pixels = (make_phantom(n, size=(50 + n, 61)).pixels * 255).astype(np.uint8)
        cv2.imwrite(str(root / f"scan {n}.png"), pixels)
    (root / "bad.png").write_bytes(b"nothing")
    return root


@pytest.fixture
def finished(engine, archive, tmp_path):
    return engine.run(archive, PROMPTS, tmp_path / "run").folder


def rows(folder):
    with Ledger(folder / "ledger.sqlite") as ledger:
        return {(o.item, o.label): o for o in ledger.outcomes()}


def invoke(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def decide(folder, decisions):
    path = folder / "review.json"
    listed = [{"item": i, "label": n, "decision": d} for (i, n), d in decisions.items()]
    path.write_text(json.dumps({"medclipsam_review": 1, "run": "x", "decisions": listed}))
    return path


def test_coco_holds_the_masks_and_honours_the_review(finished, tmp_path):
    review = decide(finished, {("scan 1.png", "mass"): "reject", ("scan 2.png", "cyst"): "unsure"})
    done = invoke("collect", finished, "--to", "coco", "--review", review)
    assert done.exit_code == 0, done.output
    assert "coco: 4 cases" in done.output
    assert "left out, rejected in review: 1" in done.output
    assert "left out, unsure in review: 1" in done.output
    assert "left out, quarantined: unreadable: 1" in done.output
    coco = COCO(finished / "coco.json")
    assert {i["file_name"] for i in coco.imgs.values()} == {f"scan {n}.png" for n in (0, 3, 4, 5)}
    names = {c["id"]: c["name"] for c in coco.cats.values()}
    assert [names[key] for key in sorted(names)] == ["mass", "cyst"]
    for annotation in coco.anns.values():
        item = coco.imgs[annotation["image_id"]]["file_name"]
        outcome = rows(finished)[item, names[annotation["category_id"]]]
        mask = read_mask(finished / outcome.mask)[0][0]
        np.testing.assert_array_equal(coco.annToMask(annotation), mask)


def test_nnunet_takes_its_pictures_from_the_archive(finished, archive):
    done = invoke("collect", finished, "--to", "nnunet", "--to", "coco")
    assert done.exit_code == 0, done.output
    folder = next((finished / "nnunet").iterdir())
    facts = json.loads((folder / "dataset.json").read_text())
    assert facts["numTraining"] == 6 and facts["labels"] == {"background": 0, "mass": 1, "cyst": 2}
    pictures = sorted((folder / "imagesTr").iterdir())
    sources = [cv2.imread(str(archive / f"scan {n}.png"), 0) for n in range(6)]
    for picture, source in zip(pictures, sources, strict=True):
        np.testing.assert_array_equal(cv2.imread(str(picture), cv2.IMREAD_UNCHANGED), source)


def test_a_case_whose_picture_is_gone_is_counted(engine, archive, tmp_path):
    import shutil

    copied = shutil.copytree(archive, tmp_path / "copied")
    out = engine.run(copied, PROMPTS, tmp_path / "run").folder
    (copied / "scan 0.png").unlink()
    done = invoke("collect", out, "--to", "nnunet")
    assert done.exit_code == 0, done.output
    assert "nnunet: 5 cases" in done.output
    assert "left out, not in the archive any more: 1" in done.output
    shutil.rmtree(copied)
    gone = invoke("collect", out, "--to", "nnunet")
    assert gone.exit_code == 2 and "there is no archive" in gone.output


def test_confidence_and_acceptance(finished):
    done = {key: o for key, o in rows(finished).items() if o.status == "done"}
    least = max(o.figures["confidence"] for o in done.values()) - 1e-4
    low = {key for key, o in done.items() if o.figures["confidence"] < least}
    kept = 6 - len({item for item, _ in low})
    plain = invoke("collect", finished, "--to", "coco", "--min-confidence", least)
    assert f"coco: {kept} cases" in plain.output
    review = decide(finished, dict.fromkeys(low, "accept"))
    flags = ("--min-confidence", least, "--review", review)
    accepted = invoke("collect", finished, "--to", "coco", *flags)
    assert "coco: 6 cases" in accepted.output


def test_a_mask_kept_in_quarantine_comes_back_when_it_is_accepted(engine, archive, tmp_path):
    out = tmp_path / "run"
    options = RunOptions(outputs=("coco",), min_confidence=1.0)
    summary = run(engine, open_archive(archive), make_prompts(PROMPTS), out, options)
    low = [key for key, o in rows(out).items() if o.reason == "low-confidence"]
    assert low and summary.collected.left_out["quarantined: low-confidence"]
    taken = summary.collected.taken["coco"]
    review = decide(out, dict.fromkeys(low, "accept"))
    done = invoke("collect", out, "--to", "coco", "--review", review)
    assert "coco: 6 cases" in done.output and taken < 6


def test_collections_with_hashed_names(engine, archive, tmp_path):
    out = tmp_path / "run"
    options = RunOptions(hash_names=True, outputs=("nnunet",))
    summary = run(engine, open_archive(archive), make_prompts(PROMPTS), out, options)
    assert summary.collected.taken["nnunet"] == 6
    table = next((out / "nnunet").glob("*/cases.csv")).read_text()
    assert "scan" not in table


def test_a_review_of_another_run_is_refused(finished):
    review = decide(finished, {("elsewhere.png", "mass"): "accept"})
    done = invoke("collect", finished, "--to", "coco", "--review", review)
    assert done.exit_code == 2 and "elsewhere.png" in done.output


def test_a_running_run_is_not_collected(finished, tmp_path):
    facts = json.loads((finished / "run.json").read_text())
    with RunFolder(finished, facts):
        done = invoke("collect", finished, "--to", "coco")
    assert done.exit_code == 2 and "going on" in done.output


def test_dicom_seg_and_hashed_names_do_not_go_together():
    with pytest.raises(ConfigError, match="names the patient"):
        RunOptions(outputs=("dicom-seg",), hash_names=True)


def test_retry_and_collect_find_nothing_in_an_empty_folder(tmp_path):
    done = invoke("collect", tmp_path, "--to", "coco")
    assert done.exit_code == 2 and "not a run folder" in done.output
