"""What a run takes beside time: memory of the processes and of the device, and energy.

Energy is that of whole parts of the machine, whoever else uses them: the packages that RAPL
counts, and the GPU by NVML's counter. Where neither can be read, it says why.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

RAPL = Path("/sys/class/powercap")
EVERY = 0.2  # seconds between two looks at the memory


@dataclass
class Watched:
    """What was seen of a piece of work.

    Attributes:
        host: most bytes in memory, of this process and those it has started.
        device: most bytes that torch held on the device; None on a CPU.
        joules: part of the machine → energy, as far as it is counted.
    """

    host: int = 0
    device: int | None = None
    joules: dict[str, float] = field(default_factory=dict)


@contextmanager
def watch(device: torch.device, meters: EnergyMeters) -> Iterator[Watched]:
    """Look on while something is done; the result is complete at the end."""
    found, ended = Watched(), threading.Event()

    def look() -> None:
        while not ended.wait(EVERY):
            found.host = max(found.host, resident())

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    found.host, before = resident(), meters.read()
    thread = threading.Thread(target=look, name="watch", daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()
        found.joules = meters.since(before)
        if device.type == "cuda":
            found.device = torch.cuda.max_memory_reserved(device)


def resident() -> int:
    """Bytes of this process and those it has started that are in memory now."""
    return sum(_ask(lambda process: process.memory_info().rss, 0))


def processor_seconds() -> float:
    """Seconds of computing so far, of this process and those it has started."""

    def spent(process: psutil.Process) -> float:
        times = process.cpu_times()
        return times.user + times.system

    ended = psutil.Process().cpu_times()
    return sum(_ask(spent, 0.0)) + ended.children_user + ended.children_system


def _ask(question: Callable[[psutil.Process], Any], gone: Any) -> Iterator[Any]:
    own = psutil.Process()
    for process in (own, *own.children(recursive=True)):
        try:
            yield question(process)
        except psutil.Error:  # it has just ended
            yield gone


@dataclass(frozen=True)
class Package:
    """One counter of RAPL: microjoules that wrap around."""

    name: str
    path: Path
    wraps: int

    def read(self) -> float:
        """Joules so far."""
        return int((self.path / "energy_uj").read_text("utf-8")) / 1e6

    def between(self, before: float, after: float) -> float:
        """Joules between two readings that are less than a round apart."""
        return after - before if after >= before else after - before + self.wraps / 1e6


@dataclass(frozen=True)
class Gpu:
    """NVML's counter of one GPU."""

    name: str
    handle: Any

    def read(self) -> float:
        """Joules so far."""
        import pynvml

        return pynvml.nvmlDeviceGetTotalEnergyConsumption(self.handle) / 1e3

    def between(self, before: float, after: float) -> float:
        """Joules between two readings."""
        return after - before


@dataclass(frozen=True)
class EnergyMeters:
    """Counters that can be read here.

    Attributes:
        missing: why others cannot.
    """

    counters: tuple[Package | Gpu, ...]
    missing: tuple[str, ...] = ()

    @classmethod
    def find(cls, device: torch.device, rapl: Path = RAPL) -> EnergyMeters:
        """Those of the processor and of a CUDA device."""
        counters: list[Package | Gpu] = []
        missing = []
        for found in (lambda: _find_packages(rapl), lambda: _find_gpu(device)):
            try:
                counters += found()
            except OSError as exc:
                missing.append(str(exc))
        return cls(tuple(counters), tuple(missing))

    def read(self) -> tuple[float, list[float]]:
        """The time, and all counters."""
        return time.perf_counter(), [counter.read() for counter in self.counters]

    def since(self, before: tuple[float, list[float]]) -> dict[str, float]:
        """Name of each counter → joules since a reading."""
        pairs = zip(self.counters, before[1], self.read()[1], strict=True)
        return {counter.name: counter.between(old, new) for counter, old, new in pairs}


def _find_packages(rapl: Path) -> list[Package | Gpu]:
    folders = sorted(p for p in rapl.glob("*-rapl:*") if p.name.count(":") == 1)
    if not folders:
        raise OSError("the processor's energy is not counted: this machine shows no RAPL")
    found: list[Package | Gpu] = []
    for folder in folders:
        try:
            wraps = int((folder / "max_energy_range_uj").read_text("utf-8"))
            package = Package((folder / "name").read_text("utf-8").strip(), folder, wraps)
            package.read()
        except PermissionError as exc:
            raise OSError(
                f"the processor's energy is not counted: {folder / 'energy_uj'} may be read by "
                "root only"
            ) from exc
        found.append(package)
    return found


def _find_gpu(device: torch.device) -> list[Package | Gpu]:
    if device.type != "cuda":
        return []
    import pynvml

    try:
        pynvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        name = uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"  # torch leaves the prefix out
        gpu = Gpu(f"GPU {device.index or 0}", pynvml.nvmlDeviceGetHandleByUUID(name))
        gpu.read()
    except pynvml.NVMLError as exc:
        raise OSError(f"the GPU's energy is not counted: NVML says {exc}") from exc
    return [gpu]
