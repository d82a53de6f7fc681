"""Archive in, run folder out: every listed item ends as exactly one outcome per prompt.

Bad input is quarantined and the run goes on; a result that cannot be written stops it, and
the same command resumes it. How items stream through is ``streaming``'s business.
"""

import json
import time
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Any

from medclipsam.engine.archive import Archive, Limits
from medclipsam.engine.config import COLLECTIONS, FORMATS, MEMORY, Geometry
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.outputs import (
    Collected,
    check_folder,
    label_folders,
    number_labels,
)
from medclipsam.engine.prompts import PromptTable, identify_prompts
from medclipsam.engine.report.report import write_report
from medclipsam.engine.run.collecting import Selection, collect_cases
from medclipsam.engine.run.commit import Observer
from medclipsam.engine.run.device.executor import Method
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
from medclipsam.engine.run.ledger import Ledger
from medclipsam.engine.run.meter import Meter, StageFigures, Trace
from medclipsam.engine.run.naming import HashedNames, PlainNames
from medclipsam.engine.run.streaming import Census, Job, stream
from medclipsam.engine.run.trial import take_samples
from medclipsam.engine.run.work import Delivery
from medclipsam.engine.settings import Count, Share, settings
from medclipsam.engine.types import Prompts


@settings
class RunOptions:
    """What a run delivers, and how much it may take.

    Attributes:
        outputs: formats beside the masks, and collections made of them at the end, see
            ``FORMATS`` and ``COLLECTIONS`` of ``medclipsam.engine.config``.
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
    min_confidence: Share = 0.0
    hash_names: bool = False
    memory: Count = MEMORY
    trace: bool = False
    limits: Limits = field(default_factory=Limits)
    geometry: Geometry = "warn"

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.outputs) - {*FORMATS, *COLLECTIONS}):
            known = ", ".join((*FORMATS, *COLLECTIONS))
            raise ConfigError(f"unknown output {unknown[0]!r}; known are {known}")
        if self.hash_names and "dicom-seg" in self.outputs:
            raise ConfigError(
                "a DICOM SEG names the patient and study of its source, so dicom-seg does not go "
                "with hash_names; leave one of them out"
            )

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
        busy: seconds the device worked; on CUDA by its own clock.
        idle, idle_queued: seconds the device executor rested, and of these with a part of a
            batch waiting.
        awaited: seconds it waited for the device.
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
    busy: float
    idle: float
    idle_queued: float
    awaited: float
    silenced: str = ""

    @property
    def exit_code(self) -> int:
        """0 all done, 3 finished with quarantined items, 130 interrupted."""
        if self.interrupted:
            return 130
        return 3 if self.counts["quarantined"] else 0


def run(
    method: Method,
    archive: Archive,
    prompts: Prompts | PromptTable,
    out: Path,
    options: RunOptions | None = None,
    observer: Observer | None = None,
    stop: Event | None = None,
) -> RunSummary:
    """Label every image of ``archive`` into the run folder ``out``, resuming what is there.

    Args:
        method: an open ``Engine`` or ``Predictor``.
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
    index = _check_prompts(method, prompts)
    check_folder(out)
    next(iter(archive))  # an archive without images leaves no folder
    method = method.decide(take_samples(archive, prompts, options.limits))
    with RunFolder(out, fingerprint(method, archive, prompts, options)) as folder:
        folder.log("start", archive=archive.name)
        with Ledger(out / LEDGER) as ledger:
            resumed = ledger.items()
            names = HashedNames(out, fresh=not resumed) if options.hash_names else PlainNames()
            trace = Trace(out / TRACE) if options.trace else None
            job = Job(
                method,
                prompts,
                folder,
                ledger,
                names,
                Delivery(
                    options.formats, options.min_confidence, index, options.geometry == "strict"
                ),
                options.memory,
                options.limits,
                Meter(trace),
                observer,
            )
            try:
                census = stream(job, archive, stop)
            finally:
                if trace:
                    trace.close()
                    if trace.failure:
                        folder.log("trace off", error=trace.failure)
            summary = _summarise(job, census, archive, resumed, options, stop.is_set())
            figures = [asdict(stage) for stage in summary.stages]
            folder.log("stages", seconds=round(summary.seconds, 3), stages=figures)
            if summary.interrupted:
                folder.log("interrupted", items=summary.items)
                return replace(summary, silenced=folder.silenced)
            write_manifest(folder, ledger.outcomes())
            write_duplicates(folder, ledger.duplicates())
            head = describe_run(method, archive, prompts, summary)
            write_report(out, ledger.outcomes(), head, identity=identify(out))
            if options.collections:
                collected = collect_cases(
                    *(out, ledger, names, list(index), options.collections),
                    *(Selection(), archive, options.limits),
                )
                summary = replace(summary, collected=collected)
        folder.log("end", items=summary.items, **summary.counts, **summary.listing)
        folder.write(SUCCESS, (json.dumps(summary.listing) + "\n").encode())
        return replace(summary, silenced=folder.silenced)


def _summarise(
    job: Job,
    census: Census,
    archive: Archive,
    resumed: int,
    options: RunOptions,
    interrupted: bool,
) -> RunSummary:
    ledger, meter, out = job.ledger, job.meter, job.folder.path
    return RunSummary(
        folder=out,
        report=out / "report" / "index.html",
        items=ledger.items(),
        counts=ledger.counts(),
        resumed=resumed,
        ignored=archive.ignored,
        unmatched=_unmatched(job.prompts, census.ids),
        duplicates=sum(len(items) - 1 for _, items in ledger.duplicates()),
        repeated=census.repeated,
        listing={
            "listed": census.listed,
            "committed": census.committed,
            "resumed": census.resumed,
            "repeated": census.repeated,
        },
        collected=None,
        doubtful=_count_doubtful(ledger, options),
        interrupted=interrupted,
        seconds=meter.seconds,
        stages=tuple(meter.figures()),
        busy=meter.device_busy,
        idle=meter.idle,
        idle_queued=meter.idle_queued,
        awaited=meter.awaited,
    )


def _count_doubtful(ledger: Ledger, options: RunOptions) -> int:
    """Items that a file of the run gives a made-up place; nnU-Net's pictures have none."""
    if "nifti" in options.formats:
        return ledger.doubtful()
    return ledger.doubtful(frames=2) if "nnunet" in options.collections else 0


def fingerprint(
    method: Method, archive: Archive, prompts: Prompts | PromptTable, options: RunOptions
) -> dict[str, Any]:
    """What decides the bytes of a run, as plain JSON values."""
    strict = {"geometry": options.geometry} if options.geometry != "warn" else {}
    return {
        "archive": archive.identity,
        "selection": archive.selection,
        "labels": list(prompts.labels),
        "prompts": identify_prompts(prompts),
        "outputs": options.formats,
        "min_confidence": options.min_confidence,
        "hash_names": options.hash_names,
        "versions": versions(),
        **strict,  # said only where it is not the default: older runs go on
        **method.identity(),
    }


def describe_run(
    method: Method, archive: Archive, prompts: Prompts | PromptTable, summary: RunSummary
) -> dict[str, object]:
    """What the report's head says of a run."""
    if isinstance(prompts, PromptTable):
        wanted: object = f"per item, from {prompts.source.name}"
    elif all(texts == (label,) for label, texts in prompts.texts.items()):
        wanted = list(prompts.labels)  # said once
    else:
        wanted = {label: " | ".join(texts) for label, texts in prompts.texts.items()}
    head = {
        "archive": archive.name,
        "prompts": wanted,
        **method.describe(),
        "items": summary.items,
        "items with the bytes of another": summary.duplicates,
        "items with made-up geometry": summary.doubtful,
        "other files ignored": dict(summary.ignored),
        "seconds": round(summary.seconds, 1),
        "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
        "versions": versions(),
    }
    return {name: value for name, value in head.items() if value not in (0, {})}


def _check_prompts(method: Method, prompts: Prompts | PromptTable) -> dict[str, int]:
    """Number of each label in label maps; prompts of all items are checked before any image."""
    labels = prompts.labels
    label_folders(labels)
    method.check_prompts(prompts)
    return number_labels(labels)


def _unmatched(prompts: Prompts | PromptTable, seen: set[str]) -> tuple[str, ...]:
    if isinstance(prompts, Prompts):
        return ()
    return tuple(islice(prompts.unmatched(seen), 100))
