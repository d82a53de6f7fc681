"""SAM's training: loss, frame, frozen encoder, steps, judgement, and going on after a stop."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from medclipsam.engine.backends.pytorch import encode_image
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.segment import Segmenter, inner_size
from medclipsam.engine.weights.bundle import open_bundle
from medclipsam.engine.weights.models import SamConfig, build_sam
from medclipsam.train.phantoms.phantoms import make_phantom
from medclipsam.train.sam import fitting as sam_fitting
from medclipsam.train.sam.boxes import jitter_boxes, tight_boxes
from medclipsam.train.sam.data import (
    SamSamples,
    fit_mask,
    prepare_image,
)
from medclipsam.train.sam.encoder import embed_images, inside_image, to_input
from medclipsam.train.sam.fit import split_samples, train_sam
from medclipsam.train.sam.fitting import Fitting
from medclipsam.train.sam.loss import hard_dice, mask_loss
from medclipsam.train.sam.settings import SamTraining
from medclipsam.train.schedule import make_autocast

CPU = torch.device("cpu")
TINY = SamConfig(
    image_size=64,
    patch_size=8,
    encoder_width=32,
    encoder_depth=2,
    encoder_heads=2,
    global_blocks=(1,),
    window=4,
    channels=32,
    decoder_heads=2,
    decoder_mlp=64,
)
SHORT = SamTraining(
    steps=7, batch=2, learning_rate=1e-3, warmup=2, val_share=0.3, validate_every=3, save_every=2
)
ALL = replace(SHORT, encoder=True, accumulate=2, recompute=True)


def quiet(line):
    pass


def square_samples(images, masks, source):
    """Samples of images that fill the square, each a group of its own."""
    inner = np.full((len(images), 2), images.shape[1], np.int64)
    return SamSamples(images, inner, masks, source, [str(n) for n in range(len(images))])


def phantoms(count, side, first=0):
    drawn = [make_phantom(seed, size=(side, side)) for seed in range(first, first + count)]
    pairs = [(n, m) for n, d in enumerate(drawn) for m in d.masks.values() if m.any()]
    images = np.stack([(d.pixels * 255 + 0.5).astype(np.uint8) for d in drawn])
    return square_samples(images, np.stack([m for _, m in pairs]), np.array([n for n, _ in pairs]))


def tiny_sam(seed=3):
    torch.manual_seed(seed)
    return build_sam(TINY)


def weights(sam):
    return {name: tensor.clone() for name, tensor in sam.state_dict().items()}


def changed(sam, before):
    return {name for name, tensor in sam.state_dict().items() if not tensor.equal(before[name])}


@pytest.fixture(scope="module")
def drawn():
    return phantoms(12, 64)


@pytest.fixture(scope="module")
def padded():
    """Colour images of several shapes, two masks each."""
    rng = np.random.default_rng(0)
    images, inner, masks = [], [], []
    for shape in [(50, 80), (100, 40), (64, 64), (31, 200)]:
        images.append(prepare_image(rng.integers(0, 256, (*shape, 3), np.uint8), TINY))
        inner.append(inner_size(shape, TINY))
        for part in (0.2, 0.6):
            mask = np.zeros(shape, bool)
            top, left = int(part * shape[0]), int(part * shape[1])
            mask[top : top + shape[0] // 3, left : left + shape[1] // 3] = True
            masks.append(fit_mask(mask, inner[-1], 64))
    source = np.arange(8) // 2
    groups = [str(n) for n in range(4)]
    return SamSamples(np.stack(images), np.array(inner), np.stack(masks), source, groups)


def literal_loss(logits, predicted, truth, inside):
    """Pixel by pixel, in float64."""
    losses, dices = [], []
    for z, q, t, s in zip(logits, predicted, truth, inside, strict=True):
        pixels = [
            (float(a), bool(b)) for a, b, ok in zip(z.flat, t.flat, s.flat, strict=True) if ok
        ]
        p = [1 / (1 + np.exp(-a)) for a, _ in pixels]
        entropy = [-np.log(v if b else 1 - v) for v, (_, b) in zip(p, pixels, strict=True)]
        overlap = sum(v for v, (_, b) in zip(p, pixels, strict=True) if b)
        dice = (2 * overlap + 1) / (sum(p) + sum(b for _, b in pixels) + 1)
        both = sum(a > 0 and b for a, b in pixels)
        union = sum(a > 0 or b for a, b in pixels)
        losses.append(1 - dice + np.mean(entropy) + (float(q) - both / max(union, 1)) ** 2)
        dices.append(dice)
    return losses, dices


def loss_case():
    rng = np.random.default_rng(1)
    logits = torch.from_numpy(rng.normal(0, 2, (3, 9, 9)))
    inside = inside_image(np.array([[9, 9], [9, 5], [4, 9]]), 9)
    truth = torch.from_numpy(rng.random((3, 9, 9)) < 0.4) & inside
    return logits, torch.tensor([0.2, 0.7, 1.1]), truth, inside


def test_the_loss_is_the_literal_one():
    logits, predicted, truth, inside = loss_case()
    loss, dice = mask_loss(logits, predicted, truth, inside)
    expected = literal_loss(logits.numpy(), predicted, truth.numpy(), inside.numpy())
    np.testing.assert_allclose(loss, expected[0], rtol=1e-6)  # truth and share are float32
    np.testing.assert_allclose(dice, expected[1], rtol=1e-6)


def test_padding_has_no_say():
    logits, predicted, truth, inside = loss_case()
    other = torch.where(inside, logits, 50.0).requires_grad_()
    loss, _ = mask_loss(other, predicted, truth, inside)
    torch.testing.assert_close(loss, mask_loss(logits, predicted, truth, inside)[0])
    loss.sum().backward()
    assert not other.grad[~inside].any() and other.grad[inside].all()
    torch.testing.assert_close(hard_dice(other, truth, inside), hard_dice(logits, truth, inside))


@pytest.mark.parametrize("fit", ["pad", "squash"])
@pytest.mark.parametrize("shape", [(50, 80), (97, 33), (64, 64), (1, 300)])
def test_images_enter_as_they_do_in_the_engine(fit, shape):
    config = replace(TINY, fit=fit)
    rgb = np.random.default_rng(2).integers(0, 256, (*shape, 3), np.uint8)
    samples = SamSamples(
        prepare_image(rgb, config)[None],
        np.array([inner_size(shape, config)]),
        np.ones((1, 64, 64), bool),
        np.zeros(1, np.int64),
        ["a"],
    )
    engine = Segmenter(None, None, config, CPU, 1, 1)
    assert to_input(build_sam(config), samples, np.array([0]))[0].equal(engine.prepare(rgb))


def test_grey_images_enter_as_their_colour_would(drawn):
    sam, chosen = tiny_sam(), np.array([1, 4])
    colour = replace(drawn, images=np.repeat(drawn.images[..., None], 3, 3))
    assert to_input(sam, drawn, chosen).equal(to_input(sam, colour, chosen))


@pytest.mark.parametrize("shape", [(50, 80), (97, 33), (20, 20)])
def test_masks_are_brought_to_the_frame_by_their_nearest_pixel(shape):
    mask = np.random.default_rng(3).random(shape) < 0.5
    h, w = inner_size(shape, TINY)
    found = fit_mask(mask, (h, w), 64)
    rows = ((np.arange(h) + 0.5) * shape[0] / h).astype(int)
    columns = ((np.arange(w) + 0.5) * shape[1] / w).astype(int)
    differing = np.count_nonzero(found[:h, :w] != mask[np.ix_(rows, columns)])
    assert differing <= 0.02 * h * w  # ties between two pixels
    assert not found[h:].any() and not found[:, w:].any()


def test_boxes_stay_on_the_image(padded):
    inner = padded.inner[padded.source]
    boxes = jitter_boxes(np.random.default_rng(0), padded.masks, 0.4, 3.0, inner)
    assert (boxes >= 0).all() and (boxes[:, 2:] <= inner[:, ::-1]).all()
    assert (boxes[:, :2] < boxes[:, 2:]).all()
    still = jitter_boxes(np.random.default_rng(0), padded.masks, 0, 0, inner)
    np.testing.assert_array_equal(still, tight_boxes(padded.masks))


def test_a_frozen_encoder_is_frozen_and_its_embeddings_are_direct_ones(padded, tmp_path):
    sam, lines = tiny_sam(), []
    before = weights(sam)
    with torch.no_grad():
        direct = [encode_image(sam, to_input(sam, padded, np.array([n])))[0] for n in range(4)]
    train_sam(sam, padded, replace(SHORT, val_share=0.0), tmp_path, log=lines.append)
    moved = changed(sam, before)
    assert moved and not any("image_encoder" in name for name in moved)
    assert any("frozen" in line and "brightness" in line for line in lines)
    cached = np.fromfile(tmp_path / "embeddings.bin", np.float32)
    np.testing.assert_array_equal(cached.reshape(4, 32, 8, 8), torch.stack(direct).numpy())


def test_embeddings_go_on_where_they_were_stopped(padded, tmp_path, monkeypatch):
    sam, asked = tiny_sam(), []
    monkeypatch.setattr("medclipsam.train.sam.encoder.SAVED_EVERY", 1)
    embed = make_autocast(CPU, "fp32")
    whole = np.array(embed_images(sam, padded, embed, tmp_path / "a", {"x": 1}, quiet))

    def stop(*call, before=encode_image):
        asked.append(call)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return before(*call)

    monkeypatch.setattr("medclipsam.train.sam.encoder.encode_image", stop)
    with pytest.raises(KeyboardInterrupt):
        embed_images(sam, padded, embed, tmp_path / "b", {"x": 1}, quiet)
    with (tmp_path / "b/embeddings.bin").open("ab") as file:
        file.write(b"torn row")
    again = embed_images(sam, padded, embed, tmp_path / "b", {"x": 1}, quiet)
    np.testing.assert_array_equal(again, whole)
    assert len(asked) == 5
    embed_images(sam, padded, embed, tmp_path / "b", {"x": 2}, quiet)
    assert len(asked) == 9


def test_with_the_encoder_all_of_sam_learns(padded, tmp_path):
    sam = tiny_sam()
    before = weights(sam)
    train_sam(sam, padded, replace(ALL, val_share=0.0), tmp_path, log=quiet)
    moved = changed(sam, before)
    assert any("image_encoder.blocks.0" in name for name in moved)
    assert any("mask_decoder" in name for name in moved)
    assert not (tmp_path / "embeddings.bin").exists()


def fitting(samples, training, cache=None):
    learn, judge = split_samples(samples, training)
    return Fitting(tiny_sam(), samples, learn, judge, training, CPU, cache)


def one_step(samples, training, tmp_path):
    sam = tiny_sam()
    cache = embed_images(sam, samples, make_autocast(CPU, "fp32"), tmp_path, {}, quiet)
    found = fitting(samples, training, cache)
    figures = found.step(0)
    return figures, found.state()["weights"]


def test_accumulated_batches_are_one_batch(drawn, tmp_path):
    whole = one_step(drawn, replace(SHORT, batch=4, shrink=0, grow=0), tmp_path)
    parts = one_step(drawn, replace(SHORT, batch=2, accumulate=2, shrink=0, grow=0), tmp_path)
    np.testing.assert_allclose(parts[0], whole[0], rtol=1e-5)
    worst = max(float((parts[1][k] - whole[1][k]).abs().max()) for k in whole[1])
    assert worst < 0.05 * SHORT.learning_rate  # Adam's first step is the rate whatever the size


def test_recomputing_blocks_changes_no_bit_and_leaves_no_trace(padded, tmp_path):
    sams = [tiny_sam(), tiny_sam()]
    for sam, recompute in zip(sams, (False, True), strict=True):
        training = replace(ALL, recompute=recompute)
        train_sam(sam, padded, training, tmp_path / str(recompute), log=quiet)
    assert not changed(sams[0], weights(sams[1]))
    assert all("forward" not in vars(block) for block in sams[1].image_encoder.blocks)


def test_every_image_comes_once_before_any_again(drawn):
    found = fitting(drawn, replace(SHORT, val_share=0.0, batch=4))
    rng = np.random.default_rng(0)
    seen = [n for step in range(6) for part in found._draw(step, rng) for n in part.images]
    assert sorted(seen[:12]) == sorted(seen[12:]) == list(range(12))
    assert seen[:12] != seen[12:]


def test_an_image_brings_no_more_masks_than_asked(padded):
    found = fitting(padded, replace(SHORT, masks_per_image=1, val_share=0.0))
    (part,) = found._draw(0, np.random.default_rng(0))
    np.testing.assert_array_equal(part.owner, [0, 1])
    np.testing.assert_array_equal(padded.source[part.masks], part.images)


def newest(folder):
    return torch.load(sorted(folder.glob("step-*.pt"))[-1], weights_only=True)["state"]


class Stop(Exception):
    pass


def stop_at(monkeypatch, step):
    """Let a training end right before step ``step``."""
    run = Fitting.step

    def stopping(self, number):
        if number == step:
            raise Stop
        return run(self, number)

    monkeypatch.setattr(sam_fitting.Fitting, "step", stopping)


@pytest.mark.parametrize("training", [SHORT, ALL, replace(SHORT, val_share=0.0)])
def test_a_resumed_training_ends_in_the_same_bits(padded, tmp_path, monkeypatch, training):
    whole = tiny_sam()
    history = train_sam(whole, padded, training, tmp_path / "whole", log=quiet)
    for step in (1, 3, 4, 6):
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            with pytest.raises(Stop):
                train_sam(tiny_sam(), padded, training, tmp_path / "cut", log=quiet)
    lines, resumed = [], tiny_sam()
    assert train_sam(resumed, padded, training, tmp_path / "cut", log=lines.append) == history
    assert not changed(resumed, weights(whole))
    ends = [newest(tmp_path / name)["weights"] for name in ("whole", "cut")]
    assert all(tensor.equal(ends[1][name]) for name, tensor in ends[0].items())
    assert "resuming after 6 of 7 steps" in lines
    again = tiny_sam()
    assert train_sam(again, padded, training, tmp_path / "cut", log=quiet) == history
    assert not changed(again, weights(whole))


def test_fp16_scales_survive_a_stop(padded):
    training = replace(ALL, precision="fp16", recompute=False)
    found = fitting(padded, training)
    found.step(0)
    state = found.state()
    assert state["scaler"]["scale"] > 0
    other = fitting(padded, training)
    other.restore(state)
    assert found.step(1) == other.step(1)


@pytest.mark.parametrize(
    ("training", "named"),
    [
        (replace(SHORT, seed=1), "training.seed (0 there, 1 now)"),
        (replace(SHORT, encoder=True), "training.encoder (false there, true now)"),
        (replace(SHORT, steps=8), "training.steps (7 there, 8 now)"),
    ],
)
def test_another_training_is_refused(padded, tmp_path, training, named):
    train_sam(tiny_sam(), padded, SHORT, tmp_path, log=quiet)
    with pytest.raises(ConfigError) as refused:
        train_sam(tiny_sam(), padded, training, tmp_path, log=quiet)
    assert named in str(refused.value)


def test_other_data_or_weights_are_refused(padded, drawn, tmp_path):
    train_sam(tiny_sam(), padded, SHORT, tmp_path, log=quiet)
    with pytest.raises(ConfigError, match=r"images \(4 there, 12 now\)"):
        train_sam(tiny_sam(), drawn, SHORT, tmp_path, log=quiet)
    with pytest.raises(ConfigError, match="different weights"):
        train_sam(tiny_sam(4), padded, SHORT, tmp_path, log=quiet)
    train_sam(tiny_sam(), padded, replace(SHORT, save_every=1), tmp_path, log=quiet)


def test_the_best_weights_are_kept(padded, tmp_path, monkeypatch):
    seen, scores = {}, iter([0.1, 0.9, 0.4, 0.2])

    def judge(self, embedding, chosen, rng):
        return torch.full((2, len(chosen)), score)

    run = Fitting.validate

    def validate(self, step):
        nonlocal score
        score = next(scores)
        seen[step] = {name: tensor.clone() for name, tensor in self._weights().items()}
        return run(self, step)

    score = 0.0
    monkeypatch.setattr(Fitting, "_judge", judge)
    monkeypatch.setattr(Fitting, "validate", validate)
    sam = tiny_sam()
    history = train_sam(sam, padded, SHORT, tmp_path, log=quiet)
    assert [judged.step for judged in history] == [0, 3, 6, 7]
    state = sam.state_dict()
    assert all(state[name].equal(tensor) for name, tensor in seen[3].items())
    assert not all(state[name].equal(tensor) for name, tensor in seen[7].items())


def test_a_judgement_is_the_dsc_of_each_mask(drawn):
    found = fitting(drawn, replace(SHORT, encoder=True))
    judged = found.validate(0)
    scores = []
    with torch.no_grad():
        for n in found.judge:
            embedding = encode_image(found.sam, to_input(found.sam, drawn, np.array([n])))
            for m in np.nonzero(drawn.source == n)[0]:
                logits, _ = found._decode(embedding, tight_boxes(drawn.masks[m : m + 1]))
                mask, truth = logits[0].numpy() > 0, drawn.masks[m]
                scores.append(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))
    assert judged.exact == pytest.approx(np.mean(scores), abs=1e-4)  # rounding moves outlines
    assert found.validate(1).jittered == judged.jittered


def test_dsc_rises_within_a_few_steps(tmp_path):
    """The phantom bundle's encoder with a decoder that knows nothing."""
    bundle = open_bundle("phantom")
    torch.manual_seed(0)
    sam = build_sam(bundle.sam_config)
    sam.image_encoder.load_state_dict(bundle.sam.image_encoder.state_dict())
    training = SamTraining(
        steps=120, batch=6, learning_rate=2e-3, warmup=10, validate_every=60, val_share=0.3
    )
    history = train_sam(sam, phantoms(40, 128, 2_000_000), training, tmp_path, log=quiet)
    assert history[0].score < 0.5
    assert min(history[-1].exact, history[-1].jittered) > max(0.65, history[0].score + 0.2)


def test_a_loss_that_is_not_finite_ends_it(padded, tmp_path):
    sam = tiny_sam()
    with torch.no_grad():
        sam.mask_decoder.iou_token.weight.fill_(float("nan"))
    with pytest.raises(ConfigError, match="loss became nan in step 1; lower --learning-rate"):
        train_sam(sam, padded, replace(SHORT, val_share=0.0), tmp_path, log=quiet)


def test_equal_images_are_never_on_both_sides(padded):
    with pytest.raises(ConfigError, match="--val-share 0"):
        split_samples(replace(padded, groups=["a"] * 4), SHORT)
    learn, judge = split_samples(replace(padded, groups=["a", "b", "a", "c"]), SHORT)
    assert sorted([*learn, *judge]) == [0, 1, 2, 3]
    assert ({0, 2} <= set(learn)) or ({0, 2} <= set(judge))
    again = split_samples(replace(padded, groups=["a", "b", "a", "c"]), SHORT)
    np.testing.assert_array_equal(judge, again[1])


def test_no_masks_are_refused(padded):
    with pytest.raises(ConfigError, match="no mask to learn from"):
        replace(padded, masks=padded.masks[:0], source=padded.source[:0])


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"batch": 0},
        {"accumulate": 0},
        {"masks_per_image": 0},
        {"validate_every": 0},
        {"save_every": 0},
        {"seed": -1},
        {"warmup": -1},
        {"weight_decay": -0.1},
        {"clip_norm": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"shrink": 0.5},
        {"grow": -0.1},
        {"val_share": 1.0},
        {"precision": "int8"},
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigError):
        SamTraining(**wrong)


def test_a_checkpoint_holds_what_was_trained_only(padded, tmp_path):
    train_sam(tiny_sam(), padded, SHORT, tmp_path, log=quiet)
    names = set(newest(tmp_path)["weights"])
    assert names and not any("image_encoder" in name for name in names)
