"""TensorRT plans that this user built on this machine for this machine, and no others.

    HOME/plans/BUNDLE/GRAPH-PRECISION-ID/   mode 700; ID stands for GPU and shapes
        plan.json                           what it was built for, and the sha256 of the plan
        SHA256.plan
        lock                                held while one is built

A plan brings native code along: loading one runs it. Plans therefore never lie in a bundle, which
travels; they are read from folders that nobody else can write to, and only with the sha256 that
was recorded when they were built.
"""

import ctypes
import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from medclipsam.engine.backends.private import (
    NotPrivate,
    locked,
    make_private,
    read_private,
    require_private,
    write_private,
)
from medclipsam.engine.backends.shapes import Range
from medclipsam.engine.durable import remove_unfinished
from medclipsam.engine.errors import BackendError
from medclipsam.engine.home import home
from medclipsam.engine.weights.bundle import Bundle
from medclipsam.engine.weights.exports import find_export

log = logging.getLogger(__name__)

RECIPE = "1"  # raise it whenever the builder's settings change: older plans are then stale
MACHINE = ("gpu", "capability", "driver", "cuda", "tensorrt")
RECORD, LOCK, SUFFIX = "plan.json", "lock", ".plan"


class Unusable(Exception):
    """Why there is no plan that may be loaded."""


@dataclass(frozen=True)
class PlanKey:
    """All that a plan depends on, as texts; another value of any of them needs another plan.

    Attributes:
        gpu, capability, driver, cuda, tensorrt: the machine.
        bundle: digest of the weights.
        source: sha256 over the sha256 of the graph's files, external data included.
        shapes: smallest, usual and largest shape of every input.
    """

    gpu: str
    capability: str
    driver: str
    cuda: str
    tensorrt: str
    bundle: str
    graph: str
    precision: str
    source: str
    shapes: str
    recipe: str = RECIPE

    @property
    def digest(self) -> str:
        return _sha256(asdict(self))

    @property
    def folder(self) -> Path:
        """Of the plan for this graph, precision, GPU and shapes, whatever else changes."""
        place = _sha256([self.gpu, self.capability, self.shapes])[:12]
        return root() / self.bundle[:16] / f"{self.graph}-{self.precision}-{place}"

    @property
    def machine(self) -> str:
        return machine_name(asdict(self))


def root() -> Path:
    """``plans`` in ``medclipsam.engine.home.home``."""
    return home() / "plans"


def make_key(
    bundle: Bundle,
    name: str,
    precision: str,
    ranges: Mapping[str, Range],
    device: torch.device,
    tensorrt: str,
) -> PlanKey:
    """The key of a graph's plan on ``device``.

    Args:
        tensorrt: version of the runtime.

    Raises:
        BackendError: the graph has no ONNX export, or the driver does not answer.
    """
    path = f"onnx/{precision}/{name}.onnx"
    files = find_export(bundle, "onnx", precision)["files"]
    return PlanKey(
        **find_machine(device),
        tensorrt=tensorrt,
        bundle=bundle.digest,
        graph=name,
        precision=precision,
        source=_sha256({k: v for k, v in files.items() if k == path or k.startswith(f"{path}.")}),
        shapes=", ".join(f"{key} {wanted}" for key, wanted in ranges.items()),
    )


def find_machine(device: torch.device) -> dict[str, str]:
    """GPU, compute capability, driver and CUDA version of a CUDA device.

    Raises:
        BackendError: the driver does not answer.
    """
    facts = torch.cuda.get_device_properties(device)
    return {
        "gpu": facts.name,
        "capability": f"{facts.major}.{facts.minor}",
        "driver": find_driver(),
        "cuda": str(torch.version.cuda),
    }


def machine_name(facts: Mapping[str, str]) -> str:
    """Short name of the machine in a key's parts, for what its plans share."""
    return _sha256([facts[part] for part in MACHINE])[:16]


def find_driver() -> str:
    """Version of the NVIDIA driver, from its own library.

    Raises:
        BackendError: it does not answer.
    """
    text = ctypes.create_string_buffer(96)
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        failed = library.nvmlInit_v2() or library.nvmlSystemGetDriverVersion(text, len(text))
    except (OSError, AttributeError) as exc:
        raise BackendError(
            f"the NVIDIA driver's library does not load ({exc}); install the driver, in a "
            "container with the 'utility' capability, or use --backend torch"
        ) from exc
    if failed:
        raise BackendError(
            f"the NVIDIA driver does not tell its version (NVML error {failed}); check it with "
            "nvidia-smi, or use --backend torch"
        )
    return text.value.decode()


def read_plan(key: PlanKey) -> tuple[bytes, str]:
    """The plan built for ``key`` and its sha256; the bytes are those that were recorded.

    Raises:
        Unusable: there is none, or none that may be loaded; of the latter a warning is logged.
        BackendError: others may write where plans lie.
    """
    folder = key.folder
    if not folder.exists():
        raise Unusable(f"none was built{_nearest(key)}")
    require_private(root(), folder)
    try:
        return _read(key, folder)
    except Unusable as exc:
        if any(folder.glob(f"*{SUFFIX}")):
            log.warning("the TensorRT plan in %s is not loaded: %s", folder, exc)
        raise


def _read(key: PlanKey, folder: Path, again: bool = True) -> tuple[bytes, str]:
    parts, sha256 = _read_record(folder)
    if changed := differences(parts, asdict(key)):
        raise Unusable(f"it was built for {changed}")
    try:
        data = read_private(folder / f"{sha256}{SUFFIX}")
    except FileNotFoundError:
        if again:  # another process may just have put a new one in its place
            return _read(key, folder, again=False)
        raise Unusable("its file is missing") from None
    except NotPrivate as exc:
        raise Unusable(str(exc)) from exc
    if hashlib.sha256(data).hexdigest() != sha256:
        raise Unusable("its sha256 is not the recorded one: it was altered or cut short")
    return data, sha256


def _read_record(folder: Path) -> tuple[dict[str, str], str]:
    """Key and sha256 of the plan in ``folder``."""
    try:
        record = json.loads(read_private(folder / RECORD))
        if not re.fullmatch("[0-9a-f]{64}", record["sha256"]):
            raise ValueError("no sha256")
        return dict(record["key"]), record["sha256"]
    except FileNotFoundError:
        left = any(folder.glob(f"*{SUFFIX}"))
        raise Unusable("it has no record of its sha256" if left else "none was built") from None
    except (NotPrivate, ValueError, KeyError, TypeError) as exc:
        raise Unusable(f"its record is not readable ({exc})") from exc


def differences(built: Mapping[str, str], wanted: Mapping[str, str]) -> str:
    """What differs between two keys, for people; empty if nothing does."""
    return ", ".join(
        f"{name} {_short(built.get(name, 'unknown'))} (here {_short(value)})"
        for name, value in wanted.items()
        if built.get(name) != value
    )


def _nearest(key: PlanKey) -> str:
    """The plan of the same graph that comes closest, to be named in an error."""
    found = []
    for folder in key.folder.parent.glob(f"{key.graph}-{key.precision}-*"):
        try:
            found.append(differences(_read_record(folder)[0], asdict(key)))
        except (Unusable, OSError):
            continue
    return f"; the nearest was built for {min(found, key=len)}" if found else ""


@contextmanager
def building(key: PlanKey) -> Iterator[None]:
    """Be the only one who builds in ``key.folder``; others wait.

    Raises:
        BackendError: the folder cannot be made, or others may write to it.
    """
    make_private(root(), key.folder)
    with locked(key.folder / LOCK):
        remove_unfinished(key.folder)
        yield


def write_plan(key: PlanKey, data: bytes, notes: Mapping[str, Any]) -> str:
    """Store a plan, inside ``building(key)``, in place of the one before; returns its sha256.

    Args:
        notes: how it was built, for people to read.

    Raises:
        OutputError: it cannot be stored.
    """
    sha256 = hashlib.sha256(data).hexdigest()
    path = key.folder / f"{sha256}{SUFFIX}"
    write_private(path, data)
    record = {"digest": key.digest, "sha256": sha256, "key": asdict(key), "built": dict(notes)}
    write_private(key.folder / RECORD, f"{json.dumps(record, indent=2)}\n".encode())
    for other in key.folder.glob(f"*{SUFFIX}"):
        if other != path:
            other.unlink(missing_ok=True)
    return sha256


def _sha256(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _short(value: object) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 else text
