"""The masks of a finished run with their pictures: what a training may learn from.

Refuses to know what is trained. A label is taken where it is done or absent and no person
objected, or quarantined with a mask that a person accepted. Whatever is left out is counted
and named by its reason.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from medclipsam.engine.archive import Archive, Decoders, Entry, open_archive
from medclipsam.engine.errors import ConfigError, InputError
from medclipsam.engine.outputs.cases import Case, read_masks, reason_against
from medclipsam.engine.report.review import read_review
from medclipsam.engine.run.collecting import Pairs, Selection, read_fingerprint, reopen_archive
from medclipsam.engine.run.folder import LEDGER, SUCCESS, identify, locked
from medclipsam.engine.run.ledger import Ledger
from medclipsam.engine.run.naming import HashedNames, PlainNames
from medclipsam.engine.types import Outcome
from medclipsam.train.patients import PatientRule

NAMED = 5  # items that a line of the log names


@dataclass(frozen=True)
class LabelledItem:
    """One item with all its frames.

    Attributes:
        patient: key of the patient, see ``PatientRule``.
        digest: sha256 of its encoded bytes.
        frames: uint8 (F, H, W, 3) as displayed.
        masks: label → bool (F, H, W), for every label that is known of it.
        confidence: label → [0, 1]; 1 where it is absent or a person accepted it.
    """

    patient: str
    digest: str
    frames: np.ndarray
    masks: dict[str, np.ndarray]
    confidence: dict[str, float]


@dataclass
class RunMasks:
    """A finished run, held open; iterate once.

    Attributes:
        folder: the run folder.
        labels: those wanted, in the order of the run.
        identity: of the run.
        left_out: reason → items and labels, filled while iterating.
        told: what told an item's patient → items, filled while iterating.
        items: items given so far.
    """

    folder: Path
    labels: tuple[str, ...]
    identity: str
    selection: Selection
    rule: PatientRule
    archive: Archive
    _ledger: Ledger
    _names: PlainNames | HashedNames
    _decisions: Mapping[tuple[str, str], str]
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    told: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    items: int = 0

    def __iter__(self) -> Iterator[LabelledItem]:
        seen: set[str] = set()
        with Decoders(1) as decoders:
            for entry in self.archive:
                item = self._names.name(entry.ref).id
                if item in seen:
                    continue
                seen.add(item)
                usable = self._usable(item)
                if usable and (found := self._read(item, usable, entry, decoders)):
                    self.items += 1
                    yield found
        for item in sorted({row.item for row in self._ledger.outcomes()} - seen):
            self._leave_out("not in the archive any more", item)

    def report(self) -> Iterator[str]:
        """A line for each reason with its count and the first items."""
        for reason, names in sorted(self.left_out.items()):
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            yield f"left out, {reason}: {len(names)} ({', '.join(names[:NAMED])}{more})"

    def _leave_out(self, reason: str, item: str, label: str = "") -> None:
        self.left_out[reason].append(f"{item} [{label}]" if label else item)

    def _usable(self, item: str) -> dict[str, Outcome]:
        """label → row, of the labels that may be learned from."""
        rows = self._ledger.rows(item)
        wanted = {row.label: row for row in rows if row.label in self.labels}
        if not wanted:
            self._leave_out("not asked for these labels" if rows else "not in the run", item)
        against = {label: self._reason_against(row) for label, row in wanted.items()}
        for label, reason in against.items():
            if reason:
                self._leave_out(reason, item, label)
        return {label: row for label, row in wanted.items() if not against[label]}

    def _reason_against(self, row: Outcome) -> str:
        low = (row.figures.get("confidence") or 0.0) < self.selection.min_confidence
        if row.status == "done" and low:
            row = replace(row, status="quarantined", reason="low-confidence")
        return reason_against(Case(row.item, {row.label: row}), self._decisions)

    def _read(
        self, item: str, usable: dict[str, Outcome], entry: Entry, decoders: Decoders
    ) -> LabelledItem | None:
        try:
            entry, data = _held(entry)
            decoded = decoders.decode(entry)
        except InputError as exc:
            self._leave_out(f"cannot be read any more: {exc.reason}", item)
            return None
        if any(row.digest != decoded.digest for row in usable.values()):
            self._leave_out("changed since the run", item)
            return None
        masks = read_masks(self.folder, Case(item, usable))
        got, expected = next(iter(masks.values())).shape, decoded.frames.shape[:3]
        if got != expected:
            raise ConfigError(
                f"the masks of {item!r} have the shape {got}, its picture {expected}; the run "
                f"folder {self.folder} was altered: run it again"
            )
        patient, told = self.rule.find(entry.ref.id, entry, data)
        self.told[told] += 1
        sure = {label: self._confidence(row) for label, row in usable.items()}
        return LabelledItem(patient, decoded.digest, decoded.frames, masks, sure)

    def _confidence(self, row: Outcome) -> float:
        if row.status == "absent" or self._decisions.get((row.item, row.label)) == "accept":
            return 1.0
        return float(row.figures.get("confidence") or 0.0)


def _held(entry: Entry) -> tuple[Entry, bytes | None]:
    """An entry whose bytes can be had twice, and the bytes where they are not in files."""
    if entry.fetch is None or entry.error is not None:
        return entry, None
    data = entry.fetch()
    return replace(entry, fetch=lambda: data), data


@contextmanager
def open_run_masks(
    folder: Path,
    labels: Sequence[str] = (),
    selection: Selection | None = None,
    rule: PatientRule | None = None,
    archive: str = "",
) -> Iterator[RunMasks]:
    """Hold a finished run open for reading.

    Args:
        folder: a run folder.
        labels: those wanted; all of the run by default.
        selection: a review, and the least confidence.
        rule: where patients are known from.
        archive: where the run's archive is now, if it was moved.

    Raises:
        ConfigError: no finished run, an unknown label, a review that does not fit it, or its
            archive is gone.
    """
    with locked(folder):
        facts = read_fingerprint(folder)
        if not (folder / SUCCESS).exists():
            raise ConfigError(
                f"the run in {folder} is not finished; repeat its command to finish it first"
            )
        chosen = _choose(labels, facts["labels"])
        names = HashedNames(folder, fresh=False) if facts["hash_names"] else PlainNames()
        picked = selection or Selection()
        opened = _open(archive, facts, folder)
        with Ledger(folder / LEDGER) as ledger:
            review = picked.review
            decisions = read_review(review, Pairs(ledger)) if review else {}
            yield RunMasks(
                folder, chosen, identify(folder), picked, rule or PatientRule(), opened,
                ledger, names, decisions,
            )  # fmt: skip


def _choose(wanted: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    if unknown := sorted(set(wanted) - set(known)):
        raise ConfigError(f"the run has no label {unknown[0]!r}; it has {', '.join(known)}")
    return tuple(label for label in known if label in wanted or not wanted)


def _open(archive: str, facts: dict, folder: Path) -> Archive:
    if archive:
        return open_archive(archive, **facts["selection"], avoid=folder)
    try:
        return reopen_archive(facts, folder)
    except ConfigError as exc:
        raise ConfigError(
            f"{exc}. If the run's images were moved, say where with --archive"
        ) from exc
