"""SAM's training: steps, judgement, and going on after a stop."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sam_samples import (
    ALL,
    CPU,
    SHORT,
    changed,
    phantoms,
    quiet,
    tiny_sam,
    weights,
)

from medclipsam.engine.backends.arithmetic import make_autocast
from medclipsam.engine.backends.samencoder import encode_image
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.weights.bundle import open_bundle
from medclipsam.engine.weights.models import build_sam
from medclipsam.train.sam import fitting as sam_fitting
from medclipsam.train.sam.boxes import tight_boxes
from medclipsam.train.sam.encoder import embed_images, to_input
from medclipsam.train.sam.fit import split_samples, train_sam
from medclipsam.train.sam.fitting import Fitting
from medclipsam.train.sam.settings import SamTraining


@pytest.mark.long
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


def counted_step(samples, training):
    """How often the first block ran in one step, and the weights after it."""
    fit, calls = fitting(samples, training), []
    fit.sam.image_encoder.blocks[0].norm1.register_forward_hook(lambda *call: calls.append(call))
    fit.step(0)
    return len(calls), fit.state()["weights"]


def test_recomputed_blocks_run_twice_and_change_no_bit(padded):
    kept, expected = counted_step(padded, replace(ALL, recompute=False))
    again, found = counted_step(padded, replace(ALL, recompute=True))
    assert again == 2 * kept > 0
    assert all(found[name].equal(weight) for name, weight in expected.items())


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


@pytest.mark.parametrize(
    "training", [SHORT, replace(SHORT, val_share=0.0), pytest.param(ALL, marks=pytest.mark.long)]
)
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


@pytest.mark.long
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
