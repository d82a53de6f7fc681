"""``evaluate`` and ``compare`` as a user calls them."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from sklearn.metrics import roc_auc_score

from medclipsam.engine.cli.main import main
from medclipsam.train.phantoms.phantoms import make_phantom


def save(path, left):
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((20, 30), np.uint8)
    mask[5:15, left : left + 10] = 255
    Image.fromarray(mask).save(path)


@pytest.fixture
def folders(tmp_path):
    for k in range(7):
        save(tmp_path / f"truth/mass/{k}.png", 5)
        save(tmp_path / f"a/masks/mass/{k}.png", 5 + k % 2)
        save(tmp_path / f"a/crf/mass/{k}.png", 10 + k)
        save(tmp_path / f"b/masks/mass/{k}.png", 7 + k)
        (tmp_path / "a/saliency/mass").mkdir(parents=True, exist_ok=True)
        levels = np.random.default_rng(k).integers(0, 65536, (20, 30)).astype(np.uint16)
        Image.fromarray(levels).save(tmp_path / f"a/saliency/mass/{k}.png")
    (tmp_path / "b/masks/mass/6.png").unlink()
    return tmp_path


def call(*words):
    result = CliRunner().invoke(main, [*map(str, words)], env={"COLUMNS": "200"})
    assert "Traceback" not in result.output
    return result.exit_code, result.output


def test_evaluate_prints_a_table_and_writes_cases(folders):
    table = folders / "cases.csv"
    code, text = call("evaluate", folders / "a", folders / "truth", "--csv", table)
    assert code == 0 and "HD95" in text and "AUC" in text and "NSD (2)" in text
    heads, *lines = table.read_text().splitlines()
    assert heads == "label,item,status,dice,iou,nsd,hd95,auc,message" and len(lines) == 7
    assert lines[1].startswith("mass,1.png,scored,0.900000,0.818182,1.000000,1.000000,0.")


def test_evaluate_against_another_run(folders):
    words = ["evaluate", folders / "a", folders / "truth", "--against", folders / "b"]
    code, text = call(*words)
    assert code == 0 and "Paired comparison" in text and "1 cases are left out" in text
    code, text = call(*words, "--json")
    facts = json.loads(text)
    dice = facts["against"]["rows"][0]
    assert (dice["figure"], dice["n"], dice["p"]) == ("dice", 6, 2 / 2**6)
    assert dice["difference"]["mean"] == pytest.approx(dice["first"] - dice["second"])
    assert facts["against"]["left_out"] == [
        {"label": "mass", "item": "6.png",
         "message": "missing in the second: no prediction for this mask"}
    ]  # fmt: skip
    assert facts["overall"]["n"] == 7


def test_evaluate_the_masks_of_the_crf(folders):
    words = ["evaluate", folders / "a", folders / "truth", "--json"]
    dice = [
        json.loads(call(*words, "--part", part)[1])["overall"]["dice"]["mean"]
        for part in ("mask", "crf")
    ]
    assert dice[0] > dice[1]
    code, text = call("evaluate", folders / "b", folders / "truth", "--part", "crf")
    assert code == 2 and "--output crf" in text


def test_compare_writes_markdown(folders):
    out = folders / "t.md"
    entries = [f"saliency={folders / 'a'}:crf", f"+ SAM={folders / 'a'}", f"b={folders / 'b'}"]
    code, text = call("compare", *entries, "--truth", folders / "truth", "-o", out)
    assert code == 0 and all(name in text for name in ("saliency", "+ SAM", "undefined"))
    lines = [line for line in out.read_text().splitlines() if line.startswith("| mass")]
    assert [line.split(" | ")[1] for line in lines] == ["saliency", "+ SAM", "b"]
    assert "– (7 undefined)" in lines[2]  # b has no maps
    code, text = call("compare", *entries, "--truth", folders / "truth", "--json")
    assert len(json.loads(text)["rows"]) == 3


def test_compare_tells_mistakes(folders):
    code, text = call("compare", folders / "a", "--truth", folders / "truth")
    assert code == 2 and "expected NAME=FOLDER" in text
    code, text = call("compare", "--truth", folders / "truth")
    assert code == 2


def test_a_run_with_maps_and_crf_masks_is_judged_at_each_stage(tiny_bundle_folder, tmp_path):
    for k in range(2):
        phantom = make_phantom(k, "ultrasound", ("mass",), (60, 80))
        (tmp_path / "scans").mkdir(exist_ok=True)
        (tmp_path / "truth/mass").mkdir(parents=True, exist_ok=True)
        pixels = (phantom.pixels * 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"scans/{k}.png")
        Image.fromarray(phantom.masks["mass"]).save(tmp_path / f"truth/mass/{k}.png")
    run = tmp_path / "run"
    words = ["--bundle", tiny_bundle_folder, "--device", "cpu", "--saliency", "gradcam"]
    words += ["--output", "saliency", "--output", "crf", "--threads", "1", "-o", run]
    code, text = call("run", tmp_path / "scans", "-p", "mass=a mass", *words)
    assert code == 0, text
    entries = [f"crf={run}:crf", f"mask={run}"]
    code, text = call("compare", *entries, "--truth", tmp_path / "truth", "--json")
    crf, mask = json.loads(text)["rows"]
    scores = []
    for k in range(2):
        truth = np.array(Image.open(tmp_path / f"truth/mass/{k}.png")) > 0
        found = np.array(Image.open(run / f"crf/mass/{k}.png")) > 0
        levels = np.array(Image.open(run / f"saliency/mass/{k}.png"))
        dice = 2 * (found & truth).sum() / (found.sum() + truth.sum())
        scores.append((dice, roc_auc_score(truth.ravel(), levels.ravel())))
    expected = np.mean(scores, axis=0)
    assert (crf["dice"]["mean"], crf["auc"]["mean"]) == pytest.approx(tuple(expected))
    assert mask["auc"]["mean"] == crf["auc"]["mean"] and mask["n"] == 2
