"""The end of an item's way: its rows, written after its files, many items together."""

from __future__ import annotations

import queue
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from threading import Thread

from medclipsam.engine.run.folder import RunFolder
from medclipsam.engine.run.inbox import Inbox
from medclipsam.engine.run.ledger import Ledger
from medclipsam.engine.run.meter import Meter
from medclipsam.engine.run.naming import HashedNames, PlainNames
from medclipsam.engine.run.work import Work
from medclipsam.engine.types import ItemRef, Outcome

Observer = Callable[[int, Counter[str]], None]


@dataclass(frozen=True)
class Finished:
    """An item whose files are durable, and its rows."""

    work: Work
    source: ItemRef
    rows: list[Outcome]


class Committer:
    """A thread that commits whatever is finished by now in one transaction.

    What it raises is the run's error, but for the observer: a progress bar whose terminal is
    gone is switched off, and the log says so.

    Args:
        committed: called with each item whose rows are in the ledger.
        observer: called with items accounted for and rows per status.

    Attributes:
        items: committed by this thread.
    """

    def __init__(
        self,
        ledger: Ledger,
        names: PlainNames | HashedNames,
        folder: RunFolder,
        inbox: Inbox,
        meter: Meter,
        committed: Callable[[Work], None],
        observer: Observer | None,
    ):
        self._ledger, self._names, self._folder = ledger, names, folder
        self._inbox, self._meter = inbox, meter
        self._committed, self._observer = committed, observer
        self._before, self._counts = ledger.items(), ledger.counts()
        self.items = 0
        self._queue: queue.SimpleQueue[Finished | None] = queue.SimpleQueue()
        self._thread = Thread(target=self._run, name="commit", daemon=True)
        self._thread.start()

    def put(self, finished: Finished) -> None:
        """Let an item's rows be committed."""
        self._meter.wait("commit", 1)
        self._queue.put(finished)

    def close(self) -> None:
        """Commit what was put, and end."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            while group := self._next_group():
                self._commit(group)
        except BaseException as exc:
            self._inbox.fail(exc)

    def _next_group(self) -> list[Finished]:
        """All that is there, at least one; nothing at the end."""
        first = self._queue.get()
        group = [] if first is None else [first]
        while group and not self._queue.empty():
            further = self._queue.get()
            if further is None:
                self._queue.put(None)
                break
            group.append(further)
        return group

    def _commit(self, group: list[Finished]) -> None:
        self._meter.wait("commit", -len(group))
        with self._meter.work("commit", len(group)):
            self._names.record(finished.source for finished in group)
            self._ledger.commit([row for finished in group for row in finished.rows])
        self.items += len(group)
        for finished in group:
            self._log(finished)
            self._counts.update(row.status for row in finished.rows)
            self._committed(finished.work)
        self._tell()

    def _tell(self) -> None:
        if self._observer is None:
            return
        try:
            self._observer(self._before + self.items, self._counts)
        except Exception as exc:
            self._observer = None
            self._folder.log("progress off", error=f"{type(exc).__name__}: {exc}")

    def _log(self, finished: Finished) -> None:
        work, first = finished.work, finished.rows[0]
        facts = {"item": first.item, "seconds": round(first.seconds, 3)}
        if work.error is not None:
            self._folder.log("quarantined", **facts, stage=first.stage, reason=first.reason)
            return
        filters = sorted({s.crf for by_label in work.segments for s in by_label.values()})
        outcomes = {row.label: row.status for row in finished.rows}
        self._folder.log("done", **facts, outcomes=outcomes, crf=filters)
