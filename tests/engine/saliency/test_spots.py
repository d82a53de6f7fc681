"""The masks of contrastcam and the regression over them, against plain float64 arithmetic."""

import numpy as np
import pytest
import torch

from medclipsam.engine.saliency.contrastcam import DELETED, explain
from medclipsam.engine.saliency.masks import scale_map
from medclipsam.engine.saliency.spots import FINE, WIDE, open_masks


def draw(places, width, side):
    """Gaussians of height 1, one after another: float64 (places², side, side)."""
    centres = (np.arange(places) + 0.5) / places
    at = (np.arange(side) + 0.5) / side
    return np.array(
        [
            [[np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * width**2)) for x in at] for y in at]
            for cy in centres
            for cx in centres
        ]
    )


@pytest.mark.parametrize(("cells", "spot"), [(1, 1.0), (4, 1.0), (5, 0.7), (7, 1.5)])
def test_masks_show_narrow_spots_and_delete_wide_ones(cells, spot):
    masks, side = open_masks(cells, spot), 20
    narrow = draw(max(1, cells - 1), spot / cells, side)
    wide = 1 - draw(masks.wide, WIDE / masks.wide, side)
    expected = np.concatenate([narrow, wide])
    order = torch.randperm(len(expected), generator=torch.Generator().manual_seed(cells))
    found = masks.draw(order, side)
    np.testing.assert_allclose(found.numpy(), expected[order.numpy()], atol=1e-6)
    np.testing.assert_allclose(masks.gram, masks.design @ masks.design.T, rtol=1e-12)


@pytest.mark.parametrize(("cells", "first", "second"), [(12, 72, 24), (14, 98, 28), (1, 2, 0)])
def test_rows_of_both_rounds(cells, first, second):
    """12 × 12 cells are the phantom bundle's, 14 × 14 BiomedCLIP's."""
    masks = open_masks(cells, 1.0)
    assert len(masks.first) == first == len(set(masks.first.tolist()))
    telling = masks.most_telling(torch.rand(2, masks.side, masks.side))
    assert len(telling) == second and not set(telling.tolist()) & set(masks.first.tolist())


@pytest.mark.parametrize("cells", [5, 8, 12])
def test_the_most_telling_spots_lie_where_any_map_is_highest(cells):
    masks = open_masks(cells, 1.0)
    maps = torch.rand(3, masks.side, masks.side, generator=torch.Generator().manual_seed(cells))
    places = cells - 1
    spots = draw(places, 1 / cells, masks.side)
    means = np.array([[(s * m).sum() / s.sum() for m in maps.double().numpy()] for s in spots])
    unseen = [n for n in range(places**2) if n // places % 2 or n % places % 2]
    best = sorted(unseen, key=lambda n: -means[n].max())[: 2 * cells]
    assert set(masks.most_telling(maps).tolist()) == set(best)


@pytest.mark.parametrize(("cells", "prompts"), [(4, 1), (7, 3), (12, 2)])
def test_the_map_is_the_solution_of_the_ridge_regression(cells, prompts):
    """Against least squares in the primal: β itself is solved for, at every point."""
    masks, ridge = open_masks(cells, 1.0), 0.7
    random = torch.Generator().manual_seed(cells)
    telling = masks.most_telling(torch.rand(1, masks.side, masks.side, generator=random))
    index = torch.cat([masks.first, telling])
    scores = torch.randn(len(index), prompts, generator=random).double()
    found = scale_map(explain(masks, index, scores, ridge))
    design = masks.draw(index, masks.side).flatten(1).double().numpy()
    places = cells - 1
    weight = np.where(index.numpy() < places**2, 1.0, DELETED)
    centred = design - design.mean(0)
    penalty = ridge * np.diag(centred @ centred.T).mean()
    # min Σ (c_r β − s_r)² / w_r + λ ‖β‖², the rows of λ below those of the scores
    rows = np.concatenate(
        [centred / np.sqrt(weight)[:, None], np.sqrt(penalty) * np.eye(design.shape[1])]
    )
    wanted = (scores - scores.mean(0)).numpy() / np.sqrt(weight)[:, None]
    aims = np.concatenate([wanted, np.zeros((design.shape[1], prompts))])
    beta = np.linalg.lstsq(rows, aims, rcond=None)[0].T
    beta = np.maximum(FINE**2 * beta, 0)
    expected = beta / (beta.max(1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(found.flatten(1).numpy(), expected, atol=2e-5)


def test_the_number_of_threads_does_not_change_a_byte():
    masks = open_masks(12, 1.0)
    scores = torch.randn(len(masks.first), 2, generator=torch.Generator().manual_seed(0)).double()
    found = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        found.append(explain(masks, masks.first, scores, 1.0))
    assert all(torch.equal(each, found[0]) for each in found)
