"""A stage on CPU threads: counted, submitted, timed, caught and handed on in one place."""

import queue
import time
from collections.abc import Callable
from threading import Thread

import torch

from medclipsam.engine.run.inbox import Inbox, Message
from medclipsam.engine.run.meter import Meter

Task = Callable[[], Message | None]


class Hop:
    """Threads that run the tasks of one stage beside the executor.

    A task that was sent ends exactly once, whatever happens in it: with the message that it
    returns, which the executor will run, or with its exception, which is the run's error.
    Whatever concerns one item only is the task's to catch.

    Args:
        stage: a stage of ``Meter``.
        threads: how many tasks run at once.
        inbox: where messages go.
        meter: where time goes.
        brings: tasks may bring work to the executor: they count in ``Inbox.moving``.
    """

    def __init__(self, stage: str, threads: int, inbox: Inbox, meter: Meter, brings: bool = True):
        self._stage, self._inbox, self._meter, self._brings = stage, inbox, meter, brings
        self._tasks: queue.SimpleQueue[tuple[Task, int] | None] = queue.SimpleQueue()
        # Daemons: a read that hangs on a dead disk must not keep the process from ending.
        self._threads = [
            Thread(target=self._serve, name=f"{stage}-{n}", daemon=True) for n in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def send(self, task: Task, items: int = 1) -> None:
        """Let ``task``, which works on so many items, be run; never waits."""
        if self._brings:
            self._inbox.begin()
        self._meter.wait(self._stage, items)
        self._tasks.put((task, items))

    def close(self, drop: bool = False, patience: float | None = None) -> None:
        """End the threads after the tasks that were sent, or before those not begun.

        Args:
            drop: forget tasks that nobody has begun.
            patience: seconds to wait for those in progress, by default for ever.
        """
        if drop:
            while not self._tasks.empty():
                try:
                    self._tasks.get_nowait()
                except queue.Empty:
                    break
        for _ in self._threads:
            self._tasks.put(None)
        until = None if patience is None else time.monotonic() + patience
        for thread in self._threads:
            thread.join(None if until is None else max(0.0, until - time.monotonic()))

    def _serve(self) -> None:
        torch.set_num_threads(1)  # of this thread: tasks run side by side, torch's would compete
        while (sent := self._tasks.get()) is not None:
            (task, items), message = sent, None
            try:
                self._meter.wait(self._stage, -items)
                with self._meter.work(self._stage, items):
                    message = task()
            except BaseException as exc:
                self._inbox.fail(exc)
            finally:
                if self._brings:
                    self._inbox.end(message)
