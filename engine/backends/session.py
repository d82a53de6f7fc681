"""Sessions of ONNX Runtime that run wholly on the provider that was asked for, or not at all.

The runtime lists providers that cannot start and falls back to its CPU without a word: here a
provider has proved itself by a session, and the nodes it leaves to another are an error.

TensorRT's provider builds engines for minutes. They are kept for this user on this machine:

    HOME/ort-tensorrt/MACHINE/      mode 700; MACHINE stands for GPU, driver and libraries
        NAME/*.engine               what one session needs; it appears whole, or not at all
        *.timing                    how long kernels took, so that all builds choose the same ones
        lock                        held while a session opens or builds

An engine is native code, as a plan of ``medclipsam.engine.backends.plans`` is. Who deletes the
folder loses nothing but time.
"""

import ctypes
import logging
import os
import re
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from medclipsam.engine.backends.plans import find_machine, machine_name
from medclipsam.engine.backends.private import (
    locked,
    make_private,
    require_private,
    write_private,
)
from medclipsam.engine.durable import GrowingFolder
from medclipsam.engine.errors import BackendError, MedclipsamError
from medclipsam.engine.home import home

log = logging.getLogger(__name__)

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
LEAST = (1, 24)  # the first to say which provider took which node
SILENT = 4  # severity: only what ends the process
# NVIDIA's switch for the whole process. TensorRT multiplies float32 in TF32 unless it is told not
# to, and its provider has no option for that, as the one for CUDA has (ONNX Runtime 1.31).
TF32 = "NVIDIA_TF32_OVERRIDE"
LOCK = "lock"
# The ONNX model y = −x of one number (IR 8, opset 17), so that a probe needs no onnx package.
PROBE = (
    b'\x08\x08:2\n\x0b\n\x01x\x12\x01y"\x03Neg\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n'
    b"\x02\x08\x01b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11"
)


def load_runtime() -> Any:
    """The module ``onnxruntime``.

    Raises:
        BackendError: it is missing, broken or too old.
    """
    try:
        import onnxruntime
    except ImportError as exc:
        raise BackendError(
            f"backend onnx needs ONNX Runtime ({exc}); pip install --upgrade "
            "onnxruntime-gpu, or onnxruntime where there is no NVIDIA GPU"
        ) from exc
    if tuple(map(int, onnxruntime.__version__.split(".")[:2])) < LEAST:
        raise BackendError(
            f"backend onnx needs ONNX Runtime {LEAST[0]}.{LEAST[1]} or newer, here is "
            f"{onnxruntime.__version__}; pip install --upgrade onnxruntime-gpu"
        )
    return onnxruntime


def prove_provider(provider: str, device: torch.device) -> str:
    """Run a graph of one node on ``provider``; returns the runtime's version.

    Raises:
        BackendError: the provider does not start here; says why.
    """
    runtime = load_runtime()
    try:
        session = _open(runtime, PROBE, provider, device, {})
        _require_whole(session, provider, "the probe")
        value = runtime.OrtValue.ortvalue_from_numpy(torch.ones(1).numpy())
        if session.run_with_ort_values(None, {"x": value})[0].numpy()[0] != -1:
            raise BackendError(f"ONNX Runtime computes wrongly on {PROVIDERS[provider]}")
    except BackendError:
        raise
    except Exception as exc:  # its exceptions share no class of their own
        raise BackendError(
            f"ONNX Runtime {runtime.__version__} cannot start {PROVIDERS[provider]} here "
            f"({_reason(exc)}); install the GPU build and the CUDA, cuDNN or TensorRT libraries "
            "that it was built for, or use --backend torch"
        ) from exc
    return runtime.__version__


def open_session(
    path: Path,
    provider: str,
    device: torch.device,
    fixed: Mapping[str, int],
    engines: str = "",
    capture: bool = True,
) -> Any:
    """A session that runs all of the graph at ``path`` on ``provider``.

    Args:
        provider: ``cpu``, ``cuda`` or ``tensorrt``.
        fixed: sizes of named dimensions.
        engines: name of the folder that keeps what ``tensorrt`` builds. It stands for the graph
            and all of its sizes, which must be fixed. Without a name nothing is kept.
        capture: on ``cuda``, with sizes fixed, replay a CUDA graph.

    Raises:
        BackendError: the provider does not start, does not take every node, or cannot load it, or
            others may write where engines are kept.
        OutputError: the engines cannot be stored.
    """
    prove_provider(provider, device)
    runtime = load_runtime()
    start = partial(_open, runtime, str(path), provider, device, fixed, capture=capture)
    try:
        if provider == "tensorrt" and engines:
            session = _open_kept(start, _find_folder(device) / engines)
        else:
            session = start()
    except MedclipsamError:
        raise
    except Exception as exc:
        if provider != "cpu":
            _name_foreign_nodes(partial(start, strict=False), path, provider)
        more = ""
        if type(exc).__name__ == "NotImplemented":
            more = f"; {PROVIDERS[provider]} has no arithmetic for it: use --precision fp32"
        raise BackendError(f"ONNX Runtime cannot load {path}: {_reason(exc)}{more}") from exc
    _require_whole(session, provider, str(path))
    return session


def device_index(device: torch.device) -> int:
    """The number of a device; ``cuda`` alone is torch's current one."""
    if device.type == "cuda" and device.index is None:
        return torch.cuda.current_device()
    return device.index or 0


def compute_stream(device: torch.device) -> Any:
    """The CUDA stream that sessions on ``device`` run on; the default one cannot be captured."""
    return _stream(device_index(device))


@lru_cache(maxsize=16)
def _stream(index: int) -> Any:
    return torch.cuda.Stream(index)


def _open(
    runtime: Any,
    model: str | bytes,
    provider: str,
    device: torch.device,
    fixed: Mapping[str, int],
    engines: Path | None = None,
    strict: bool = True,
    capture: bool = True,
) -> Any:
    if provider == "tensorrt":
        os.environ.setdefault(TF32, "0")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.use_deterministic_compute = True
    options.log_severity_level = SILENT
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    # threads that spin between calls take the cores from the stages beside
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if strict and provider != "cpu":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    for name, size in fixed.items():
        options.add_free_dimension_override_by_name(name, size)
    chosen = [(PROVIDERS[provider], _settings(provider, device, capture and bool(fixed), engines))]
    runtime.set_default_logger_severity(SILENT)
    return runtime.InferenceSession(model, options, providers=chosen, enable_fallback=0)


def _settings(
    provider: str, device: torch.device, capture: bool, engines: Path | None
) -> dict[str, str]:
    """Options of a provider: full float32, and no choice of algorithms by the clock.

    TensorRT always chooses by the clock: only its engines, once kept, compute the same again. It
    is not told a precision: without one the network is strongly typed, and computes every value
    in the type that the exported graph says. ``trt_fp16_enable`` or ``trt_bf16_enable`` would let
    it lower what must stay float32 (ONNX Runtime, tensorrt_execution_provider.cc: network_flags).
    """
    if provider == "cpu":
        return {}
    settings = {"device_id": str(device_index(device))}
    settings["user_compute_stream"] = str(compute_stream(device).cuda_stream)
    if provider == "cuda":
        settings |= {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
        settings["enable_cuda_graph"] = str(int(capture))
    elif engines is not None:
        for kind in ("engine", "timing"):
            settings |= {f"trt_{kind}_cache_enable": "True", f"trt_{kind}_cache_path": str(engines)}
    return settings


def _find_folder(device: torch.device) -> Path:
    """The private folder of engines that this machine, as it is now, has built; it is made.

    ONNX Runtime's own file names stand for the compute capability, but for none of the rest.
    """
    facts = find_machine(device)
    runtime = load_runtime().__version__
    facts["tensorrt"] = f"{_tensorrt()} in {runtime}, TF32 {os.environ.get(TF32)}"
    root = home() / "ort-tensorrt"
    make_private(root, root / machine_name(facts))
    return root / machine_name(facts)


def _tensorrt() -> str:
    """Version of the TensorRT that the provider has loaded."""
    found = re.search(r"/.*/libnvinfer\.so[\d.]*$", Path("/proc/self/maps").read_text(), re.M)
    return str(ctypes.CDLL(found[0]).getInferLibVersion()) if found else "unknown"


def _open_kept(start: Callable[[Path], Any], folder: Path) -> Any:
    """A session with the engines in ``folder``, which are built if they are not there.

    ONNX Runtime writes files without looking whether they were written: it does so in a folder
    beside, which is renamed when it is through. Others wait, and nobody reads half an engine.
    """
    root = folder.parent
    with locked(root / LOCK):
        if folder.exists():
            require_private(root, folder)
            try:
                return start(folder)
            except Exception as exc:
                if "deserialize" not in str(exc):  # TensorRT's refusal of an engine
                    raise
                log.warning("the TensorRT engine in %s is built anew: %s", folder, _reason(exc))
        growing = GrowingFolder(folder)
        try:
            growing.path.chmod(0o700)
            for timing in root.glob("*.timing"):
                growing.write(timing.name, timing.read_bytes())
            session = start(growing.path)
            for timing in growing.path.glob("*.timing"):
                write_private(root / timing.name, timing.read_bytes())
                timing.unlink()
            growing.publish()
        finally:
            growing.discard()
        return session


def _name_foreign_nodes(start: Callable[[], Any], path: Path, provider: str) -> None:
    """Open with fallback, only to say which nodes would fall back."""
    try:
        session = start()
    except Exception as exc:  # then the first error stands
        log.debug("no session even with fallback: %s", exc)
        return
    _require_whole(session, provider, str(path))


def _require_whole(session: Any, provider: str, what: str) -> None:
    wanted = PROVIDERS[provider]
    if session.get_providers()[0] != wanted:
        raise BackendError(
            f"ONNX Runtime runs {what} on {session.get_providers()[0]} instead of {wanted}"
        )
    foreign = [
        f"{node.op_type} {node.name!r} on {part.ep_name}"
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != wanted
        for node in part.get_nodes()
    ]
    if foreign:
        more = f" and {len(foreign) - 5} more" if len(foreign) > 5 else ""
        raise BackendError(
            f"{wanted} does not take all of {what}: {', '.join(foreign[:5])}{more}; use another "
            "backend, or a newer ONNX Runtime"
        )


def _reason(exc: BaseException) -> str:
    return " ".join(str(exc).split())[:300] or type(exc).__name__
