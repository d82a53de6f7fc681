"""Each loss against a literal double loop of its paper's formula, and against the others."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from medclipsam.train.losses import LOSSES, contrast, dcl, dhn_nce, hn_nce, info_nce

FLOAT64 = 1e-10  # log space against plain sums in double precision
FLOAT32 = 1e-4  # single precision against double


def embeddings(pairs, width, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(pairs, width, generator=generator, dtype=dtype) for _ in range(2)]


def literal(images, texts, tau, beta1, beta2, kept=0.0):
    """mean_i [−s_ii + log (kept · exp(s_ii) + Σ_{j≠i} W_ij exp(s_ij))] both ways, sum by sum."""
    unit = [[[v / math.hypot(*row) for v in row] for row in m.tolist()] for m in (images, texts)]
    pairs = len(unit[0])

    def similarity(i, j):
        return sum(a * b for a, b in zip(unit[0][i], unit[1][j], strict=True)) / tau

    total = 0.0
    for beta, s in ((beta1, similarity), (beta2, lambda i, j: similarity(j, i))):
        for i in range(pairs):
            others = [j for j in range(pairs) if j != i]
            norm = sum(math.exp(beta * s(i, k)) for k in others)
            negatives = kept * math.exp(s(i, i))
            for j in others:
                weight = (pairs - 1) * math.exp(beta * s(i, j)) / norm
                negatives += weight * math.exp(s(i, j))
            total += (-s(i, i) + math.log(negatives)) / pairs
    return total


@pytest.mark.parametrize("pairs", [2, 3, 7, 16])
@pytest.mark.parametrize(
    ("tau", "beta1", "beta2"), [(0.6, 0.15, 0.15), (0.07, 0.15, 0.5), (1.0, 0.0, 1.0), (0.3, 2, 0)]
)
def test_equals_the_formula(pairs, tau, beta1, beta2):
    images, texts = embeddings(pairs, 9, pairs)
    expected = literal(images, texts, tau, beta1, beta2)
    loss = dhn_nce(images, texts, tau, beta1, beta2)
    assert loss.shape == () and loss.dtype == torch.float64
    assert float(loss) == pytest.approx(expected, abs=FLOAT64)
    single = dhn_nce(images.float(), texts.float(), tau, beta1, beta2)
    assert float(single) == pytest.approx(expected, abs=FLOAT32)


@pytest.mark.parametrize("pairs", [2, 5, 11])
@pytest.mark.parametrize(("tau", "beta1", "beta2"), [(0.6, 0.15, 0.15), (0.07, 0.4, 0.1)])
def test_the_other_losses_equal_their_formulas(pairs, tau, beta1, beta2):
    images, texts = embeddings(pairs, 9, pairs)
    plain = [images, texts, tau]
    for found, expected in (
        (hn_nce(*plain, beta1, beta2), literal(*plain, beta1, beta2, kept=1.0)),
        (info_nce(*plain), literal(*plain, 0, 0, kept=1.0)),
        (dcl(*plain), literal(*plain, 0, 0)),
    ):
        assert float(found) == pytest.approx(expected, abs=FLOAT64)


def test_info_nce_is_the_cross_entropy_of_clip():
    images, texts = embeddings(7, 5, 1)
    s = normalize(images, dim=1) @ normalize(texts, dim=1).T / 0.3
    own = torch.arange(7)
    expected = sum(torch.nn.functional.cross_entropy(m, own) for m in (s, s.T))
    torch.testing.assert_close(info_nce(images, texts, 0.3), expected)


def test_losses_meet_in_their_limits():
    images, texts = embeddings(8, 6, 3)
    same = torch.testing.assert_close
    same(dhn_nce(images, texts, 0.2, 0, 0), dcl(images, texts, 0.2))
    same(hn_nce(images, texts, 0.2, 0, 0), info_nce(images, texts, 0.2))
    # the positive in the denominator: exp(hn) − exp(dhn) per row is 1, as −s_ii + log exp(s_ii) = 0
    one, two = images[:1], texts[:1]
    pair = torch.cat([one, images[1:2]]), torch.cat([two, texts[1:2]])
    assert hn_nce(*pair, 0.2, 0.3, 0.3) > dhn_nce(*pair, 0.2, 0.3, 0.3)
    # many negatives, none alike: one positive more does not matter
    wide = torch.eye(400, dtype=torch.float64)
    noise = wide.roll(1, 0)
    gap = hn_nce(wide, noise, 1.0, 0.1, 0.1) - dhn_nce(wide, noise, 1.0, 0.1, 0.1)
    assert 0 < gap < 0.01


def test_a_loss_is_found_by_its_name():
    images, texts = embeddings(6, 5, 2)
    functions = {"dhn-nce": dhn_nce, "hn-nce": hn_nce, "dcl": dcl, "info-nce": info_nce}
    assert set(functions) == set(LOSSES)
    for name, function in functions.items():
        betas = (0.3, 0.3) if "hn" in name else ()
        expected = function(images, texts, 0.5, *betas)
        assert contrast(name, images, texts, 0.5, 0.3) == expected


def test_defaults_are_the_authors():
    images, texts = embeddings(5, 4)
    expected = literal(images, texts, 0.6, 0.15, 0.15)
    assert float(dhn_nce(images, texts)) == pytest.approx(expected, abs=FLOAT64)


def test_no_hardness_is_the_decoupled_loss():
    images, texts = embeddings(8, 6, 3)
    s = normalize(images, dim=1) @ normalize(texts, dim=1).T / 0.2
    off = ~torch.eye(8, dtype=torch.bool)
    decoupled = sum(
        (-m.diagonal() + m.exp().where(off, torch.zeros(())).sum(1).log()).mean() for m in (s, s.T)
    )
    torch.testing.assert_close(dhn_nce(images, texts, 0.2, 0, 0), decoupled)
    torch.testing.assert_close(
        dhn_nce(images, texts, 0.2, 1e-9, 1e-9), decoupled, atol=1e-6, rtol=0
    )
    assert dhn_nce(images, texts, 0.2, 0.5, 0.5) > decoupled  # hard negatives weigh more


def test_gradients_are_right():
    images, texts = (m.requires_grad_() for m in embeddings(4, 5, 1))
    assert torch.autograd.gradcheck(lambda a, b: dhn_nce(a, b, 0.3, 0.15, 0.4), (images, texts))
    assert torch.autograd.gradcheck(lambda a, b: hn_nce(a, b, 0.3, 0.15, 0.4), (images, texts))
    for loss in (dcl, info_nce):
        assert torch.autograd.gradcheck(lambda a, b, f=loss: f(a, b, 0.3), (images, texts))


def test_only_directions_count():
    images, texts = embeddings(6, 5, 2)
    longer = images * torch.tensor([[0.01], [3], [100], [1], [7], [0.5]], dtype=torch.float64)
    torch.testing.assert_close(dhn_nce(longer, 4 * texts), dhn_nce(images, texts))


def test_directions_and_pairs_are_exchangeable():
    images, texts = embeddings(6, 5, 4)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    expected = dhn_nce(images, texts, 0.3, 0.1, 0.7)
    torch.testing.assert_close(dhn_nce(images[order], texts[order], 0.3, 0.1, 0.7), expected)
    torch.testing.assert_close(dhn_nce(texts, images, 0.3, 0.7, 0.1), expected)
    assert abs(dhn_nce(images[order], texts, 0.3, 0.1, 0.7) - expected) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_similarities_stay_finite(dtype):
    same = torch.eye(4, 8).to(dtype).requires_grad_()
    loss = dhn_nce(same, same, temperature=0.005)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and same.grad.isfinite().all()


@pytest.mark.parametrize(
    ("images", "texts", "said"),
    [
        ((3, 4), (3, 5), r"\(3, 4\) and \(3, 5\)"),
        ((3, 4), (2, 4), r"\(3, 4\) and \(2, 4\)"),
        ((3,), (3,), r"\(B, D\)"),
        ((1, 4), (1, 4), "two pairs"),
        ((0, 4), (0, 4), "two pairs"),
    ],
)
def test_wrong_batches_are_refused(images, texts, said):
    with pytest.raises(ValueError, match=said):
        dhn_nce(torch.ones(images), torch.ones(texts))
