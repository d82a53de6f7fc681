"""Phantoms are functions of their seed, with masks and captions that tell the truth."""

import re

import cv2
import numpy as np
import pytest

from medclipsam.train.phantoms.phantoms import (
    LESIONS,
    MODALITIES,
    NULL_PROMPTS,
    PROMPTS,
    TARGETS,
    make_phantom,
)

SEEDS = range(60)
SIZES = [(48, 48), (97, 61), (55, 180)]
CHOICES = [
    (modality, chosen)
    for modality, both in TARGETS.items()
    for chosen in ((), both[:1], both[1:], both, both[::-1])
]
WORDS = {
    "mass": "mass|breast tumor",
    "cyst": "cyst",
    "tumor": "brain tumor|glioma|bright tumor|tumor",
    "ventricles": "ventricles|hydrocephalus",
    "nodule": "nodule|coin lesion",
    "effusion": "effusion|fluid",
}
NAMES = {
    "ultrasound": r"ultrasound|sonogram|breast us\b",
    "mri": r"mri|mr image",
    "xray": "x-ray|radiograph",
}
NORMAL = "normal|without findings|no abnormality|unremarkable"
BLUNT = 0.2  # a tenth of the captions names findings without their modality, on purpose


@pytest.fixture(scope="module")
def phantoms():
    return [make_phantom(seed, size=(64, 80)) for seed in SEEDS]


@pytest.mark.parametrize("seed", [0, 1, 2, 17, 2**40])
def test_one_seed_one_phantom(seed):
    first, second = make_phantom(seed), make_phantom(seed)
    assert first.pixels.tobytes() == second.pixels.tobytes()
    assert (first.modality, first.caption) == (second.modality, second.caption)
    assert first.masks.keys() == second.masks.keys()
    for target, mask in first.masks.items():
        np.testing.assert_array_equal(mask, second.masks[target])
    other = make_phantom(seed + 1, modality=first.modality, size=first.pixels.shape)
    assert not np.array_equal(other.pixels, first.pixels)


def test_threads_do_not_change_a_phantom():
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        one = make_phantom(5).pixels
        cv2.setNumThreads(2)
        assert make_phantom(5).pixels.tobytes() == one.tobytes()
    finally:
        cv2.setNumThreads(before)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("modality", "targets"), CHOICES)
def test_what_is_asked_for_is_drawn(modality, targets, size):
    for seed in range(6):
        phantom = make_phantom(seed, modality, targets, size)
        assert phantom.modality == modality
        assert phantom.masks.keys() == set(targets)
        assert phantom.pixels.shape == size and phantom.pixels.dtype == np.float32
        assert 0 <= phantom.pixels.min() < phantom.pixels.max() <= 1
        for mask in phantom.masks.values():
            assert mask.shape == size and mask.dtype == bool
            assert 0.002 < mask.mean() < 0.35  # visible, and not the whole picture
        assert sum(map(np.int64, phantom.masks.values()), np.zeros(size)).max() <= 1  # disjoint


@pytest.mark.parametrize(("modality", "targets"), CHOICES)
def test_captions_tell_what_is_there(modality, targets):
    for seed in SEEDS:
        caption = make_phantom(seed, modality, targets, (48, 60)).caption
        for target in TARGETS[modality]:
            assert bool(re.search(WORDS[target], caption)) is (target in targets), caption
        assert bool(re.search(NORMAL, caption)) is (not targets), caption
        for other in set(MODALITIES) - {modality}:
            assert not re.search(NAMES[other], caption), caption
        assert targets or re.search(NAMES[modality], caption), caption
        assert caption == caption.strip().lower()


def test_most_captions_name_their_modality(phantoms):
    blunt = [p.caption for p in phantoms if not re.search(NAMES[p.modality], p.caption)]
    assert len(blunt) <= BLUNT * len(phantoms)


def test_places_and_sizes_in_captions_are_true(phantoms):
    told = 0
    for phantom in phantoms:
        if len(phantom.masks) != 1:
            continue
        (mask,) = phantom.masks.values()
        place = re.search("in the (upper|lower) (left|right)", phantom.caption)
        if place:
            told += 1
            y, x = (axis.mean() for axis in np.nonzero(mask))
            assert (place[1] == "upper") is bool(y < mask.shape[0] / 2)
            assert (place[2] == "left") is bool(x < mask.shape[1] / 2)
        size = re.search("large|small", phantom.caption.replace("enlarged", ""))
        assert not size or (size[0] == "large") is bool(mask.mean() > 0.05)
    assert told >= 3


def test_seeds_choose_everything(phantoms):
    assert {p.modality for p in phantoms} == set(MODALITIES)
    seen = {target for p in phantoms for target in p.masks}
    assert seen == set(PROMPTS) and any(not p.masks for p in phantoms)
    sizes = {make_phantom(seed).pixels.shape for seed in range(6)}
    assert len(sizes) == 6 and all(160 <= side <= 256 for size in sizes for side in size)


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_lesion_can_be_told_from_its_ring(modality):
    """Somewhere to look: inside and just outside differ by more than noise."""
    gaps = []
    for seed in range(8):
        phantom = make_phantom(seed, modality, [LESIONS[modality]], (120, 150))
        (mask,) = phantom.masks.values()
        ring = cv2.dilate(mask.astype(np.uint8), np.ones((15, 15), np.uint8)) > 0
        gaps.append(phantom.pixels[mask].mean() - phantom.pixels[ring & ~mask].mean())
    assert np.abs(np.mean(gaps)) > 0.1
    assert len({bool(gap > 0) for gap in gaps}) == 1


@pytest.mark.parametrize(
    ("modality", "targets", "said"),
    [
        ("ct", None, "unknown modality 'ct'.*ultrasound, mri, xray"),
        ("mri", ["cyst"], r"mri has no target \['cyst'\].*tumor"),
        ("xray", ["nodule", "lump"], r"\['lump'\]"),
    ],
)
def test_unknown_names_are_refused(modality, targets, said):
    with pytest.raises(ValueError, match=said):
        make_phantom(0, modality, targets)


def test_tables_agree():
    assert set(TARGETS) == set(MODALITIES) == set(LESIONS)
    assert {t for both in TARGETS.values() for t in both} == set(PROMPTS) == set(WORDS)
    assert all(LESIONS[m] in TARGETS[m] for m in MODALITIES)
    assert len(NULL_PROMPTS) == len(MODALITIES)
    for modality, both in TARGETS.items():
        for target in both:
            assert re.search(WORDS[target], PROMPTS[target])
            assert re.search(NAMES[modality], PROMPTS[target])
