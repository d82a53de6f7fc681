"""Segmenter against ``segment_anything.SamPredictor``."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from models import CPU, spread_sam
from segment_anything import SamPredictor, sam_model_registry
from torch.nn.functional import interpolate
from torchvision.transforms.functional import resize, to_pil_image

from medclipsam.engine.segment import Segmenter
from medclipsam.engine.weights.bundle import Bundle
from medclipsam.engine.weights.models import SAM_PRESETS, SamConfig, build_sam
from medclipsam.train.phantoms.phantoms import make_phantom

LOGITS = 1e-4  # float32, boxes in one batch instead of one by one
MASK_IOU = 0.999  # a pixel whose logit is zero up to rounding may fall either way
STRAY_PIXELS = 3
SHAPES = [(97, 61), (60, 131), (33, 300), (128, 128), (201, 155)]
OTHER = SamConfig(
    image_size=96, patch_size=8, encoder_width=48, encoder_depth=2, encoder_heads=3,
    global_blocks=(1,), window=5, channels=32, decoder_depth=1, decoder_heads=2,
    decoder_mlp=64, mask_channels=8, pixel_mean=(10.0, 120.0, 90.0), pixel_std=(50.0, 60.0, 71.0),
)  # fmt: skip


@pytest.fixture(scope="module")
def other_bundle(tmp_path_factory):
    torch.manual_seed(4)
    sam = build_sam(OTHER)
    spread_sam(sam)
    bundle = Bundle(tmp_path_factory.mktemp("other"), {})
    bundle.__dict__.update(sam=sam, sam_config=OTHER)  # stand in for the cached properties
    return bundle


@pytest.fixture(scope="module", params=["tiny", "other"])
def bundle(request):
    return request.getfixturevalue(f"{request.param}_bundle")


def picture(shape, seed=3):
    grey = make_phantom(seed, size=shape).pixels
    return (np.stack([grey, grey**0.5, 1 - grey], 2) * 255).astype(np.uint8)


def boxes_in(shape, count, seed=0):
    rng = np.random.default_rng([seed, *shape])
    height, width = shape
    x0, y0 = rng.integers(0, width - 5, count), rng.integers(0, height - 5, count)
    x1, y1 = rng.integers(x0 + 5, width, endpoint=True), rng.integers(y0 + 5, height, endpoint=True)
    return np.stack([x0, y0, x1, y1], 1).astype(np.int32)


def predicted(bundle, rgb, boxes):
    """Masks (K, H, W), logits and IoU as SAM's own predictor gives them, box by box."""
    predictor = SamPredictor(bundle.sam)
    predictor.set_image(rgb)
    found = [predictor.predict(box=box, multimask_output=False) for box in boxes]
    masks, ious, logits = (np.concatenate(part) for part in zip(*found, strict=True))
    return masks, logits, ious


def run(segmenter, rgb, boxes):
    return segmenter.segment(segmenter.encode_image([rgb]), [rgb.shape[:2]], [boxes])[0]


def assert_same_mask(ours, theirs):
    assert ours.shape == theirs.shape and ours.dtype == bool
    union = max(1, int((ours | theirs).sum()))
    assert (ours & theirs).sum() / union >= MASK_IOU or union < STRAY_PIXELS
    assert (ours ^ theirs).sum() <= STRAY_PIXELS


def assert_same_logits(segmenter, rgb, boxes, logits):
    found, _ = segmenter.decode(segmenter.encode_image([rgb]), [rgb.shape[:2]], [boxes])
    assert found.shape == logits.shape and np.abs(found.numpy() - logits).max() <= LOGITS


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.long), 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_predictor(bundle, shape, count):
    rgb, boxes = picture(shape), boxes_in(shape, count)
    masks, logits, ious = predicted(bundle, rgb, boxes)
    segmenter = Segmenter.open(bundle, CPU, batch=2, boxes=3)
    found = run(segmenter, rgb, boxes)
    assert 0.002 < masks.any(0).mean() < 0.998  # a mask worth comparing
    assert_same_logits(segmenter, rgb, boxes, logits)
    assert_same_mask(found.mask, masks.any(0))
    assert found.predicted_iou == pytest.approx(ious.clip(0, 1).mean(), abs=LOGITS)


def test_boxes_matter(bundle):
    rgb = picture((97, 61))
    _, logits, _ = predicted(bundle, rgb, np.array([[0, 0, 20, 20], [30, 40, 61, 97]]))
    assert np.abs(logits[0] - logits[1]).max() > 100 * LOGITS


def test_stability_is_the_iou_of_two_thresholds(bundle):
    from segment_anything.utils.amg import calculate_stability_score

    rgb, boxes = picture((75, 110)), boxes_in((75, 110), 3)
    predictor = SamPredictor(bundle.sam)
    predictor.set_image(rgb)
    full = np.concatenate(
        [predictor.predict(box=b, multimask_output=False, return_logits=True)[0] for b in boxes]
    )
    expected = calculate_stability_score(torch.from_numpy(full), 0.0, 1.0).mean()
    found = run(Segmenter.open(bundle, CPU), rgb, boxes)
    assert found.stability == pytest.approx(float(expected), abs=2e-3)


def test_batches_equal_one_by_one(bundle):
    """Five images of different sizes, with none to seven boxes, in shared batches."""
    rgbs = [picture(shape, seed) for seed, shape in enumerate(SHAPES)]
    boxes = [boxes_in(shape, count) for shape, count in zip(SHAPES, (7, 0, 1, 3, 2), strict=True)]
    segmenter = Segmenter.open(bundle, CPU, batch=3, boxes=4)
    together = segmenter.segment(segmenter.encode_image(rgbs), SHAPES, boxes)
    assert len(together) == len(rgbs)
    for rgb, group, found in zip(rgbs, boxes, together, strict=True):
        if not len(group):
            assert found is None
            continue
        alone = run(segmenter, rgb, group)
        assert_same_mask(found.mask, alone.mask)
        assert found.mask.shape == rgb.shape[:2]


def test_one_image_serves_several_prompts(bundle):
    rgb = picture((90, 64))
    segmenter = Segmenter.open(bundle, CPU)
    (embedding,) = segmenter.encode_image([rgb])
    groups = [boxes_in((90, 64), 2, seed) for seed in range(3)]
    found = segmenter.segment([embedding] * 3, [(90, 64)] * 3, groups)
    for group, masks in zip(groups, found, strict=True):
        assert_same_mask(masks.mask, predicted(bundle, rgb, group)[0].any(0))


def test_nothing_in_nothing_out(bundle):
    segmenter = Segmenter.open(bundle, CPU)
    none = np.empty((0, 4), np.int32)
    assert segmenter.encode_image([]) == []
    assert segmenter.segment([], [], []) == []
    embedding = segmenter.encode_image([picture((50, 70))])
    assert segmenter.segment(embedding * 2, [(50, 70)] * 2, [none, none]) == [None, None]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_input_is_the_predictors(bundle, shape):
    seen = []
    predictor = SamPredictor(bundle.sam)
    hook = bundle.sam.image_encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    predictor.set_image(picture(shape))
    hook.remove()
    segmenter = Segmenter.open(bundle, CPU)
    ours = segmenter.prepare([segmenter.resize(picture(shape))])
    torch.testing.assert_close(ours, seen[0], atol=1e-5, rtol=0)


def test_inputs_are_one_contiguous_batch_whoever_is_in_it(bundle):
    """A square image needs no padding, which must not show in the layout of the others."""
    segmenter = Segmenter.open(bundle, CPU)
    resized = [segmenter.resize(picture(shape)) for shape in ((64, 64), (40, 97), (97, 40))]
    batch = segmenter.prepare(resized)
    assert batch.is_contiguous()
    for image, square in zip(resized, batch, strict=True):
        (alone,) = segmenter.prepare([image])
        assert torch.equal(alone, square)
        height, width = image.shape[:2]
        assert not square[:, height:].any() and not square[:, :, width:].any()


@pytest.mark.parametrize("shape", SHAPES)
def test_squash_is_a_resize_of_both_sides_before_the_predictor(other_bundle, shape):
    """MedSAM's way: stretch the picture and its boxes to the square, then as ever."""
    side = OTHER.image_size
    rgb, boxes = picture(shape), boxes_in(shape, 3)
    square = np.asarray(resize(to_pil_image(rgb), [side, side]))
    height, width = shape
    stretched = boxes * [side / width, side / height, side / width, side / height]
    _, logits, _ = predicted(other_bundle, square, stretched)
    bundle = Bundle(other_bundle.folder, {})
    bundle.__dict__.update(sam=other_bundle.sam, sam_config=replace(OTHER, fit="squash"))
    segmenter = Segmenter.open(bundle, CPU)
    found = run(segmenter, rgb, boxes)
    assert_same_logits(segmenter, rgb, boxes, logits)
    full = torch.from_numpy(logits)[None]
    for size in ((side, side), shape):
        full = interpolate(full, size, mode="bilinear", align_corners=False)
    assert_same_mask(found.mask, (full[0] > 0).any(0).numpy())


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_presets_are_the_released_architectures(name):
    with torch.device("meta"):
        ours, theirs = build_sam(SAM_PRESETS[name]), sam_model_registry[name]()
    shapes = [{k: tuple(v.shape) for k, v in m.state_dict().items()} for m in (ours, theirs)]
    assert shapes[0] == shapes[1]
    for part in ("pixel_mean", "pixel_std"):
        assert getattr(ours, part).shape == getattr(theirs, part).shape
    hyper = [
        [(b.window_size, b.attn.num_heads) for b in m.image_encoder.blocks] for m in (ours, theirs)
    ]
    assert hyper[0] == hyper[1]
    assert ours.image_encoder.img_size == theirs.image_encoder.img_size
    assert SAM_PRESETS[name].pixel_mean == (123.675, 116.28, 103.53)
    assert SAM_PRESETS[name].pixel_std == (58.395, 57.12, 57.375)
