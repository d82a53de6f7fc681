"""What a figure was measured on: machine, versions, revision; and who else was at work there."""

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from medclipsam.engine.backends.arithmetic import identify_device

HERE = Path(__file__).resolve().parents[2]
ALWAYS = ("medclipsam", "torch", "numpy")
CPU = torch.device("cpu")


def processor() -> str:
    """The processor's name as Linux gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"


def count_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_machine(device: torch.device = CPU) -> str:
    """One line: architecture, processor, cores, and the device if it is another."""
    words = [platform.machine(), processor(), f"{count_cores()} cores"]
    found = identify_device(device)
    if found:
        words += [found["gpu"], f"driver {found['driver']}", f"CUDA {found['cuda']}"]
    return ", ".join(words)


def list_versions(packages: Sequence[str] = ()) -> dict[str, str]:
    """Python and packages → their versions."""
    python = ".".join(map(str, sys.version_info[:3]))
    return {"python": python, **{name: version(name) for name in (*ALWAYS, *packages)}}


def find_revision(checkout: Path = HERE) -> str:
    """The revision of the code: of its git checkout, with + where files differ, or its version."""
    try:
        found = _git(checkout, "rev-parse", "--short", "HEAD")
        changed = _git(checkout, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return f"release {version('medclipsam')}"
    return found + ("+" if changed else "")


def describe_revision(checkout: Path) -> str:
    """Revision and subject of the last commit of a checkout."""
    return _git(checkout, "log", "-1", "--format=%h %s")


def _git(checkout: Path, *words: str) -> str:
    command = ["git", "-C", str(checkout), *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def foreign_seconds() -> float:
    """Seconds of this process's cores' time that have gone to other programs so far.

    A share of all cores of the machine, as Linux counts them; 0 where it does not.
    """
    try:
        first = Path("/proc/stat").read_text("utf-8").split("\n")[0]
    except OSError:
        return 0.0
    user, nice, system, _, _, *interrupts_and_stolen = [int(n) for n in first.split()[1:9]]
    busy = (user + nice + system + sum(interrupts_and_stolen)) / os.sysconf("SC_CLK_TCK")
    own = os.times()
    return (busy - own.user - own.system) / (os.cpu_count() or 1)
