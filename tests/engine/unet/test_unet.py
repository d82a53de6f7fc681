"""Task models: what may be opened, and masks that are exact whatever the grouping and size."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from brightness import CPU, brightness, grey_to_rgb, open_brightness, tiny_config
from safetensors.torch import save_file

from medclipsam.engine.errors import BackendError, BundleError, ConfigError
from medclipsam.engine.unet.graph import open_unet
from medclipsam.engine.unet.model import (
    UnetConfig,
    build_unet,
    is_task_model,
    open_task_model,
    write_task_model,
)
from medclipsam.engine.unet.pipeline import UnetPipeline, expected_iou, sigmoid
from medclipsam.engine.weights.bundle import sha256_file
from medclipsam.train.phantoms.phantoms import make_phantom

REMAP = 1 / 32  # of a cell: OpenCV's bilinear weights have five bits
SHAPES = [(48, 83), (61, 50), (32, 32), (7, 90), (1, 5)]


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(3)
    config = tiny_config(mean=(0.2, 0.3, 0.4))
    write_task_model(tmp_path / "task one", config, build_unet(config), {"epochs": []})
    return tmp_path / "task one"


def edit(folder, **changes):
    path = folder / "unet.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def network(folder, **changes):
    facts = json.loads((folder / "unet.json").read_text())
    edit(folder, network={**facts["network"], **changes})


def test_what_was_written_is_what_is_opened(folder):
    model = open_task_model(folder)
    assert is_task_model(folder) and not is_task_model(folder.parent)
    assert model.name == "task-one" and model.config == tiny_config(mean=(0.2, 0.3, 0.4))
    assert model.description["training"]["parameters"] == sum(
        p.numel() for p in model.net.parameters()
    )
    torch.manual_seed(3)
    same, pixels = build_unet(model.config).eval(), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model.net(pixels), same(pixels))


def test_the_digest_knows_all_that_decides_a_mask(folder):
    before = open_task_model(folder).digest
    assert open_task_model(folder).digest == before
    edit(folder, training={"other": 1}, exports={})
    assert open_task_model(folder).digest == before
    network(folder, thresholds=[0.4, 0.5])
    assert open_task_model(folder).digest != before


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "unet.json").unlink(), "no unet.json"),
        (lambda f: (f / "unet.json").write_text("{"), "not a readable task model"),
        (lambda f: (f / "unet.json").write_text("[]"), "not a readable task model"),
        (lambda f: edit(f, schema=2), "has schema 2"),
        (lambda f: edit(f, network=[1]), "not a readable task model"),
        (lambda f: network(f, depth=3), "no usable network"),
        (lambda f: network(f, labels=[]), "labels are different names"),
        (lambda f: network(f, labels=["a", 1, [2]]), "no usable network"),
        (lambda f: network(f, norm="BATCH"), "norm INSTANCE"),
        (lambda f: network(f, image_size="big"), "no usable network"),
        (lambda f: edit(f, name="../up"), "no plain name"),
        (lambda f: edit(f, files={}), "no sha256"),
        (lambda f: (f / "model.safetensors").unlink(), "cannot be read"),
        (lambda f: (f / "model.safetensors").write_bytes(b"cut"), "altered or cut short"),
        (lambda f: edit(f, files={"../x": "0", "model.safetensors": "0"}), "outside itself"),
    ],
)
def test_a_damaged_folder_is_refused(folder, spoil, message):
    spoil(folder)
    with pytest.raises(BundleError, match=message):
        open_task_model(folder)


def test_weights_of_another_network_are_refused(folder):
    other = tiny_config(channels=(8, 8, 8))
    for state in (build_unet(other).state_dict(), {"head.weight": torch.zeros(1)}):
        save_file(state, folder / "model.safetensors")
        edit(folder, files={"model.safetensors": sha256_file(folder / "model.safetensors")})
        with pytest.raises(BundleError, match="weights of another model"):
            _ = open_task_model(folder).net


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": ("a", "a")}, "different names"),
        ({"thresholds": (0.5,)}, "a threshold in"),
        ({"thresholds": (0.5, 1.0)}, "a threshold in"),
        ({"fit": "crop"}, "squash or pad"),
        ({"mean": (0.1, 0.2)}, "three numbers"),
        ({"std": (0.1, 0.2, 0.0)}, "above 0"),
        ({"mean": (0.1, 0.2, math.nan)}, "three numbers"),
        ({"in_channels": 1}, "3 input channels"),
        ({"channels": (8,), "strides": ()}, "two levels"),
        ({"strides": (2,)}, "two levels"),
        ({"image_size": 30}, "multiple of 4"),
        ({"image_size": 4}, "at least 8"),
    ],
)
def test_settings_that_make_no_network(settings, message):
    with pytest.raises(ConfigError, match=message):
        tiny_config(**settings)


def test_an_image_without_the_target_can_look_different():
    """Nothing after the last instance norm takes away how much of a label there is."""
    net = build_unet(UnetConfig(("a",), 16, channels=(4, 4), strides=(2,)))
    assert isinstance(net.head, torch.nn.Conv2d)
    assert not [m for m in net.head.modules() if isinstance(m, torch.nn.InstanceNorm2d)]


def pictures():
    return [grey_to_rgb(make_phantom(n, size=(50 + n, 61)).pixels) for n in range(7)]


def test_neighbours_places_and_threads_do_not_change_a_byte(folder):
    """Masks of one run do not depend on how frames were grouped, nor on the machine's cores."""
    model = open_task_model(folder)
    answers = []
    for threads, batch, order in ((1, 3, 1), (2, 3, -1), (2, 1, 1), (3, 4, -1)):
        torch.set_num_threads(threads)
        pipeline = UnetPipeline(open_unet(model, CPU, batch=batch), model.config, CPU, batch)
        prepared = [pipeline.prepare(rgb) for rgb in pictures()][::order]
        answers.append(pipeline.infer(prepared)[::order])
    for other in answers[1:]:
        for one, two in zip(answers[0], other, strict=True):
            np.testing.assert_array_equal(one, two)


def naive_probability(cells, shape, side, mode):
    """Bilinear reading at the centre of each source pixel, in float64, pixel by pixel."""
    height, width = shape
    inner = (side, side)
    if mode == "pad":
        scale = side / max(shape)
        inner = tuple(max(1, round(s * scale)) for s in shape)
    out = np.zeros(shape)
    for i in range(height):
        for j in range(width):
            y = (side - inner[0]) // 2 + (i + 0.5) / height * inner[0] - 0.5
            x = (side - inner[1]) // 2 + (j + 0.5) / width * inner[1] - 0.5
            y0, x0 = math.floor(y), math.floor(x)
            for dy in (0, 1):
                for dx in (0, 1):
                    cell = cells[np.clip(y0 + dy, 0, side - 1), np.clip(x0 + dx, 0, side - 1)]
                    out[i, j] += cell * (1 - abs(y - y0 - dy)) * (1 - abs(x - x0 - dx))
    return out


@pytest.mark.parametrize("mode", ["pad", "squash"])
@pytest.mark.parametrize("shape", SHAPES)
def test_masks_lie_on_the_pixels_of_the_source(shape, mode):
    config = tiny_config(fit=mode, thresholds=(0.3, 0.7))
    rng = np.random.default_rng(5)
    logits = rng.normal(0, 2, (2, 32, 32)).astype(np.float32)
    pipeline = UnetPipeline(brightness, config, CPU, 1)
    found = pipeline.threshold(np.zeros((*shape, 3), np.uint8), logits)
    for n, (label, threshold) in enumerate(zip(config.labels, (0.3, 0.7), strict=True)):
        cells = 1 / (1 + np.exp(-logits[n].astype(np.float64)))
        truth = naive_probability(cells, shape, 32, mode)
        slack = 4 * REMAP * np.ptp(cells)
        np.testing.assert_allclose(found[label].saliency, truth, atol=slack)
        np.testing.assert_array_equal(found[label].mask, found[label].saliency > threshold)
        sure = abs(truth - threshold) > slack
        np.testing.assert_array_equal(found[label].mask[sure], (truth > threshold)[sure])


def test_figures_of_a_mask(tmp_path):
    predictor = open_brightness(tmp_path / "model")
    rgb = np.zeros((40, 60, 3), np.uint8)
    rgb[10:20, 5:30] = 255
    found = predictor.segment(rgb)
    bright, dark = found["bright"], found["dark"]
    assert bright.status == "done" and dark.status == "done" and bright.crf == "none"
    assert len(bright.boxes) == 1
    np.testing.assert_allclose(bright.boxes[0], (5, 10, 30, 20), atol=2)
    assert not (bright.mask & dark.mask).any() and dark.border == 1
    for segment in found.values():
        brute = expected_by_hand(segment.saliency, segment.mask)
        assert segment.confidence == segment.predicted_iou == pytest.approx(brute, rel=1e-6)
        assert math.isnan(segment.stability) and math.isnan(segment.contrast)
    absent = predictor.segment(np.full((9, 9, 3), 70, np.uint8))["bright"]
    assert (absent.status, absent.reason) == ("absent", "below-threshold")
    assert absent.confidence == 0 and not absent.mask.any() and absent.boxes.shape == (0, 4)


def expected_by_hand(probability, mask):
    both = union = 0.0
    for p, inside in zip(probability.ravel().tolist(), mask.ravel(), strict=True):
        both += p if inside else 0
        union += 1 if inside else p
    return both / union


def test_a_sure_network_expects_a_perfect_mask():
    mask = np.zeros((5, 5), bool)
    mask[1:3] = True
    assert expected_iou(mask.astype(np.float32), mask) == 1
    assert expected_iou(np.where(mask, 0.6, 0.0).astype(np.float32), mask) == pytest.approx(0.6)


def test_labels_may_overlap():
    config = tiny_config()
    both = UnetPipeline(brightness, config, CPU, 1).threshold(
        np.zeros((20, 20, 3), np.uint8), np.full((2, 32, 32), 5, np.float32)
    )
    assert both["bright"].mask.all() and both["dark"].mask.all()


def test_sigmoid_is_that_of_float64():
    logits = np.concatenate([np.linspace(-12, 12, 999), [-1e30, -200, 200, 1e30]])
    with np.errstate(over="ignore"):
        truth = 1 / (1 + np.exp(-logits))
    got = sigmoid(logits.astype(np.float32))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, truth, rtol=1e-6, atol=1e-30)


def test_a_network_that_breaks_down_stops(tmp_path):
    predictor = open_brightness(tmp_path / "m", graph=lambda x: brightness(x) * math.inf)
    with pytest.raises(BackendError, match="not finite"):
        predictor.segment(np.zeros((9, 9, 3), np.uint8))


def test_what_a_backend_cannot_do_is_said(folder):
    model = open_task_model(folder)
    with pytest.raises(BackendError, match="torch or onnx, got backend 'tensorrt'"):
        open_unet(model, CPU, "tensorrt")
    with pytest.raises(BackendError, match="precision 'int8'"):
        open_unet(model, CPU, precision="int8")
    with pytest.raises(BackendError, match=r"no onnx export in fp32; make it with 'medclipsam ex"):
        open_unet(model, CPU, "onnx")


def test_lower_precision_stays_close(folder):
    model = open_task_model(folder)
    pixels = torch.randn(2, 3, 32, 32)
    try:
        low = open_unet(model, CPU, precision="bf16")
    except BackendError:
        pytest.skip("no bf16 here")
    full = open_unet(model, CPU)(pixels)
    assert low(pixels).dtype == torch.float32
    assert 0 < (low(pixels) - full).abs().max() < 0.1 * full.abs().max()


def test_pictures_of_another_kind_are_refused(tmp_path):
    predictor = open_brightness(tmp_path / "m")
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ConfigError, match="uint8"):
            predictor.segment(wrong)
    assert replace(predictor, threads=1).prompts.labels == ("bright", "dark")
