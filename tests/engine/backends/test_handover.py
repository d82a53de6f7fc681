"""What is packed for one copy comes out as it was; on a CPU nothing is copied."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from models import CPU

from medclipsam.engine.backends.handover import (
    ALIGNMENT,
    Handover,
    constant,
    fetch,
    pack,
    stage,
    unpack,
    upload,
)

TYPES = [
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.uint8, torch.bool),
]
SHAPES = st.lists(st.integers(0, 7), max_size=4).map(tuple)


@given(st.lists(st.tuples(SHAPES, st.sampled_from(TYPES), st.booleans()), min_size=1, max_size=6))
def test_packed_tensors_come_out_as_they_were(drawn):
    """Of any types, empty ones, numbers, and ones that do not lie row by row."""
    tensors = []
    for n, (shape, dtype, turned) in enumerate(drawn):
        tensor = (torch.randn(shape, generator=torch.Generator().manual_seed(n)) * 9).to(dtype)
        tensors.append(tensor.mT if turned and tensor.ndim > 1 else tensor)
    packed = pack(tensors)
    assert packed.dtype == torch.uint8 and packed.numel() % ALIGNMENT == 0
    for found, tensor in zip(unpack(packed, tensors), tensors, strict=True):
        assert (found.shape, found.dtype) == (tensor.shape, tensor.dtype)
        assert torch.equal(found, tensor)
        assert (found.data_ptr() - packed.data_ptr()) % ALIGNMENT == 0 or not found.numel()


def test_on_a_cpu_everything_is_there_at_once():
    tensor = torch.randn(3, 5)
    handover = Handover(CPU, (tensor,))
    assert handover.ready and handover.take()[0] is tensor and fetch(CPU, tensor)[0] is tensor
    assert handover.since(handover) is None and Handover(CPU).take() == ()
    assert upload(tensor, CPU) is tensor
    staged = stage((2, 3), torch.uint8, CPU)
    assert not staged.any() and not staged.is_pinned()


def test_constants_are_made_once_and_serve_in_any_mode():
    with torch.inference_mode():
        first = constant((0.5, 2.0), CPU)
    assert constant((0.5, 2.0), CPU) is first and first.tolist() == [0.5, 2.0]
    weight = torch.ones(2, requires_grad=True)
    (weight * first).sum().backward()
    assert weight.grad.equal(first)
