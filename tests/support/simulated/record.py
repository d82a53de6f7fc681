"""What a simulated device remembers, and where in the project something happened."""

import sys
import weakref
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import medclipsam.engine

FAKE = FakeTensorMode(allow_non_fake_inputs=True)  # one a process: caches may hold its tensors
SLOT = torch._C._TorchDispatchModeKey.FAKE
CUDA = torch.device("cuda", 0)
ENGINE, TESTS = Path(medclipsam.engine.__file__).parent, Path(__file__).parents[2]
ROOTS = ((f"{ENGINE}/", "engine/"), (f"{TESTS}/", "tests/"))
HANDOVER = "engine/backends/handover.py:"
OWN = f"{TESTS}/support/simulated/"


class DeviceMismatch(RuntimeError):
    """Tensors of the CPU and of the device met in one operation."""


class Storages:
    """A fact about some storages; forgotten with them."""

    def __init__(self):
        self._facts = {}

    def __len__(self):
        return len(self._facts)

    def get(self, tensor):
        return self._facts.get(tensor.untyped_storage()._cdata)

    def put(self, tensor, fact=True):
        storage = tensor.untyped_storage()
        if storage._cdata not in self._facts:
            weakref.finalize(storage, self._facts.pop, storage._cdata, None)
        self._facts[storage._cdata] = fact

    def drop(self, key):
        self._facts.pop(key, None)


BORN = Storages()  # on the device, whenever: what is seen again is no new memory
PINNED = Storages()
WEIGHTS = Storages()  # on the device, of parameters
PIECES = Storages()  # of buffers of bytes: [(offset, type, shape)] that were copied into them


@dataclass(frozen=True)
class Sync:
    """The host waits for the device.

    Attributes:
        kind: ``download`` and ``upload`` (copies), ``scalar`` (a value is read), ``size`` (of a
            result, which only the device knows), ``index`` (values or places of the CPU),
            ``check`` (for an error), ``event``, ``stream`` or ``device``.
        what: shape and type of what moves, or the operation.
        where: the two innermost lines of the project, as ``engine/segment.py:117``.
    """

    kind: str
    what: str
    where: tuple[str, ...]

    @property
    def in_handover(self):
        """Whether it is the one wait that the engine may do."""
        return self.kind == "event" and "".join(self.where[:1]).startswith(HANDOVER)

    def __str__(self):
        return f"{self.kind}: {self.what} at {' < '.join(self.where)}"


@dataclass
class Recording:
    """What happened in ``Simulation.recording``.

    Attributes:
        syncs: see ``Sync``.
        hazards: host memory that was used while a copy from or to it was on its way.
        kernels: operations on the device, each as one.
        casts, weight_casts: (type, type) → how often a tensor, and a parameter, was converted.
        live, peak: bytes on the device that were taken in here.
        largest: bytes, shape, type and line of the largest tensor that was made in here.
        captures: how often a CUDA graph was asked for.
    """

    syncs: list = field(default_factory=list)
    hazards: list = field(default_factory=list)
    kernels: int = 0
    casts: Counter = field(default_factory=Counter)
    weight_casts: Counter = field(default_factory=Counter)
    live: int = 0
    peak: int = 0
    largest: tuple = (0, (), None, ())
    captures: int = 0

    @property
    def unexpected(self):
        """What waits elsewhere than in a hand-over, and every hazard: a line of text per kind and
        place, with the first of its kind."""
        first, counts = {}, Counter()
        for sync in self.syncs:
            if not sync.in_handover:
                key = (sync.kind, sync.where)
                counts[first.setdefault(key, str(sync))] += 1
        return [f"{count} × {what}" for what, count in (counts + Counter(self.hazards)).items()]

    def born(self, tensor, size):
        self.live += size
        self.peak = max(self.peak, self.live)
        if size > self.largest[0]:
            self.largest = (size, tuple(tensor.shape), tensor.dtype, where())
        weakref.finalize(tensor.untyped_storage(), self._died, size)

    def _died(self, size):
        self.live -= size


def allowed(record):
    """Assert that the host waited in hand-overs only, and that no memory was used too early."""
    assert not record.unexpected, "\n".join(["the host waits:", *record.unexpected])


@contextmanager
def plain():
    """Inside an operation: really run what follows."""
    mode = torch._C._unset_dispatch_mode(SLOT)
    try:
        yield
    finally:
        if mode is not None:
            torch._C._set_dispatch_mode(mode)


def where():
    """The two innermost lines of the project that are running."""
    found, frame = [], sys._getframe(1)
    while frame and len(found) < 2:
        name = frame.f_code.co_filename
        if not name.startswith(OWN):
            found += [
                f"{label}{name.removeprefix(root)}:{frame.f_lineno}"
                for root, label in ROOTS
                if name.startswith(root)
            ]
        frame = frame.f_back
    return tuple(found)
