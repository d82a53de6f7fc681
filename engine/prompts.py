"""Prompts as people give them: flags, ensembles, and tables with a row per item."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from medclipsam.engine.errors import ConfigError
from medclipsam.engine.tables import read_table
from medclipsam.engine.types import ItemRef, Prompts

ENSEMBLE = "|"


def parse_prompts(flags: Iterable[str]) -> Prompts:
    """``["breast tumor", "cyst=a cyst|a simple cyst"]`` → prompts.

    A text without ``label=`` is its own label, written with ``_`` for blanks. ``|``
    separates the wordings of an ensemble.

    Raises:
        ConfigError: an empty text or label, or a label given twice.
    """
    texts: dict[str, tuple[str, ...]] = {}
    for flag in flags:
        label, text = _split_label(flag)
        wordings = _split_ensemble(text, flag)
        if not label:
            raise ConfigError(f"the prompt {flag!r} names nothing; write it as label=text")
        if label in texts:
            raise ConfigError(
                f"two prompts share the label {label!r}; give each its own label=text"
            )
        texts[label] = wordings
    if not texts:
        raise ConfigError('no prompt given; say what to look for with -p "breast tumor"')
    return Prompts(texts)


def prompts_from_table(table: object) -> Prompts:
    """``{"cyst": "a cyst", "mass": ["a mass", "a tumor"]}`` of a settings file → prompts.

    Raises:
        ConfigError: it is not such a table.
    """
    if not isinstance(table, dict) or not table:
        raise ConfigError(f"prompts is a table of label = text or list of texts, got {table!r}")
    texts = {}
    for label, text in table.items():
        wordings = (text,) if isinstance(text, str) else text
        if (
            not isinstance(wordings, (list, tuple))
            or not wordings
            or not all(isinstance(w, str) and w.strip() for w in wordings)
        ):
            raise ConfigError(f"prompts.{label} is a text or a list of texts, got {text!r}")
        texts[label] = tuple(" ".join(w.split()) for w in wordings)
    return Prompts(texts)


def _split_label(flag: str) -> tuple[str, str]:
    match = re.match(r"\s*([\w-]+)\s*=(.*)", flag, re.DOTALL)
    if match:
        return match[1], match[2]
    return re.sub(r"\W+", "_", flag.split(ENSEMBLE)[0].strip()).strip("_"), flag


def _split_ensemble(text: str, flag: str) -> tuple[str, ...]:
    wordings = tuple(" ".join(part.split()) for part in text.split(ENSEMBLE))
    if not all(wordings):
        raise ConfigError(f"the prompt {flag!r} holds an empty text")
    return wordings


@dataclass(frozen=True)
class PromptTable:
    """Prompts that differ from item to item.

    Attributes:
        by_item: item id → its prompts.
        source: the file, for messages.
    """

    by_item: dict[str, Prompts]
    source: Path

    def unmatched(self, seen: set[str]) -> Iterator[str]:
        """Rows whose item never appeared in the archive."""
        return (item for item in self.by_item if item not in seen)


def read_prompt_table(
    path: Path,
    item_column: str = "item",
    prompt_column: str = "prompt",
    label_column: str = "label",
) -> PromptTable:
    """Read a CSV or Parquet table with a row per item and prompt.

    Args:
        path: ``.csv``, ``.tsv`` or ``.parquet``.
        item_column: path of the item relative to the archive.
        prompt_column: text or ``|``-separated ensemble.
        label_column: optional column; without it every prompt is labelled ``target``.

    Raises:
        ConfigError: unreadable, a column is missing, or a cell is empty or given twice.
    """
    table = read_table(path)
    columns = list(table)
    for wanted in (item_column, prompt_column):
        if wanted not in columns:
            raise ConfigError(
                f"{path} has no column {wanted!r} (its columns: {', '.join(map(str, columns))}); "
                "rename it or name yours with --item-column, --prompt-column and --label-column"
            )
    labels = table.get(label_column) or ["target"] * len(table[item_column])
    texts: dict[str, dict[str, tuple[str, ...]]] = {}
    rows = zip(table[item_column], table[prompt_column], labels, strict=True)
    for number, (item, text, label) in enumerate(rows, start=1):
        if not item or not text or not label:
            raise ConfigError(f"{path}, row {number}: item, prompt or label is empty")
        prompts = texts.setdefault(_normal_item(str(item)), {})
        name = re.sub(r"[^\w-]+", "_", str(label).strip()).strip("_") or "target"
        if name in prompts:
            raise ConfigError(
                f"{path}, row {number}: item {item!r} has two prompts labelled {name!r}"
            )
        prompts[name] = _split_ensemble(str(text), str(text))
    return PromptTable({item: Prompts(found) for item, found in texts.items()}, path)


def _normal_item(item: str) -> str:
    return ItemRef(item.replace("\\", "/").removeprefix("./").lstrip("/")).id
