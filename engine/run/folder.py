"""The folder of one run: what it was made with, who works in it, and its closing files.

run.json            the fingerprint: settings, weights, prompts, versions, device
ledger.sqlite       one row per item and prompt
log.jsonl           what happened when, a JSON object a line
trace.json          with --profile: every step on every thread, for a trace viewer
masks/LABEL/…       mirrors the archive's tree, or hashed names; quarantine/LABEL/… likewise
manifest.parquet    the ledger as a table, written at the end
duplicates.csv      items with equal bytes, if there are any
report/index.html   the page to look at
private/            with hashed names only: what leads back to the items
_SUCCESS            last
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import IO, Any

from medclipsam.engine.durable import (
    PREFIX,
    durable_file,
    make_folder,
    remove_unfinished,
    take_lock,
    write_durable,
    write_together,
)
from medclipsam.engine.errors import ConfigError, OutputError, differences
from medclipsam.engine.types import FIGURES, Outcome

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
LOCK, SCRATCH = ".lock", ".unfinished"
DUPLICATES, TRACE = "duplicates.csv", "trace.json"


class RunFolder:
    """A run folder opened for work by this process alone; a context manager.

    Args:
        path: a new or empty folder, or one that an equal run was stopped in.
        fingerprint: what decides the run's bytes, as plain JSON values.

    Attributes:
        silenced: why there is no log any more, or empty.

    Raises:
        ConfigError: the folder holds something else, a different run, or a running one.
        OutputError: it cannot be written.
    """

    def __init__(self, path: Path, fingerprint: dict[str, Any]):
        self.path = path
        self._logging = threading.Lock()
        self._log: IO[str] | None = None
        self.silenced = ""
        self._look()  # before a lock file is put into a folder of somebody else
        taken = f"another process is running in {path}; wait for it or choose another folder"
        self._lock = take_lock(path / LOCK, taken)
        try:
            self._enter(fingerprint)
        except BaseException:
            self._lock.release()
            raise

    def _look(self) -> set[str]:
        """What the folder holds; it is made if need be."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            present = {child.name for child in self.path.iterdir()}
        except OSError as exc:
            raise OutputError(f"cannot use {self.path} as output folder: {exc.strerror}") from exc
        foreign = {name for name in present if not name.startswith(PREFIX)} - {LOCK, SCRATCH}
        if foreign and FINGERPRINT not in present:
            raise ConfigError(
                f"{self.path} is neither empty nor a run folder; choose another with -o"
            )
        return present

    def _enter(self, fingerprint: dict[str, Any]) -> None:
        """Look once more, now that nobody else can begin or end a run here."""
        present = self._look()
        if FINGERPRINT in present:
            self._compare(fingerprint)
        self._make_scratch()
        if FINGERPRINT not in present:
            self.write(FINGERPRINT, _json(fingerprint))
        (self.path / SUCCESS).unlink(missing_ok=True)
        try:
            self._log = (self.path / LOG).open("a", encoding="utf-8")
        except OSError as exc:
            self._silence(exc)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._logging:
            if self._log is not None:
                with suppress(OSError):  # every line was flushed when it was written
                    self._log.close()
        with suppress(OSError):  # files that somebody still writes stay there
            (self.path / SCRATCH).rmdir()
        with suppress(OSError):  # the lock file holds nothing
            self._lock.release()

    def write(self, relative: str, data: bytes) -> None:
        """Put a file into the folder durably."""
        write_durable(self.path / relative, data)

    def write_all(self, files: Sequence[tuple[str, bytes]]) -> None:
        """Put several files into the folder durably."""
        paths = [(self.path / relative, data) for relative, data in files]
        write_together(paths, self.path / SCRATCH)

    def log(self, event: str, **fields: Any) -> None:
        """One line in ``log.jsonl``, from any thread.

        A log that cannot be written is no reason to lose results: it is switched off, and
        ``silenced`` says why.
        """
        line = json.dumps({"time": round(time.time(), 3), "event": event, **fields})
        with self._logging:
            if self._log is None or self._log.closed:
                return
            try:
                self._log.write(line + "\n")
                self._log.flush()
            except (OSError, ValueError) as exc:
                self._silence(exc)

    def _silence(self, exc: OSError | ValueError) -> None:
        log, self._log = self._log, None
        self.silenced = f"{self.path / LOG} cannot be written ({exc})"
        if log is not None:
            with suppress(OSError, ValueError):
                log.close()

    def _make_scratch(self) -> None:
        """A place for unfinished files; those of a killed run are removed."""
        make_folder(self.path / SCRATCH)
        for folder in (self.path, self.path / SCRATCH, self.path / "report"):
            remove_unfinished(folder)

    def _compare(self, fingerprint: dict[str, Any]) -> None:
        try:
            before = json.loads((self.path / FINGERPRINT).read_text("utf-8"))
        except (OSError, ValueError) as exc:
            raise ConfigError(f"{self.path / FINGERPRINT} cannot be read: {exc}") from exc
        changed = list(differences(before, json.loads(_json(fingerprint))))
        if changed:
            raise ConfigError(
                f"{self.path} holds another run, with different {'; '.join(changed[:4])}. "
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
    with take_lock(path / LOCK, f"a run is going on in {path}; wait for it or stop it"):
        yield


def identify(path: Path) -> str:
    """A hash of the fingerprint of the run in folder ``path``.

    Raises:
        OutputError: it cannot be read any more.
    """
    try:
        data = (path / FINGERPRINT).read_bytes()
    except OSError as exc:
        raise OutputError(
            f"cannot read {path / FINGERPRINT}: {exc.strerror}. Mend the disk, then run the same "
            "command again"
        ) from exc
    return hashlib.sha256(data).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions of what may change a mask."""
    return {name: version(name) for name in _VERSIONED}


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def write_manifest(folder: RunFolder, outcomes: Iterable[Outcome]) -> None:
    """The ledger as a Parquet table, figures as columns, written in slices of rows."""
    import pyarrow as pa
    from pyarrow import parquet

    texts = (
        *("item", "label", "status", "prompt", "stage", "reason", "message", "mask", "digest"),
        "geometry",
    )
    schema = pa.schema(
        [(name, pa.string()) for name in texts]
        + [("frames", pa.int64()), ("area", pa.int64())]
        + [(name, pa.float64()) for name in FIGURES]
        + [("boxes", pa.list_(pa.list_(pa.list_(pa.int32())))), ("seconds", pa.float64())]
    )
    rows = (
        {name: getattr(outcome, name) for name in schema.names if name not in FIGURES}
        | {name: outcome.figures.get(name) for name in FIGURES}
        for outcome in outcomes
    )
    with (
        durable_file(folder.path / MANIFEST) as file,
        parquet.ParquetWriter(file, schema) as writer,
    ):
        while part := list(islice(rows, 10_000)):
            writer.write_table(pa.Table.from_pylist(part, schema))


def write_duplicates(folder: RunFolder, duplicates: Iterable[tuple[str, list[str]]]) -> int:
    """``duplicates.csv``: items of equal bytes, grouped; returns how many repeat another."""
    stream = io.StringIO()
    writer = csv.writer(stream)
    repeated = 0
    for digest, items in duplicates:
        repeated += len(items) - 1
        writer.writerows((digest, item) for item in items)
    if repeated:
        folder.write(DUPLICATES, ("digest,item\r\n" + stream.getvalue()).encode())
    else:
        (folder.path / DUPLICATES).unlink(missing_ok=True)
    return repeated
