"""Archive in, run folder out: every listed item ends as exactly one outcome per prompt.

Bad input is quarantined and the run goes on; a result that cannot be written stops it, and
the same command resumes it. How items stream through is ``streaming``'s business.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Any

from medclipsam.engine.archive import Archive, Limits
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.outputs import (
    COLLECTIONS,
    FORMATS,
    Collected,
    check_folder,
    label_folders,
    number_labels,
)
from medclipsam.engine.prompts import PromptTable
from medclipsam.engine.report.report import write_report
from medclipsam.engine.run.budget import Budget
from medclipsam.engine.run.collecting import Selection, collect_cases
from medclipsam.engine.run.commit import Observer
from medclipsam.engine.run.folder import (
    LEDGER,
    SUCCESS,
    TRACE,
    RunFolder,
    identify,
    versions,
    write_duplicates,
    write_manifest,
)
from medclipsam.engine.run.labeller import Labeller
from medclipsam.engine.run.ledger import Ledger
from medclipsam.engine.run.meter import Meter, StageFigures, Trace
from medclipsam.engine.run.naming import HashedNames, PlainNames
from medclipsam.engine.run.streaming import Stream
from medclipsam.engine.run.work import Delivery
from medclipsam.engine.types import Prompts

MEMORY = 1 << 30
GEOMETRY = ("warn", "strict")


@dataclass(frozen=True)
class RunOptions:
    """What a run delivers, and how much it may take.

    Attributes:
        outputs: formats beside the masks, and collections made of them at the end, see
            ``FORMATS`` and ``COLLECTIONS`` of ``medclipsam.engine.outputs``.
        min_confidence: masks below it are quarantined and kept apart.
        hash_names: no file name of the archive in the run folder, but for ``private/``.
        memory: bytes that items in flight may hold together: pictures, masks and maps of all
            their labels. Beside that, the CRF works with 34 bytes a pixel of each frame that a
            thread refines if it is grey, 135 to 440 if it is coloured.
        trace: write ``trace.json``.
        limits: how much one item may ask for.
        geometry: ``warn`` counts items whose spacing or position is not known, ``strict``
            quarantines them; see ``Grid.doubt``.
    """

    outputs: tuple[str, ...] = ()
    min_confidence: float = 0.0
    hash_names: bool = False
    memory: int = MEMORY
    trace: bool = False
    limits: Limits = field(default_factory=Limits)
    geometry: str = "warn"

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.outputs) - {*FORMATS, *COLLECTIONS}):
            known = ", ".join((*FORMATS, *COLLECTIONS))
            raise ConfigError(f"unknown output {unknown[0]!r}; known are {known}")
        if self.hash_names and "dicom-seg" in self.outputs:
            raise ConfigError(
                "a DICOM SEG names the patient and study of its source, so dicom-seg does not go "
                "with hash_names; leave one of them out"
            )
        if not 0 <= self.min_confidence <= 1:
            raise ConfigError(f"min_confidence lies in [0, 1], got {self.min_confidence}")
        if self.geometry not in GEOMETRY:
            raise ConfigError(f"geometry is {' or '.join(GEOMETRY)}, got {self.geometry!r}")
        if self.memory < 1:
            raise ConfigError(f"memory is a number of bytes of at least 1, got {self.memory}")

    @property
    def formats(self) -> tuple[str, ...]:
        """What is written of every item."""
        return tuple(name for name in FORMATS if name in self.outputs)

    @property
    def collections(self) -> tuple[str, ...]:
        """What is made of all items at the end."""
        return tuple(name for name in COLLECTIONS if name in self.outputs)


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
        duplicates: items whose bytes equal those of another one.
        repeated: entries of the archive that name an item listed before.
        listing: entries listed, and what became of them: ``listed`` = ``committed`` by this
            attempt + ``resumed`` from an earlier one + ``repeated``, unless it was interrupted.
        collected: what became of the collections, if any were asked for.
        doubtful: items whose spacing or position had to be made up in an output.
        interrupted: it was asked to stop; no closing files were written.
        seconds: duration of this attempt.
        stages: where the time went.
        idle, idle_queued: seconds the device executor rested, and of these with a part of a
            batch waiting.
        silenced: why ``log.jsonl`` breaks off, if it does.
    """

    folder: Path
    report: Path
    items: int
    counts: Counter[str]
    resumed: int
    ignored: Counter[str]
    unmatched: tuple[str, ...]
    duplicates: int
    repeated: int
    listing: dict[str, int]
    collected: Collected | None
    doubtful: int
    interrupted: bool
    seconds: float
    stages: tuple[StageFigures, ...]
    idle: float
    idle_queued: float
    silenced: str = ""

    @property
    def exit_code(self) -> int:
        """0 all done, 3 finished with quarantined items, 130 interrupted."""
        if self.interrupted:
            return 130
        return 3 if self.counts["quarantined"] else 0


def run(
    labeller: Labeller,
    archive: Archive,
    prompts: Prompts | PromptTable,
    out: Path,
    options: RunOptions | None = None,
    observer: Observer | None = None,
    stop: Event | None = None,
) -> RunSummary:
    """Label every image of ``archive`` into the run folder ``out``, resuming what is there.

    Args:
        labeller: an open ``Engine`` or ``Predictor``.
        archive: as ``open_archive`` gives it.
        prompts: the same for every item, or a table with a row per item.
        out: new, empty, or the folder of the same run stopped earlier.
        options: what else is wanted.
        observer: called with items finished so far and counts per status, on a thread.
        stop: once set, items in flight are finished and the run ends, to be resumed.

    Raises:
        ConfigError: the archive, prompts or folder are not fit for this run.
        BackendError: the device cannot do it, or broke; the run can be resumed.
        OutputError: a result could not be written; the run can be resumed.
    """
    options, stop = options or RunOptions(), stop or Event()
    index = _check_prompts(labeller, prompts)
    check_folder(out)
    next(iter(archive))  # an archive without images leaves no folder
    with RunFolder(out, fingerprint(labeller, archive, prompts, options)) as folder:
        folder.log("start", archive=archive.name)
        with Ledger(out / LEDGER) as ledger:
            resumed = ledger.items()
            names = HashedNames(out, fresh=not resumed) if options.hash_names else PlainNames()
            trace = Trace(out / TRACE) if options.trace else None
            stream = Stream(
                labeller,
                prompts,
                folder,
                ledger,
                names,
                Delivery(
                    options.formats, options.min_confidence, index, options.geometry == "strict"
                ),
                Budget(options.memory, stop),
                options.limits,
                Meter(trace),
                stop,
                observer,
            )
            try:
                stream.run(archive)
            finally:
                if trace:
                    trace.close()
                    if trace.failure:
                        folder.log("trace off", error=trace.failure)
            summary = _summarise(stream, archive, out, resumed, options)
            figures = [asdict(stage) for stage in summary.stages]
            folder.log("stages", seconds=round(summary.seconds, 3), stages=figures)
            if summary.interrupted:
                folder.log("interrupted", items=summary.items)
                return replace(summary, silenced=folder.silenced)
            write_manifest(folder, ledger.outcomes())
            write_duplicates(folder, ledger.duplicates())
            facts = report_facts(labeller, archive, prompts, summary)
            write_report(out, ledger.outcomes(), facts, identity=identify(out))
            if options.collections:
                summary = replace(
                    summary, collected=_collect(stream, archive, options, list(index))
                )
        folder.log("end", items=summary.items, **summary.counts, **summary.listing)
        folder.write(SUCCESS, (json.dumps(summary.listing) + "\n").encode())
        return replace(summary, silenced=folder.silenced)


def _collect(stream: Stream, archive: Archive, options: RunOptions, labels: list[str]) -> Collected:
    return collect_cases(
        stream.folder.path,
        stream.ledger,
        stream.names,
        labels,
        options.collections,
        Selection(),
        archive,
        options.limits,
    )


def _summarise(
    stream: Stream, archive: Archive, out: Path, resumed: int, options: RunOptions
) -> RunSummary:
    ledger, meter = stream.ledger, stream.meter
    return RunSummary(
        folder=out,
        report=out / "report" / "index.html",
        items=ledger.items(),
        counts=ledger.counts(),
        resumed=resumed,
        ignored=archive.ignored,
        unmatched=_unmatched(stream.prompts, stream.seen),
        duplicates=sum(len(items) - 1 for _, items in ledger.duplicates()),
        repeated=stream.repeated,
        listing={
            "listed": stream.listed,
            "committed": stream.committed,
            "resumed": stream.resumed,
            "repeated": stream.repeated,
        },
        collected=None,
        doubtful=_count_doubtful(ledger, options),
        interrupted=stream.stop.is_set(),
        seconds=meter.seconds,
        stages=tuple(meter.figures()),
        idle=meter.idle,
        idle_queued=meter.idle_queued,
    )


def _count_doubtful(ledger: Ledger, options: RunOptions) -> int:
    """Items that a file of the run gives a made-up place; nnU-Net's pictures have none."""
    if "nifti" in options.formats:
        return ledger.doubtful()
    return ledger.doubtful(frames=2) if "nnunet" in options.collections else 0


def fingerprint(
    labeller: Labeller, archive: Archive, prompts: Prompts | PromptTable, options: RunOptions
) -> dict[str, Any]:
    """What decides the bytes of a run, as plain JSON values."""
    strict = {"geometry": options.geometry} if options.geometry != "warn" else {}
    return {
        "archive": archive.identity,
        "selection": archive.selection,
        "labels": list(_labels(prompts)),
        "prompts": _identify(prompts),
        "outputs": options.formats,
        "min_confidence": options.min_confidence,
        "hash_names": options.hash_names,
        "versions": versions(),
        **strict,  # said only where it is not the default: older runs go on
        **labeller.identity(),
    }


def _identify(prompts: Prompts | PromptTable) -> Mapping[str, object]:
    """The prompts; a table, which may be as long as the archive, by its hash."""
    if isinstance(prompts, Prompts):
        return prompts.texts
    rows = sorted((item, list(wanted.texts.items())) for item, wanted in prompts.by_item.items())
    return {"table": hashlib.sha256(json.dumps(rows).encode()).hexdigest()}


def report_facts(
    labeller: Labeller, archive: Archive, prompts: Prompts | PromptTable, summary: RunSummary
) -> dict[str, object]:
    """What the report's head says of a run."""
    if isinstance(prompts, PromptTable):
        wanted: object = f"per item, from {prompts.source.name}"
    elif all(texts == (label,) for label, texts in prompts.texts.items()):
        wanted = list(prompts.labels)  # said once
    else:
        wanted = {label: " | ".join(texts) for label, texts in prompts.texts.items()}
    facts = {
        "archive": archive.name,
        "prompts": wanted,
        **labeller.facts(),
        "items": summary.items,
        "items with the bytes of another": summary.duplicates,
        "items with made-up geometry": summary.doubtful,
        "other files ignored": dict(summary.ignored),
        "seconds": round(summary.seconds, 1),
        "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
        "versions": versions(),
    }
    return {name: value for name, value in facts.items() if value not in (0, {})}


def _labels(prompts: Prompts | PromptTable) -> tuple[str, ...]:
    """All labels, in the order in which they are named first."""
    if isinstance(prompts, Prompts):
        return prompts.labels
    named = (label for wanted in prompts.by_item.values() for label in wanted.labels)
    return tuple(dict.fromkeys(named))


def _check_prompts(labeller: Labeller, prompts: Prompts | PromptTable) -> dict[str, int]:
    """Number of each label in label maps; prompts of all items are checked before any image."""
    labels = _labels(prompts)
    label_folders(labels)
    labeller.check_prompts(prompts)
    return number_labels(labels)


def _unmatched(prompts: Prompts | PromptTable, seen: set[str]) -> tuple[str, ...]:
    if isinstance(prompts, Prompts):
        return ()
    return tuple(islice(prompts.unmatched(seen), 100))
