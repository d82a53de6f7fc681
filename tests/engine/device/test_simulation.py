"""The simulated device: places, copies on their way, memory, casts, gradients and threads."""

import copy
import threading

import pytest
import torch
from simulated.cuda import CUDA
from simulated.record import DeviceMismatch, allowed
from torch.nn import functional as F

from medclipsam.engine.backends.handover import Handover

MIB = 1 << 20
modes = pytest.mark.parametrize("inference", [False, True], ids=["grad", "inference"])


@modes
@pytest.mark.parametrize(
    "function",
    [
        lambda there, here: there + here,
        lambda there, here: here.add_(there),
        lambda there, here: here.add_(there[0]),
        lambda there, here: torch.cat([there, here]),
        lambda there, here: there.index_select(0, here.long()),
        lambda there, here: there.gather(0, here.long()),
        lambda there, here: here[there.long()],
        lambda there, here: F.linear(there, here[None]),
        lambda there, here: F.scaled_dot_product_attention(*there.expand(3, 1, 2, 3), here[:2]),
    ],
)
def test_tensors_of_two_devices_do_not_meet(sim, function, inference):
    with torch.inference_mode(inference):
        there, here = torch.empty(3, device=CUDA), torch.zeros(3)
        with pytest.raises(DeviceMismatch, match="test_simulation"):
            function(there, here)


def test_a_handover_gives_what_the_device_says_once_it_is_there(sim):
    said = {torch.float32: torch.tensor([1.0, 2.0, 3.0]), torch.int64: torch.tensor(7)}
    sim.fill = lambda shape, dtype: said[dtype]
    handover = Handover(CUDA, [torch.empty(3, device=CUDA), torch.empty((), device=CUDA).long()])
    host = handover._host
    assert set(host.tolist()) == {255}
    sim.busy(1)
    assert not handover.ready
    assert set(host.tolist()) == {255}
    numbers, whole = handover.take()
    assert numbers.tolist() == [1, 2, 3]
    assert whole.item() == 7
    assert handover.ready


@modes
def test_memory_that_a_copy_has_not_reached_is_not_read(sim, inference):
    with sim.recording() as record, torch.inference_mode(inference):
        host = torch.empty(3, device=CUDA).to("cpu", non_blocking=True)
        assert host.isnan().all()
    assert not record.syncs
    assert "has not reached" in record.hazards[0]
    with sim.recording() as record:
        torch.cuda.synchronize()
        assert host.sum() == 0
    assert not record.hazards


def test_memory_that_a_copy_still_reads_is_not_written(sim):
    host = torch.ones(3, pin_memory=True)
    with sim.recording() as record:
        host.to(CUDA, non_blocking=True)
        host.sum()
        assert not record.hazards
        host.zero_()
    assert "still reads" in record.hazards[0]
    event = torch.cuda.Event()
    event.record()
    assert event.query()
    with sim.recording() as record:
        host.zero_()
    assert not record.hazards


def test_memory_is_counted_once_and_given_back(sim):
    with sim.recording() as record:
        one = torch.empty(MIB, dtype=torch.float32, device=CUDA)  # 4 MiB
        part = one.view(2, -1)[0]
        assert record.live == 4 * MIB
        two = part.expand(4, -1) * 2  # 8 MiB
        assert (record.live, record.peak) == (12 * MIB, 12 * MIB)
        del one
        assert record.live == 12 * MIB
        del part
        assert record.live == 8 * MIB
        three = two.to(torch.bfloat16)  # 4 MiB
        del two, three
    assert (record.live, record.peak) == (0, 12 * MIB)
    assert record.largest[:3] == (8 * MIB, (4, MIB // 2), torch.float32)
    assert record.kernels == 2


def test_casts_of_weights_are_told_from_others(sim):
    layer = torch.nn.Linear(4, 5).requires_grad_(False).to(CUDA)
    wide = torch.empty(2, 4, device=CUDA)
    cast = (torch.float32, torch.bfloat16)
    with sim.recording() as record, torch.inference_mode():
        with torch.autocast("cuda", torch.bfloat16):
            assert layer(wide).dtype == torch.bfloat16
        assert record.weight_casts == {cast: 2}
        assert record.casts == {cast: 1}
        layer.to(torch.bfloat16)
        layer(wide.to(torch.bfloat16))
    assert record.weight_casts == {cast: 4}
    assert record.casts == {cast: 2}
    allowed(record)


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_have_the_shapes_of_what_they_are_of(sim, fused):
    layer = copy.deepcopy(torch.nn.Linear(8, 8)).to(CUDA)
    inputs = torch.empty(2, 1, 4, 8, device=CUDA, requires_grad=True)
    with sim.recording() as record:
        mixed = layer(inputs)
        if fused:
            mixed = F.scaled_dot_product_attention(mixed, mixed, mixed)
        (gradient,) = torch.autograd.grad(mixed.sum(), inputs, retain_graph=True)
        mixed.mean().backward()
    assert gradient.shape == inputs.grad.shape == inputs.shape
    assert layer.bias.grad.shape == (8,)
    assert gradient.device == layer.weight.grad.device == CUDA
    allowed(record)


def test_threads_simulate_too(sim):
    found = []
    with sim.recording() as record:
        thread = threading.Thread(target=lambda: found.append(torch.ones(3, device=CUDA).sum()))
        thread.start()
        thread.join()
        item = threading.Thread(target=lambda: found[0].item())
        item.start()
        item.join()
    assert found[0].device == CUDA
    assert [sync.kind for sync in record.syncs] == ["scalar"]


def test_the_driver_answers(sim):
    assert torch.cuda.is_available()
    assert torch.cuda.get_device_properties(0).total_memory == sim.memory
    first, second = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    second.record(torch.cuda.Stream())
    sim.busy(2)
    assert [second.query() for _ in range(3)] == [False, False, True]
    assert first.elapsed_time(second) > 0
    with sim.recording() as record, pytest.raises(RuntimeError, match="cannot capture"):
        torch.cuda.CUDAGraph()
    assert record.captures == 1


def test_nothing_is_left_behind():
    assert not torch.cuda.is_available() or torch.cuda.device_count()
    assert torch.ones(3).sum().item() == 3
    assert threading.Thread._bootstrap_inner.__module__ == "threading"
