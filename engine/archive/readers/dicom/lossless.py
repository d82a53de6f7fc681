"""DICOM JPEG Lossless, decoded by GDCM in a process of its own.

On some damaged streams GDCM throws a C++ exception that nothing catches and takes its
process along (found by flipping bytes). There, that costs one item and not the run.
The process starts with the first such item and serves all further ones.
"""

from __future__ import annotations

import atexit
import io
import os
import signal
import struct
import subprocess
import sys
import threading
from typing import IO

import numpy as np

from medclipsam.engine.archive.limits import refuse
from medclipsam.engine.archive.readers.dicom.bits import AS_STORED
from medclipsam.engine.errors import BackendError

PATIENCE = 300.0  # seconds for one item; 0.1 is usual, a damaged one may loop for ever
READY = b"ready"
# GDCM begins with ``import dl``, a module of Python 2: a folder of that name on the path
# would break it, so the names it probes for lead nowhere.
PROGRAM = """
import sys
sys.modules.update(dl=None, DLFCN=None)
import gdcm
for channel in ("Debug", "Warning", "Error"):
    getattr(gdcm.Trace, channel + "Off")()
from medclipsam.engine.archive.readers.dicom.lossless import serve
serve()
"""


class LosslessDecoder:
    """The other process, seen from here; one item at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def start(self) -> None:
        """Start the other process, if it does not run yet.

        Raises:
            BackendError: it cannot be started.
        """
        with self._lock:
            self._running()

    def decode(self, data: bytes) -> np.ndarray:
        """Stored cells of a DICOM file, as pydicom's ``pixel_array`` returns them.

        Raises:
            InputError: the pixels are damaged.
            BackendError: the process cannot be started.
        """
        with self._lock:
            process = self._running()
            assert process.stdin is not None and process.stdout is not None
            watchdog = threading.Timer(PATIENCE, process.kill)
            watchdog.start()
            try:
                _send(process.stdin, data)
                reply = _receive(process.stdout)
            except (OSError, EOFError) as exc:
                self._stop()
                raise refuse(
                    "unreadable",
                    "expected JPEG Lossless pixels, got content that ended the decoder",
                ) from exc
            finally:
                watchdog.cancel()
        if not reply:
            raise refuse("unreadable", "expected JPEG Lossless pixels, got damaged content")
        return np.load(io.BytesIO(reply), allow_pickle=False)

    def close(self) -> None:
        """End the other process; a later item starts a new one."""
        with self._lock:
            self._stop()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._owner != os.getpid():  # another one after a fork
            paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
            self._owner = os.getpid()
            self._process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": paths},
            )
            assert self._process.stdout is not None
            try:
                ready = _receive(self._process.stdout)
            except EOFError:
                ready = b""
            if ready != READY:
                self._stop()
                raise BackendError(
                    f"cannot start the JPEG Lossless decoder with {sys.executable}; check that "
                    "this Python runs and that python-gdcm is installed in it"
                )
        return self._process

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except OSError:  # unsent bytes for a process that is gone
                continue


def serve() -> None:
    """The other process: DICOM files on stdin, pixels as .npy on stdout."""
    from pydicom import dcmread
    from pydicom.pixels import pixel_array

    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # codecs print remarks
    _send(output, READY)
    while True:
        try:
            data = _receive(sys.stdin.buffer)
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)  # should nobody be left to end a loop
        reply = io.BytesIO()
        try:
            ds = dcmread(io.BytesIO(data))
            ds.BitsStored = ds.BitsAllocated  # GDCM would cut cells by it, whatever HighBit says
            np.save(reply, pixel_array(ds, decoding_plugin="gdcm", **AS_STORED))
        except Exception:  # reported as an empty reply
            reply = io.BytesIO()
        signal.setitimer(signal.ITIMER_REAL, 0)
        _send(output, reply.getvalue())


def _send(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(struct.pack("<Q", len(data)))
    pipe.write(data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes:
    head = pipe.read(8)
    if len(head) < 8:
        raise EOFError("the other process has ended")
    (length,) = struct.unpack("<Q", head)
    data = pipe.read(length)
    if len(data) < length:
        raise EOFError("the other process has ended")
    return data


DECODER = LosslessDecoder()
atexit.register(DECODER.close)
