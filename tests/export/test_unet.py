"""Task models as ONNX graphs: equal masks, or nothing is published."""

import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from brightness import CPU, grey_to_rgb, tiny_config
from click.testing import CliRunner

from medclipsam.engine.cli.main import main
from medclipsam.engine.errors import BackendError, BundleError
from medclipsam.engine.outputs import read_mask
from medclipsam.engine.run.ledger import Ledger
from medclipsam.engine.unet.graph import open_unet
from medclipsam.engine.unet.model import build_unet, open_task_model, write_task_model
from medclipsam.engine.unet.predictor import Predictor
from medclipsam.export import unet
from medclipsam.export.parity import Limits
from medclipsam.export.unet import export_unet
from medclipsam.train.phantoms.phantoms import make_phantom

pytest.importorskip("onnxscript")

ERROR = 1e-4  # of the largest logit, fp32: another order of sums


def quiet(line):
    pass


def pictures():
    return [grey_to_rgb(make_phantom(n, "mri", size=(50 + n, 61)).pixels) for n in range(4)]


def write_model(folder, seed=0, **settings):
    """Random weights, spread so that about half of each picture is in a mask."""
    torch.manual_seed(seed)
    config = tiny_config(**settings)
    net = build_unet(config)
    with torch.no_grad():
        net.head.weight.mul_(8)
    return write_task_model(folder, config, net, {})


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDCLIPSAM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "task"
    write_model(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDCLIPSAM_HOME", str(tmp_path_factory.mktemp("home")))
        export_unet(folder, "onnx", "fp32", pictures(), CPU, quiet)
        return export_unet(folder, "onnx", "fp16", pictures(), CPU, quiet)


@pytest.fixture
def copy(exported, tmp_path):
    return shutil.copytree(exported.folder, tmp_path / "task")


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_the_graph_gives_what_the_network_gives(exported, rows):
    """Run plainly, without this project's backend; any number of images."""
    path = exported.folder / "onnx" / "fp32" / "unet.onnx"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    pixels = torch.randn(rows, 3, 32, 32, generator=torch.Generator().manual_seed(rows))
    (found,) = session.run(["logits"], {"pixels": pixels.numpy()})
    with torch.no_grad():
        expected = exported.net(pixels).numpy()
    assert found.shape == (rows, 2, 32, 32)
    assert abs(found - expected).max() <= ERROR * abs(expected).max()


def test_what_was_exported_is_written_down(exported):
    facts = json.loads((exported.folder / "unet.json").read_text())
    assert set(facts["exports"]["onnx"]) == {"fp32", "fp16"}
    full, half = (facts["exports"]["onnx"][name]["parity"] for name in ("fp32", "fp16"))
    assert full["masks"] >= 4 and full["mean_iou"] >= 0.999 and full["worst_iou"] >= 0.98
    assert full["graphs"]["unet"]["max_error"] < half["graphs"]["unet"]["max_error"] < 1e-2
    assert exported.digest == open_task_model(exported.folder).digest
    assert not list(exported.folder.glob(".exporting*"))


def test_masks_of_both_backends_are_the_same(exported, tmp_path):
    root = tmp_path / "scans"
    root.mkdir()
    for n, rgb in enumerate(pictures()):
        cv2.imwrite(str(root / f"{n}.png"), rgb)
    found = {}
    for backend in ("torch", "onnx"):
        predictor = Predictor.open(exported.folder, "cpu", backend, threads=1, batch=3)
        out = predictor.run(root, tmp_path / backend).folder
        with Ledger(out / "ledger.sqlite") as ledger:
            found[backend] = [(o, read_mask(out / o.mask)[0]) for o in ledger.outcomes()]
    assert len(found["torch"]) == 8
    for (one, mask), (two, other) in zip(found["torch"], found["onnx"], strict=True):
        assert (one.item, one.label) == (two.item, two.label)
        assert np.count_nonzero(mask != other) <= 2
    assert sum(mask.any() for _, mask in found["torch"]) >= 4
    other = Predictor.open(exported.folder, "cpu", "torch", threads=1)
    identity = replace(other, backend="onnx").identity()
    assert identity["runtime"] == {"onnxruntime": onnxruntime.__version__}


def test_a_refused_export_publishes_nothing(copy, home, monkeypatch):
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    monkeypatch.setitem(unet.LIMITS, "fp32", Limits(0.0, 0.9999, 0.999, 0.98))
    with pytest.raises(BackendError, match="not published: graph 'unet' differs"):
        export_unet(copy, "onnx", "fp32", pictures(), CPU, quiet)
    assert {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()} == before
    report = json.loads((home / "exports" / "task-onnx-fp32.json").read_text())
    assert report["failures"]


def test_masks_that_differ_are_refused(copy, monkeypatch):
    monkeypatch.setitem(unet.LIMITS, "fp16", Limits(1.0, 0.0, 1.1, 0.0))
    with pytest.raises(BackendError, match="mean mask IoU is"):
        export_unet(copy, "onnx", "fp16", pictures(), CPU, quiet)


def test_images_without_any_mask_prove_nothing(tmp_path):
    model = write_model(tmp_path / "task", thresholds=(0.9999999,) * 2)
    with pytest.raises(BackendError, match="found nothing on these images"):
        export_unet(model.folder, "onnx", "fp32", pictures(), CPU, quiet)
    assert sorted(p.name for p in model.folder.iterdir()) == ["model.safetensors", "unet.json"]


def test_a_graph_of_other_weights_or_an_altered_one_is_refused(copy):
    facts = json.loads((copy / "unet.json").read_text())
    facts["network"]["thresholds"] = [0.4, 0.4]
    (copy / "unet.json").write_text(json.dumps(facts))
    with pytest.raises(BackendError, match="of other weights or thresholds"):
        open_unet(open_task_model(copy), CPU, "onnx", batch=2)
    path = copy / "onnx" / "fp32" / "unet.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match="altered or cut short"):
        open_unet(open_task_model(copy), CPU, "onnx", batch=2)
    with pytest.raises(BackendError, match="no onnx export in bf16"):
        open_unet(open_task_model(copy), CPU, "onnx", "bf16")


@pytest.mark.parametrize(("to", "precision"), [("tensorrt", "fp16"), ("onnx", "bf16")])
def test_other_kinds_of_export_are_refused(copy, to, precision):
    with pytest.raises(BackendError, match="exported to onnx in fp32 or fp16, got"):
        export_unet(copy, to, precision, pictures(), CPU, quiet)


def test_the_command(tmp_path):
    model, root = write_model(tmp_path / "task"), tmp_path / "scans"
    root.mkdir()
    cv2.imwrite(str(root / "one.png"), pictures()[0])

    def export(*flags):
        words = ("export", model.folder, "--images", root, "--device", "cpu", "--threads", 1)
        return CliRunner().invoke(main, [str(word) for word in (*words, *flags)])

    done = export()
    assert done.exit_code == 0, done.output
    assert "onnx in fp32 agrees with torch" in done.output and "masks: IoU" in done.output
    for flags, name in (
        (("-p", "a mass"), "--prompt"),
        (("-o", tmp_path / "x"), "--out"),
        (("--set", "segment.batch=1"), "--set"),
    ):
        done = export(*flags)
        assert done.exit_code == 2 and f"{name} is for bundles" in done.output
    done = export("--to", "tensorrt")
    assert done.exit_code == 1 and "exported to onnx" in done.output


def test_verify_repeats_the_figures(copy):
    done = CliRunner().invoke(main, ["models", "verify", str(copy)])
    assert done.exit_code == 0, done.output
    assert "onnx in fp32: files as described, largest error" in done.output
    path = copy / "onnx" / "fp32" / "unet.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    done = CliRunner().invoke(main, ["models", "verify", str(copy)])
    assert done.exit_code == 1 and "export it again" in done.output
