"""Functions as CUDA graphs, with a stream that replays as a device does: what was captured reads
and writes the tensors of its capture, whatever else there is by then."""

from contextlib import contextmanager

import pytest
import torch
from models import CPU

from medclipsam.engine.backends import capture
from medclipsam.engine.backends.capture import WARM_UP, Captured
from medclipsam.engine.backends.lanes import Full


class Stream:
    """Stands in for ``SideStream``."""

    refuses = None

    def __init__(self, device):
        self.inside = False

    @contextmanager
    def entered(self):
        self.inside = True
        yield
        self.inside = False

    def capture(self, run):
        if self.refuses:
            raise self.refuses
        captured, _ = run.__self__, run()
        made = captured._made

        def replay():
            assert self.inside
            run()
            for old, new in zip(made, captured._made, strict=True):
                old.copy_(new)
            captured._made = made

        return replay


@pytest.fixture(autouse=True)
def stream(monkeypatch):
    monkeypatch.setattr(capture, "SideStream", Stream)
    monkeypatch.setattr(Stream, "refuses", None)
    return Stream


class Counted:
    def __init__(self, run):
        self.run, self.inputs = run, []

    def __call__(self, *inputs):
        self.inputs.append(inputs)
        return self.run(*inputs)


def rows(seed, count=4):
    return torch.randn(count, 3, 5, 6, generator=torch.Generator().manual_seed(seed))


def one(x):
    return x.flatten(1).cumsum(1)


def two(x):
    return x * 2, x.mean((1, 2, 3))


@pytest.mark.parametrize("run", [one, two])
@pytest.mark.parametrize("first", [True, False], ids=["inference first", "inference second"])
def test_a_replay_gives_what_the_function_gives(run, first):
    captured, kept = Captured(run, CPU, "score"), []
    for seed in range(4):
        given = rows(seed)
        with torch.inference_mode(first == bool(seed % 2)):
            kept.append((captured(given), run(given)))
    for found, expected in kept:  # what was given out stays, and is a tensor or a tuple as before
        assert type(found) is type(expected)
        pairs = zip(found, expected, strict=True) if run is two else [(found, expected)]
        assert all(torch.equal(a, b) for a, b in pairs)


def test_the_same_memory_is_read_in_every_call():
    counted = Counted(one)
    captured = Captured(counted, CPU, "score")
    for seed, layout in enumerate((torch.channels_last, torch.contiguous_format)):
        given = rows(seed).to(memory_format=layout)
        assert torch.equal(captured(given), one(given))
    assert len(counted.inputs) == WARM_UP + 1 + 2
    assert len({held.data_ptr() for (held,) in counted.inputs}) == 1
    assert all(held.is_contiguous() for (held,) in counted.inputs)


def test_what_cannot_be_captured_runs_as_it_is(stream, caplog):
    stream.refuses = RuntimeError("operation not permitted when stream is capturing")
    counted = Counted(one)
    captured = Captured(counted, CPU, "sam_encoder")
    for seed in range(3):
        assert torch.equal(captured(rows(seed)), one(rows(seed)))
    assert caplog.text.count("sam_encoder runs without a CUDA graph") == 1
    assert "not permitted" in caplog.text and len(counted.inputs) == WARM_UP + 3


def test_a_full_device_is_no_refusal(stream, caplog):
    stream.refuses = torch.OutOfMemoryError("CUDA out of memory")
    captured = Captured(one, CPU, "score")
    with pytest.raises(torch.OutOfMemoryError):
        captured(rows(0))
    stream.refuses = None
    assert torch.equal(captured(rows(1)), one(rows(1))) and not caplog.text


@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_full_and_filled_batches_have_one_layout(count, layout):
    counted = Counted(one)
    given = rows(0, count).to(memory_format=layout)
    assert torch.equal(Full(counted, 8)(given), one(given))
    ((seen,),) = counted.inputs
    assert seen.shape == (8, 3, 5, 6) and seen.is_contiguous()
