"""The simulated device: what waits is seen, with its line, and nothing else is."""

import numpy as np
import pytest
import torch
from simulated.cuda import CUDA
from simulated.record import allowed
from torch.nn import functional as F

from medclipsam.engine.backends.handover import Handover, upload

WAITING, FREE = [], []
modes = pytest.mark.parametrize("inference", [False, True], ids=["grad", "inference"])


def waits(*kinds):
    def keep(function):
        WAITING.append(pytest.param(function, kinds, id=function.__name__))
        return function

    return keep


def is_free(function):
    FREE.append(pytest.param(function, id=function.__name__))
    return function


@waits("download")
def cpu(there, here):
    return there.cpu()


@waits("download")
def copy_to_pageable(there, here):
    return here.copy_(there, non_blocking=True)


@waits("download")
def copy_to_pinned_that_waits(there, here):
    return here.pin_memory().copy_(there)


@waits("download")
def copy_to_pinned_of_another_type(there, here):
    return torch.empty(3, dtype=torch.float64, pin_memory=True).copy_(there, non_blocking=True)


@waits("upload")
def to(there, here):
    return here.to(CUDA)


@waits("upload")
def to_without_pinning(there, here):
    return here.to(CUDA, non_blocking=True)


@waits("upload")
def to_that_waits(there, here):
    return here.pin_memory().to(CUDA)


@waits("upload")
def to_of_another_type(there, here):
    return here.pin_memory().to(CUDA, torch.bfloat16, non_blocking=True)


@waits("upload")
def to_of_parts(there, here):
    return torch.empty(6, pin_memory=True)[::2].to(CUDA, non_blocking=True)


@waits("upload")
def cuda(there, here):
    return here.cuda()


@waits("upload")
def to_like(there, here):
    return here.double().to(there)


@waits("upload")
def tensor(there, here):
    return torch.tensor([1.0, 2.0], device=CUDA)


@waits("upload")
def tensor_of_numpy(there, here):
    return torch.tensor(np.ones(3), device="cuda")


@waits("upload")
def as_tensor(there, here):
    return torch.as_tensor(np.ones(3), device=CUDA)


@waits("upload")
def new_tensor(there, here):
    return there.new_tensor((1.0, 2.0))


@waits("upload")
def copy_from_pageable(there, here):
    return there.copy_(here)


@waits("upload")
def index_of_a_list(there, here):
    return there[[0, 1]]


@waits("scalar")
def item(there, here):
    return there[0].item()


@waits("scalar")
def truth(there, here):
    return bool((there > 0).any())


@waits("scalar")
def number(there, here):
    return float(there.mean())


@waits("scalar")
def listed(there, here):
    return there.tolist()


@waits("scalar")
def equal(there, here):
    return torch.equal(there, there)


@waits("scalar")
def one_hot(there, here):
    return F.one_hot(there.long())


@waits("size")
def unique(there, here):
    return torch.unique(there)


@waits("size")
def nonzero(there, here):
    return there.nonzero()


@waits("size")
def masked_select(there, here):
    return there.masked_select(there > 0)


@waits("size")
def index_of_a_mask(there, here):
    return there[there > 0]


@waits("size")
def repeat_interleave(there, here):
    return there.repeat_interleave(there.long())


@waits("index")
def index_of_the_cpu(there, here):
    return there[here.long()]


@waits("index")
def writing_at_places_of_the_cpu(there, here):
    there[here.long()] = there


@waits("index")
def writing_a_number_at_places(there, here):
    there[there.long()] = 1.0


@waits("check")
def solve(there, here):
    return torch.linalg.solve(there.new_empty(3, 3), there)


@waits("event")
def event(there, here):
    torch.cuda.Event().synchronize()


@waits("stream")
def stream(there, here):
    torch.cuda.current_stream().synchronize()


@waits("device")
def device(there, here):
    torch.cuda.synchronize()


@is_free
def uploads(there, here):
    return upload(here, CUDA)


@is_free
def pinned(there, here):
    return here.pin_memory().to(CUDA, non_blocking=True)


@is_free
def pinned_and_turned(there, here):
    return torch.empty(2, 3, pin_memory=True).T.to(CUDA, non_blocking=True)


@is_free
def comes_turned(there, here):
    return there.expand(2, 3).contiguous().T.to("cpu", non_blocking=True)


@is_free
def hands_over(there, here):
    return Handover(CUDA, [there]).take()


@is_free
def computes(there, here):
    part = F.interpolate(there[None, None], 7, mode="linear").softmax(-1)
    return torch.cat([part, part * torch.tensor(2.0)])[..., :2].clone()


@is_free
def computes_on_the_cpu(there, here):
    return here[here > 0].unique().nonzero().tolist(), here.sum().item()


@is_free
def fills_a_mask(there, here):
    there[there > 0] = 0.0


@is_free
def repeats(there, here):
    return there.repeat_interleave(there.long(), output_size=9)


@is_free
def indexes(there, here):
    return there[there.long()], there.gather(0, there.long()), there.topk(2), there.sort()


@is_free
def makes(there, here):
    return torch.zeros(3, device=CUDA), torch.arange(3, device="cuda"), torch.randn_like(there)


@modes
@pytest.mark.parametrize(("function", "kinds"), WAITING)
def test_what_waits_is_seen_with_its_line(sim, function, kinds, inference):
    with torch.inference_mode(inference):
        there, here = torch.empty(3, device=CUDA), torch.zeros(3)
        with sim.recording() as record:
            function(there, here)
    line = max(line for *_, line in function.__code__.co_lines() if line)
    assert {sync.kind for sync in record.syncs} == set(kinds)
    assert {sync.where[0] for sync in record.syncs} == {f"tests/engine/device/test_waits.py:{line}"}
    assert not record.hazards
    with pytest.raises(AssertionError, match="the host waits"):
        allowed(record)


@modes
@pytest.mark.parametrize("function", FREE)
def test_nothing_else_is(sim, function, inference):
    with torch.inference_mode(inference):
        there, here = torch.empty(3, device=CUDA), torch.zeros(3)
        with sim.recording() as record:
            function(there, here)
    allowed(record)
