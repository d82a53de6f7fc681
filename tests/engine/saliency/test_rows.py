"""Rows of all images share full batches and do not change each other."""

import math
from dataclasses import replace

import pytest
import torch
from models import pictures

from medclipsam.engine.saliency import SaliencyConfig, ask, compute_saliency
from medclipsam.engine.saliency.gscorecam import gscorecam
from medclipsam.engine.saliency.rows import Probe, RowQueue, run_probes


def whole_rows(pixels):
    """A probe that asks for ``pixels`` as they are and gives back their embeddings."""
    return Probe(len(pixels), lambda a, b: pixels[a:b], lambda rows: rows)


def test_rows_do_not_depend_on_how_they_are_grouped(tiny_encoder):
    """The same bytes wherever a row stands in a batch and whoever shares the batch."""
    pixels = tiny_encoder.normalise(pictures(96, 21, seed=90))
    (everything,) = run_probes(tiny_encoder, [whole_rows(pixels)])
    assert everything.shape == (21, 128)
    torch.testing.assert_close(everything.norm(dim=1), torch.ones(21))
    for cuts in ((1, 20), (2, 15, 4), (0, 16, 0, 5), (17, 4), (7, 7, 7), (21,)):
        probes = [whole_rows(part) for part in pixels.split(cuts)]
        found = list(run_probes(tiny_encoder, probes))
        assert [len(rows) for rows in found] == list(cuts)
        parts = [rows for rows in found if len(rows)]
        assert torch.equal(torch.cat(parts), everything)


def test_images_do_not_change_each_other(tiny_encoder, images, prompts):
    """One queue over all images gives the bytes that each has alone."""
    questions = list(ask(tiny_encoder, images, prompts[:2], prompts[2:]))
    for method in ("gscorecam", "scorecam", "contrastcam", "gradcam", "m2ib"):
        config = SaliencyConfig(method, k=21)
        together = list(compute_saliency(tiny_encoder, questions, config))
        for question, answer in zip(questions, together, strict=True):
            (alone,) = compute_saliency(tiny_encoder, [question], config)
            assert torch.equal(answer.saliency, alone.saliency)
            assert torch.equal(answer.contrast, alone.contrast)


def test_only_the_last_batch_is_not_full_and_rows_are_made_when_needed(tiny_encoder):
    calls, made = [], []

    def score(rows):
        calls.append(len(rows))
        return rows[:, 0, 0].clone()

    encoder = replace(tiny_encoder, score=score)

    def probes():
        for n in range(50):

            def make(start, stop, n=n):
                made.append((n, start, stop))
                return torch.full((stop - start, 3, 1, 4), float(n))

            yield Probe(7, make, lambda rows: rows)
            if n >= 3:  # sixteen rows a batch: what is open is never more than three images
                assert done >= n - 3

    done = 0
    for n, rows in enumerate(run_probes(encoder, probes())):
        assert rows.shape == (7, 4) and (rows == n).all()
        done += 1
    assert done == 50 and calls == [16] * (350 // 16) + [350 % 16]
    assert sum(stop - start for _, start, stop in made) == 350


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_every_batch_is_the_same_contiguous_memory(tiny_encoder, layout):
    """Kernels are chosen by the layout: a row's bytes must not depend on how it was made."""
    seen = []
    encoder = replace(
        tiny_encoder, score=lambda rows: (seen.append(rows), tiny_encoder.score(rows))[1]
    )
    pixels = tiny_encoder.normalise(pictures(96, 40, seed=94))
    made = pixels.to(memory_format=layout)
    probes = [whole_rows(made[:9]), whole_rows(pixels[9:30]), whole_rows(made[30:])]
    found = torch.cat(list(run_probes(encoder, probes)))
    assert [len(rows) for rows in seen] == [16, 16, 8]
    assert all(rows.is_contiguous() for rows in seen)
    assert len({rows.data_ptr() for rows in seen}) == 1
    assert torch.equal(found, tiny_encoder.embed(pixels))


def test_ten_prompts_cost_little_more_than_one(tiny_encoder, images):
    counts = {}
    for count in (1, 10):
        seen = []
        encoder = replace(
            tiny_encoder,
            score=lambda rows, seen=seen: (seen.append(rows), tiny_encoder.score(rows))[1],
        )
        texts = [f"brain mri showing a tumor {letter}" for letter in "abcdefghij"]
        gscorecam(encoder, images[:1], tiny_encoder.encode_text(texts[:count]), k=50)
        counts[count] = len(seen) - 1  # the first one is the image itself
    assert counts[1] == math.ceil(50 / 16) and counts[10] <= math.ceil(128 / 16)
    assert counts[10] <= 2.6 * counts[1]


def in_rounds(pixels, cuts, seen):
    """A probe that asks for ``pixels`` in parts of these sizes and gives back all embeddings."""

    def ask(start, rest, found):
        count = rest[0]

        def make(first, stop):
            seen.append((start + first, start + stop))
            return pixels[start + first : start + stop]

        def finish(rows):
            rows = rows if len(rows) else pixels.new_empty(0, 128)
            both = torch.cat([found, rows])
            return ask(start + count, rest[1:], both) if rest[1:] else both

        return Probe(count, make, finish)

    return ask(0, cuts, pixels.new_empty(0, 128))


def test_rounds_of_many_probes_share_batches_and_change_no_byte(tiny_encoder):
    pixels = tiny_encoder.normalise(pictures(96, 37, seed=91))
    (everything,) = run_probes(tiny_encoder, [whole_rows(pixels)])
    calls = []
    encoder = replace(
        tiny_encoder, score=lambda rows: (calls.append(len(rows)), tiny_encoder.score(rows))[1]
    )
    cuts = [(37,), (5, 32), (16, 16, 5), (0, 20, 0, 17), (1, 1, 35), (30, 7, 0)]
    found = list(run_probes(encoder, [in_rounds(pixels, each, []) for each in cuts]))
    assert all(torch.equal(rows, everything) for rows in found)
    assert max(calls) == 16 and len(calls) <= math.ceil(6 * 37 / 16) + 3  # rounds at the end


def test_a_later_round_goes_before_what_has_not_begun(tiny_encoder):
    pixels = tiny_encoder.normalise(pictures(96, 32, seed=92))
    seen = {name: [] for name in "abc"}
    queue = RowQueue(tiny_encoder)
    for name in seen:
        queue.add(in_rounds(pixels, (16, 16), seen[name]), name)
    order = []
    while queue.waiting:
        queue.run()
        order += [owner for owner, _ in queue.finished()]
    assert order == ["a", "b", "c"] and not len(queue)
    queue.add(in_rounds(pixels, (8, 16), seen["a"]), "a")
    queue.add(in_rounds(pixels, (32,), seen["b"]), "b")
    queue.run()  # eight rows each; then the second round of a before the rest of b
    queue.run()
    assert [owner for owner, _ in queue.finished()] == ["a"]


def test_a_queue_gives_back_whom_it_has_not_answered(tiny_encoder):
    pixels = tiny_encoder.normalise(pictures(96, 16, seed=93))
    queue = RowQueue(tiny_encoder)

    def broken(rows):
        raise ZeroDivisionError("boom")

    queue.add(whole_rows(pixels[:4]), "first")
    queue.add(replace(whole_rows(pixels[:4]), finish=broken), "second")
    queue.add(whole_rows(pixels), "third")
    with pytest.raises(ZeroDivisionError):
        queue.run()
    assert sorted(queue.clear()) == ["first", "second", "third"] and not queue.waiting
    with pytest.raises(ZeroDivisionError):
        queue.add(Probe(0, broken, broken), "at once")
    assert not len(queue)
