"""The way of all items of a run: listed, loaded, through the models, written, committed.

list → read_image (threads, decode processes) → Executor (device; refine_mask on threads)
→ write_mask (threads) → commit (one thread, in groups)

An item holds a part of the byte budget from before it is loaded until its rows are
committed. Files are durable before rows.
"""

from __future__ import annotations

import queue
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Event, Thread

import cv2

from medclipsam.engine.archive import Decoders, Entry, Limits
from medclipsam.engine.budget import Budget
from medclipsam.engine.errors import InputError
from medclipsam.engine.executor import Surroundings
from medclipsam.engine.inbox import Inbox
from medclipsam.engine.labeller import Labeller
from medclipsam.engine.ledger import Ledger
from medclipsam.engine.meter import Meter
from medclipsam.engine.naming import HashedNames, PlainNames
from medclipsam.engine.prompts import PromptTable
from medclipsam.engine.runfolder import RunFolder
from medclipsam.engine.types import Image, ItemRef, Outcome, Prompts
from medclipsam.engine.work import Delivery, Work, finish_work

FLOOR = 4 << 20  # bytes an item of any size is taken to need while the stages work on it
Observer = Callable[[int, Counter[str]], None]


@dataclass
class Stream:
    """Everything that carries one run; ``run`` once.

    Attributes:
        seen: ids listed, where prompts are per item.
        repeated: items that the archive listed more than once.
    """

    labeller: Labeller
    prompts: Prompts | PromptTable
    folder: RunFolder
    ledger: Ledger
    names: PlainNames | HashedNames
    delivery: Delivery
    budget: Budget
    limits: Limits
    meter: Meter
    stop: Event
    observer: Observer | None = None
    seen: set[str] = field(default_factory=set)
    repeated: int = 0

    def __post_init__(self) -> None:
        self._inbox = Inbox()
        self._finished: queue.SimpleQueue[tuple[Work, ItemRef, list[Outcome]] | None]
        self._finished = queue.SimpleQueue()
        self._flying: set[str] = set()
        self._usual = 0  # bytes that items cost, a running mean
        self._sources: dict[str, ItemRef] = {}
        self._broken = False

    def run(self, entries: Iterable[Entry]) -> None:
        """Drive every entry that has no row yet; returns when all are committed, or ``stop``.

        Raises:
            OutputError: a result could not be written.
            BackendError: the device cannot do it.
        """
        cv2.setNumThreads(1)  # images run side by side; OpenCV's own threads would compete
        threads = self.labeller.threads
        self.meter.set_workers(read_image=threads, refine_mask=threads, write_mask=threads)
        with ExitStack() as stack:
            self._decoders = stack.enter_context(Decoders(threads, self.limits))
            pools = [ThreadPoolExecutor(threads, name) for name in ("read", "refine", "write")]
            self._readers, refiners, self._writers = pools
            committer = Thread(target=self._commit_all, name="commit", daemon=True)
            lister = Thread(target=self._list, args=(entries,), name="list", daemon=True)
            executor = self.labeller.open_executor(self._surroundings(refiners))
            self._executor = executor
            self._inbox.begin()
            committer.start()
            lister.start()
            try:
                executor.run(self.stop)
            except BaseException:
                self.stop.set()
                self._broken = True
                raise
            finally:
                for pool in pools:
                    pool.shutdown(cancel_futures=self._broken)
                self._finished.put(None)
                committer.join()
                lister.join(timeout=5)
            self._inbox.drain(block=False)  # what a writer or the committer had to say

    def _surroundings(self, pool: ThreadPoolExecutor) -> Surroundings:
        keep_saliency, keep_crf = (name in self.delivery.formats for name in ("saliency", "crf"))
        return Surroundings(
            pool, self._inbox, self.meter, self._finish, self._log_failure, keep_saliency, keep_crf
        )

    def _list(self, entries: Iterable[Entry]) -> None:
        """On a thread of its own: let items in as the budget allows."""
        try:
            for entry in entries:
                if self.stop.is_set() or not self._admit(entry):
                    break
        except BaseException as exc:
            self._inbox.fail(exc)
        self._inbox.close()
        self._inbox.end()

    def _admit(self, entry: Entry) -> bool:
        """Start loading an item, unless it is accounted for; False if the run is to stop."""
        ref = self.names.name(entry.ref)
        if isinstance(self.prompts, PromptTable):
            self.seen.add(entry.ref.id)
        if ref.id in self._flying:
            self.repeated += 1
            return True
        if self.ledger.holds(ref.id):
            return True
        cost = FLOOR + entry.size + self._usual
        if not self.budget.take(cost, self._wait):
            return False
        if entry.streamed and entry.fetch:
            try:
                data = entry.fetch()
                entry = replace(entry, fetch=lambda: data)
            except InputError as exc:
                entry = replace(entry, fetch=None, error=exc)
        self._flying.add(ref.id)
        self._sources[ref.id] = entry.ref
        self._inbox.begin()
        self.meter.wait("read_image", 1)
        self._readers.submit(self._load, entry, ref, cost)
        return True

    def _wait(self, waits: bool) -> None:
        """While the lister waits for bytes, nothing new is on its way to the device."""
        if waits:
            self._inbox.end()
        else:
            self._inbox.begin()

    def _load(self, entry: Entry, ref: ItemRef, cost: int) -> None:
        """read_image; on a thread, which leaves the decoding to a process."""
        self.meter.wait("read_image", -1)
        if self.stop.is_set():
            self._inbox.end()
            return
        try:
            with self.meter.work("read_image"):
                work = self._read(entry, ref)
            work.cost = FLOOR + _weigh(work, self.delivery.formats)
            self.budget.correct(cost, work.cost)
            self._usual += (work.cost - FLOOR - self._usual) // 8
        except BaseException as exc:
            self._inbox.fail(exc)
            self._inbox.end()
        else:
            self._inbox.end(partial(self._executor.load, work))

    def _read(self, entry: Entry, ref: ItemRef) -> Work:
        if isinstance(self.prompts, PromptTable):
            found = self.prompts.by_item.get(entry.ref.id)
            if found is None:
                message = f"{self.prompts.source.name} has no row for this item; add one"
                error = InputError("read_prompts", "no-prompt", message)
                return Work(ref, Prompts({"target": ("",)}), error=error)
            work = Work(ref, found)
        else:
            work = Work(ref, self.prompts)
        try:
            decoded = self._decoders.decode(entry, keep="dicom-seg" in self.delivery.formats)
        except InputError as exc:
            work.error = exc
            return work
        work.image = Image(ref, decoded.frames, decoded.grid)
        work.digest, work.sources = decoded.digest, decoded.sources
        return work

    def _finish(self, work: Work) -> None:
        """The executor is through with an item."""
        self.meter.wait("write_mask", 1)
        self._writers.submit(self._write, work)

    def _write(self, work: Work) -> None:
        """write_mask; on a thread."""
        self.meter.wait("write_mask", -1)
        try:
            with self.meter.work("write_mask"):
                files, rows = finish_work(work, self.delivery)
                self.folder.write_all(files)
        except BaseException as exc:
            self._inbox.fail(exc)
        else:
            self.meter.wait("commit", 1)
            self._finished.put((work, self._sources.pop(work.ref.id), rows))

    def _commit_all(self) -> None:
        """On a thread of its own: rows of all items that are durable by now, together."""
        finished, counts = self.ledger.items(), self.ledger.counts()
        while (first := self._finished.get()) is not None:
            group = [first]
            while not self._finished.empty():
                further = self._finished.get()
                if further is None:
                    self._finished.put(None)
                    break
                group.append(further)
            self.meter.wait("commit", -len(group))
            try:
                with self.meter.work("commit", len(group)):
                    self.names.record(source for _, source, _ in group)
                    self.ledger.commit([row for _, _, rows in group for row in rows])
                    for work, _, rows in group:
                        self._log_item(work, rows)
            except BaseException as exc:
                self._inbox.fail(exc)
                return
            for work, _, rows in group:
                self.budget.give(work.cost)
                self._flying.discard(work.ref.id)
                counts.update(row.status for row in rows)
            finished += len(group)
            if self.observer:
                self.observer(finished, counts)

    def _log_failure(self, work: Work, exc: Exception) -> None:
        text = "".join(traceback.format_exception(exc, chain=False))
        self.folder.log("failed", item=work.ref.id, traceback=text)

    def _log_item(self, work: Work, rows: list[Outcome]) -> None:
        first = rows[0]
        facts = {"item": first.item, "seconds": round(first.seconds, 3)}
        if work.error is not None:
            self.folder.log("quarantined", **facts, stage=first.stage, reason=first.reason)
            return
        filters = sorted({s.crf for by_label in work.segments for s in by_label.values()})
        self.folder.log("done", **facts, outcomes={r.label: r.status for r in rows}, crf=filters)


def _weigh(work: Work, formats: Sequence[str]) -> int:
    """Bytes an item holds until it is committed: pixels, masks, perhaps maps and sources."""
    if work.image is None:
        return 0
    frames = work.image.frames
    pixels = frames[..., 0].size
    channels = 1 if frames.strides[-1] == 0 else 3
    per_label = 1 + 2 * ("saliency" in formats) + ("crf" in formats)
    held = pixels * (channels + per_label * len(work.prompts.labels))
    return held + sum(map(len, work.sources))
