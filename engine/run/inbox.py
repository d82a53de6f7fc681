"""The one way from other threads to the device executor, on which no wake-up is lost."""

import time
from collections import deque
from collections.abc import Callable
from threading import Condition, Event

POLL = 0.2  # seconds after which a waiting executor looks whether the run is to stop

Message = Callable[[], None]


class Inbox:
    """What other threads bring to the executor, and whether more is on its way.

    ``begin`` says that something has started which may yet bring work, ``end`` that it is
    over. While nothing of the kind goes on, ``moving`` is 0: parts of batches can be run.

    Why no run waits for ever. All state lies behind one lock, and each method changes it in
    one step: in ``end``, the message arrives *and* the count falls, so nobody sees the one
    without the other. A wake-up is no message that somebody else could take, but a number:
    every change counts ``_changes`` up. ``look`` remembers the number together with the state
    that it returns, and a blocking ``drain`` waits only while the number is still that one.
    Hence, whatever another thread does between a ``look`` and the ``drain`` after it, and in
    whatever order: either it was in what ``look`` returned, or the drain returns at once. Who
    sees ``closed`` and ``moving == 0`` and then drains has every message there will be.

    ``look`` and ``drain`` are for the executor's thread, all others for any thread.

    Args:
        stop: once set, waiting ends within ``POLL`` seconds. Nobody has to take a lock in
            order to set it, so a signal handler may.
    """

    def __init__(self, stop: Event | None = None) -> None:
        self._stop = stop or Event()
        self._changed = Condition()
        self._messages: deque[Message] = deque()
        self._error: BaseException | None = None
        self._changes = 0
        self._seen = 0
        self.moving = 0
        self.closed = False

    def begin(self) -> None:
        """Something has started that may bring work."""
        with self._changed:
            self.moving += 1

    def end(self, message: Message | None = None) -> None:
        """It is over; ``message`` is run by the executor."""
        with self._changed:
            if message:
                self._messages.append(message)
            self.moving -= 1
            self._change()

    def close(self) -> None:
        """Nothing more will begin but what the executor itself begins."""
        with self._changed:
            self.closed = True
            self._change()

    def fail(self, error: BaseException) -> None:
        """Let the executor raise ``error``, before it runs anything else; the first one counts."""
        with self._changed:
            self._error = self._error or error
            self._change()

    def _change(self) -> None:
        self._changes += 1
        self._changed.notify_all()

    def look(self) -> tuple[bool, int]:
        """``closed`` and ``moving`` of one moment; the next ``drain`` waits for a later one."""
        with self._changed:
            self._seen = self._changes
            return self.closed, self.moving

    def drain(self, block: bool, timeout: float | None = None) -> bool:
        """Run all messages that are there.

        Args:
            block: wait first until something has changed since the last ``look``, for at
                most ``timeout`` seconds, and not once the run is to stop.

        Returns:
            Whether anything had changed, or a message was there.

        Raises:
            BaseException: what another thread handed to ``fail``.
        """
        changed = self._wait(timeout) if block else False
        found = False
        while message := self._take():
            message()
            found = True
        return changed or found

    def _wait(self, timeout: float | None) -> bool:
        until = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while self._changes == self._seen and not self._stop.is_set():
                left = POLL if until is None else min(POLL, until - time.monotonic())
                if left <= 0:
                    break
                self._changed.wait(left)
            return self._changes != self._seen

    def _take(self) -> Message | None:
        with self._changed:
            if self._error is not None:
                raise self._error
            return self._messages.popleft() if self._messages else None
