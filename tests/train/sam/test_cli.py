"""``medclipsam train sam``: folders in, a bundle out, through bad files and kills."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import cv2
import nibabel
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

from medclipsam.engine.cli.main import main
from medclipsam.engine.engine import Engine
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.weights.bundle import open_bundle
from medclipsam.train.checkpoint import hold
from medclipsam.train.phantoms.archive import encode_dicom
from medclipsam.train.phantoms.phantoms import PROMPTS, make_phantom
from medclipsam.train.problems import Problems
from medclipsam.train.sam.cases import list_cases
from medclipsam.train.sam.data import gather_samples

FAST = ["--bundle", "phantom", "--device", "cpu", "--threads", "1", "--warmup", "1", "--batch", "2"]
SHORT = [*FAST, "--steps", "6", "--validate-every", "3"]
CONFIG = open_bundle("phantom").sam_config


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


def grey(phantom):
    return (phantom.pixels * 255 + 0.5).astype(np.uint8)


def scan(seed, modality="ultrasound", targets=("mass",)):
    return make_phantom(seed, modality, targets)


@pytest.fixture
def data(tmp_path):
    """Six images with a mass each, the last two with a cyst, too."""
    root = tmp_path / "data"
    for n in range(6):
        phantom = scan(3_000_000 + n, targets=("mass", "cyst") if n > 3 else ("mass",))
        write(root / f"images/p{n // 2}/{n}.png", grey(phantom))
        for label, mask in phantom.masks.items():
            if mask.any():
                write(root / f"masks/{label}/p{n // 2}/{n}_mask.png", mask * np.uint8(255))
    return root


def call(data, out, *flags, base=SHORT):
    words = ["train", "sam", str(data / "images"), str(data / "masks"), "-o", str(out), *base]
    return CliRunner().invoke(main, [*words, *flags])


def training_folder(out):
    return out.with_name(f".{out.name}.training")


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


def volume(folder, name, frames):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(frames, np.diag([1.0, 1.0, 3.0, 1.0])), path)


def gather(data, components=False, on_error="fail", lines=None):
    problems = Problems(on_error == "fail", (lines if lines is not None else []).append)
    cases = list_cases(data / "images", data / "masks", problems)
    return gather_samples(cases, CONFIG, components, problems, data, 1), problems


def test_every_kind_of_file_and_every_frame_counts(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 900, (60, 40, 5)).astype(np.int16)
    mask = np.zeros(pixels.shape, np.uint8)
    mask[10:30, 5:25, 1:4] = 1
    volume(tmp_path, "images/v.nii.gz", pixels)
    volume(tmp_path, "masks/organ/v.nii.gz", mask)
    (tmp_path / "images/d.dcm").write_bytes(
        encode_dicom((scan(5).pixels * 4095).astype(np.uint16), False)
    )
    write(tmp_path / "masks/organ/d.png", scan(5).masks["mass"] * np.uint8(255))
    samples, problems = gather(tmp_path)
    assert len(samples.images) == 4 and len(samples.masks) == 4 and not problems.counts
    assert len(set(samples.groups)) == 2
    np.testing.assert_array_equal(samples.source, np.arange(4))
    heights = samples.inner[1:]
    assert (heights == heights[0]).all() and sorted(heights[0]) == [85, 128]
    expected = mask[:, :, 1].sum() * (128 / 60) ** 2
    assert samples.masks[1].sum() == pytest.approx(expected, rel=0.05)


def test_components_are_masks_of_their_own(tmp_path):
    mask = np.zeros((128, 128), np.uint8)
    mask[10:30, 10:30] = mask[30:40, 30:40] = 255  # touch at a corner
    mask[80:100, 60:90] = 255
    mask[120, 120] = 255  # noise
    write(tmp_path / "images/a.png", np.arange(128 * 128, dtype=np.uint8).reshape(128, 128))
    write(tmp_path / "masks/organ/a.png", mask)
    whole, _ = gather(tmp_path)
    parts, _ = gather(tmp_path, components=True)
    assert [m.sum() for m in whole.masks] == [400 + 100 + 600 + 1]
    assert sorted(m.sum() for m in parts.masks) == [500, 600]
    assert len(parts.images) == 1


def test_masks_without_labels_are_of_one(data):
    os.rename(data / "masks/mass", data / "flat")
    flat = sorted((data / "flat").rglob("*.png"))
    for n, path in enumerate(flat):
        os.rename(path, data / f"images/{n}_mask.png")
    images = sorted((data / "images").glob("*/*.png"))
    (data / "one").mkdir()
    for n, path in enumerate(images):
        os.rename(path, data / f"one/{n}.png")
    problems = Problems(True, lambda line: None)
    assert len(list_cases(data / "one", data / "images", problems)) == 6


def spoil_unmatched(data):
    write(data / "masks/mass/p9/other.png", np.full((9, 9), 255, np.uint8))


def spoil_image(data):
    (data / "images/p0/1.png").write_bytes(b"\x89PNG\r\n\x1a\n garbage")


def spoil_mask(data):
    (data / "masks/mass/p0/1_mask.png").write_bytes(b"")


def spoil_shape(data):
    write(data / "masks/mass/p0/1_mask.png", np.full((9, 9), 255, np.uint8))


SPOILT = {
    "mask without image": (spoil_unmatched, "other.png", 8),
    "unreadable image": (spoil_image, "p0/1.png", 7),
    "unreadable mask": (spoil_mask, "1_mask.png", 7),
    "shape": (spoil_shape, "has the shape (1, 9, 9)", 7),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_what_cannot_be_used_ends_it(data, tmp_path, kind):
    spoil, named, _ = SPOILT[kind]
    spoil(data)
    done = call(data, tmp_path / "new")
    assert done.exit_code == 2
    assert named in done.output and kind in done.output and "--on-error skip" in done.output
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", SPOILT)
def test_or_is_left_out_named_and_counted(data, kind):
    spoil, named, left = SPOILT[kind]
    spoil(data)
    lines = []
    samples, problems = gather(data, on_error="skip", lines=lines)
    assert len(samples.masks) == left
    assert sum(problems.counts.values()) == 1
    assert any(named in line and kind in line for line in lines)


def test_empty_masks_and_lonely_images_are_never_fatal(data):
    write(data / "masks/cyst/p0/0.png", np.zeros(grey(scan(3_000_000)).shape, np.uint8))
    write(data / "images/p7/lonely.png", grey(scan(1)))
    lines = []
    samples, problems = gather(data, lines=lines)
    assert len(samples.masks) == 8
    assert problems.counts == {"empty mask": 1, "image without mask": 1}
    assert any("lonely.png" in line for line in lines)


def test_skipped_files_stand_in_the_bundle(data, tmp_path):
    spoil_image(data)
    done = call(data, tmp_path / "new", "--on-error", "skip", "--steps", "1")
    assert done.exit_code == 0, done.output
    assert "left out: unreadable image: 1" in done.output
    facts = json.loads((tmp_path / "new/bundle.json").read_text())
    assert facts["notes"]["sam_training"]["left_out"] == {"unreadable image": 1}


def test_folders_that_do_not_fit_are_refused(data, tmp_path):
    def list_all(images, masks):
        return list_cases(data / images, data / masks, Problems(True, lambda line: None))

    with pytest.raises(ConfigError, match="no folder of masks"):
        list_all("images", "nothing")
    (data / "empty").mkdir()
    with pytest.raises(ConfigError, match="found 6 images and 0 masks"):
        list_all("images", "empty")
    write(data / "masks/beside.png", np.zeros((9, 9), np.uint8))
    with pytest.raises(ConfigError, match="both label folders and masks outside"):
        list_all("images", "masks")


def test_only_empty_masks_are_too_little(tmp_path):
    write(tmp_path / "images/a.png", grey(scan(0)))
    write(tmp_path / "masks/mass/a.png", np.zeros(grey(scan(0)).shape, np.uint8))
    done = call(tmp_path, tmp_path / "new")
    assert done.exit_code == 2 and "no mask to learn from" in done.output


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
