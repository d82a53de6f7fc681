"""A pool of decode processes, any of which may die without taking the run along.

Image codecs are C and C++ that reads bytes of strangers: on some, they crash, loop or
ask for all memory. In a process of their own that costs one item. GDCM, too, can only
be had apart from OpenCV (see ``codecs``).
"""

from __future__ import annotations

import fcntl
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from medclipsam.engine.archive.decoders.pipe import receive, receive_json, send
from medclipsam.engine.archive.decoders.reply import unpack, unpack_error
from medclipsam.engine.archive.decoders.worker import READY, describe
from medclipsam.engine.archive.entry import Entry
from medclipsam.engine.archive.limits import DEFAULT_LIMITS, Limits, refuse
from medclipsam.engine.archive.readers.reader import Decoded
from medclipsam.engine.errors import BackendError
from medclipsam.engine.types import Image, ItemRef

PROGRAM = """
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
from medclipsam.engine.archive.decoders.worker import serve
serve()
"""
ATTEMPTS = 3  # processes that may die on one item
START = 60.0  # seconds a process may take to start; 0.4 is usual
END = 5.0  # seconds a killed process may take to be gone; longer only while a disk hangs
PIPE = 1 << 20  # bytes that a pipe holds, where allowed
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Decoders:
    """Decodes items in processes; any number of threads may ask.

    Args:
        count: processes at most; each starts with the first item that finds no idle one.
        limits: caps on one item.
    """

    def __init__(self, count: int, limits: Limits = DEFAULT_LIMITS):
        self._all = [_Process(limits) for _ in range(count)]
        self._idle: queue.LifoQueue[_Process] = queue.LifoQueue()
        for process in self._all:
            self._idle.put(process)

    def __enter__(self) -> Decoders:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def decode(self, entry: Entry, keep: bool = False) -> Decoded:
        """Decode one item; waits for a free process.

        Args:
            entry: as an archive lists it.
            keep: give the encoded files back where they are DICOM.

        Raises:
            InputError: the item cannot be read.
            BackendError: a decode process cannot be started, or the pool is closed.
        """
        if entry.error is not None:
            raise entry.error
        data = entry.fetch() if entry.fetch is not None else None
        files = None if data is not None else [os.fspath(file) for file in entry.files]
        process = self._idle.get()
        try:
            return process.decode(files, data, keep)
        finally:
            self._idle.put(process)

    def close(self) -> None:
        """End all processes at once; items on their way end in BackendError."""
        for process in self._all:
            process.close()


def read_image(path: Path, limits: Limits = DEFAULT_LIMITS) -> Image:
    """Decode one file in a process of its own.

    Raises:
        InputError: with stage ``read_image``, whenever it cannot be used.
        BackendError: the process cannot be started.
    """
    ref = ItemRef(path.name)
    with Decoders(1, limits) as decoders:
        decoded = decoders.decode(Entry(ref, files=(path,)))
    return Image(ref, decoded.frames, decoded.grid)


class _Process:
    """One decode process, which is started again when it has died."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self._child: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._busy = threading.Lock()  # held for a whole item
        self._guard = threading.Lock()  # held while a child is killed or replaced

    def decode(self, files: list[str] | None, data: bytes | None, keep: bool) -> Decoded:
        """Ask for one item, of new processes where others die on it."""
        head = json.dumps({"files": files, "keep": keep}).encode()
        request = [head] if data is None else [head, data]
        with self._busy:
            for _ in range(ATTEMPTS):
                try:
                    return self._ask(self._running(), request)
                except TimeoutError as exc:
                    self._stop()
                    raise refuse(
                        "timeout",
                        f"expected to decode the item in {self._limits.max_seconds:g} s, got no "
                        "end; raise max_seconds if it is sound",
                    ) from exc
                except (EOFError, OSError):
                    self._stop()
        raise refuse(
            "crashed", f"expected an image, got content that ended {ATTEMPTS} decode processes"
        )

    def close(self) -> None:
        """End the process for good."""
        self._closed = True
        with self._guard:
            if self._child is not None:
                _kill(self._child)
        with self._busy:  # whoever waits for the child has seen it end
            self._stop()

    def _ask(self, child: subprocess.Popen[bytes], request: list[bytes]) -> Decoded:
        assert child.stdin is not None and child.stdout is not None
        source, sink = child.stdout.fileno(), child.stdin.fileno()
        deadline = time.monotonic() + self._limits.max_seconds
        send(sink, *request, deadline=deadline)
        head = receive_json(source, deadline)
        if "message" in head:
            raise unpack_error(head)
        pixels = receive(source, deadline)
        sources = tuple(bytes(receive(source, deadline)) for _ in range(head["sources"]))
        return unpack(head, pixels, sources)

    def _running(self) -> subprocess.Popen[bytes]:
        with self._guard:
            if self._closed:
                raise BackendError("the decoders are closed; open new ones")
            if self._child is not None:
                return self._child
            self._child = child = _spawn(self._limits)
        try:
            _await(child)
        except BackendError:
            self._stop()
            raise
        return child

    def _stop(self) -> None:
        with self._guard:
            child, self._child = self._child, None
            if child is None:
                return
            _kill(child)
        with suppress(subprocess.TimeoutExpired):
            child.wait(END)
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()


def _spawn(limits: Limits) -> subprocess.Popen[bytes]:
    """Start a process in a group of its own: a signal at the terminal is the parent's matter.

    Raises:
        BackendError: the machine has no room for one more process.
    """
    paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
    alone = {"PYTHONPATH": paths, "PYTHONSAFEPATH": "1"} | dict.fromkeys(THREADS, "1")
    try:
        child = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, describe(limits)],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **alone},
            start_new_session=True,
        )
    except OSError as exc:  # no fault of the item that waits for it
        raise BackendError(
            f"cannot start a decode process ({exc.strerror}); free memory, processes or file "
            "handles (ulimit -u, ulimit -n), then run the same command again"
        ) from exc
    for pipe in (child.stdin, child.stdout):
        assert pipe is not None
        os.set_blocking(pipe.fileno(), False)
        with suppress(OSError, AttributeError):  # a user may hold so much pipe space only
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE)
    return child


def _await(child: subprocess.Popen[bytes]) -> None:
    """Wait until a process can take requests.

    Raises:
        EOFError: something killed it meanwhile.
        BackendError: it cannot run.
    """
    assert child.stdout is not None
    try:
        ready = receive(child.stdout.fileno(), time.monotonic() + START)
    except TimeoutError:
        ready = bytearray()
    except EOFError:
        found = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        if found is None or found.si_code != os.CLD_EXITED:
            raise
        ready = bytearray()
    if ready != READY:
        raise BackendError(
            f"cannot start a decode process with {sys.executable}; check that this Python "
            "runs and that medclipsam is installed in it"
        )


def _kill(child: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
