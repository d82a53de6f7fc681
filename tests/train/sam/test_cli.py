"""``medclipsam train sam``: folders in, a bundle out, through kills."""

import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file
from sam_cases import FAST, call, grey, scan, training_folder, write

from medclipsam.engine.cli.main import main
from medclipsam.engine.engine import Engine
from medclipsam.engine.weights.bundle import open_bundle
from medclipsam.train.checkpoint import hold
from medclipsam.train.phantoms.phantoms import PROMPTS


def test_a_folder_becomes_a_bundle_that_segments(data, tmp_path):
    done = call(data, tmp_path / "new")
    assert done.exit_code == 0, done.output
    assert "6 images with 8 masks: 5 to learn from, 1 to judge on" in done.output
    assert "confidence" in done.output and "kept: the weights after" in done.output
    base, new = open_bundle("phantom"), open_bundle(str(tmp_path / "new"))
    assert new.name == "new" and new.description["clip"] == base.description["clip"]
    for name, digest in base.description["files"].items():
        kept = new.description["files"][name] == digest
        assert kept == name.startswith("clip/") or "sam/" in name
    assert "confidence" in base.defaults and "confidence" not in new.defaults
    assert new.defaults["presence"] == base.defaults["presence"] and not new.exports
    notes = new.description["notes"]
    assert notes["base"]["digest"] == base.digest
    assert notes["sam_training"]["settings"]["steps"] == 6
    assert notes["sam_training"]["masks"] == 8 and len(notes["sam_training"]["history"]) == 3
    assert not training_folder(tmp_path / "new").exists()
    engine = Engine.open(str(tmp_path / "new"), "cpu", settings={"presence": "none"})
    rgb = np.repeat(grey(scan(3_000_009))[..., None], 3, 2)
    assert engine.segment(rgb, {"mass": PROMPTS["mass"]})["mass"].mask.any()


def test_the_frozen_encoder_is_the_base_s(data, tmp_path):
    assert call(data, tmp_path / "new", "--val-share", "0").exit_code == 0
    before = load_file(open_bundle("phantom").folder / "sam/model.safetensors")
    after = load_file(tmp_path / "new/sam/model.safetensors")
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved and not any("image_encoder" in name for name in moved)


def test_from_scratch_takes_the_sizes_only(data, tmp_path):
    flags = ("--from-scratch", "--val-share", "0", "--steps", "1", "--seed", "5")
    done = call(data, tmp_path / "new", *flags)
    assert done.exit_code == 0, done.output
    new = open_bundle(str(tmp_path / "new"))
    assert new.description["sam"]["identity"] == "trained from scratch by medclipsam train sam"
    before = load_file(open_bundle("phantom").folder / "sam/model.safetensors")
    after = load_file(tmp_path / "new/sam/model.safetensors")
    name = "image_encoder.patch_embed.proj.weight"
    assert abs(np.corrcoef(before[name].ravel(), after[name].ravel())[0, 1]) < 0.2


def test_one_image_cannot_be_split(tmp_path):
    phantom = scan(0)
    write(tmp_path / "images/a.png", grey(phantom))
    write(tmp_path / "masks/mass/a.png", phantom.masks["mass"] * np.uint8(255))
    done = call(tmp_path, tmp_path / "new")
    assert done.exit_code == 2 and "--val-share 0" in done.output


def test_patients_are_kept_together(data, tmp_path):
    done = call(data, tmp_path / "new", "--steps", "1", "--patient-pattern", r"p(\d)/")
    assert done.exit_code == 0, done.output
    assert "4 to learn from, 2 to judge on" in done.output


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--bundle", "nowhere"], "no bundle 'nowhere'"),
        (["--learning-rate", "1"], "learning-rate"),
        (["--val-share", "1"], "val-share"),
        (["--patient-pattern", "("], "no regular expression"),
        (["--device", "tpu"], "unknown device"),
    ],
)
def test_wrong_flags_are_named(data, tmp_path, flags, words):
    done = call(data, tmp_path / "new", *flags)
    assert done.exit_code != 0 and words in done.output


def test_what_exists_is_not_overwritten(data, tmp_path):
    (tmp_path / "new").mkdir()
    done = call(data, tmp_path / "new")
    assert done.exit_code == 2 and "exists already" in done.output


def test_two_of_the_same_do_not_run_at_once(data, tmp_path):
    with hold(training_folder(tmp_path / "new")):
        done = call(data, tmp_path / "new")
    assert done.exit_code == 2 and "going on" in done.output


def weights(out):
    return (out / "sam/model.safetensors").read_bytes()


KILLS = """
import os, signal, sys
real, name = os.replace, sys.argv.pop(1)
def replace(source, target, **more):
    real(source, target, **more)
    if os.path.basename(target) == name:
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = replace
from medclipsam.engine.cli.main import main
main()
"""


def kill_after(words, name):
    """Run the command in a process of its own; SIGKILL when the file ``name`` appears."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", KILLS, name, *words], env=environment, stdout=subprocess.DEVNULL
    )
    assert done.returncode == -signal.SIGKILL, "it ended before it could be killed"


@pytest.mark.long
def test_killed_and_called_again_it_ends_in_the_same_bytes(data, tmp_path):
    base = [*FAST, "--steps", "20", "--validate-every", "8", "--save-every", "1"]
    base += ["--val-share", "0.4", "--encoder"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    folder = training_folder(cut)
    words = ["train", "sam", str(data / "images"), str(data / "masks"), "-o", str(cut), *base]
    kill_after(words, "step-00000003.pt")
    assert list(folder.glob("step-00000003.pt"))
    assert not cut.exists() and list(folder.glob("step-*.pt"))
    other = call(data, cut, "--learning-rate", "0.01", base=base)
    assert other.exit_code == 2
    assert "training.learning_rate (0.0001 there, 0.01 now)" in other.output
    again = call(data, cut, base=base)
    assert again.exit_code == 0 and "resuming after" in again.output
    assert call(data, whole, base=base).exit_code == 0
    assert weights(cut) == weights(whole)
    notes = [open_bundle(str(out)).description["notes"] for out in (whole, cut)]
    assert notes[0] == notes[1]


def test_a_kill_while_the_bundle_is_written_costs_nothing(data, tmp_path, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("medclipsam.train.sam.bundle.write_description", die)
        assert call(data, tmp_path / "new").exit_code == 130
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [".new.training", "data"]
    done = call(data, tmp_path / "new")
    assert done.exit_code == 0 and "resuming after 6 of 6 steps" in done.output
    assert call(data, tmp_path / "other").exit_code == 0
    assert weights(tmp_path / "new") == weights(tmp_path / "other")


def test_a_full_disk_while_the_bundle_is_written_is_named(data, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("medclipsam.train.sam.bundle.write_description", full)
    done = call(data, tmp_path / "new")
    assert done.exit_code == 1 and "No space left" in done.output
    assert not (tmp_path / "new").exists() and training_folder(tmp_path / "new").exists()


def test_help_shows_a_command_to_run():
    words = CliRunner().invoke(main, ["train", "sam", "--help"]).output
    assert "medclipsam train sam images/ masks/ --bundle" in words


def test_settings_of_the_command_are_those_of_the_training(data, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "medclipsam.train.sam.bundle.fine_tune_sam",
        lambda *call: seen.append(call) or replace(call[0], folder=tmp_path),
    )
    flags = ["--grow", "0.2", "--precision", "bf16", "--components", "--seed", "4"]
    base = ["--bundle", "phantom", "--threads", "1"]
    assert call(data, tmp_path / "new", *flags, base=base).exit_code == 0
    (_, _, _, out, training, *_) = seen[0]
    assert out == tmp_path / "new"
    assert (training.grow, training.precision, training.components) == (0.2, "bf16", True)
    assert (training.seed, training.steps) == (4, 1000)
