"""Nothing is published that does not agree with torch, and nothing old is harmed."""

import json
import shutil

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from exporting import model_of
from models import CPU
from PIL import Image

from medclipsam.engine.cli.main import main
from medclipsam.engine.errors import BackendError, BundleError, ConfigError
from medclipsam.engine.types import Prompts
from medclipsam.engine.weights.bundle import open_bundle, user_folder
from medclipsam.export import publish
from medclipsam.export.onnx import build_model
from medclipsam.export.parity import LIMITS
from medclipsam.export.publish import choose_target, export_onnx
from medclipsam.export.scans import PROMPTS, draw_scans, read_scans
from medclipsam.export.verify import verify_exports

WORDS = Prompts(PROMPTS)


@pytest.fixture
def exported(exported_phantom, tmp_path, monkeypatch):
    """A copy that a test may damage."""
    monkeypatch.setenv("MEDCLIPSAM_HOME", str(tmp_path / "home"))
    shutil.copytree(exported_phantom.folder, tmp_path / "phantom")
    return open_bundle(str(tmp_path / "phantom"))


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def break_layer(weight, factor):
    """A ``build_model`` that makes a mistake in one layer of ``score``; the others are traced."""

    def build(bundle, name, precision):
        if name != "score":
            return model_of(name, precision)
        model = build_model(bundle, name, precision)
        value = model.graph.initializers[weight]
        array = value.const_value.numpy() * np.float32(factor)
        value.const_value = ir.Tensor(array, name=weight)
        return model

    return build


def test_the_entry_says_what_was_exported(exported_phantom):
    entry = exported_phantom.exports["onnx"]["fp32"]
    assert sorted(entry["files"]) == sorted(
        f"onnx/fp32/{name}.onnx"
        for name in ("text", "features", "score", "sam_encoder", "sam_decoder")
    )
    assert entry["opset"] == 20 and set(entry["versions"]) == {"torch", "onnx", "onnxscript"}
    figures, limits = entry["parity"], LIMITS["fp32"]
    assert figures["masks"] > 0 and figures["mean_iou"] >= limits.mean_iou
    assert figures["worst_correlation"] <= figures["correlation"] <= 1 + 1e-9
    assert {g["nonfinite"] for g in figures["graphs"].values()} == {0}
    assert exported_phantom.digest == open_bundle("phantom").digest


def test_a_wrong_graph_is_refused_by_name_and_layer(exported, monkeypatch, tmp_path):
    before = content(exported.folder)
    weight = "model.visual.trunk.blocks.2.mlp.fc1.bias"
    assert exported.sam  # built before it is shared with the staged bundle, as by an export
    monkeypatch.setattr(publish, "build_model", break_layer(weight, 4))
    with pytest.raises(BackendError, match="not published") as caught:
        export_onnx(exported, "fp32", exported.folder, draw_scans(1), WORDS, CPU, lambda line: None)
    assert "graph 'score' differs by" in str(caught.value)
    assert "visual.trunk.blocks.2.mlp.fc1 is off first" in str(caught.value)
    assert content(exported.folder) == before
    report = tmp_path / "home" / "exports" / "phantom-onnx-fp32.json"
    assert str(report) in str(caught.value)
    assert json.loads(report.read_text())["failures"]


def test_a_refused_first_export_leaves_no_bundle(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDCLIPSAM_HOME", str(tmp_path))
    bundle = open_bundle("phantom")
    weight = "model.visual.trunk.blocks.0.attn.proj.bias"
    monkeypatch.setattr(publish, "GRAPHS", ("score",))
    monkeypatch.setattr(publish, "build_model", break_layer(weight, np.inf))
    monkeypatch.setattr("medclipsam.export.parity.GRAPHS", ("score",))
    with pytest.raises(BackendError, match=r"[1-9]\d* values not finite"):
        export_onnx(
            bundle, "fp32", user_folder() / "phantom", draw_scans(1), WORDS, CPU, lambda line: None
        )
    assert not list(user_folder().iterdir())


def test_without_masks_there_is_nothing_to_judge_by(exported, monkeypatch):
    blank = [np.zeros((64, 64, 3), np.uint8)]
    found = publish.judge(exported, exported, "fp32", blank, WORDS, CPU, lambda line: None)
    assert found.masks == 0 and "--images" in found.failures[0]


def test_exports_go_where_they_may(tmp_path, monkeypatch, tiny_bundle):
    monkeypatch.setenv("MEDCLIPSAM_HOME", str(tmp_path / "home"))
    shipped = open_bundle("phantom")
    assert choose_target(shipped, None) == user_folder() / "phantom"
    assert choose_target(tiny_bundle, None) == tiny_bundle.folder
    assert choose_target(shipped, tmp_path / "new") == tmp_path / "new"
    with pytest.raises(ConfigError, match="other weights"):
        choose_target(shipped, tiny_bundle.folder)


def test_verify_repeats_the_figures(exported, monkeypatch):
    lines = []
    monkeypatch.setattr("medclipsam.export.verify.draw_scans", lambda: draw_scans(1))
    verify_exports(exported, lines.append)
    assert len(lines) == 1 and "5 files as described, mask IoU 1.00000" in lines[0]
    path = exported.folder / "onnx" / "fp32" / "score.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"score.onnx.*cut short.*export it again"):
        verify_exports(exported, lines.append)


def test_verify_says_what_it_could_not_compare(exported, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    lines = []
    verify_exports(exported, lines.append)
    assert "not compared: backend onnx needs ONNX Runtime" in lines[0]


def test_images_of_the_users_own(tmp_path):
    with pytest.raises(ConfigError, match="no images"):
        read_scans(tmp_path)
    Image.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20)).save(tmp_path / "a.png")
    (image,) = read_scans(tmp_path)
    assert image.shape == (20, 20, 3) and image.dtype == np.uint8
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ConfigError, match=r"b\.png"):
        read_scans(tmp_path)


def test_synthetic_images_are_varied_and_the_same_every_time():
    drawn = draw_scans(6)
    assert len({image.shape for image in drawn}) == 3
    assert all(image.std() > 20 for image in drawn)
    assert all(np.array_equal(a, b) for a, b in zip(drawn, draw_scans(6), strict=True))


@pytest.mark.long
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_command_in_lower_precision(precision, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDCLIPSAM_HOME", str(tmp_path))
    command = ["export", "phantom", "--precision", precision, "--threads", "1", "--device", "cpu"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    bundle = open_bundle("phantom")
    assert bundle.folder == user_folder() / "phantom"
    figures = bundle.exports["onnx"][precision]["parity"]
    assert figures["mean_iou"] >= 0.99 and figures["masks"] >= 5
    assert ("by rounding" in figures["ran"]) == (precision == "bf16")
