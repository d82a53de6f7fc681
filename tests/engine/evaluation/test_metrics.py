"""Overlap and surface figures against scikit-learn, MONAI and brute force in float64."""

import tracemalloc

import numpy as np
import pytest
import torch
from monai.metrics import compute_surface_dice
from sklearn.metrics import f1_score, jaccard_score, roc_auc_score

from medclipsam.engine.evaluation.metrics import dice, hd95, iou, mean_interval, nsd, roc_auc

FLOAT64, FLOAT32 = 1e-12, 1e-6  # MONAI returns its scores in single precision
SHAPES = [(1, 1), (7, 13), (31, 5), (1, 17), (3, 9, 11)]


def blobs(shape, seed):
    """A ragged mask: the union of a few random boxes with a tenth of the pixels flipped."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, dtype=bool)
    for _ in range(3):
        low = [rng.integers(0, n) for n in shape]
        mask[
            tuple(slice(a, a + rng.integers(1, n + 1)) for a, n in zip(low, shape, strict=True))
        ] = 1
    return mask ^ (rng.random(shape) < 0.1)


def brute_outline(mask):
    """(N, 2) pixels of the mask with a 4-neighbour outside of it, one by one."""
    height, width = mask.shape
    points = []
    for y, x in np.argwhere(mask):
        around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        if any(not (0 <= v < height and 0 <= u < width and mask[v, u]) for v, u in around):
            points.append((y, x))
    return np.array(points, dtype=np.float64).reshape(-1, 2)


def brute_nsd(pred, truth, tolerance, spacing):
    first, second = (brute_outline(m) * spacing for m in (pred, truth))
    gaps = np.sqrt(((first[:, None] - second[None]) ** 2).sum(-1))
    near = (gaps.min(1) <= tolerance).sum() + (gaps.min(0) <= tolerance).sum()
    return near / (len(first) + len(second))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(4))
def test_overlap_agrees_with_scikit_learn(shape, seed):
    pred, truth = blobs(shape, seed), blobs(shape, seed + 100)
    pred.flat[0] = truth.flat[0] = True  # scikit-learn does not define empty ones our way
    assert dice(pred, truth) == pytest.approx(f1_score(truth.ravel(), pred.ravel()), abs=1e-12)
    assert iou(pred, truth) == pytest.approx(jaccard_score(truth.ravel(), pred.ravel()), abs=1e-12)


@pytest.mark.parametrize("shape", [(7, 13), (31, 5), (1, 17), (24, 20)])
@pytest.mark.parametrize("spacing", [None, (0.37, 1.93)])
@pytest.mark.parametrize("tolerance", [0.0, 1.1, 2.7])
def test_surface_dice_agrees_with_brute_force(shape, spacing, tolerance):
    for seed in range(3):
        pred, truth = blobs(shape, seed), blobs(shape, seed + 50)
        pred[0, 0] = truth[0, -1] = True
        expected = brute_nsd(pred, truth, tolerance, spacing or (1.0, 1.0))
        assert nsd(pred, truth, tolerance, spacing) == pytest.approx(expected, abs=FLOAT64)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # MONAI deprecates its own argument
@pytest.mark.parametrize("shape", [(7, 13), (31, 5), (64, 49)])
def test_surface_dice_agrees_with_monai(shape):
    for seed in range(8):
        pred, truth = blobs(shape, seed), blobs(shape, seed + 50)
        pred[0, 0] = truth[0, -1] = True
        first, second = (torch.from_numpy(m)[None, None] for m in (pred, truth))
        for tolerance, spacing in ((0.0, None), (1.5, [0.37, 1.93]), (2.0, [1.0, 0.5])):
            expected = compute_surface_dice(
                first, second, [tolerance], include_background=True, spacing=spacing
            )
            assert nsd(pred, truth, tolerance, spacing) == pytest.approx(
                float(expected), abs=FLOAT32
            )


def test_surface_dice_sees_the_spacing_of_each_axis():
    truth = np.zeros((30, 40), dtype=bool)
    truth[10:20, 10:20] = True
    shifted = np.roll(truth, 3, axis=0)  # 3 rows
    assert nsd(shifted, truth, 3.1, (1.0, 9.0)) == 1.0
    assert nsd(shifted, truth, 3.1, (9.0, 1.0)) < 1.0


def test_surface_dice_is_the_mean_over_frames_that_hold_something():
    pred, truth = np.zeros((2, 5, 12, 9), dtype=bool)
    pred[0, 2:6, 2:6] = truth[0, 2:6, 2:6] = True  # equal: 1
    pred[1, 1:4, 1:4] = True  # only predicted: 0
    truth[3, 2:9, 3:8] = pred[3, 4:9, 1:6] = True
    expected = (1 + 0 + brute_nsd(pred[3], truth[3], 1.1, (1.0, 1.0))) / 3
    assert 0 < expected < 1
    assert nsd(pred, truth, 1.1) == pytest.approx(expected, abs=FLOAT64)


@pytest.mark.parametrize("shape", SHAPES)
def test_empty_masks(shape):
    empty, some = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    some.flat[0] = True
    for figure in (dice, iou, lambda p, t: nsd(p, t, 2.0)):
        assert figure(empty, empty) == 1.0
        assert figure(some, empty) == figure(empty, some) == 0.0
        assert figure(some, some) == 1.0


def test_wrong_arrays_are_refused():
    mask = np.zeros((4, 5), dtype=bool)
    for figure in (dice, iou, lambda p, t: nsd(p, t, 1.0)):
        with pytest.raises(ValueError, match="one shape"):
            figure(mask, mask.T)
        with pytest.raises(ValueError, match="expected pred as bool"):
            figure(mask.astype(np.uint8), mask)
    with pytest.raises(ValueError, match="tolerance"):
        nsd(mask, mask, -1.0)


def test_interval_agrees_with_a_plain_bootstrap():
    values = np.random.default_rng(5).beta(5, 2, size=41)
    mean, low, high = mean_interval(values)
    rng = np.random.default_rng(99)  # other draws: the interval may differ a little only
    means = [np.mean(rng.choice(values, 41)) for _ in range(20_000)]
    assert mean == pytest.approx(np.mean(values), abs=1e-12)
    assert [low, high] == pytest.approx(np.percentile(means, (2.5, 97.5)), abs=0.004)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(41), rel=0.05)


def test_interval_is_repeatable_and_chunked_draws_stay_random(monkeypatch):
    values = np.arange(11.0) ** 1.01
    assert mean_interval(values) == mean_interval(list(values))
    assert mean_interval(values) != mean_interval(values, seed=1)
    monkeypatch.setattr("medclipsam.engine.evaluation.metrics.DRAWS_AT_ONCE", 50)
    mean, low, high = mean_interval(values)
    assert mean == pytest.approx(5.1, abs=0.05)
    assert 2 < low < 4 < 6 < high < 8


def test_interval_of_few_values():
    mean, low, high = mean_interval([0.25])
    assert mean == 0.25 and np.isnan([low, high]).all()
    assert mean_interval([0.5, 0.5]) == (0.5, 0.5, 0.5)
    for wrong in ([], [float("nan"), 1.0]):
        with pytest.raises(ValueError, match="finite"):
            mean_interval(wrong)


def brute_hd95(pred, truth, spacing):
    """All distances between outline pixels of one frame, all frames in one percentile."""
    directed = []
    for own, other in ((pred, truth), (truth, pred)):
        gaps = []
        for p, t in zip(np.atleast_3d(own.T).T, np.atleast_3d(other.T).T, strict=True):
            first, second = (brute_outline(m) * spacing for m in (p, t))
            for point in first:
                far = [np.inf, *np.sqrt(((point - second) ** 2).sum(-1))]
                gaps.append(min(far))
        gaps.sort()
        place = 0.95 * (len(gaps) - 1)
        below, above = gaps[int(place)], gaps[-int(-place // 1)]
        share = place - int(place)
        directed.append(above if above == np.inf else below * (1 - share) + above * share)
    return max(directed)


@pytest.mark.parametrize("shape", [(7, 13), (31, 5), (1, 17), (24, 20), (3, 9, 11)])
@pytest.mark.parametrize("spacing", [None, (0.37, 1.93)])
def test_hd95_agrees_with_brute_force(shape, spacing):
    finite = 0
    for seed in range(6):
        pred, truth = blobs(shape, seed), blobs(shape, seed + 50)
        pred.flat[0] = truth.flat[-1] = True
        expected = brute_hd95(pred, truth, spacing or (1.0, 1.0))
        assert hd95(pred, truth, spacing) == pytest.approx(expected, abs=1e-9)
        assert hd95(truth, pred, spacing) == pytest.approx(expected, abs=1e-9)
        finite += np.isfinite(expected)
    assert finite


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
@pytest.mark.parametrize("shape", [(31, 25), (24, 40)])
def test_hd95_agrees_with_monai(shape):
    from monai.metrics import compute_hausdorff_distance

    for seed in range(3):
        pred, truth = blobs(shape, seed), blobs(shape, seed + 50)
        pair = [torch.from_numpy(m)[None, None].float() for m in (pred, truth)]
        expected = compute_hausdorff_distance(*pair, include_background=True, percentile=95)
        assert hd95(pred, truth) == pytest.approx(float(expected), abs=1e-5)


def test_hd95_is_infinite_where_more_than_one_in_twenty_pixels_find_nothing():
    pred, truth = np.zeros((2, 2, 40, 40), dtype=bool)
    pred[0, 5:25, 5:25] = truth[0, 5:25, 6:26] = True  # 76 pixels of outline each
    pred[1, 0, 0] = True
    assert hd95(pred, truth) == 1.0
    pred[1, 0, :5] = True  # 5 of 81
    assert hd95(pred, truth) == np.inf


def test_hd95_of_empty_masks():
    empty, some = np.zeros((2, 6, 7), dtype=bool)
    some[2, 3] = True
    assert hd95(empty, empty) == 0.0
    assert hd95(some, empty) == hd95(empty, some) == np.inf
    assert hd95(some, some) == 0.0
    with pytest.raises(ValueError, match="one shape"):
        hd95(some, some.T)


@pytest.mark.parametrize("shape", [(7, 13), (1, 5), (3, 9, 11)])
@pytest.mark.parametrize(("top", "dtype"), [(4, np.uint8), (256, np.uint8), (65536, np.uint16)])
def test_auc_agrees_with_scikit_learn(shape, top, dtype):
    for seed in range(4):
        rng = np.random.default_rng(seed)
        truth = blobs(shape, seed)
        truth.flat[0], truth.flat[-1] = True, False
        levels = rng.integers(top, size=shape).astype(dtype)  # few levels have many ties
        levels[truth] = np.maximum(levels[truth], rng.integers(top))
        expected = roc_auc_score(truth.ravel(), levels.ravel())
        assert roc_auc(levels, truth) == pytest.approx(expected, abs=1e-12)
        wide = np.pad(levels, [(0, 0)] * (levels.ndim - 1) + [(0, 1)])[..., :-1]  # not contiguous
        assert roc_auc(wide, truth) == roc_auc(levels, truth)


def test_auc_without_both_kinds_of_pixels():
    levels = np.arange(12, dtype=np.uint16).reshape(3, 4)
    assert np.isnan(roc_auc(levels, np.zeros((3, 4), bool)))
    assert np.isnan(roc_auc(levels, np.ones((3, 4), bool)))
    assert roc_auc(levels, levels > 5) == 1.0
    assert roc_auc(levels, levels < 5) == 0.0
    assert roc_auc(np.zeros((3, 4), np.uint8), levels > 5) == 0.5
    for wrong in (levels.astype(np.float32), levels.T):
        with pytest.raises(ValueError, match="expected a map of uint8 or uint16"):
            roc_auc(wrong, levels > 5)


def test_auc_of_a_large_volume_is_exact_and_small_in_memory():
    levels = np.broadcast_to(np.arange(1 << 16, dtype=np.uint16).reshape(256, 256), (60, 256, 256))
    truth = levels % 3 == 0
    ranks = np.arange(1 << 16, dtype=np.float64)
    inside = ranks % 3 == 0
    count = int(inside.sum())
    below = (ranks[inside] - np.arange(count)).sum()  # pixels outside that lie below
    tracemalloc.start()
    assert roc_auc(levels, truth) == below / (count * (len(ranks) - count))
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_intervals_of_many_hits_are_drawn_as_counts(monkeypatch):
    hits = np.random.default_rng(1).random(6000) < 0.3
    monkeypatch.setattr(
        "medclipsam.engine.evaluation.metrics.DRAWS_AT_ONCE", None
    )  # no value is drawn
    mean, low, high = mean_interval(hits)
    assert mean == pytest.approx(hits.mean(), abs=1e-12)
    assert high - low == pytest.approx(2 * 1.96 * hits.std() / np.sqrt(6000), rel=0.05)
    gaps = np.random.default_rng(2).integers(-1, 2, 5000)
    mean, low, high = mean_interval(gaps)
    assert low < mean < high and high - low == pytest.approx(
        2 * 1.96 * gaps.std() / np.sqrt(5000), rel=0.05
    )
    assert mean_interval(np.ones(5000)) == (1.0, 1.0, 1.0)
