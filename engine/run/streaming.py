"""The way of all items of a run: listed, loaded, through the models, written, committed.

list → read_image (threads, decode processes) → Executor (device; fit_image, refine_mask, conclude
on threads) → write_mask (threads) → commit (one thread, in groups)

An item holds a part of the byte budget from before it is loaded until its rows are
committed. Files are durable before rows. Every entry that is listed is counted, and so is
everything that becomes of it.
"""

import traceback
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from threading import Event, Thread

import cv2

from medclipsam.engine.archive import Decoders, Entry, Limits
from medclipsam.engine.archive.containers.seen import Seen
from medclipsam.engine.backends.faults import refuse_broken
from medclipsam.engine.errors import InputError, OutputError
from medclipsam.engine.prompts import PromptTable
from medclipsam.engine.run.budget import Budget
from medclipsam.engine.run.commit import Committer, Observer
from medclipsam.engine.run.device.executor import ExecutorContext, Method
from medclipsam.engine.run.folder import RunFolder
from medclipsam.engine.run.hop import Hop
from medclipsam.engine.run.inbox import Inbox, Message
from medclipsam.engine.run.ledger import Ledger
from medclipsam.engine.run.meter import Meter
from medclipsam.engine.run.naming import HashedNames, PlainNames
from medclipsam.engine.run.streak import Streak
from medclipsam.engine.run.switching import quick_switching
from medclipsam.engine.run.work import Delivery, Work, finish_work
from medclipsam.engine.types import Image, ItemRef, Prompts

FLOOR = 4 << 20  # bytes an item of any size is taken to need while the stages work on it
WORKING = 20  # bytes a pixel of a frame that is refined or decoded: float maps and logits
GRACE = 5.0  # seconds that a stopped run waits for what it asked to end


@dataclass(frozen=True)
class Job:
    """What a run works with, from its first entry to its last row."""

    method: Method
    prompts: Prompts | PromptTable
    folder: RunFolder
    ledger: Ledger
    names: PlainNames | HashedNames
    delivery: Delivery
    memory: int
    limits: Limits
    meter: Meter
    observer: Observer | None = None


@dataclass
class Census:
    """What became of the entries of an archive.

    Attributes:
        listed: entries that the archive listed.
        repeated: of these, entries that name an item listed before.
        resumed: of these, items that an earlier attempt had committed.
        committed: of these, items that this attempt committed.
        ids: ids listed, where prompts are per item.
    """

    listed: int = 0
    repeated: int = 0
    resumed: int = 0
    committed: int = 0
    ids: set[str] = field(default_factory=set)

    def check(self) -> None:
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


def stream(job: Job, entries: Iterable[Entry], stop: Event) -> Census:
    """Drive every entry that has no row yet; returns when all are committed, or ``stop``.

    Raises:
        OutputError: a result could not be written, or an item is unaccounted for.
        BackendError: the device cannot do it, or broke.
    """
    cv2.setNumThreads(1)  # images run side by side; OpenCV's own threads would compete
    threads, meter, delivery = job.method.threads, job.meter, job.delivery
    meter.set_workers(
        read_image=threads,
        fit_image=threads,
        refine_mask=threads,
        conclude=threads,
        write_mask=threads,
    )
    inbox, budget, census = Inbox(stop), Budget(job.memory, stop), Census()
    sources: dict[str, ItemRef] = {}  # names in the run folder → names in the archive
    usual = 0  # bytes that items cost, a running mean

    def admit(entry: Entry) -> bool:
        """Start loading an item, unless it is accounted for; False if the run is to stop."""
        ref = job.names.name(entry.ref)
        if isinstance(job.prompts, PromptTable):
            census.ids.add(entry.ref.id)
        census.listed += 1
        if not listed.add(ref.id):
            census.repeated += 1
            return True
        if job.ledger.holds(ref.id):
            census.resumed += 1
            return True
        cost = FLOOR + entry.size + usual
        if not budget.take(cost, wait):
            return False
        entry = entry.held()
        sources[ref.id] = entry.ref
        readers.send(partial(load, entry, ref, cost))
        return True

    def wait(waits: bool) -> None:
        """While the lister waits for bytes, nothing new is on its way to the device."""
        if waits:
            inbox.end()
        else:
            inbox.begin()

    def list_entries() -> None:
        """On a thread of its own: let items in as the budget allows."""
        try:
            for entry in entries:
                if stop.is_set() or not admit(entry):
                    break
        except BaseException as exc:
            inbox.fail(exc)
        inbox.close()
        inbox.end()

    def load(entry: Entry, ref: ItemRef, cost: int) -> Message | None:
        """read_image; on a thread, which leaves the decoding to a process."""
        nonlocal usual
        if stop.is_set():
            return None
        work = open_work(entry, ref, job.prompts)
        try:
            if work.error is None:
                read_image(entry, work, decoders, delivery)
                streak.passed("read_image")
        except InputError as exc:
            work.error = exc
        except Exception as exc:
            if stop.is_set():  # the decoders were closed under it
                return None
            refuse_broken(exc)
            give_up(work, "read_image", exc)
        work.cost = FLOOR + weigh(work, delivery.formats, threads)
        budget.correct(cost, work.cost)
        usual += (work.cost - FLOOR - usual) // 8
        return partial(executor.load, work)

    def give_up(work: Work, stage: str, exc: Exception) -> None:
        """An item failed in ``stage``."""
        if isinstance(exc, InputError):
            work.error = exc
            return
        work.error = InputError(stage, "failed", f"{type(exc).__name__}: {exc}")
        work.unexpected = exc
        text = "".join(traceback.format_exception(exc, chain=False))
        job.folder.log("failed", item=work.ref.id, stage=stage, traceback=text)

    def finish(work: Work) -> None:
        """The executor is through with an item."""
        if work.unexpected is None:
            writers.send(partial(write, work))
        else:
            hold(work)

    def hold(work: Work) -> None:
        """An item failed unexpectedly: what that means, other items will show."""
        exc, work.unexpected = work.unexpected, None
        assert exc is not None
        work.image, work.segments, work.saliency, work.sources = None, [], {}, ()
        budget.give(work.cost)  # a held item must not keep others out
        work.cost = 0
        streak.add(work, exc)

    def write(work: Work) -> None:
        """write_mask; on a thread."""
        try:
            files, rows = finish_work(work, delivery)
        except Exception as exc:
            refuse_broken(exc)
            give_up(work, "write_mask", exc)
            hold(work)
            return
        job.folder.write_all(files)
        if work.error is None:
            streak.passed("write_mask")
        committer.put(work, sources.pop(work.ref.id), rows)

    def commit_failed(work: Work) -> None:
        """An item that failed leaves rows and no files."""
        committer.put(work, sources.pop(work.ref.id), finish_work(work, delivery)[1])

    streak = Streak(commit_failed)
    with ExitStack() as stack:
        stack.enter_context(quick_switching())
        decoders = stack.enter_context(Decoders(threads, job.limits))
        listed = stack.enter_context(Seen())
        readers = Hop("read_image", threads, inbox, meter)
        fitters = Hop("fit_image", threads, inbox, meter)
        refiners = Hop("refine_mask", threads, inbox, meter)
        concluders = Hop("conclude", threads, inbox, meter, brings=False)
        writers = Hop("write_mask", threads, inbox, meter, brings=False)
        committers = Hop("commit", 1, inbox, meter, brings=False)
        committer = Committer(
            *(job.ledger, job.names, job.folder, committers),
            *(lambda work: budget.give(work.cost), job.observer),
        )
        context = ExecutorContext(
            *(fitters, refiners, concluders, inbox, meter, finish, give_up, streak.passed),
            *("saliency" in delivery.formats, "crf" in delivery.formats),
        )
        lister = Thread(target=list_entries, name="list", daemon=True)
        broken = False
        try:
            executor = job.method.open_executor(context)
            inbox.begin()
            lister.start()
            executor.run(stop)
        except BaseException:
            stop.set()
            broken = True
            raise
        finally:
            stopped = stop.is_set()
            if stopped:
                decoders.close()  # what is still being read is not wanted any more
            readers.close(drop=stopped, patience=GRACE if stopped else None)
            fitters.close(drop=broken)
            refiners.close(drop=broken)
            concluders.close(drop=broken)
            writers.close(drop=broken)
            if not stopped:
                streak.end()
            committers.close()
            census.committed = committer.items
            if lister.is_alive():
                lister.join(GRACE)
        inbox.drain(block=False)  # what a writer or the committer had to say
        if not stop.is_set():
            census.check()
    return census


def open_work(entry: Entry, ref: ItemRef, prompts: Prompts | PromptTable) -> Work:
    """The item with its prompts."""
    if not isinstance(prompts, PromptTable):
        return Work(ref, prompts)
    found = prompts.by_item.get(entry.ref.id)
    if found is not None:
        return Work(ref, found)
    message = f"{prompts.source.name} has no row for this item; add one"
    error = InputError("read_prompts", "no-prompt", message)
    return Work(ref, Prompts({"target": ("",)}), error=error)


def read_image(entry: Entry, work: Work, decoders: Decoders, delivery: Delivery) -> None:
    """Decode an item into ``work``.

    Raises:
        InputError: it cannot be read, or its geometry is not known and must be.
    """
    decoded = decoders.decode(entry, keep="dicom-seg" in delivery.formats)
    work.image = Image(work.ref, decoded.frames, decoded.grid)
    work.digest, work.sources = decoded.digest, decoded.sources
    delivery.check_geometry(decoded.grid)


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
