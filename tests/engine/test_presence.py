"""Whether a prompt is in an image: decided first, by the contrast alone, and at no cost later."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from medclipsam.engine.engine import Engine
from medclipsam.engine.presence import (
    NO_COMPONENT,
    NO_SALIENCY,
    NOT_IN_IMAGE,
    find_absence,
    is_present,
)
from medclipsam.engine.types import Prompts
from medclipsam.train.phantoms.phantoms import PROMPTS, TARGETS, make_phantom

ONE_BOX, NO_BOX = np.zeros((1, 4), np.int32), np.zeros((0, 4), np.int32)


def test_a_prompt_is_present_unless_its_contrast_is_below_the_threshold():
    contrast = np.array([-0.2, 0.1, 0.3, np.nan])
    assert is_present(contrast, 0.1).tolist() == [False, True, True, True]
    assert is_present(contrast, None).all() and is_present(contrast[:0], 0.1).shape == (0,)


def test_presence_is_asked_before_what_the_stages_found():
    nothing, something = np.zeros((3, 4), np.float32), np.eye(3, 4, dtype=np.float32)
    assert find_absence(False, nothing, NO_BOX) == NOT_IN_IMAGE
    assert find_absence(False, something, ONE_BOX) == NOT_IN_IMAGE
    assert find_absence(True, nothing, NO_BOX) == NO_SALIENCY
    assert find_absence(True, something, NO_BOX) == NO_COMPONENT
    assert find_absence(True, something, ONE_BOX) == ""


@pytest.fixture(scope="module")
def phantoms():
    """Six images of each modality: nothing, the lesion, both targets; and their prompts."""
    made = [
        make_phantom(7_000_000 + n, modality, targets[: n % 3])
        for modality, targets in TARGETS.items()
        for n in range(6)
    ]
    wanted = [Prompts({t: (PROMPTS[t],) for t in TARGETS[phantom.modality]}) for phantom in made]
    return [phantom.rgb for phantom in made], wanted


def counting(pipeline):
    """The pipeline, and the numbers of rows of all its forwards of CLIP."""
    calls, score = [], pipeline.encoder.score

    def count(rows):
        calls.append(len(rows))
        return score(rows)

    return replace(pipeline, encoder=replace(pipeline.encoder, score=count)), calls


@pytest.mark.parametrize("method", ["contrastcam", "gscorecam", "gradcam"])
def test_maps_of_absent_prompts_change_nothing_else(phantoms, method):
    """Asked for or not, they leave every status, figure and mask to the byte as it is."""
    engine = Engine.open("phantom", "cpu", settings={"saliency": {"method": method, "k": 20}})
    frames, wanted = (kind[::2] for kind in phantoms)
    everything = engine.pipeline.segment(frames, wanted)
    present = engine.pipeline.segment(frames, wanted, maps=False)
    absent = 0
    for one, two in zip(everything, present, strict=True):
        for label in one:
            a, b = one[label], two[label]
            assert (a.status, a.reason, a.contrast) == (b.status, b.reason, b.contrast)
            assert np.array_equal(a.mask, b.mask) and np.array_equal(a.boxes, b.boxes)
            if a.reason == NOT_IN_IMAGE:
                absent += 1
                assert a.saliency.any() and not b.saliency.any() and not b.crf_mask.any()
                assert b.saliency.shape == b.crf_mask.shape == b.mask.shape
            else:
                assert np.array_equal(a.saliency, b.saliency)
                assert np.array_equal(a.crf_mask, b.crf_mask)
    assert absent >= 6


def test_an_image_without_any_target_costs_one_forward(phantoms):
    pipeline, calls = counting(Engine.open("phantom", "cpu").pipeline)
    frames, wanted = phantoms
    empty = slice(0, None, 3)
    found = pipeline.segment(frames[empty], wanted[empty], maps=False)
    assert {s.reason for each in found for s in each.values()} == {NOT_IN_IMAGE}
    assert calls == [len(frames[empty])]
    pipeline, calls = counting(pipeline)
    pipeline.segment(frames[1:2], wanted[1:2], maps=False)
    assert calls == [1, 64, 8, 24]  # the image, the first round, what is left of it, the second


def test_the_embedding_of_an_image_does_not_depend_on_its_batch(phantoms):
    pipeline = Engine.open("phantom", "cpu").pipeline
    squares = [pipeline.fit(rgb) for rgb in phantoms[0]]
    together = pipeline.encode_image(squares)
    for part in ([0], [3, 4], [17], range(5, 16)):
        assert torch.equal(pipeline.encode_image([squares[n] for n in part]), together[list(part)])
    torch.testing.assert_close(together.norm(dim=1), torch.ones(len(squares)))
    loose = np.stack(list(pipeline.embed(phantoms[0])))
    np.testing.assert_array_equal(loose, together.numpy())
