"""Prompts as people give them, in flags, settings, tables and mappings, made and checked here.

And as a model's tokenizer reads them: whole, and each different from the others. Captions of
a training are cut instead, see ``train``.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medclipsam.engine.errors import ConfigError
from medclipsam.engine.tables import read_table
from medclipsam.engine.types import ItemRef, Prompts

ENSEMBLE = "|"
SHOWN, LOST = 60, 200  # signs of a prompt, and of the words that are lost, in a message
GROWTH = 12  # tokens that a byte of a text can make at most: ligatures that are spelt out
MARKS = 16  # tokens of start and end, with room to spare

Tokens = tuple[int, ...]


def make_prompts(prompts: object, name: str = "prompts") -> Prompts:
    """``{"cyst": "a cyst", "mass": ["a mass", "a tumor"]}`` → prompts, blanks put in order.

    Args:
        prompts: label → a text, or several wordings.
        name: what the mapping is called in an error.

    Raises:
        ConfigError: it is no such mapping, empty, or holds an empty text.
    """
    if not isinstance(prompts, Mapping) or not prompts:
        raise ConfigError(f"{name} map each label to a text or a list of texts, got {prompts!r}")
    texts = {}
    for label, text in prompts.items():
        wordings = (text,) if isinstance(text, str) else text
        if (
            not isinstance(wordings, (list, tuple))
            or not wordings
            or not all(isinstance(w, str) and w.strip() for w in wordings)
        ):
            raise ConfigError(f"{name}.{label} is a text or a list of texts, got {text!r}")
        texts[label] = tuple(" ".join(w.split()) for w in wordings)
    return Prompts(texts)


def parse_prompts(flags: Iterable[str]) -> Prompts:
    """``["breast tumor", "cyst=a cyst|a simple cyst"]`` → prompts.

    A text without ``label=`` is its own label, written with ``_`` for blanks. ``|``
    separates the wordings of an ensemble.

    Raises:
        ConfigError: an empty text or label, or a label given twice.
    """
    texts: dict[str, list[str]] = {}
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
    return make_prompts(texts)


def _split_label(flag: str) -> tuple[str, str]:
    match = re.match(r"\s*([\w-]+)\s*=(.*)", flag, re.DOTALL)
    if match:
        return match[1], match[2]
    return re.sub(r"\W+", "_", flag.split(ENSEMBLE)[0].strip()).strip("_"), flag


def _split_ensemble(text: str, flag: str) -> list[str]:
    wordings = text.split(ENSEMBLE)
    if not all(map(str.strip, wordings)):
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

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels, in the order in which they are named first."""
        named = (label for wanted in self.by_item.values() for label in wanted.labels)
        return tuple(dict.fromkeys(named))

    def unmatched(self, seen: set[str]) -> Iterator[str]:
        """Rows whose item never appeared in the archive."""
        return (item for item in self.by_item if item not in seen)


def identify_prompts(prompts: Prompts | PromptTable) -> Mapping[str, object]:
    """What of the prompts decides a run; of a table, which may be long, its hash."""
    if isinstance(prompts, Prompts):
        return prompts.texts
    rows = sorted((item, list(wanted.texts.items())) for item, wanted in prompts.by_item.items())
    return {"table": hashlib.sha256(json.dumps(rows).encode()).hexdigest()}


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
    advice = "rename it or name yours with --item-column, --prompt-column and --label-column"
    table = read_table(path, columns=(item_column, prompt_column), advice=advice)
    labels = table.get(label_column) or ["target"] * len(table[item_column])
    texts: dict[str, dict[str, list[str]]] = {}
    rows = zip(table[item_column], table[prompt_column], labels, strict=True)
    for number, (item, text, label) in enumerate(rows, start=1):
        if not item or not text or not label:
            raise ConfigError(f"{path}, row {number}: item, prompt or label is empty")
        prompts = texts.setdefault(item_id(str(item)), {})
        name = re.sub(r"[^\w-]+", "_", str(label).strip()).strip("_") or "target"
        if name in prompts:
            raise ConfigError(
                f"{path}, row {number}: item {item!r} has two prompts labelled {name!r}"
            )
        prompts[name] = _split_ensemble(str(text), str(text))
    return PromptTable({item: make_prompts(found) for item, found in texts.items()}, path)


def item_id(item: str) -> str:
    """The id of the item that a table names by its path."""
    return ItemRef(item.replace("\\", "/").removeprefix("./").lstrip("/")).id


def check_wording(tokenizer: Any, prompts: Prompts, nulls: Sequence[str] = ()) -> None:
    """Refuse prompts that the model would not tell from shorter or from other ones.

    Args:
        tokenizer: texts → (T, L) token ids, 0 for padding, as open_clip's are.
        nulls: null prompts, with which each prompt is compared.

    Raises:
        ConfigError: a text is longer than the model's context; or two prompts, or a prompt and
            a null prompt, are the same to the tokenizer.
    """
    taken: dict[tuple[Tokens, ...], str] = {
        (read_tokens(tokenizer, text),): f"null prompt {_brief(text)}" for text in nulls
    }
    for label, texts in prompts.texts.items():
        key = tuple(sorted(read_tokens(tokenizer, text) for text in texts))
        mine = f"prompt {label}={_brief(' | '.join(texts))}"
        if (other := taken.setdefault(key, mine)) is not mine:
            raise ConfigError(
                f"the {mine} is the same to this model as the {other}: case, blanks and words "
                "outside its vocabulary do not count; use words that tell them apart"
            )


def read_tokens(tokenizer: Any, text: str) -> Tokens:
    """The token ids of a whole text, those of start and end included.

    Raises:
        ConfigError: there are more than the model's context takes.
    """
    most = int(tokenizer.context_length)
    tokens = _tokenize(tokenizer, text, most)
    if len(tokens) < most - 1:  # some tokenizers leave the end mark out
        return tokens
    whole = _tokenize(tokenizer, text)
    if len(whole) <= most:
        return whole
    words = text.split()
    kept = _count_fitting(tokenizer, words)
    raise ConfigError(
        f"the prompt {_brief(text)} is too long: it makes {len(whole)} tokens, start and end "
        f"included, of which the model reads {most}, the first {kept} of its {len(words)} words; "
        f"{_brief(' '.join(words[kept:]), LOST)} would be dropped: shorten it"
    )


def cut_wording(tokenizer: Any, prompts: Prompts) -> tuple[Prompts, list[str]]:
    """Prompts without the words beyond the model's context, and what was wrong with each text.

    Raises:
        ConfigError: not even the first word fits.
    """
    cut, said = {}, []
    for label, texts in prompts.texts.items():
        kept = []
        for text in texts:
            try:
                read_tokens(tokenizer, text)
            except ConfigError as exc:
                words = text.split()
                fitting = _count_fitting(tokenizer, words)
                if not fitting:
                    raise
                text = " ".join(words[:fitting])
                said.append(str(exc))
            kept.append(text)
        cut[label] = tuple(kept)
    return Prompts(cut), said


def _tokenize(tokenizer: Any, text: str, length: int | None = None) -> Tokens:
    """Token ids without padding: the first ``length``, by default all of them."""
    if length is None:
        length = GROWTH * len(text.encode("utf-8", "replace")) + MARKS
    return tuple(token for token in tokenizer([text], context_length=length)[0].tolist() if token)


def _count_fitting(tokenizer: Any, words: Sequence[str]) -> int:
    """How many of the first ``words`` the model's context takes, by bisection."""
    low, high = 0, len(words)
    while high - low > 1:
        middle = (low + high) // 2
        if len(_tokenize(tokenizer, " ".join(words[:middle]))) <= tokenizer.context_length:
            low = middle
        else:
            high = middle
    return low


def _brief(text: str, most: int = SHOWN) -> str:
    return repr(text if len(text) <= most else f"{text[: most - 1]}…")
