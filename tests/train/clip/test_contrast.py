"""Gradients in parts, and over several processes, are those of one large batch."""

import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import distributed, multiprocessing, nn

from medclipsam.train.clip.contrast import add_gradients
from medclipsam.train.losses import dhn_nce
from medclipsam.train.ranks import Ranks

CPU = torch.device("cpu")
ALONE = Ranks(0, 1, CPU)
SAME = 1e-6  # float32 sums in another order


class Towers(nn.Module):
    """Two towers with dropout, as BERT has."""

    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.Tanh(), nn.Linear(16, 8))
        self.text = nn.Sequential(nn.Embedding(9, 16), nn.Dropout(dropout), nn.Linear(16, 8))

    def encode_image(self, pixels):
        return self.image(pixels)

    def encode_text(self, tokens):
        return self.text(tokens).mean(1)


def batch(pairs):
    generator = torch.Generator().manual_seed(pairs)
    pixels = torch.randn(pairs, 3, 4, 4, generator=generator)
    return pixels, torch.randint(0, 9, (pairs, 5), generator=generator)


def gradients(model):
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("part", [1, 3, 4, 7, 12, 50])
def test_parts_give_the_gradients_of_the_whole(part):
    pixels, tokens = batch(12)
    plain = Towers()
    loss = dhn_nce(plain.encode_image(pixels), plain.encode_text(tokens))
    loss.backward()
    ours = Towers()
    value = add_gradients(ours, pixels, tokens, dhn_nce, part, ALONE, nullcontext)
    assert value == pytest.approx(loss.item(), abs=SAME)
    for found, expected in zip(gradients(ours), gradients(plain), strict=True):
        torch.testing.assert_close(found, expected, atol=SAME, rtol=1e-4)


def test_dropout_is_the_same_in_both_passes():
    """With replayed dropout the gradient is that of the loss which was reported."""
    pixels, tokens = batch(6)
    model = Towers(dropout=0.5).train()
    torch.manual_seed(3)
    add_gradients(model, pixels, tokens, dhn_nce, 2, ALONE, nullcontext)
    after = torch.rand(1)
    expected = copy.deepcopy(Towers(dropout=0.5)).train()
    torch.manual_seed(3)
    rows = [
        (expected.encode_image(p), expected.encode_text(t))
        for p, t in zip(pixels.split(2), tokens.split(2), strict=True)
    ]
    dhn_nce(*(torch.cat(each) for each in zip(*rows, strict=True))).backward()
    assert torch.equal(after, torch.rand(1))
    for ours, theirs in zip(gradients(model), gradients(expected), strict=True):
        torch.testing.assert_close(ours, theirs, atol=SAME, rtol=1e-4)


def test_the_scale_of_fp16_scales_gradients_only():
    pixels, tokens = batch(6)
    one, many = Towers(), Towers()
    values = [
        add_gradients(model, pixels, tokens, dhn_nce, 4, ALONE, nullcontext, scale)
        for model, scale in ((one, 1.0), (many, 1024.0))
    ]
    assert values[0] == values[1]
    for ours, theirs in zip(gradients(many), gradients(one), strict=True):
        torch.testing.assert_close(ours / 1024, theirs)


def _rank(rank, count, port, part, results):
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    distributed.init_process_group("gloo", address, rank=rank, world_size=count)
    try:
        ranks = Ranks(rank, count, CPU)
        pixels, tokens = (ranks.own(each) for each in batch(12))
        model = Towers()
        value = add_gradients(model, pixels, tokens, dhn_nce, part, ranks, nullcontext)
        ranks.sum_gradients(model.parameters())
        assert ranks.any(rank == 1) and not ranks.any(False)
        results.put((value, [grad.tolist() for grad in gradients(model)]))
        ranks.wait()
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("part", [2, pytest.param(6, marks=pytest.mark.long)])
def test_two_processes_give_the_gradients_of_one(part, free_port):
    plain = Towers()
    value = add_gradients(plain, *batch(12), dhn_nce, 12, ALONE, nullcontext)
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    run = partial(context.Process, target=_rank)
    processes = [run(args=(rank, 2, free_port, part, results)) for rank in range(2)]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    for theirs, grads in found:
        assert theirs == pytest.approx(value, abs=SAME)
        for ours, expected in zip(grads, gradients(plain), strict=True):
            torch.testing.assert_close(torch.tensor(ours), expected, atol=SAME, rtol=1e-4)


@pytest.fixture
def free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
