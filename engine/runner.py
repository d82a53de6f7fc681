"""Archive in, run folder out: every listed item ends as exactly one outcome per prompt.

read_image → segment → write_mask → ledger row. Reading and writing run on threads
beside the models. Bad input is quarantined and the run goes on; a result that cannot be
written stops it, and the same command resumes it.
"""

from __future__ import annotations

import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from medclipsam.engine.archive import Listing, read_image
from medclipsam.engine.engine import Engine
from medclipsam.engine.errors import BackendError, ConfigError, InputError, MedclipsamError
from medclipsam.engine.ledger import Ledger
from medclipsam.engine.outputs import label_folders
from medclipsam.engine.prompts import PromptTable
from medclipsam.engine.report import write_report
from medclipsam.engine.runfolder import (
    LEDGER,
    SUCCESS,
    RunFolder,
    versions,
    write_manifest,
)
from medclipsam.engine.types import ItemRef, Outcome, Prompts, Segment
from medclipsam.engine.work import Work, write_masks

Observer = Callable[[int, Counter[str]], None]


@dataclass(frozen=True)
class RunSummary:
    """How a run ended.

    Attributes:
        folder: the run folder.
        report: the page to open.
        items: items accounted for, earlier attempts included.
        counts: rows per status.
        resumed: items that an earlier attempt had finished.
        ignored: files of other kinds, per suffix.
        unmatched: rows of the prompt table without an item (the first hundred).
        seconds: duration of this attempt.
    """

    folder: Path
    report: Path
    items: int
    counts: Counter[str]
    resumed: int
    ignored: Counter[str]
    unmatched: tuple[str, ...]
    seconds: float

    @property
    def exit_code(self) -> int:
        """0 all done, 3 finished with quarantined items."""
        return 3 if self.counts["quarantined"] else 0


def run(
    engine: Engine,
    archive: Path,
    prompts: Prompts | PromptTable,
    out: Path,
    observer: Observer | None = None,
) -> RunSummary:
    """Label every image of ``archive`` into the run folder ``out``, resuming what is there.

    Args:
        engine: an open engine.
        archive: a folder, or one file.
        prompts: the same for every item, or a table with a row per item.
        out: new, empty, or the folder of the same run stopped earlier.
        observer: called with items finished so far and counts per status.

    Raises:
        ConfigError: the archive, prompts or folder are not fit for this run.
        OutputError: a result could not be written; the run can be resumed.
    """
    started = time.monotonic()
    _check_prompts(engine, prompts)
    listing = Listing(archive, exclude=out)
    next(iter(Listing(archive, exclude=out)))  # an archive without images leaves no folder
    with RunFolder(out, fingerprint(engine, archive, prompts)) as folder:
        folder.log("start", archive=str(archive))
        with Ledger(out / LEDGER) as ledger:
            resumed = ledger.items()
            seen = _process(engine, archive, prompts, listing, folder, ledger, observer)
            write_manifest(folder, ledger.outcomes())
            summary = RunSummary(
                folder=out,
                report=out / "report" / "index.html",
                items=ledger.items(),
                counts=ledger.counts(),
                resumed=resumed,
                ignored=listing.ignored,
                unmatched=_unmatched(prompts, seen),
                seconds=time.monotonic() - started,
            )
            write_report(out, ledger.outcomes(), report_facts(engine, archive, prompts, summary))
        folder.write(SUCCESS, b"")
        folder.log("end", items=summary.items, **summary.counts)
    return summary


def fingerprint(engine: Engine, archive: Path, prompts: Prompts | PromptTable) -> dict[str, Any]:
    """What decides the bytes of a run, as plain JSON values."""
    table = prompts.by_item if isinstance(prompts, PromptTable) else {"": prompts}
    return {
        "archive": str(archive.resolve()),
        "prompts": {item: wanted.texts for item, wanted in table.items()},
        "config": asdict(engine.config),
        "bundle": {"name": engine.bundle.name, "digest": engine.bundle.digest},
        "device": engine.pipeline.encoder.device.type,
        "versions": versions(),
    }


def report_facts(
    engine: Engine, archive: Path, prompts: Prompts | PromptTable, summary: RunSummary
) -> dict[str, object]:
    """What the report's head says of a run."""
    if isinstance(prompts, PromptTable):
        wanted: object = f"per item, from {prompts.source.name}"
    else:
        wanted = {label: " | ".join(texts) for label, texts in prompts.texts.items()}
    return {
        "archive": archive.name,
        "prompts": wanted,
        "bundle": f"{engine.bundle.name} ({engine.bundle.digest[:12]})",
        "saliency": engine.config.saliency.method,
        "device": str(engine.pipeline.encoder.device),
        "items": summary.items,
        "other files ignored": dict(summary.ignored),
        "seconds": round(summary.seconds, 1),
        "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
        "versions": versions(),
    }


def _check_prompts(engine: Engine, prompts: Prompts | PromptTable) -> None:
    """Prompts that hold for all items must be usable before any image is touched."""
    if isinstance(prompts, Prompts):
        label_folders(prompts.labels)
        engine.pipeline.encode_prompts(prompts)
    else:
        label_folders({label for wanted in prompts.by_item.values() for label in wanted.labels})


def _unmatched(prompts: Prompts | PromptTable, seen: set[str]) -> tuple[str, ...]:
    if isinstance(prompts, Prompts):
        return ()
    return tuple(islice(prompts.unmatched(seen), 100))


def _process(
    engine: Engine,
    archive: Path,
    prompts: Prompts | PromptTable,
    listing: Iterable[ItemRef],
    folder: RunFolder,
    ledger: Ledger,
    observer: Observer | None,
) -> set[str]:
    """Drive every item that has no row yet; returns ids seen, where prompts are per item."""
    seen: set[str] = set()
    finished, counts = ledger.items(), ledger.counts()
    cv2.setNumThreads(1)  # images run side by side; OpenCV's own threads would compete

    def pending() -> Iterator[ItemRef]:
        for ref in listing:
            if isinstance(prompts, PromptTable):
                seen.add(ref.id)
            if not ledger.holds(ref.id):
                yield ref

    group = engine.config.segment.batch
    with ThreadPoolExecutor(engine.threads) as pool:
        reading = _read_ahead(pool, archive, pending(), prompts, ahead=2 * group)
        while works := list(islice(reading, group)):
            _segment(engine, works, pool, folder)
            written = pool.map(lambda work: write_masks(folder, work), works)
            for work, outcomes in zip(works, written, strict=True):
                ledger.commit(outcomes)
                _log_item(folder, work, outcomes)
                finished += 1
                counts.update(outcome.status for outcome in outcomes)
            if observer:
                observer(finished, counts)
    return seen


def _read_ahead(
    pool: Executor,
    archive: Path,
    refs: Iterator[ItemRef],
    prompts: Prompts | PromptTable,
    ahead: int,
) -> Iterator[Work]:
    """Items in order, decoded on threads, at most ``ahead`` of them waiting."""
    waiting: deque[Future[Work]] = deque()
    for ref in refs:
        waiting.append(pool.submit(_read, archive, ref, prompts))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _read(archive: Path, ref: ItemRef, prompts: Prompts | PromptTable) -> Work:
    if isinstance(prompts, PromptTable):
        found = prompts.by_item.get(ref.id)
        if found is None:
            message = f"{prompts.source.name} has no row for this item; add one"
            error = InputError("read_prompts", "no-prompt", message)
            return Work(ref, Prompts({"target": ("",)}), error=error)
        work = Work(ref, found)
    else:
        work = Work(ref, prompts)
    try:
        work.image = read_image(archive, ref)
    except InputError as exc:
        work.error = exc
    return work


def _segment(engine: Engine, works: Sequence[Work], pool: Executor, folder: RunFolder) -> None:
    """Fill ``segments`` of a group; if the group fails, each alone, to find the culprit."""
    readable = [work for work in works if work.image is not None]
    try:
        _segment_together(engine, readable, pool)
    except torch.OutOfMemoryError as exc:
        raise BackendError(
            f"the device ran out of memory ({exc}); lower it with --set segment.batch=1 "
            "--set saliency.rows=16"
        ) from exc
    except MedclipsamError as exc:
        if not isinstance(exc, (ConfigError, InputError)):
            raise
        _segment_alone(engine, readable, pool, folder)
    except Exception:  # one item must never end a run: find it, name it, go on
        _segment_alone(engine, readable, pool, folder)


def _segment_together(engine: Engine, works: Sequence[Work], pool: Executor) -> None:
    frames = [(work, frame) for work in works for frame in work.image.frames]  # type: ignore[union-attr]
    for work in works:
        work.segments = []
    batch = engine.config.segment.batch
    for start in range(0, len(frames), batch):
        part = frames[start : start + batch]
        found = engine.pipeline.segment(
            [frame for _, frame in part], [work.prompts for work, _ in part], pool.map
        )
        for (work, _), segments in zip(part, found, strict=True):
            work.segments.append(_lighten(segments))


def _segment_alone(
    engine: Engine, works: Sequence[Work], pool: Executor, folder: RunFolder
) -> None:
    for work in works:
        try:
            _segment_together(engine, [work], pool)
        except ConfigError as exc:
            work.error = InputError("encode_prompts", "no-prompt", str(exc))
        except Exception as exc:  # as above: this is the culprit
            work.error = InputError("segment", "failed", f"{type(exc).__name__}: {exc}")
            folder.log(
                "failed",
                item=work.ref.id,
                traceback="".join(traceback.format_exception(exc, chain=False)),
            )


def _lighten(segments: dict[str, Segment]) -> dict[str, Segment]:
    """Drop the float maps: a volume has hundreds of frames, and only masks are written."""
    nothing = np.empty((0, 0), np.float32)
    return {
        label: Segment(**{**vars(s), "saliency": nothing, "crf_mask": nothing > 0})
        for label, s in segments.items()
    }


def _log_item(folder: RunFolder, work: Work, outcomes: Sequence[Outcome]) -> None:
    first = outcomes[0]
    facts = {"item": first.item, "seconds": round(first.seconds, 3)}
    if first.status == "quarantined":
        folder.log("quarantined", **facts, stage=first.stage, reason=first.reason)
    else:
        filters = sorted({s.crf for by_label in work.segments for s in by_label.values()})
        folder.log("done", **facts, outcomes={o.label: o.status for o in outcomes}, crf=filters)
