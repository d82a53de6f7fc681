"""What stands in for ``torch.cuda`` while a ``simulated.cuda.Simulation`` is entered."""

import threading
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace
from unittest.mock import patch

import torch
import torch.cuda.amp.common
import transformers.models.bert.modeling_bert  # not while torch is patched
import transformers.utils.import_utils
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch.nn import functional as F

from simulated.autograd import simulated, simulated_backward

NAME, CAPABILITY = "NVIDIA H100 80GB HBM3", (9, 0)


def _is_fake(tensor):
    return isinstance(tensor, fake_tensor.FakeTensor)


class Stream:
    """All streams are one queue here."""

    sim = None  # set in a subclass
    cuda_stream = 0

    def __init__(self, device=None, priority=0, **settings):
        self.device = torch.device("cuda", getattr(device, "index", device) or 0)

    def synchronize(self):
        self.sim.note("stream", "Stream.synchronize")
        self.sim.reach(self.sim.now)

    def query(self):
        return not self.sim.is_busy()

    def record_event(self, event=None):
        event = event or self.sim.event_class()
        event.record(self)
        return event

    def wait_event(self, event):
        pass

    def wait_stream(self, stream):
        pass


class Event:
    """A mark in the queue."""

    sim = None

    def __init__(self, enable_timing=False, blocking=False, interprocess=False, external=False):
        self._timing, self._mark, self._seen = enable_timing, None, True

    def record(self, stream=None):
        self._mark, self._seen = self.sim.now, False

    def wait(self, stream=None):
        pass

    def query(self):
        if self._mark is not None and self.sim.is_busy():
            return False
        self._arrive()
        return True

    def synchronize(self):
        done = "that was seen done" if self._seen else "that may not be done"
        self.sim.note("event", f"Event.synchronize, {done}")
        self._arrive()

    def _arrive(self):
        self._seen = True
        if self._mark is not None:
            self.sim.reach(self._mark)

    def elapsed_time(self, other):
        if not (self._timing and other._timing):
            raise ValueError("both events need enable_timing=True")
        if self._mark is None or other._mark is None:
            raise ValueError("both events must be recorded")
        return 1.0


class _Attention(torch.autograd.Function):
    """Fused attention, as one operation forwards and one backwards."""

    @classmethod
    def of(cls, run, settings):
        return type("Attention", (cls,), {"run": staticmethod(partial(run, **settings))})

    @classmethod
    def forward(cls, ctx, *parts):
        ctx.save_for_backward(*parts)
        with torch._C._AutoDispatchBelowAutograd():
            return cls.run(*parts)

    @staticmethod
    def backward(ctx, gradient):
        parts = zip(ctx.saved_tensors, ctx.needs_input_grad, strict=True)
        return tuple(torch.zeros_like(part) if wanted else None for part, wanted in parts)


def _fused(run):
    """Attention that is not taken apart outside ``inference_mode`` either."""

    def attend(query, key, value, attn_mask=None, **settings):
        if not _is_fake(query):
            return run(query, key, value, attn_mask, **settings)
        parts = [part for part in (query, key, value, attn_mask) if part is not None]
        if torch.is_grad_enabled() and any(part.requires_grad for part in parts):
            return _Attention.of(run, settings).apply(*parts)
        if torch.is_inference_mode_enabled():
            return run(*parts, **settings)
        with torch._C._AutoDispatchBelowAutograd():
            return run(*parts, **settings)

    return attend


def _apply(module, convert, recurse=True):
    """``Module._apply``, which cannot swap simulated parameters: they are replaced."""
    for child in module.children() if recurse else ():
        child._apply(convert)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            with torch.no_grad():
                made = convert(parameter)
            if made is not parameter:
                module._parameters[name] = nn.Parameter(made, parameter.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = convert(buffer)
    return module


def patch_torch(sim):
    """A context in which ``torch.cuda`` speaks of the devices of ``sim``."""
    event = type("Event", (Event,), {"sim": sim})
    stream = type("Stream", (Stream,), {"sim": sim})
    sim.event_class = event
    current = threading.local()

    def current_stream(device=None):
        return getattr(current, "stream", None) or main

    def set_stream(chosen):
        current.stream = chosen

    @contextmanager
    def use(chosen):
        before = current_stream()
        set_stream(chosen or before)
        try:
            yield
        finally:
            set_stream(before)

    def synchronize(device=None):
        sim.note("device", "torch.cuda.synchronize")
        sim.reach(sim.now)

    def properties(device=None):
        major, minor = CAPABILITY
        return SimpleNamespace(
            name=NAME, major=major, minor=minor, total_memory=sim.memory,
            multi_processor_count=132,
        )  # fmt: skip

    def used(device=None):
        return sim.record.live if sim.record else 0

    def peak(device=None):
        return sim.record.peak if sim.record else 0

    class NoCapture:
        def __init__(self, *args, **settings):
            if sim.record:
                sim.record.captures += 1
            raise RuntimeError("simulated device cannot capture")

    def run_thread(thread):  # also of threads with a method run of their own
        with sim.thread():
            run_before(thread)

    main, run_before = stream(), threading.Thread._bootstrap_inner
    cuda = {
        "is_available": lambda: True,
        "device_count": lambda: sim.devices,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "device": lambda device: nullcontext(),
        "get_device_capability": lambda device=None: CAPABILITY,
        "get_device_properties": properties,
        "get_device_name": lambda device=None: NAME,
        "is_bf16_supported": lambda *args, **settings: True,
        "is_current_stream_capturing": lambda: False,
        "Event": event,
        "Stream": stream,
        "current_stream": current_stream,
        "default_stream": lambda device=None: main,
        "set_stream": set_stream,
        "stream": use,
        "synchronize": synchronize,
        "CUDAGraph": NoCapture,
        "graph": NoCapture,
        "make_graphed_callables": NoCapture,
        "empty_cache": lambda: None,
        "memory_allocated": used,
        "memory_reserved": used,
        "max_memory_allocated": peak,
        "max_memory_reserved": peak,
        "reset_peak_memory_stats": lambda device=None: None,
        "mem_get_info": lambda device=None: (sim.memory - used(), sim.memory),
    }
    stack = ExitStack()
    for name, value in cuda.items():
        stack.enter_context(patch.object(torch.cuda, name, value))
    others = [
        (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        (Tensor, "record_stream", lambda tensor, stream: None),
        (F, "scaled_dot_product_attention", _fused(F.scaled_dot_product_attention)),
        # as without a driver: torch touches no device by itself
        (fake_tensor.FakeTensorMode, "avoid_device_init", True),
        (fake_tensor, "init_gpu_context", lambda device: None),
        # transformers reads masks unless it sees that it is traced
        (transformers.utils.import_utils, "is_fake_tensor", lambda tensor: False),
        (nn.Module, "_apply", _apply),
        (torch.autograd, "grad", simulated(torch.autograd.grad)),
        (torch.autograd, "backward", simulated_backward(torch.autograd.backward)),
        (threading.Thread, "_bootstrap_inner", run_thread),
    ]
    for owner, name, value in others:
        stack.enter_context(patch.object(owner, name, value))
    return stack
