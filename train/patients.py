"""Which images show the same patient, so that none is both learned from and judged on.

What a DICOM header or a table says of a patient is used to group images and then forgotten:
it reaches no file, message or log.
"""

import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from medclipsam.engine.archive import Entry
from medclipsam.engine.archive.files import open_file
from medclipsam.engine.archive.readers.dicom.file import read_header
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.tables import read_table

ATTEMPTS = 200  # draws of a split that has every label on both sides
HASH = 16  # hex digits of a patient's key


@dataclass(frozen=True)
class PatientRule:
    """Where patients are known from: a table or a pattern, else DICOM, else nowhere.

    Attributes:
        table: item id → patient, see ``read_patients``.
        pattern: found in an item's id; its first group, or all of it, is the patient.
    """

    table: dict[str, str] = field(default_factory=dict)
    pattern: re.Pattern[str] | None = None

    def find(self, item: str, entry: Entry, data: bytes | None) -> tuple[str, str]:
        """(key of the patient, what told it); an item of an unknown one is its own.

        Args:
            item: its id in the archive.
            data: its bytes, where they are not in files.
        """
        if item in self.table:
            return _hashed(self.table[item]), "table"
        match = self.pattern.search(item) if self.pattern else None
        if match and (found := match[1] if match.re.groups else match[0]):
            return _hashed(found), "pattern"
        if patient := _read_header(entry, data):
            return _hashed(patient), "DICOM"
        return _hashed(f"item {item}"), "nothing"


def compile_pattern(text: str) -> re.Pattern[str]:
    """Raises ConfigError where ``text`` is no regular expression."""
    try:
        return re.compile(text)
    except re.error as exc:
        raise ConfigError(f"--patient-pattern {text!r} is no regular expression: {exc}") from exc


def read_patients(path: Path) -> dict[str, str]:
    """A table with the columns item (path in the archive) and patient.

    Raises:
        ConfigError: it cannot be read, lacks a column or a value, or contradicts itself.
    """
    table = read_table(path, columns=("item", "patient"))
    found: dict[str, str] = {}
    for number, (item, patient) in enumerate(zip(table["item"], table["patient"], strict=True), 1):
        if not item or not patient:
            raise ConfigError(f"{path}, row {number}: item or patient is empty")
        if found.setdefault(item, patient) != patient:
            raise ConfigError(f"{path}, row {number}: item {item!r} has two patients; keep one")
    return found


def _hashed(text: str) -> str:
    return hashlib.sha256(text.strip().encode("utf-8", "surrogateescape")).hexdigest()[:HASH]


def _read_header(entry: Entry, data: bytes | None) -> str:
    """PatientID of a DICOM item; empty where there is none."""
    try:
        if data is not None:
            return _read_id(io.BytesIO(data))
        with open_file(entry.files[0]) as stream:
            return _read_id(stream)
    except Exception:  # a damaged header may raise anything; decoding it says why
        return ""


def _read_id(stream: BinaryIO) -> str:
    found = read_header(stream, ["PatientID"])
    return "" if found is None else str(found.get("PatientID") or "").strip()


def join_groups(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """(patient, digest of the content) of each item → its group.

    Items of one patient are one group, and so are items of equal content, whoever they are
    said to show.
    """
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    listed = list(pairs)
    for patient, digest in listed:
        first, second = sorted((root(f"patient {patient}"), root(f"content {digest}")))
        parent[second] = first
    return [root(f"patient {patient}") for patient, _ in listed]


def split_groups(
    groups: Sequence[str], present: np.ndarray, labels: Sequence[str], share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Samples to learn from and samples to judge on; a group is never on both sides.

    Args:
        groups: of each sample.
        present: bool (N, L), which samples have a mask of which label.
        labels: L names, for messages.
        share: of the groups, to be judged on; at least one, at most all but one.
        seed: of the draw, which is repeated until both sides have masks of every label.

    Returns:
        Two int64 arrays of sample numbers, ascending.

    Raises:
        ConfigError: no such split was found.
    """
    names = sorted(set(groups))
    of = {name: n for n, name in enumerate(names)}
    index = np.array([of[group] for group in groups])
    count = min(max(1, round(share * len(names))), len(names) - 1)
    rng = np.random.default_rng([7, seed])
    for _ in range(ATTEMPTS if count else 0):
        judged = np.isin(index, rng.permutation(len(names))[:count])
        if present[judged].any(0).all() and present[~judged].any(0).all():
            return np.nonzero(~judged)[0], np.nonzero(judged)[0]
    held = (f"{label} {len(set(index[present[:, n]]))}" for n, label in enumerate(labels))
    raise ConfigError(
        f"too few patients for a split with every label on both sides: {len(names)} patients "
        f"(or groups of equal images), of which with masks: {', '.join(held)}. Label more images, "
        "leave a label out with --label, or, if DICOM headers give all images one patient, name "
        "patients with --patients or --patient-pattern"
    )
