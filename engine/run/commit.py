"""The end of an item's way: its rows, written after its files, many items together."""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from medclipsam.engine.run.folder import RunFolder
from medclipsam.engine.run.hop import Hop
from medclipsam.engine.run.ledger import Ledger
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
    """Commits whatever is finished by now in one transaction.

    What it raises is the run's error, but for the observer: a progress bar whose terminal is
    gone is switched off, and the log says so.

    Args:
        hop: its one thread commits.
        committed: called with each item whose rows are in the ledger.
        observer: called with items accounted for and rows per status.

    Attributes:
        items: committed so far.
    """

    def __init__(
        self,
        ledger: Ledger,
        names: PlainNames | HashedNames,
        folder: RunFolder,
        hop: Hop,
        committed: Callable[[Work], None],
        observer: Observer | None,
    ):
        self._ledger, self._names, self._folder, self._hop = ledger, names, folder, hop
        self._committed, self._observer = committed, observer
        self._before, self._counts = ledger.items(), ledger.counts()
        self._finished: deque[Finished] = deque()
        self.items = 0

    def put(self, work: Work, source: ItemRef, rows: list[Outcome]) -> None:
        """Let an item's rows be committed."""
        self._finished.append(Finished(work, source, rows))
        self._hop.send(self._commit)

    def _commit(self) -> None:
        """All that is there; nothing, where the task before this one has taken it along."""
        group = [self._finished.popleft() for _ in range(len(self._finished))]
        if not group:
            return
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
        item = {"item": first.item, "seconds": round(first.seconds, 3)}
        if work.error is not None:
            self._folder.log("quarantined", **item, stage=first.stage, reason=first.reason)
            return
        filters = sorted({s.crf for by_label in work.segments for s in by_label.values()})
        outcomes = {row.label: row.status for row in finished.rows}
        self._folder.log("done", **item, outcomes=outcomes, crf=filters)
