"""How figures are written: paragraphs, tables, numbers with sign, spread or power of ten.

Refuses to know what they are figures of.
"""

import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from medclipsam.benchmarks.measuring.spread import Ratio

WIDTH = 118
WHOLE = re.compile(r"`[^`]+`|\[[^\]]+\]\([^)]+\)")  # code and links are never broken


def paragraph(*sentences: str) -> str:
    """Sentences as one paragraph of wrapped lines."""
    text = WHOLE.sub(lambda found: found[0].replace(" ", "\0"), " ".join(sentences))
    lines = textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace("\0", " ")


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; a cell is whatever ``str`` makes of it."""
    lines = [_line(heads), _line(["---"] * len(heads)), *map(_line, rows)]
    return "\n".join(lines)


def _line(cells: Sequence[object]) -> str:
    return "|" + "".join(f" {cell} |" if cell != "" else " |" for cell in cells)


def join(*parts: str) -> str:
    """Paragraphs and tables, one below the other."""
    return "\n\n".join(parts)


def made_by(facts: Mapping[str, Any]) -> str:
    """``Made by COMMAND (MACHINE; torch VERSION)``, if torch took part, without a full stop."""
    torch = facts["versions"].get("torch")
    return f"Made by `{facts['command']}` ({facts['machine']}{f'; torch {torch}' * bool(torch)})"


def bold(text: str, yes: bool = True) -> str:
    """``text`` as it is, or in bold letters."""
    return f"**{text}**" if yes else text


def enumerate_words(words: Sequence[str]) -> str:
    """``a, b and c``."""
    *some, last = words
    return f"{', '.join(some)} and {last}" if some else last


def interval(found: Mapping[str, float], digits: int = 2) -> str:
    """``0.90 [0.88, 0.92]``."""
    mean, low, high = (f"{found[key]:.{digits}f}" for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def signed(value: float, digits: int = 3) -> str:
    """``+0.018``, ``−0.011``; what is rounded to nothing has no sign."""
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return f"{'−' if value < 0 else '+'}{text}"


def difference(mean: float, low: float, high: float, digits: int = 3) -> str:
    """``+0.001 [−0.003, +0.006]``."""
    return f"{signed(mean, digits)} [{signed(low, digits)}, {signed(high, digits)}]"


def power(value: float) -> str:
    """``1.1e-4``."""
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def significant(value: float, digits: int = 3) -> str:
    """``3.75``, ``95.2``, ``1,833``: so many digits, and all those before the point."""
    places = digits - 1 - math.floor(math.log10(abs(value))) if value else digits
    return f"{value:,.{max(0, places)}f}"


def middle(found: Mapping[str, Any]) -> float:
    """The median of a figure that was measured several times."""
    return found["median"]


def times(found: Mapping[str, Any], digits: int = 2) -> str:
    """``25.4×``, in bold letters, and its spread or that it was measured once."""
    number, sign, spread = Ratio.from_json(found).show(digits).partition("×")
    return bold(number + sign) + spread
