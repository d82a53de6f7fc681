"""Messages over a pipe: eight bytes of length, then so many bytes.

Ends that do not block may be given a deadline; blocking ends may not.
"""

import json
import os
import select
import struct
import time
from typing import Any

LENGTH = struct.Struct("<Q")
SMALL = 1 << 16  # parts up to this size share one system call


def send(pipe: int, *messages: bytes | memoryview, deadline: float | None = None) -> None:
    """Write whole messages.

    Args:
        deadline: of ``time.monotonic``.

    Raises:
        OSError: the other end is closed.
        TimeoutError: not all was taken before the deadline.
    """
    waiting = b""
    for message in messages:
        waiting += LENGTH.pack(len(message))
        if len(message) <= SMALL:
            waiting += message
        else:
            _write(pipe, waiting, deadline)
            _write(pipe, message, deadline)
            waiting = b""
    _write(pipe, waiting, deadline)


def receive(pipe: int, deadline: float | None = None) -> bytearray:
    """The next message.

    Raises:
        EOFError: the other end is closed.
        TimeoutError: it was not there before the deadline.
    """
    head = bytearray(LENGTH.size)
    _read(pipe, head, deadline)
    message = bytearray(LENGTH.unpack(head)[0])
    _read(pipe, message, deadline)
    return message


def receive_json(pipe: int, deadline: float | None = None) -> Any:
    """The next message as the value it describes; see ``receive``."""
    return json.loads(receive(pipe, deadline))


def _write(pipe: int, data: bytes | memoryview, deadline: float | None) -> None:
    view = memoryview(data).cast("B")
    while view:
        try:
            view = view[os.write(pipe, view) :]
        except BlockingIOError:
            _wait(pipe, select.POLLOUT, deadline)


def _read(pipe: int, into: bytearray, deadline: float | None) -> None:
    view = memoryview(into)
    while view:
        try:
            count = os.readv(pipe, [view])
        except BlockingIOError:
            _wait(pipe, select.POLLIN, deadline)
            continue
        if not count:
            raise EOFError("the other process has ended")
        view = view[count:]


def _wait(pipe: int, event: int, deadline: float | None) -> None:
    poll = select.poll()
    poll.register(pipe, event)
    left = None if deadline is None else deadline - time.monotonic()
    if left is not None and (left <= 0 or not poll.poll(1000 * left)):
        raise TimeoutError("the other process did not answer in time")
    if left is None:
        poll.poll()
