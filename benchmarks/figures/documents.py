"""Blocks of documents that are generated: where they lie, and what fills them.

    <!-- figures: NAME -->

    whatever NAME's maker makes

    <!-- end of figures -->

Each mark is a line of its own. Refuses to know what a figure is.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from medclipsam.engine.errors import ConfigError

OPEN = re.compile(r"<!-- figures: ([\w-]+) -->")
CLOSE = "<!-- end of figures -->"
ALIKE = re.compile(r"\s*<!--.*\bfigures\b")

Results = Mapping[str, Mapping[str, Any]]
Maker = Callable[[Results], str]


@dataclass(frozen=True)
class Block:
    """A generated part of a document.

    Attributes:
        name: of its maker.
        start, stop: its content between both marks, as a slice of the document's text.
    """

    name: str
    start: int
    stop: int


def find_blocks(text: str, document: str) -> Iterator[Block]:
    """All blocks of a text, in their order.

    Raises:
        ConfigError: a block is not closed, or a mark is not one of the two.
    """
    place, name, start = 0, "", 0
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        mark, here = line.strip("\r\n"), f"{document}:{number}"
        opened = OPEN.fullmatch(mark)
        if opened and name:
            raise ConfigError(f"{here}: the block {name!r} is not closed; put {CLOSE} before this")
        if mark == CLOSE:
            if not name:
                raise ConfigError(f"{here}: no block is open here; remove this line")
            yield Block(name, start, place)
            name = ""
        elif opened:
            name, start = opened[1], place + len(line)
        elif ALIKE.match(mark):
            raise ConfigError(f"{here}: write <!-- figures: NAME --> or {CLOSE}, not {mark!r}")
        place += len(line)
    if name:
        raise ConfigError(f"{document}: the block {name!r} is not closed; put {CLOSE} behind it")


def fill_blocks(text: str, document: str, made: Mapping[str, str]) -> str:
    """``text`` with each block's content made anew.

    Args:
        made: block name → content.

    Raises:
        ConfigError: a block has a name that nobody makes, or the marks are wrong.
    """
    parts, place = [], 0
    for block in find_blocks(text, document):
        if block.name not in made:
            known = ", ".join(sorted(made))
            raise ConfigError(f"{document}: nobody makes the block {block.name!r}, only {known}")
        parts += [text[place : block.start], f"\n{made[block.name]}\n\n"]
        place = block.stop
    return "".join([*parts, text[place:]])


def fill_documents(
    texts: Mapping[str, str], makers: Mapping[str, Maker], results: Results
) -> dict[str, str]:
    """Document → text with all blocks made anew.

    Raises:
        ConfigError: what ``fill_blocks`` raises, a block that no document has, or a result that
            is not there.
    """
    made = {name: _make(name, maker, results) for name, maker in makers.items()}
    filled = {name: fill_blocks(text, name, made) for name, text in texts.items()}
    found = {block.name for name, text in texts.items() for block in find_blocks(text, name)}
    if unused := sorted(made.keys() - found):
        raise ConfigError(
            f"no document has the block {', '.join(unused)}; put it into one, or remove its maker"
        )
    return filled


def _make(name: str, maker: Maker, results: Results) -> str:
    try:
        return maker(results)
    except KeyError as exc:
        raise ConfigError(f"the block {name!r} needs {exc}, which no result has") from exc


def compare_blocks(text: str, other: str, document: str) -> list[str]:
    """Names of the blocks whose contents differ; both texts have the same blocks."""
    pairs = zip(find_blocks(text, document), find_blocks(other, document), strict=True)
    return [a.name for a, b in pairs if text[a.start : a.stop] != other[b.start : b.stop]]
