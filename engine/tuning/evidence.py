"""What images that are known to show a target, or not to, say of prompts and null prompts.

Every image is embedded once. Whatever is asked of it afterwards is arithmetic on cosines.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medclipsam.engine.archive import Archive, Decoded, Decoders, Entry
from medclipsam.engine.errors import ConfigError, InputError
from medclipsam.engine.pipeline import Pipeline
from medclipsam.engine.prompts import check_wording, item_id, read_tokens
from medclipsam.engine.tables import read_table
from medclipsam.engine.types import Prompts

NULL_PROMPTS = (
    "normal findings",
    "a normal medical image",
    "a medical image without abnormality",
    "no abnormality",
    "healthy tissue",
    "an unremarkable scan",
)
YES, NO = ("yes", "true", "1", "1.0"), ("no", "false", "0", "0.0")
NAMED = 3  # items that a message names at most

Answers = Mapping[str, bool]  # label → whether the image shows it; without an entry: unknown


@dataclass(frozen=True)
class Source:
    """An archive and what is known of its items.

    Attributes:
        archive: lists them.
        answers: item id → what it shows. Items without an answer are not read.
    """

    archive: Archive
    answers: Mapping[str, Answers]


@dataclass(frozen=True)
class Evidence:
    """Cosines of every frame of N known images, F frames in all.

    Attributes:
        labels: P labels.
        own: float32 (F, P) cosines to the prompts.
        nulls: float32 (F, C) cosines to the candidates for null prompts.
        starts: int (N,) first frame of each image, ascending from 0.
        shown: int8 (N, P): 1 the image shows the target, 0 it does not, -1 unknown.
        unreadable: archive and path of the images that could not be read, and why.
        repeated: images left out because another one has the same bytes.
    """

    labels: tuple[str, ...]
    own: np.ndarray
    nulls: np.ndarray
    starts: np.ndarray
    shown: np.ndarray
    unreadable: Sequence[tuple[str, str]] = ()
    repeated: int = 0

    def contrast(self, nulls: Sequence[int]) -> np.ndarray:
        """float64 (N, P): the largest contrast that a frame of the image has with these nulls.

        Of a frame it is ``medclipsam.engine.saliency.contrast.contrasts``. A run decides frame
        by frame: an image keeps its target as long as one frame keeps it.
        """
        rival = self.nulls[:, list(nulls)].max(1)
        columns = []
        for place in range(len(self.labels)):
            others = np.delete(self.own, place, axis=1).max(1, initial=-np.inf)
            columns.append(self.own[:, place] - np.maximum(rival, others))
        return np.maximum.reduceat(np.stack(columns, axis=1), self.starts).astype(np.float64)

    @property
    def counts(self) -> dict[str, tuple[int, int]]:
        """Label → how many images show it, and how many are known not to."""
        sums = ((self.shown == answer).sum(0).tolist() for answer in (1, 0))
        return dict(zip(self.labels, zip(*sums, strict=True), strict=True))


def pair_archives(shown: Archive, absent: Archive, label: str) -> list[Source]:
    """Two archives: all items of one show the target, none of the other does.

    Raises:
        ConfigError: they are the same, or one holds no images.
    """
    if shown.identity == absent.identity:
        raise ConfigError(
            f"{shown.name} is given twice: as images that show the target and as images that do "
            "not; give two archives, or one with --table"
        )
    answers = ((shown, True), (absent, False))
    return [Source(a, {item: {label: answer} for item in _list_ids(a)}) for a, answer in answers]


def match_table(
    archive: Archive, table: Path, columns: Mapping[str, str], item_column: str = "item"
) -> Source:
    """One archive and a table with a row for each item.

    Args:
        table: ``.csv``, ``.tsv`` or ``.parquet``, as ``read_table`` takes it.
        columns: label → its column, with yes/no, true/false or 1/0; empty where unknown.
        item_column: path of the item relative to the archive, as in a table of prompts.

    Raises:
        ConfigError: the table is no such table, names an item twice, or does not fit the archive.
    """
    answers = read_answers(table, columns, item_column)
    listed = _list_ids(archive)
    lost = [item for item in answers if item not in listed]
    unknown = [item for item in listed if item not in answers]
    if lost:
        raise ConfigError(
            f"{table} names {len(lost)} items that {archive.name} does not hold: {_some(lost)}; "
            "paths are relative to the archive"
        )
    if unknown:
        raise ConfigError(
            f"{archive.name} holds {len(unknown)} items that {table} does not name: "
            f"{_some(unknown)}; add their rows, with empty cells for what is not known"
        )
    return Source(archive, answers)


def read_answers(
    table: Path, columns: Mapping[str, str], item_column: str = "item"
) -> dict[str, Answers]:
    """Item id → what it shows. Args and errors as for ``match_table``."""
    wanted = (item_column, *columns.values())
    advice = (
        "the columns of labels are called as the labels; name yours with --column, and that of "
        "the paths with --item-column"
    )
    cells = read_table(table, columns=wanted, advice=advice)
    found: dict[str, Answers] = {}
    for number, item in enumerate(cells[item_column]):
        where = f"{table}, row {number + 1}"
        if item is None or not str(item).strip():
            raise ConfigError(f"{where}: the item is empty")
        name = item_id(str(item).strip())
        if name in found:
            raise ConfigError(f"{where}: the item {item!r} has a row already; leave one of them")
        answers = {
            label: _read_cell(cells[column][number], f"{where}, column {column!r}")
            for label, column in columns.items()
        }
        found[name] = {label: yes for label, yes in answers.items() if yes is not None}
    return found


def _read_cell(cell: Any, where: str) -> bool | None:
    text = "" if cell is None or cell != cell else str(cell).strip().lower()
    if text in YES or text in NO:
        return text in YES
    if text:
        raise ConfigError(
            f"{where}: expected yes/no, true/false, 1/0 or an empty cell, got {cell!r}"
        )
    return None


def _list_ids(archive: Archive) -> dict[str, None]:
    return dict.fromkeys(entry.ref.id for entry in archive)


def _some(items: Sequence[str]) -> str:
    return ", ".join(items[:NAMED]) + (" …" if len(items) > NAMED else "")


def count_answers(sources: Iterable[Source], labels: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Label → items that are said to show it, and not to show it, before any is read."""
    known = [answers for source in sources for answers in source.answers.values()]
    return {
        label: (
            sum(answers.get(label) is True for answers in known),
            sum(answers.get(label) is False for answers in known),
        )
        for label in labels
    }


def find_candidates(pipeline: Pipeline, prompts: Prompts, nulls: Sequence[str]) -> tuple[str, ...]:
    """Null prompts to choose from: those in use, then the user's, then ``NULL_PROMPTS``.

    What reads the same to the model is taken once. Of ``NULL_PROMPTS``, those that the model
    cannot read, or not tell from a prompt, are left out.

    Raises:
        ConfigError: a prompt, or a null prompt of the bundle's or the user's, is one that the
            model cannot read or tell apart, see ``check_wording``.
    """
    tokenizer = pipeline.encoder.tokenizer
    given = (*pipeline.config.null_prompts, *(" ".join(null.split()) for null in nulls))
    check_wording(tokenizer, prompts, given)
    found: dict[tuple[int, ...], str] = {}
    for text in given:
        found.setdefault(read_tokens(tokenizer, text), text)
    for text in NULL_PROMPTS:
        try:
            check_wording(tokenizer, prompts, (text,))
            pipeline.encoder.encode_text((text,))
        except ConfigError:
            continue
        found.setdefault(read_tokens(tokenizer, text), text)
    return tuple(found.values())


def gather(
    pipeline: Pipeline,
    sources: Sequence[Source],
    prompts: Prompts,
    candidates: Sequence[str],
    threads: int = 1,
    observer: Callable[[int], None] = lambda finished: None,
) -> Evidence:
    """Decode and embed every image of which something is known.

    Args:
        candidates: for null prompts, C ≥ 1.
        threads: decode processes.
        observer: called with the number of items that are finished.

    Raises:
        ConfigError: the same bytes are said to show a target and not to show it, or no image
            can be read.
    """
    texts = [*pipeline.encode_prompts(prompts)]
    texts += [pipeline.encoder.encode_ensemble((null,)) for null in candidates]
    directions = torch.stack(texts).cpu().numpy()
    known: dict[str, tuple[str, dict[str, bool]]] = {}  # digest → its name, what it shows
    starts: list[int] = []
    unreadable: list[tuple[str, str]] = []
    repeated = finished = frames = 0

    def read_frames() -> Iterator[np.ndarray]:
        nonlocal repeated, finished, frames
        for item, answers, decoded in _read(sources, threads):
            if isinstance(decoded, InputError):
                unreadable.append((item, f"{decoded.reason}: {decoded}"))
            elif decoded.digest in known:
                repeated += 1
                _agree(known[decoded.digest], item, answers)
            else:
                known[decoded.digest] = (item, dict(answers))
                starts.append(frames)
                frames += len(decoded.frames)
                yield from decoded.frames
            finished += 1
            observer(finished)

    cosines = [directions @ embedding for embedding in pipeline.embed(read_frames())]
    if not cosines:
        some = "; ".join(f"{item}: {why}" for item, why in unreadable[:NAMED])
        raise ConfigError(f"none of the {len(unreadable)} images can be read: {some}")
    own, nulls = np.split(np.stack(cosines), [len(prompts.labels)], axis=1)
    shown = [
        [int(answers[label]) if label in answers else -1 for label in prompts.labels]
        for _, answers in known.values()
    ]
    return Evidence(
        *(prompts.labels, own, nulls, np.array(starts), np.array(shown, np.int8)),
        *(unreadable, repeated),
    )


def _agree(first: tuple[str, dict[str, bool]], item: str, answers: Answers) -> None:
    """Add what is known of a second image with the bytes of ``first``."""
    for label, answer in answers.items():
        if first[1].setdefault(label, answer) is not answer:
            raise ConfigError(
                f"{first[0]} and {item} have the same bytes, but one is said to show {label!r}, "
                "the other is said not to; correct one of them"
            )


def _read(
    sources: Sequence[Source], threads: int
) -> Iterator[tuple[str, Answers, Decoded | InputError]]:
    """Every item of which something is known, once and in order, decoded a few ahead."""

    def attempt(entry: Entry) -> Decoded | InputError:
        try:
            return decoders.decode(entry)
        except InputError as exc:
            return exc

    waiting: deque[tuple[str, Answers, Future[Decoded | InputError]]] = deque()
    with Decoders(threads) as decoders, ThreadPoolExecutor(threads) as pool:
        for source in sources:
            for entry, answers in _known(source):
                name = f"{source.archive.name}/{entry.ref.id}"
                waiting.append((name, answers, pool.submit(attempt, entry.held())))
                if len(waiting) > threads:
                    name, answers, future = waiting.popleft()
                    yield name, answers, future.result()
        for name, answers, future in waiting:
            yield name, answers, future.result()


def _known(source: Source) -> Iterator[tuple[Entry, Answers]]:
    left = dict(source.answers)
    for entry in source.archive:
        if answers := left.pop(entry.ref.id, None):
            yield entry, answers
