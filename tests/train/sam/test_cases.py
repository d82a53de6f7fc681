"""Images and masks as samples: every kind of file, and what cannot be used."""

import json
import os

import nibabel
import numpy as np
import pytest
from sam_cases import CONFIG, call, grey, scan, write

from medclipsam.engine.errors import ConfigError
from medclipsam.train.phantoms.archive import encode_dicom
from medclipsam.train.problems import Problems
from medclipsam.train.sam.cases import list_cases
from medclipsam.train.sam.data import gather_samples


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
