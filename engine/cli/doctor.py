"""What works on this machine, and what to do about what does not.

Refuses to trust an import alone: devices compute, kernels compile, decoders decode.
Every check stands for itself; none of them raises.
"""

import io
import os
import platform
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
from rich.markup import escape
from rich.table import Table

from medclipsam.engine.cli.samples import compare, decoder_checks

State = Literal["ok", "absent", "broken"]
REINSTALL = "reinstall it in this environment: pip install --force-reinstall {}"
ONNX = (
    "install the GPU build with its CUDA, cuDNN or TensorRT: pip install --upgrade onnxruntime-gpu"
)
LOW_DISK = 1 << 30
STYLES = {"ok": "green", "absent": "yellow", "broken": "bold red"}


@dataclass(frozen=True)
class Check:
    """What one part of the machine can do.

    ``absent`` parts are optional; a ``broken`` one stops ``medclipsam run``.
    """

    name: str
    state: State
    detail: str
    advice: str = ""


class Absent(Exception):
    """An optional part is not there; its text is the detail."""


def examine() -> list[Check]:
    """Try every part; takes seconds, most of them imports."""
    return [
        _try("python", _python, "use Python 3.11 or newer"),
        _try("processor", _processor, "give the process at least one CPU core"),
        _try("torch", _torch, REINSTALL.format("torch")),
        _try("cuda", _cuda, "check the driver with nvidia-smi, or run with --device cpu"),
        _try("numba", _numba, REINSTALL.format("numba")),
        _try("open_clip", _module("open_clip", "open_clip_torch"), REINSTALL.format("open_clip")),
        _try("transformers", _module("transformers"), REINSTALL.format("transformers")),
        _try("sam", _module("segment_anything"), REINSTALL.format("segment-anything torchvision")),
        *(_try(f"decode {n}", f, REINSTALL.format(p)) for n, f, p in decoder_checks()),
        _try("parquet", _parquet, REINSTALL.format("pyarrow")),
        _optional("pydensecrf", "pydensecrf.densecrf", "pip install 'medclipsam[reference]'"),
        *(_optional(f"onnx on {name}", _onnx(name), ONNX) for name in ("cpu", "cuda", "tensorrt")),
        _optional("tensorrt", _tensorrt, "pip install 'medclipsam[tensorrt]', on an NVIDIA GPU"),
        _try("disk", _disk, "free space, or work in a folder on another disk"),
    ]


def to_table(checks: list[Check]) -> Table:
    """The checks for a terminal."""
    table = Table(title="medclipsam doctor")
    for name in ("part", "state", "detail"):
        table.add_column(name, overflow="fold")
    for check in checks:
        detail = escape(check.detail)
        if check.advice:
            detail += f"\n[dim]→ {escape(check.advice)}[/dim]"
        table.add_row(escape(check.name), f"[{STYLES[check.state]}]{check.state}[/]", detail)
    return table


def _try(name: str, probe: Callable[[], str], advice: str) -> Check:
    """Whatever goes wrong in ``probe`` becomes a finding."""
    try:
        return Check(name, "ok", probe())
    except Absent as exc:
        return Check(name, "absent", str(exc))
    except Exception as exc:
        return Check(name, "broken", _first_line(exc), advice)


def _optional(name: str, part: str | Callable[[], str], advice: str) -> Check:
    """A module, or a probe, that may be absent and may fail."""
    check = _try(name, _module(part) if isinstance(part, str) else part, advice)
    return check if check.state == "ok" else Check(name, "absent", check.detail, advice)


def _tensorrt() -> str:
    """Starts the runtime: that the package is there says nothing."""
    import torch

    from medclipsam.engine.backends.tensorrt_runtime import load_runtime, prove_runtime

    load_runtime()
    if not torch.cuda.is_available():
        raise Absent("no CUDA device")
    return f"TensorRT {prove_runtime()}"


def _first_line(exc: Exception) -> str:
    text = " ".join(str(exc).split())
    return f"{type(exc).__name__}: {text[:300]}" if text else type(exc).__name__


def _module(name: str, distribution: str | None = None) -> Callable[[], str]:
    def probe() -> str:
        module = import_module(name)
        if distribution:
            return version(distribution)
        known = getattr(module, "__version__", None)
        return str(known or f"importable ({name.partition('.')[0]})")

    return probe


def _python() -> str:
    return f"{platform.python_version()} on {platform.platform()}"


def _processor() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    detail = f"{cores} of {os.cpu_count()} cores, {platform.machine()}"
    if hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        detail += f", {_gib(memory)} memory"
    return detail


def _torch() -> str:
    import torch

    left = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    compare("a matrix product", (left @ left.T).numpy(), left.numpy() @ left.numpy().T)
    return f"{torch.__version__}, {torch.get_num_threads()} threads"


def _cuda() -> str:
    import torch

    if not torch.cuda.is_available():
        raise Absent("no CUDA device; everything runs on the CPU")
    found = []
    for index in range(torch.cuda.device_count()):
        ones = torch.ones(64, 64, device=f"cuda:{index}")
        compare(f"a product on cuda:{index}", (ones @ ones).cpu().numpy(), np.full((64, 64), 64.0))
        facts = torch.cuda.get_device_properties(index)
        found.append(f"{facts.name}, {_gib(facts.total_memory)}")
    return f"{'; '.join(found)}; CUDA {torch.version.cuda}"


def _onnx(provider: str) -> Callable[[], str]:
    """Opens a session: that a provider is listed says nothing."""

    def probe() -> str:
        import torch

        from medclipsam.engine.backends.session import PROVIDERS, load_runtime, prove_provider

        load_runtime()
        if provider != "cpu" and not torch.cuda.is_available():
            raise Absent("no CUDA device")
        device = torch.device("cpu" if provider == "cpu" else "cuda")
        return f"onnxruntime {prove_provider(provider, device)}, {PROVIDERS[provider]}"

    return probe


def _numba() -> str:
    """Compiles without a cache; a cache that others may write to would run their code."""
    import numba

    folder = os.environ.get("NUMBA_CACHE_DIR")
    if folder and os.name != "nt" and Path(folder).exists():
        facts = Path(folder).stat()
        if facts.st_uid != os.getuid() or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PermissionError(
                f"others may write to NUMBA_CACHE_DIR={folder}; give it mode 700 or unset it"
            )

    @numba.njit(nogil=True)
    def kernel(values, out):
        for i in range(values.size):
            out[i] = values[i] * values[i]

    values = np.arange(5.0)
    out = np.empty_like(values)
    kernel(values, out)
    compare("a compiled kernel", out, values**2)
    return f"{numba.__version__}, compiled and ran a kernel"


def _parquet() -> str:
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"item": ["a", "ü"], "area": [1, 2]})
    stream = io.BytesIO()
    parquet.write_table(table, stream)
    if not parquet.read_table(io.BytesIO(stream.getvalue())).equals(table):
        raise RuntimeError("a table did not come back as it was written")
    return f"pyarrow {pyarrow.__version__}"


def _disk() -> str:
    free = shutil.disk_usage(Path.cwd()).free
    if free < LOW_DISK:
        raise OSError(f"{_gib(free)} free in {Path.cwd()}, expected at least {_gib(LOW_DISK)}")
    return f"{_gib(free)} free in {Path.cwd()}"


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
