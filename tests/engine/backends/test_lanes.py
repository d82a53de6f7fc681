"""Parts of a batch side by side give what the whole batch gives."""

import os
import threading

import pytest
import torch

from medclipsam.engine.backends.lanes import PARTS, Full, Lanes


def twice(x, y):
    return x * 2, x + y


@pytest.mark.parametrize(("rows", "part", "count"), [(1, 8, 2), (8, 8, 2), (21, 4, 1), (64, 8, 3)])
def test_order_and_tuples(rows, part, count):
    x, y = torch.randn(2, rows, 3)
    doubled, summed = Lanes(twice, part, count)(x, y)
    torch.testing.assert_close(doubled, x * 2, rtol=0, atol=0)
    torch.testing.assert_close(summed, x + y, rtol=0, atol=0)


@pytest.mark.parametrize("rows", [1, 5, 8, 9])
def test_what_is_missing_is_filled_up_and_cut_off(rows):
    """The graph sees one shape only: a whole batch, or on the CPU whole parts."""
    for graph, shapes in ((Full, {9}), (lambda run, most: Lanes(run, 3, 2), {3})):
        seen = []
        x, y = torch.randn(2, rows, 3)

        def run(a, b, seen=seen):
            seen.append((len(a), len(b)))
            return twice(a, b)

        doubled, summed = graph(run, 9)(x, y)
        assert set(seen) == {(n, n) for n in shapes}
        torch.testing.assert_close(doubled, x * 2, rtol=0, atol=0)
        torch.testing.assert_close(summed, x + y, rtol=0, atol=0)
        assert len(graph(lambda a: a + 1, 9)(x)) == rows


def test_every_lane_has_one_thread_and_the_caller_keeps_its_own():
    seen = set()

    def run(x):
        seen.add((threading.current_thread().name, torch.get_num_threads()))
        return x

    before = torch.get_num_threads()
    Lanes(run, 1, 2)(torch.zeros(8, 1))
    assert {threads for _, threads in seen} == {1}
    assert threading.main_thread().name not in {name for name, _ in seen}
    assert torch.get_num_threads() == before


def test_an_error_in_a_lane_reaches_the_caller():
    def run(x):
        raise ZeroDivisionError("boom")

    with pytest.raises(ZeroDivisionError, match="boom"):
        Lanes(run, 1, 2)(torch.zeros(4))


def test_lanes_work_after_a_fork():
    lanes = Lanes(lambda x: x + 1, 1, 2)
    lanes(torch.zeros(4))
    pid = os.fork()
    if not pid:
        os._exit(0 if lanes(torch.zeros(4)).sum() == 4 else 1)
    assert os.waitpid(pid, 0)[1] == 0


def test_the_number_of_lanes_does_not_change_a_byte(tiny_encoder, tiny_bundle):
    from medclipsam.engine.backends import open_graph

    graphs = {name: open_graph(tiny_bundle, name, torch.device("cpu")) for name in PARTS}
    side = tiny_bundle.sam_config.image_size
    inputs = {
        "score": (torch.randn(20, 3, tiny_encoder.image_size, tiny_encoder.image_size),),
        "sam_encoder": (torch.randn(3, 3, side, side),),
        "sam_decoder": (
            graphs["sam_encoder"](torch.randn(1, 3, side, side)).expand(9, -1, -1, -1).contiguous(),
            torch.rand(9, 4).cumsum(1) * side / 4,
        ),
    }
    for name, graph in graphs.items():
        run = graph._run if isinstance(graph, Lanes) else graph
        one, three = (Lanes(run, PARTS[name], count)(*inputs[name]) for count in (1, 3))
        torch.testing.assert_close(one, three, rtol=0, atol=0)
