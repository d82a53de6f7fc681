"""The way of all items of a run: listed, loaded, through the models, written, committed.

list → read_image (threads, decode processes) → Executor (device; refine_mask on threads)
→ write_mask (threads) → commit (one thread, in groups)

An item holds a part of the byte budget from before it is loaded until its rows are
committed. Files are durable before rows. Every entry that is listed is counted, and so is
everything that becomes of it.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Event, Thread

import cv2

from medclipsam.engine.archive import Decoders, Entry, Limits
from medclipsam.engine.archive.containers.seen import Seen
from medclipsam.engine.backends.faults import refuse_broken
from medclipsam.engine.errors import InputError, OutputError
from medclipsam.engine.prompts import PromptTable
from medclipsam.engine.run.budget import Budget
from medclipsam.engine.run.commit import Committer, Finished, Observer
from medclipsam.engine.run.executor import Surroundings
from medclipsam.engine.run.folder import RunFolder
from medclipsam.engine.run.hop import Hop
from medclipsam.engine.run.inbox import Inbox, Message
from medclipsam.engine.run.labeller import Labeller
from medclipsam.engine.run.ledger import Ledger
from medclipsam.engine.run.meter import Meter
from medclipsam.engine.run.naming import HashedNames, PlainNames
from medclipsam.engine.run.streak import Streak
from medclipsam.engine.run.work import Delivery, Work, finish_work
from medclipsam.engine.types import Image, ItemRef, Prompts

FLOOR = 4 << 20  # bytes an item of any size is taken to need while the stages work on it
WORKING = 20  # bytes a pixel of a frame that is refined or decoded: float maps and logits
GRACE = 5.0  # seconds that a stopped run waits for what it asked to end


@dataclass
class Stream:
    """Everything that carries one run; ``run`` once.

    Attributes:
        seen: ids listed, where prompts are per item.
        listed: entries that the archive listed.
        repeated: of these, entries that name an item listed before.
        resumed: of these, items that an earlier attempt had committed.
        committed: of these, items that this attempt committed.
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
    listed: int = 0
    repeated: int = 0
    resumed: int = 0
    committed: int = 0

    def __post_init__(self) -> None:
        self._inbox = Inbox(self.stop)
        self._usual = 0  # bytes that items cost, a running mean
        self._sources: dict[str, ItemRef] = {}
        self._streak = Streak(self._commit_lost)

    def run(self, entries: Iterable[Entry]) -> None:
        """Drive every entry that has no row yet; returns when all are committed, or ``stop``.

        Raises:
            OutputError: a result could not be written, or an item is unaccounted for.
            BackendError: the device cannot do it, or broke.
        """
        cv2.setNumThreads(1)  # images run side by side; OpenCV's own threads would compete
        threads = self.labeller.threads
        self.meter.set_workers(read_image=threads, refine_mask=threads, write_mask=threads)
        with ExitStack() as stack:
            self._decoders = stack.enter_context(Decoders(threads, self.limits))
            self._ids = stack.enter_context(Seen())
            self._readers = Hop("read_image", threads, self._inbox, self.meter)
            refiners = Hop("refine_mask", threads, self._inbox, self.meter)
            self._writers = Hop("write_mask", threads, self._inbox, self.meter, brings=False)
            self._committer = Committer(
                *(self.ledger, self.names, self.folder, self._inbox, self.meter),
                *(self._let_go, self.observer),
            )
            lister = Thread(target=self._list, args=(entries,), name="list", daemon=True)
            broken = False
            try:
                self._executor = self.labeller.open_executor(self._surroundings(refiners))
                self._inbox.begin()
                lister.start()
                self._executor.run(self.stop)
            except BaseException:
                self.stop.set()
                broken = True
                raise
            finally:
                stopped = self.stop.is_set()
                if stopped:
                    self._decoders.close()  # what is still being read is not wanted any more
                self._readers.close(drop=stopped, patience=GRACE if stopped else None)
                refiners.close(drop=broken)
                self._writers.close(drop=broken)
                if not stopped:
                    self._streak.end()
                self._committer.close()
                self.committed = self._committer.items
                if lister.is_alive():
                    lister.join(GRACE)
            self._inbox.drain(block=False)  # what a writer or the committer had to say
            if not self.stop.is_set():
                self._take_stock()

    def _surroundings(self, refiners: Hop) -> Surroundings:
        keep_saliency, keep_crf = (name in self.delivery.formats for name in ("saliency", "crf"))
        return Surroundings(
            *(refiners, self._inbox, self.meter, self._finish, self._give_up, self._streak.passed),
            *(keep_saliency, keep_crf),
        )

    def _take_stock(self) -> None:
        """Refuse success if an entry was listed and nothing became of it.

        Raises:
            OutputError: says how many.
        """
        found = self.repeated + self.resumed + self.committed
        if found != self.listed:
            raise OutputError(
                f"the archive listed {self.listed} entries and {found} are accounted for; run the "
                "same command again for the others, and report this: it must not happen"
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
        self.listed += 1
        if not self._ids.add(ref.id):
            self.repeated += 1
            return True
        if self.ledger.holds(ref.id):
            self.resumed += 1
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
        self._sources[ref.id] = entry.ref
        self._readers.send(partial(self._load, entry, ref, cost))
        return True

    def _wait(self, waits: bool) -> None:
        """While the lister waits for bytes, nothing new is on its way to the device."""
        if waits:
            self._inbox.end()
        else:
            self._inbox.begin()

    def _load(self, entry: Entry, ref: ItemRef, cost: int) -> Message | None:
        """read_image; on a thread, which leaves the decoding to a process."""
        if self.stop.is_set():
            return None
        work = self._open_work(entry, ref)
        try:
            if work.error is None:
                self._read(entry, work)
                self._streak.passed("read_image")
        except InputError as exc:
            work.error = exc
        except Exception as exc:
            if self.stop.is_set():  # the decoders were closed under it
                return None
            refuse_broken(exc)
            self._give_up(work, "read_image", exc)
        work.cost = FLOOR + weigh(work, self.delivery.formats, self.labeller.threads)
        self.budget.correct(cost, work.cost)
        self._usual += (work.cost - FLOOR - self._usual) // 8
        return partial(self._executor.load, work)

    def _open_work(self, entry: Entry, ref: ItemRef) -> Work:
        """The item with its prompts."""
        if not isinstance(self.prompts, PromptTable):
            return Work(ref, self.prompts)
        found = self.prompts.by_item.get(entry.ref.id)
        if found is not None:
            return Work(ref, found)
        message = f"{self.prompts.source.name} has no row for this item; add one"
        error = InputError("read_prompts", "no-prompt", message)
        return Work(ref, Prompts({"target": ("",)}), error=error)

    def _read(self, entry: Entry, work: Work) -> None:
        decoded = self._decoders.decode(entry, keep="dicom-seg" in self.delivery.formats)
        work.image = Image(work.ref, decoded.frames, decoded.grid)
        work.digest, work.sources = decoded.digest, decoded.sources
        self.delivery.check_geometry(decoded.grid)

    def _give_up(self, work: Work, stage: str, exc: Exception) -> None:
        """An item failed in ``stage``."""
        if isinstance(exc, InputError):
            work.error = exc
            return
        work.error = InputError(stage, "failed", f"{type(exc).__name__}: {exc}")
        work.unexpected = exc
        text = "".join(traceback.format_exception(exc, chain=False))
        self.folder.log("failed", item=work.ref.id, stage=stage, traceback=text)

    def _finish(self, work: Work) -> None:
        """The executor is through with an item."""
        if work.unexpected is not None:
            self._hold(work)
            return
        self._writers.send(partial(self._write, work))

    def _hold(self, work: Work) -> None:
        """An item failed unexpectedly: what that means, other items will show."""
        exc, work.unexpected = work.unexpected, None
        assert exc is not None
        work.image, work.segments, work.saliency, work.sources = None, [], {}, ()
        self.budget.give(work.cost)  # a held item must not keep others out
        work.cost = 0
        self._streak.add(work, exc)

    def _write(self, work: Work) -> None:
        """write_mask; on a thread."""
        try:
            files, rows = finish_work(work, self.delivery)
        except Exception as exc:
            refuse_broken(exc)
            self._give_up(work, "write_mask", exc)
            self._hold(work)
            return
        self.folder.write_all(files)
        if work.error is None:
            self._streak.passed("write_mask")
        self._committer.put(Finished(work, self._sources.pop(work.ref.id), rows))

    def _commit_lost(self, work: Work) -> None:
        """An item that failed leaves rows and no files."""
        _, rows = finish_work(work, self.delivery)
        self._committer.put(Finished(work, self._sources.pop(work.ref.id), rows))

    def _let_go(self, work: Work) -> None:
        """The rows of an item are committed."""
        self.budget.give(work.cost)


def weigh(work: Work, formats: Sequence[str], threads: int) -> int:
    """Bytes an item holds at once until it is committed, its stages' float maps included.

    Per pixel of all frames: the picture, and per label a mask, the CRF's mask and perhaps a
    uint16 map; what is written of them once more. Per pixel of the frames that are worked on
    at one time: a float32 map, its copy on the source grid, SAM's logits. Not in it is what
    the CRF itself works with, see ``RunOptions.memory``.
    """
    if work.image is None:
        return 0
    frames, labels = work.image.frames, len(work.prompts.labels)
    pixels = frames[..., 0].size
    channels = 1 if frames.strides[-1] == 0 else 3
    maps, masks = "saliency" in formats, "crf" in formats
    held = pixels * (channels + labels * (2 + 2 * maps))
    written = pixels * (labels * (1 + 2 * maps + masks) if formats else 1)
    working = pixels // len(frames) * min(len(frames), threads) * WORKING
    return held + written + working + sum(map(len, work.sources))
