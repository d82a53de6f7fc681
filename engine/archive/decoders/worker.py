"""The decode process: one item after the other, until its standard input closes.

Whatever an item does to it, it costs this process at most. Should the parent be gone and
an item loop for ever, an alarm ends the process all the same.
"""

import json
import os
import resource
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medclipsam.engine.archive.decoders.pipe import receive, receive_json, send
from medclipsam.engine.archive.decoders.reply import pack, pack_error
from medclipsam.engine.archive.limits import Limits, refuse
from medclipsam.engine.archive.readers.dicom.lossless import allow_gdcm
from medclipsam.engine.archive.readers.reader import decode
from medclipsam.engine.errors import BackendError, InputError

READY = b"ready"
GRACE = 5.0  # seconds that the parent has to end an item in time, before the alarm does


def describe(limits: Limits) -> str:
    """The argument that tells a decode process its limits."""
    return json.dumps(asdict(limits))


def serve() -> None:
    """Answer requests on standard input; see ``decoders`` for the other side."""
    limits = Limits(**json.loads(sys.argv[1]))
    _cap_memory(limits.max_memory)
    allow_gdcm()
    output = os.dup(1)
    os.dup2(2, 1)  # codecs print remarks
    send(output, READY)
    while True:
        try:
            request = receive_json(0)
            data = bytes(receive(0)) if request["files"] is None else b""
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_REAL, limits.max_seconds + GRACE)
        head, parts = _answer(request, data, limits)
        signal.setitimer(signal.ITIMER_REAL, 0)
        send(output, json.dumps(head).encode(), *parts)


def _answer(
    request: dict[str, Any], data: bytes, limits: Limits
) -> tuple[dict[str, Any], list[bytes | memoryview]]:
    files = request["files"]
    source = data if files is None else [Path(file) for file in files]
    try:
        return pack(decode(source, limits, request["keep"]))
    except (InputError, BackendError) as exc:
        return pack_error(exc), []
    except MemoryError:
        message = f"decoding needs more than {limits.max_memory} bytes; raise max_memory"
        return pack_error(refuse("too-large", message)), []
    except Exception as exc:  # its text may quote what the file holds
        return pack_error(refuse("failed", f"the decoder raised {type(exc).__name__}")), []


def _cap_memory(size: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or size < hard:
        resource.setrlimit(resource.RLIMIT_AS, (size, hard))
