"""A training ends in the same weights however often it was stopped, and leaves a bundle."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from threading import Event

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import nn

from medclipsam.engine.cli.main import main
from medclipsam.engine.engine import Engine
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.weights.bundle import CLIP_FOLDER, WEIGHTS, open_bundle
from medclipsam.train.clip import fit as clip_module
from medclipsam.train.clip.fit import ClipTrainer, ClipTraining, Watcher
from medclipsam.train.clip.lora import add_low_rank, merge_low_rank
from medclipsam.train.clip.run import train_clip
from medclipsam.train.pairs.pairs import read_pairs
from medclipsam.train.pairs.prepared import Prepared
from medclipsam.train.phantoms.pairs import write_phantom_pairs
from medclipsam.train.phantoms.phantoms import make_phantom
from medclipsam.train.problems import Problems
from medclipsam.train.ranks import Ranks

ALONE = Ranks(0, 1, torch.device("cpu"))
SHORT = ClipTraining(
    epochs=2, batch=6, learning_rate=1e-3, warmup=2, temperature=0.07, augmentation="patches"
)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_phantom_pairs(tmp_path_factory.mktemp("phantoms"), range(32), 1)


def listed(table):
    return read_pairs(str(table), log=lambda line: None, least=1, mask_column="spare")


def fit(bundle, table, out, training=SHORT, validation=0.25, stop=None, lines=None):
    log = (lambda line: None) if lines is None else lines.append
    problems = Problems(True, log)
    return train_clip(
        open_bundle(str(bundle)), listed(table), out, training, ALONE, problems, validation,
        stop=stop, log=log,
    )  # fmt: skip


def weights(folder):
    return load_file(folder / CLIP_FOLDER / WEIGHTS)


def assert_equal(one, two):
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def whole(tiny_bundle_folder, table, tmp_path_factory):
    """An uninterrupted training."""
    return fit(tiny_bundle_folder, table, tmp_path_factory.mktemp("whole") / "t")


def test_what_is_trained_is_a_bundle_of_other_weights(whole, tiny_bundle):
    made = open_bundle(str(whole))
    assert made.digest != tiny_bundle.digest
    before, after = weights(tiny_bundle.folder), weights(whole)
    assert before.keys() == after.keys()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert "logit_scale" not in changed and len(changed) > 0.9 * len(before) - 5
    assert (made.folder / "sam" / WEIGHTS).read_bytes() == (
        tiny_bundle.folder / "sam" / WEIGHTS
    ).read_bytes()
    notes = made.description["notes"]["clip"]
    assert notes["training"]["loss"] == "dhn-nce" and notes["from"] == tiny_bundle.digest
    assert [entry["epoch"] for entry in notes["history"]] == [1, 2]
    assert not {"presence", "confidence"} & made.defaults.keys()
    rgb = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    found = Engine.open(str(whole), "cpu", threads=1).segment(rgb, {"mass": "a mass"})
    assert found["mass"].mask.shape == (40, 50)


@pytest.mark.parametrize("at", [1, 4, 7])
def test_a_stopped_training_ends_in_the_same_weights(
    at, whole, tiny_bundle_folder, table, tmp_path
):
    stop = Event()

    def watch(line):
        if line == f"made step {at}":
            stop.set()

    class Watched(clip_module.ClipTrainer):
        def _update(self, step):
            loss = super()._update(step)
            watch(f"made step {step + 1}")
            return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medclipsam.train.clip.run.ClipTrainer", Watched)
        assert fit(tiny_bundle_folder, table, tmp_path / "t", stop=stop) is None
    lines = []
    made = fit(tiny_bundle_folder, table, tmp_path / "t", lines=lines)
    assert any(f"going on from step {at}" in line for line in lines)
    assert_equal(weights(made), weights(whole))
    assert (made.parent / "history.json").read_text() == (whole.parent / "history.json").read_text()


def command(table, out, bundle, *more):
    return [
        "train", "clip", str(table), "-o", str(out), "--bundle", str(bundle), "--min-caption", "1",
        "--mask-column", "spare", "--validation", "0.25", "--epochs", "2", "--batch", "6",
        "--learning-rate", "1e-3", "--warmup", "2", "--temperature", "0.07", "--augmentation",
        "patches", "--threads", "1", "--device", "cpu", *more,
    ]  # fmt: skip


SLOWLY = """
import sys, time
import torch
from medclipsam.train.clip import fit as clip
torch.set_num_threads(1)
plain = clip.ClipTrainer._update
clip.SAVE_EVERY = 1
def slow(self, step):
    loss = plain(self, step)
    time.sleep(0.3 if step < 4 else 3600)  # it waits to be killed
    return loss
clip.ClipTrainer._update = slow
from medclipsam.engine.cli.main import main
main(sys.argv[1:])
"""


@pytest.mark.long
def test_a_killed_training_ends_in_the_same_weights(whole, tiny_bundle_folder, table, tmp_path):
    words = command(table, tmp_path / "t", tiny_bundle_folder)
    process = subprocess.Popen([sys.executable, "-c", SLOWLY, *words])
    deadline = time.monotonic() + 500
    while not list((tmp_path / "t").glob("checkpoints/step-0000000[3-7].pt")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0 and "going on from step" in done.output, done.output
    assert_equal(weights(tmp_path / "t" / "bundle"), weights(whole))


def test_another_training_in_the_same_folder_is_refused(whole, tiny_bundle_folder, table):
    with pytest.raises(ConfigError, match=r"another training.*learning_rate \(0.001 there, 0.1 n"):
        fit(tiny_bundle_folder, table, whole.parent, replace(SHORT, learning_rate=0.1))


@pytest.mark.parametrize("part", [1, 4])
def test_parts_of_a_batch_change_nothing_but_rounding(
    part, whole, tiny_bundle_folder, table, tmp_path
):
    made = fit(tiny_bundle_folder, table, tmp_path / "t", replace(SHORT, part=part))
    for name, value in weights(made).items():  # Adam makes a step of any rounding of a zero
        close = (value - weights(whole)[name]).abs() < 1e-4
        assert close.float().mean() > 0.97, name


def random_data(count=12):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (count, 96, 96, 3), np.uint8)
    return Prepared(images, tuple(f"brain mri showing a tumor {n % 7}" for n in range(count)))


def trainer(bundle, **changes):
    training = replace(SHORT, augmentation="none", batch=4, **changes)
    return ClipTrainer(open_bundle(str(bundle)).clip, random_data(), training, ALONE)


def test_averaged_weights_follow_their_formula(tiny_bundle_folder):
    made = trainer(tiny_bundle_folder, ema=0.9)
    seen = []
    plain = made._update

    def update(step):
        loss = plain(step)
        seen.append(made.model.visual.trunk.norm.weight.detach().clone())
        return loss

    made._update = update
    made.run(Watcher())
    expected = seen[0]
    for value in seen[1:]:
        expected = 0.9 * expected + 0.1 * value
    torch.testing.assert_close(made.validated.visual.trunk.norm.weight, expected)


def test_low_rank_trains_little_and_merges_exactly(tiny_bundle_folder):
    made = trainer(tiny_bundle_folder, lora=2, learning_rate=0.01)
    names = [name for name, p in made.model.named_parameters() if p.requires_grad]
    assert names and all(name.endswith(("down", "up")) for name in names)
    before = made.model.visual.trunk.norm.weight.clone()
    pixels = torch.randn(2, 3, 96, 96)
    start = made.model.encode_image(pixels)
    made.run(Watcher())
    after = made.model.eval().encode_image(pixels)
    assert not torch.allclose(start, after, atol=1e-3)
    assert torch.equal(before, made.model.visual.trunk.norm.weight)
    merge_low_rank(made.model)
    torch.testing.assert_close(made.model.encode_image(pixels), after, atol=1e-5, rtol=1e-4)
    plain = weights(tiny_bundle_folder)
    assert made.model.state_dict().keys() == plain.keys()


def test_low_rank_is_nothing_at_first():
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(5, 7))
    x = torch.randn(3, 5)
    expected = layer(x)
    add_low_rank(layer, 3)
    assert torch.equal(layer(x), expected)


@pytest.mark.long
def test_training_learns(tiny_bundle_folder):
    """Which modality is told within a hundred steps: of 11 others a third is of one's own."""
    drawn = [make_phantom(seed, size=(96, 96)) for seed in range(48)]
    images = np.stack([(p.pixels * 255).astype(np.uint8) for p in drawn])[..., None]
    data = Prepared(np.repeat(images, 3, 3), tuple(p.caption for p in drawn))
    training = replace(SHORT, batch=12, epochs=25, augmentation="none")
    losses = []

    class Watch(Watcher):
        def step(self, step, loss, rate):
            losses.append(loss)

    ClipTrainer(open_bundle(str(tiny_bundle_folder)).clip, data, training, ALONE).run(Watch())
    assert np.mean(losses[-8:]) < 2 * math.log(11) - 1.5


def test_every_epoch_sees_every_pair_once(tiny_bundle_folder):
    made = trainer(tiny_bundle_folder)
    epochs = [np.concatenate([made._batch(3 * e + n) for n in range(3)]) for e in range(2)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert not np.array_equal(*epochs)


@pytest.mark.parametrize("precision", ["bf16"])
def test_lower_precision_trains(precision, tiny_bundle_folder):
    made = trainer(tiny_bundle_folder, precision=precision)
    assert made.run(Watcher())
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in made.model.parameters())


def test_a_batch_must_be_filled_and_shared(tiny_bundle_folder):
    with pytest.raises(ConfigError, match="12 pairs to train on do not fill a batch of 13"):
        trainer(tiny_bundle_folder).__class__(
            open_bundle(str(tiny_bundle_folder)).clip,
            random_data(),
            replace(SHORT, batch=13),
            ALONE,
        )
    with pytest.raises(ConfigError, match="a batch of 6 cannot be shared by 4 processes"):
        ClipTrainer(
            open_bundle(str(tiny_bundle_folder)).clip, random_data(), SHORT,
            Ranks(0, 4, torch.device("cpu")),
        )  # fmt: skip


def test_a_loss_that_is_not_finite_ends_it(tiny_bundle_folder, monkeypatch):
    monkeypatch.setattr(clip_module, "add_gradients", lambda *_: float("nan"))
    with pytest.raises(ConfigError, match="the loss of step 0 is nan: lower --learning-rate"):
        trainer(tiny_bundle_folder).run(Watcher())


def test_the_command_says_what_it_left_out(table, tiny_bundle_folder, tmp_path):
    text = table.read_text() + "images/gone.png,brain mri showing nothing at all,\n"
    (table.parent / "more.csv").write_text(text)
    words = command(table.parent / "more.csv", tmp_path / "t", tiny_bundle_folder)
    done = CliRunner().invoke(main, [*words, "--epochs", "1"])
    assert done.exit_code == 2 and "row 33: there is no file" in done.output
    done = CliRunner().invoke(main, [*words, "--epochs", "1", "--on-error", "skip"])
    assert done.exit_code == 0, done.output
    assert "left out, no image: 1" in done.output and f"bundle: {tmp_path / 't'}" in done.output
    assert list((tmp_path / "t" / "tensorboard").iterdir())
    (tmp_path / "full" / "x").mkdir(parents=True)
    done = CliRunner().invoke(main, command(table, tmp_path / "full", tiny_bundle_folder))
    assert done.exit_code == 2 and "holds other files" in done.output
    done = CliRunner().invoke(main, [*words, "--validation", "1.5"])
    assert done.exit_code == 2 and "lies in [0, 1)" in done.output


def test_from_scratch_and_pairs_to_validate_on(table, tiny_bundle_folder, tmp_path):
    words = command(table, tmp_path / "t", tiny_bundle_folder, "--from-scratch")
    done = CliRunner().invoke(main, [*words, "--epochs", "1", "--validation", str(table)])
    assert done.exit_code == 0 and "32 to judge by" in done.output, done.output
    scale = weights(tmp_path / "t" / "bundle")["logit_scale"].exp().item()
    assert scale == pytest.approx(1 / 0.07, rel=1e-5)
    history = json.loads((tmp_path / "t" / "history.json").read_text())
    assert 0 <= history[0]["top-1"] <= history[0]["top-5"] <= 1


def test_without_validation_the_last_weights_are_kept(tiny_bundle_folder, table, tmp_path):
    seen = []

    class Watched(clip_module.ClipTrainer):
        def run(self, watcher, start=0):
            done = super().run(watcher, start)
            seen.append({k: v.clone() for k, v in self.model.state_dict().items()})
            return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medclipsam.train.clip.run.ClipTrainer", Watched)
        made = fit(tiny_bundle_folder, table, tmp_path / "t", validation=0.0)
    assert_equal(weights(made), seen[0])


@pytest.mark.long
def test_torchrun_trains_as_one_process_does(whole, tiny_bundle_folder, table, tmp_path):
    words = command(table, tmp_path / "t", tiny_bundle_folder, "--augmentation", "none")
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*run, "-m", "medclipsam.engine.cli", *words], capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    alone = command(table, tmp_path / "one", tiny_bundle_folder, "--augmentation", "none")
    assert CliRunner().invoke(main, alone).exit_code == 0
    one, two = (weights(tmp_path / name / "bundle") for name in ("one", "t"))
    for name, value in one.items():
        assert ((value - two[name]).abs() < 1e-4).float().mean() > 0.97, name
