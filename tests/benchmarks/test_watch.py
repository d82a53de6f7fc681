"""Memory, time and energy of a run, against what else can tell them."""

import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest
import torch

from medclipsam.benchmarks.bench.watch import (
    EnergyMeters,
    processor_seconds,
    resident,
)

CPU = torch.device("cpu")
MIB = 1 << 20


def write_package(root, number, name, microjoules, wraps=1_000_000_000):
    folder = root / f"intel-rapl:{number}"
    folder.mkdir(parents=True, exist_ok=True)
    for file, value in (("name", name), ("energy_uj", microjoules), ("max_energy_range_uj", wraps)):
        (folder / file).write_text(f"{value}\n")
    return folder / "energy_uj"


WATCH = """
import time, numpy as np, torch
from medclipsam.benchmarks.bench.watch import EnergyMeters, resident, watch

with watch(torch.device("cpu"), EnergyMeters(())) as seen:
    before = resident()
    block = np.ones(200 << 20, np.uint8)
    while seen.host < before + (150 << 20):  # it looks every now and then
        time.sleep(0.01)
    del block
    after = resident()
print(seen.host - before, seen.host - after, seen.device)
"""


def test_the_peak_of_the_memory_is_seen():
    """In a process of its own: what other tests let go would count as well."""
    done = subprocess.run([sys.executable, "-c", WATCH], check=True, capture_output=True, text=True)
    grown, fallen, device = done.stdout.split()
    assert int(grown) >= 150 * MIB and int(fallen) >= 100 * MIB and device == "None"


def test_processes_that_were_started_count():
    code = f"block = b'x' * {200 * MIB}; print(1, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as started:
        started.stdout.readline()
        own = psutil.Process().memory_info().rss
        assert resident() >= 0.5 * own + 200 * MIB
        started.communicate(b"\n")


def test_the_time_of_ended_and_of_living_processes_counts():
    before = processor_seconds()
    code = "import time; t = time.process_time()\nwhile time.process_time() - t < 0.5: pass\n"
    subprocess.run([sys.executable, "-c", code], check=True)
    ended = processor_seconds() - before
    assert ended >= 0.4
    living = subprocess.Popen(
        [sys.executable, "-c", f"{code}print(1, flush=True); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    living.stdout.readline()
    assert processor_seconds() - before - ended >= 0.4
    living.communicate(b"\n")


def test_energy_of_packages_and_its_wrapping_around(tmp_path):
    one = write_package(tmp_path, 0, "package-0", 5_000_000)
    two = write_package(tmp_path, 1, "package-1", 999_000_000)
    write_package(tmp_path, "0:0", "core", 1)  # a part of package-0
    meters = EnergyMeters.find(CPU, tmp_path)
    assert [counter.name for counter in meters.counters] == ["package-0", "package-1"]
    before = meters.read()
    one.write_text("12500000\n")
    two.write_text("2000000\n")
    assert meters.since(before) == {"package-0": 7.5, "package-1": pytest.approx(3.0)}


def test_why_energy_is_not_counted(tmp_path, monkeypatch):
    assert EnergyMeters.find(CPU, tmp_path).missing == (
        "the processor's energy is not counted: this machine shows no RAPL",
    )
    secret = write_package(tmp_path, 0, "package-0", 1)
    read = type(secret).read_text

    def refuse(path, *args):
        if path == secret:
            raise PermissionError(13, "Permission denied")
        return read(path, *args)

    monkeypatch.setattr(type(secret), "read_text", refuse)
    found = EnergyMeters.find(CPU, tmp_path)
    assert not found.counters and found.missing[0].endswith("may be read by root only")


class Nvml:
    """Stands in for pynvml, as nvidia-ml-py documents it."""

    class NVMLError(Exception):
        pass

    def __init__(self, counts=True):
        self.millijoules, self.counts, self.asked = 2_000, counts, []

    def nvmlInit(self):
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid):
        self.asked.append(uuid)
        return "handle"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        assert handle == "handle"
        if not self.counts:
            raise self.NVMLError("Not Supported")
        return self.millijoules


@pytest.mark.parametrize("uuid", ["8d3f", "GPU-8d3f"])
def test_energy_of_a_gpu(monkeypatch, tmp_path, uuid):
    nvml = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    facts = SimpleNamespace(uuid=uuid)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: facts)
    meters = EnergyMeters.find(torch.device("cuda:1"), tmp_path)
    before = meters.read()
    nvml.millijoules += 4_500
    assert meters.since(before) == {"GPU 1": 4.5} and nvml.asked == ["GPU-8d3f"]
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(counts=False))
    missing = EnergyMeters.find(torch.device("cuda:1"), tmp_path).missing
    assert missing[-1] == "the GPU's energy is not counted: NVML says Not Supported"
