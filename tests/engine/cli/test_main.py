"""The command line as its user meets it: exit codes, one clear sentence, files where said."""

import json
import re

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from medclipsam.engine.cli.main import main
from medclipsam.engine.outputs import encode_mask
from medclipsam.engine.types import Grid
from medclipsam.train.phantoms.phantoms import make_phantom

FAST = ["--device", "cpu", "--threads", "2", "--saliency", "gscorecam"]
FAST += ["--set", "saliency.k=4", "--set", "saliency.rows=16"]


@pytest.fixture
def call(tiny_bundle_folder):
    """Run a command; → exit code and everything it printed."""

    def run(*words, bundle=True):
        own = ["--bundle", str(tiny_bundle_folder)] if bundle else []
        result = CliRunner().invoke(main, [*map(str, words), *own])
        assert "Traceback" not in result.output
        return result.exit_code, result.output

    return run


@pytest.fixture
def scan(tmp_path):
    path = tmp_path / "scans" / "one scan.png"
    path.parent.mkdir()
    pixels = make_phantom(1, "ultrasound", ("mass",), (70, 90)).pixels
    assert cv2.imwrite(str(path), (pixels * 255).astype(np.uint8))
    return path


def test_run_then_evaluate(call, scan, tmp_path):
    out = tmp_path / "run"
    code, text = call("run", scan.parent, "-p", "mass=a mass", "-o", out, *FAST)
    assert code == 0 and "1 items" in text and str(out / "report") in text
    truth = make_phantom(1, "ultrasound", ("mass",), (70, 90)).masks["mass"]
    suffix, data = encode_mask(truth[None], Grid("raster"))
    (tmp_path / "truth" / "mass").mkdir(parents=True)
    (tmp_path / "truth" / "mass" / f"one scan{suffix}").write_bytes(data)
    code, text = call("evaluate", out, tmp_path / "truth", "--json", bundle=False)
    found = json.loads(text)
    mask = cv2.imread(str(out / "masks" / "mass" / "one scan.png"), 0) > 0
    dice = 2 * (mask & truth).sum() / (mask.sum() + truth.sum())
    assert code == 0
    assert found["overall"]["dice"]["mean"] == pytest.approx(dice, abs=1e-4)


def test_quarantine_gives_exit_code_3(call, scan, tmp_path):
    (scan.parent / "bad.png").write_bytes(b"no picture")
    code, text = call("run", scan.parent, "-p", "a mass", "-o", tmp_path / "run", *FAST)
    assert code == 3 and "1 quarantined" in text


def test_inspect_writes_one_picture(call, scan, tmp_path):
    out = tmp_path / "figure.png"
    code, text = call("inspect", scan, "-p", "a mass", "-p", "a cyst", "-o", out, *FAST)
    figure = cv2.imread(str(out))
    assert code == 0 and figure.shape[1] > 800 and figure.std() > 10
    assert "a_mass:" in text and "a_cyst:" in text


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        ((), "bilateral-grid"),
        (("--crf", "pydensecrf"), "pydensecrf"),
        (("--set", "crf=pydensecrf", "--crf", "numba"), "bilateral-grid"),
    ],
)
def test_the_crf_can_be_chosen_and_is_named(call, scan, tmp_path, flags, kind):
    out = tmp_path / "figure.png"
    code, text = call("inspect", scan, "-p", "a mass", "-o", out, *FAST, *flags)
    assert code == 0 and text.splitlines()[0].endswith(f"CRF {kind}")


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["-p", ""], 2, "empty text"),
        (["-p", "жук"], 2, "vocabulary"),
        (["-p", "x=a mass", "-p", "x=a cyst"], 2, "share the label"),
        ([], 2, "say what to look for"),
        (["-p", "a mass", "--set", "crf.tau=-1"], 2, "must be positive"),
        (["-p", "a mass", "--set", "crf.tua=1"], 2, "unknown setting crf.tua"),
        (["-p", "a mass", "--set", "tau"], 2, "NAME=VALUE"),
        (["-p", "a mass", "--device", "cuda:99"], 1, "CUDA"),
        (["-p", "a mass", "--device", "tpu"], 1, "device"),
    ],
)
def test_mistakes_are_told_in_one_sentence(call, scan, tmp_path, words, code, sentence):
    out = tmp_path / "run"
    got, text = call("run", scan.parent, "-o", out, *FAST, *words)
    assert got == code and sentence in text
    assert not list(out.rglob("*.png"))


def test_missing_bundle(call, scan, tmp_path):
    code, text = call(
        "run", scan, "-p", "x", "-o", tmp_path / "r", "--bundle", "nowhere", bundle=False
    )
    assert code == 1 and "no bundle 'nowhere'" in text and not (tmp_path / "r").exists()


def test_prompt_file_with_other_columns(call, scan, tmp_path):
    table = tmp_path / "p.csv"
    table.write_text("file,caption\none scan.png,a mass\n")
    code, text = call("run", scan.parent, "--prompts", table, "-o", tmp_path / "r", *FAST)
    assert code == 2 and "no column 'item'" in text and "file, caption" in text
    columns = ["--item-column", "file", "--prompt-column", "caption"]
    code, _ = call("run", scan.parent, "--prompts", table, "-o", tmp_path / "r", *FAST, *columns)
    assert code == 0


def test_an_archive_without_images(call, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("x")
    code, text = call("run", tmp_path / "notes", "-p", "a mass", "-o", tmp_path / "r", *FAST)
    assert code == 2 and "Error:" in text


def test_settings_from_file_and_environment(call, scan, tmp_path, monkeypatch):
    config = tmp_path / "s.toml"
    config.write_text("[saliency]\nmethod = 'gradcam'\n[crf]\niterations = 0\n")
    monkeypatch.setenv("MEDCLIPSAM_RUN_BOXES", "all")
    out = tmp_path / "run"
    code, _ = call("run", scan, "-p", "a mass", "-o", out, "--config", config, "--device", "cpu")
    settings = json.loads((out / "run.json").read_text())["config"]
    assert code == 0
    assert settings["saliency"]["method"] == "gradcam"
    assert settings["crf"]["iterations"] == 0 and settings["boxes"]["select"] == "all"


def test_models_list_and_verify(call, tiny_bundle_folder):
    code, text = call("models", "list", bundle=False)
    assert code == 0 and re.search(r"^phantom\t", text, re.MULTILINE)
    code, text = call("models", "verify", "phantom", bundle=False)
    assert code == 0 and "both models load" in text
    code, text = call("models", "verify", tiny_bundle_folder / "clip", bundle=False)
    assert code == 1 and "no bundle" in text


def test_doctor(call):
    code, text = call("doctor", bundle=False)
    assert code == 0 and "torch" in text
