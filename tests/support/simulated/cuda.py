"""A CUDA device that computes nothing: tensors there have a shape, a type and a place only.

Code for a device runs on a machine without one, and what it would wait for is written down.
Whatever touches ``cuda`` runs under one ``FakeTensorMode``; everything else really runs, on the
CPU. ``Simulation`` says what was seen, ``simulated.driver`` stands in for ``torch.cuda``.

What comes back from the device is zeros, or what ``Simulation.fill`` gives.
"""

import threading
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from simulated.driver import patch_torch
from simulated.ops import TREATMENTS
from simulated.record import (
    BORN,
    CUDA,
    FAKE,
    PIECES,
    PINNED,
    SLOT,
    WEIGHTS,
    DeviceMismatch,
    Recording,
    Storages,
    Sync,
    plain,
    where,
)  # fmt: skip

aten = torch.ops.aten
PINNING = {aten.pin_memory.default, aten._pin_memory.default}
FREE = {
    aten.empty, aten.empty_strided, aten.empty_like, aten.new_empty, aten.new_empty_strided,
    aten.detach, aten.detach_, aten.lift_fresh, aten._unsafe_view, aten._reshape_alias,
}  # fmt: skip


class _Mode(TorchDispatchMode):
    """One a thread."""

    def __init__(self, sim):
        super().__init__()
        self._sim = sim

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self._sim.dispatch(self, func, args, kwargs or {})


class Simulation:
    """A machine with simulated devices, for the thread that enters it and those it starts.

    Args:
        devices: how many there are.
        memory: bytes that each says it has.

    Attributes:
        fill: (shape, type) → what stands in for a tensor that comes from the device; None for
            zeros.
    """

    device = CUDA

    def __init__(self, devices=1, memory=80 << 30):
        self.devices, self.memory = devices, memory
        self.fill = None
        self.record = None
        self._lock = threading.RLock()
        self._stack = ExitStack()
        self._open = False
        self._busy = 0
        self._clock = 0
        self._flights = []  # (time, what to do when it is there)
        self._landing, self._reading = Storages(), Storages()

    def __enter__(self):
        self._open = True
        self._stack.enter_context(patch_torch(self))
        self._stack.enter_context(self.thread())
        return self

    def __exit__(self, *error):
        self._open = False
        self._stack.close()

    @contextmanager
    def thread(self):
        """Simulate in the calling thread."""
        lifts = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor makes, then moves
        torch._C._ensureCUDADeviceGuardSet()
        torch._C._set_dispatch_mode(FAKE)  # also keeps torch from looking for a driver
        try:
            with _Mode(self):
                yield
        finally:
            torch._C._unset_dispatch_mode(SLOT)
            torch._C._set_only_lift_cpu_tensors(lifts)

    @contextmanager
    def recording(self):
        """Everything in this block is written down."""
        self.record = Recording()
        try:
            yield self.record
        finally:
            self.record = None

    def busy(self, count):
        """The next ``count`` queries of events answer that the device is not there yet."""
        self._busy = count

    def dispatch(self, mode, func, args, kwargs):
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device
        leaves = tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        if not self._open or not any(map(_touches_device, leaves)):
            return self._on_host(func, tensors, args, kwargs)
        if func is not aten.scaled_dot_product_attention.default:
            with mode:
                found = func.decompose(*args, **kwargs)
            if found is not NotImplemented:
                return found
        with self._lock:
            if func.overloadpacket in TREATMENTS:
                return TREATMENTS[func.overloadpacket](self, func, args, kwargs)
            self.check_devices(func, tensors, args)
            return self.account(func, func(*args, **kwargs))

    def _on_host(self, func, tensors, args, kwargs):
        if len(self._landing) + len(self._reading) and not func.is_view:
            self._check_flights(func, args)
        with plain():
            if func is aten.is_pinned.default:
                return bool(PINNED.get(args[0]))
            if func in PINNING:
                found = args[0] if PINNED.get(args[0]) else args[0].clone()
            elif not kwargs.get("pin_memory"):
                return func(*args, **kwargs)
            else:
                found = func(*args, **{**kwargs, "pin_memory": False})
            PINNED.put(found)
            return found

    def _check_flights(self, func, args):
        for argument, given in zip(func._schema.arguments, args, strict=False):
            for tensor in tree_leaves(given):
                if not isinstance(tensor, torch.Tensor) or isinstance(tensor, FakeTensor):
                    continue
                if self._landing.get(tensor):
                    self.hazard(f"{func} of memory that a copy has not reached yet")
                elif self._reading.get(tensor) and writes(argument):
                    self.hazard(f"{func} into memory that a copy still reads")

    def check_devices(self, func, tensors, args):
        """As the operations of torch do: a tensor of the CPU with axes is in the wrong place."""
        wrong = [t for t in tensors if on_host(t) and t.dim()]
        written = zip(func._schema.arguments, args, strict=False)
        wrong += [t for a, t in written if writes(a) and isinstance(t, torch.Tensor) and on_host(t)]
        if wrong and not all(map(on_host, tensors)):
            devices = ", ".join(f"{t.device} {tuple(t.shape)}" for t in tensors)
            raise DeviceMismatch(
                f"{func} got tensors of several devices ({devices}) at {' < '.join(where())}"
            )

    def account(self, func, found):
        """Count an operation and the memory of its result, which is returned."""
        record = self.record
        launched = False
        for tensor in tree_leaves(found):
            if not isinstance(tensor, FakeTensor) or on_host(tensor):
                continue
            launched = True
            if not BORN.get(tensor):
                BORN.put(tensor)
                if tensor.dtype == torch.uint8:
                    PIECES.put(tensor, ())
                if record:
                    record.born(tensor, tensor.untyped_storage().nbytes())
        if record and launched and not func.is_view and func.overloadpacket not in FREE:
            record.kernels += 1
        return found

    def cast(self, source, found):
        """Count a conversion on the device."""
        weight = isinstance(source, nn.Parameter) or WEIGHTS.get(source)
        if weight and found is not source:
            WEIGHTS.put(found)
        if self.record and source.dtype != found.dtype:
            counts = self.record.weight_casts if weight else self.record.casts
            counts[source.dtype, found.dtype] += 1

    def note(self, kind, what):
        """The host waits."""
        if self.record:
            self.record.syncs.append(Sync(kind, what, where()))

    def hazard(self, what):
        if self.record:
            self.record.hazards.append(f"{what} at {' < '.join(where())}")

    def bring(self, tensor):
        """What stands in on the CPU for a tensor of the device; dense, as it is there."""
        with plain():
            found = torch.zeros(tensor.shape, dtype=tensor.dtype)
            if self.fill is None:
                return found
            pieces = PIECES.get(tensor)
            if not pieces or tensor.dtype != torch.uint8:
                return self._filled(tensor.shape, tensor.dtype)
            flat, begin = found.view(-1), tensor.storage_offset()
            for offset, dtype, shape in pieces:
                part = self._filled(shape, dtype).contiguous().view(-1).view(torch.uint8)
                if begin <= offset and offset - begin + len(part) <= len(flat):
                    flat[offset - begin : offset - begin + len(part)] = part
            return found

    def _filled(self, shape, dtype):
        given = self.fill(tuple(shape), dtype)
        if given is None:
            return torch.zeros(shape, dtype=dtype)
        return given.to(dtype).expand(shape)

    def land(self, host, source):
        """A copy into host memory sets out; until it is there, garbage stands in its place."""
        value = self.bring(source)
        with plain():
            garbage = {torch.bool: True, torch.uint8: 255}.get(host.dtype, -1)
            host.fill_(float("nan") if host.is_floating_point() else garbage)
        self._landing.put(host)

        def arrive():
            with torch.inference_mode():  # which may write into any tensor
                host.copy_(value)
            self._landing.drop(host.untyped_storage()._cdata)

        self._set_out(arrive)

    def leave(self, host):
        """A copy from pinned memory sets out."""
        self._reading.put(host)
        key = host.untyped_storage()._cdata
        self._set_out(lambda: self._reading.drop(key))

    def _set_out(self, arrive):
        self._clock += 1
        self._flights.append((self._clock, arrive))

    @property
    def now(self):
        """How much was queued so far."""
        return self._clock

    def reach(self, time):
        """The device has done what was queued up to ``time``."""
        with self._lock, _disable_current_modes():
            done = [arrive for at, arrive in self._flights if at <= time]
            self._flights = [flight for flight in self._flights if flight[0] > time]
            for arrive in done:
                arrive()

    def is_busy(self):
        """Whether a query made now says that the device is not there yet."""
        self._busy, before = max(0, self._busy - 1), self._busy
        return bool(before)


def on_host(tensor):
    return tensor.device.type == "cpu"


def writes(argument):
    return argument.alias_info is not None and argument.alias_info.is_write


def _touches_device(leaf):
    return isinstance(leaf, FakeTensor) or (isinstance(leaf, torch.device) and leaf.type == "cuda")
