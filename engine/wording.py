"""Prompts as a model's tokenizer reads them: whole, and each different from the others.

Refuses to know of graphs and images. Captions of a training are cut instead, see ``train``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from medclipsam.engine.errors import ConfigError
from medclipsam.engine.types import Prompts

SHOWN, LOST = 60, 200  # signs of a prompt, and of the words that are lost, in a message
GROWTH = 12  # tokens that a byte of a text can make at most: ligatures that are spelt out
MARKS = 16  # tokens of start and end, with room to spare

Tokens = tuple[int, ...]


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
