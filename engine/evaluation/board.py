"""Several predictions against one truth: a table with a line for each, as papers print it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from rich.markup import escape
from rich.table import Table

from medclipsam.engine.errors import ConfigError
from medclipsam.engine.evaluation.evaluate import OVERALL, PARTS, Evaluation, Part, Row, evaluate
from medclipsam.engine.evaluation.table import cells, explain, headings, shown_figures, without_nan


@dataclass(frozen=True)
class Entry:
    """One line to be: what it is called, whose masks, and which of them."""

    name: str
    predictions: Path
    part: Part = "mask"


def parse_entry(text: str) -> Entry:
    """``NAME=FOLDER`` or ``NAME=FOLDER:crf``.

    Raises:
        ConfigError: without a name or a folder.
    """
    name, equals, place = text.partition("=")
    folder, colon, part = place.rpartition(":")
    if not colon or part not in PARTS:  # a colon may belong to the path
        folder, part = place, "mask"
    if not (equals and name.strip() and folder):
        raise ConfigError(f"expected NAME=FOLDER or NAME=FOLDER:{'|'.join(PARTS)}, got {text!r}")
    return Entry(name.strip(), Path(folder), cast(Part, part))


@dataclass(frozen=True)
class Scoreboard:
    """Evaluations by name, in the order given, all against one truth."""

    evaluations: dict[str, Evaluation]
    tolerance: float

    def lines(self) -> list[tuple[str, Row]]:
        """(name, row): all names of one label after the other; over all labels at the end."""
        tables = {name: {row.label: row for row in e.summary()} for name, e in self._items()}
        labels = sorted({label for rows in tables.values() for label in rows} - {OVERALL})
        shown = [*labels, OVERALL] if len(labels) > 1 else labels
        return [
            (name, rows[label]) for label in shown for name, rows in tables.items() if label in rows
        ]

    def _items(self) -> Sequence[tuple[str, Evaluation]]:
        return list(self.evaluations.items())


def score(entries: Sequence[Entry], truth: Path, tolerance: float = 2.0) -> Scoreboard:
    """Evaluate every entry.

    Raises:
        ConfigError: no entry, two of one name, or one that does not fit the truth.
    """
    names = [entry.name for entry in entries]
    if not names:
        raise ConfigError("expected predictions to compare, as NAME=FOLDER, got none")
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise ConfigError(f"two predictions are called {twice!r}; give each a name of its own")
    found = {e.name: evaluate(e.predictions, truth, tolerance, e.part) for e in entries}
    return Scoreboard(found, tolerance)


def to_table(board: Scoreboard) -> Table:
    """For a terminal."""
    lines = board.lines()
    names = shown_figures([row for _, row in lines])
    table = Table(title="Comparison", caption=explain(names))
    for head in ("label", "predictions"):
        table.add_column(head)
    for head in ("n", "missing", "unreadable", *headings(names, board.tolerance)):
        table.add_column(head, justify="right")
    for k, (name, row) in enumerate(lines):
        if k and row.label != lines[k - 1][1].label:
            table.add_section()
        counts = (str(row.n), str(row.missing), str(row.unreadable))
        table.add_row(escape(row.label), escape(name), *counts, *cells(row, names))
    return table


def to_markdown(board: Scoreboard) -> str:
    """The same table in Markdown, with a caption below it."""
    lines = board.lines()
    names = shown_figures([row for _, row in lines])
    heads = ["label", "predictions", "n", "missing", "unreadable"]
    table = [[*heads, *headings(names, board.tolerance)]]
    table.append(["---"] * 2 + ["---:"] * (len(table[0]) - 2))
    for name, row in lines:
        counts = [str(row.n), str(row.missing), str(row.unreadable)]
        table.append([_plain(row.label), _plain(name), *counts, *cells(row, names)])
    text = "\n".join(f"| {' | '.join(line)} |" for line in table)
    return f"{text}\n\n{explain(names)[0].upper()}{explain(names)[1:]}.\n"


def to_json(board: Scoreboard) -> dict[str, Any]:
    """Every line, NaN as None."""
    rows = [{"predictions": name, **asdict(row)} for name, row in board.lines()]
    return {"tolerance": board.tolerance, "rows": without_nan(rows)}


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
