"""The folder of one run: what it was made with, who works in it, and its closing files.

run.json            the fingerprint: settings, weights, prompts, versions, device
ledger.sqlite       one row per item and prompt
log.jsonl           what happened when, a JSON object a line
masks/LABEL/…       mirrors the archive's tree
manifest.parquet    the ledger as a table, written at the end
report/index.html   the page to look at
_SUCCESS            last
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from medclipsam.engine.durable import write_durable
from medclipsam.engine.errors import ConfigError, OutputError
from medclipsam.engine.types import Outcome

FINGERPRINT, LEDGER, LOG, MANIFEST, SUCCESS = (
    "run.json",
    "ledger.sqlite",
    "log.jsonl",
    "manifest.parquet",
    "_SUCCESS",
)
_VERSIONED = (
    *("medclipsam", "torch", "open_clip_torch", "segment-anything", "numba", "numpy"),
    *("opencv-python-headless", "pillow", "pydicom", "nibabel"),
)
LOCK = ".lock"
FIGURES = ("confidence", "predicted_iou", "stability", "contrast")


class RunFolder:
    """A run folder opened for work by this process alone; a context manager.

    Args:
        path: a new or empty folder, or one that an equal run was stopped in.
        fingerprint: what decides the run's bytes, as plain JSON values.

    Raises:
        ConfigError: the folder holds something else, a different run, or a running one.
        OutputError: it cannot be written.
    """

    def __init__(self, path: Path, fingerprint: dict[str, Any]):
        self.path = path
        self._lock: IO[str] | None = None
        try:
            path.mkdir(parents=True, exist_ok=True)
            present = {child.name for child in path.iterdir()}
        except OSError as exc:
            raise OutputError(f"cannot use {path} as output folder: {exc.strerror}") from exc
        if FINGERPRINT in present:
            self._compare(fingerprint)
        elif present - {LOCK}:
            raise ConfigError(f"{path} is neither empty nor a run folder; choose another with -o")
        self._take_lock()
        if FINGERPRINT not in present:
            self.write(FINGERPRINT, _json(fingerprint))
        (path / SUCCESS).unlink(missing_ok=True)
        try:
            self._log = (path / LOG).open("a", encoding="utf-8")
        except OSError as exc:
            raise OutputError(f"cannot write {path / LOG}: {exc.strerror}") from exc

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self._log.close()
        if self._lock:
            self._lock.close()

    def write(self, relative: str, data: bytes) -> None:
        """Put a file into the folder durably."""
        write_durable(self.path / relative, data)

    def log(self, event: str, **facts: Any) -> None:
        """One line in ``log.jsonl``."""
        line = json.dumps({"time": round(time.time(), 3), "event": event, **facts})
        try:
            self._log.write(line + "\n")
            self._log.flush()
        except OSError as exc:
            raise OutputError(f"cannot write {self.path / LOG}: {exc.strerror}") from exc

    def _take_lock(self) -> None:
        self._lock = (self.path / LOCK).open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise ConfigError(
                f"another process is running in {self.path}; wait for it or choose another folder"
            ) from exc

    def _compare(self, fingerprint: dict[str, Any]) -> None:
        try:
            before = json.loads((self.path / FINGERPRINT).read_text("utf-8"))
        except (OSError, ValueError) as exc:
            raise ConfigError(f"{self.path / FINGERPRINT} cannot be read: {exc}") from exc
        differences = list(_differences(before, json.loads(_json(fingerprint)), ""))
        if differences:
            raise ConfigError(
                f"{self.path} holds another run, with different {'; '.join(differences[:4])}. "
                "Choose another folder with -o, or repeat that run's settings to resume it"
            )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a run folder, so that no run starts in it meanwhile.

    Raises:
        ConfigError: it is no run folder, or a process is running in it.
    """
    if not (path / FINGERPRINT).is_file():
        raise ConfigError(f"{path} is not a run folder; it has no {FINGERPRINT}")
    with (path / LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise ConfigError(f"a run is going on in {path}; wait for it or stop it") from exc
        yield


def versions() -> dict[str, str]:
    """Versions of what may change a mask."""
    return {name: version(name) for name in _VERSIONED}


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _differences(before: Any, now: Any, name: str) -> Iterable[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            inner = f"{name}.{key}" if name else key
            yield from _differences(before.get(key), now.get(key), inner)
    elif before != now:
        yield f"{name} ({_short(before)} there, {_short(now)} now)"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"


def write_manifest(folder: RunFolder, outcomes: Iterable[Outcome]) -> None:
    """The ledger as a Parquet table, figures as columns, built in slices of rows."""
    import pyarrow as pa
    from pyarrow import parquet

    texts = ("item", "label", "status", "prompt", "stage", "reason", "message", "mask")
    schema = pa.schema(
        [(name, pa.string()) for name in texts]
        + [("frames", pa.int64()), ("area", pa.int64())]
        + [(name, pa.float64()) for name in FIGURES]
        + [("boxes", pa.list_(pa.list_(pa.list_(pa.int32())))), ("seconds", pa.float64())]
    )
    sink = pa.BufferOutputStream()
    with parquet.ParquetWriter(sink, schema) as writer:
        rows: list[dict[str, Any]] = []
        for outcome in outcomes:
            row = {name: getattr(outcome, name) for name in schema.names if name not in FIGURES}
            rows.append(row | {name: outcome.figures.get(name) for name in FIGURES})
            if len(rows) == 10_000:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows = []
        writer.write_table(pa.Table.from_pylist(rows, schema))
    folder.write(MANIFEST, sink.getvalue().to_pybytes())
