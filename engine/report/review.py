"""What a person decided about masks: the report's ``review.json``, or a CSV table.

Refuses to know what follows from a decision.
"""

import json
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

from medclipsam.engine.errors import ConfigError
from medclipsam.engine.tables import read_table

Decision = Literal["accept", "reject", "unsure"]
Key = tuple[str, str]

DECISIONS: tuple[str, ...] = get_args(Decision)
COLUMNS = ("item", "label", "decision")
VERSION = 1


def read_review(path: Path, known: Container[Key] | None = None) -> dict[Key, Decision]:
    """Read decisions: (item id, label) → ``accept``, ``reject`` or ``unsure``.

    Args:
        path: ``.json`` as the report saves it, ``{"medclipsam_review": 1, "decisions":
            [{"item": …, "label": …, "decision": …}, …]}``, or ``.csv`` with the columns
            item, label and decision. Other keys and columns, such as note, are passed over.
        known: the run's pairs of item and label; without it, any pair is taken.

    Raises:
        ConfigError: it cannot be read; a row lacks a value, has an unknown decision or
            contradicts an earlier one; or a pair is not of this run.
    """
    decisions: dict[Key, Decision] = {}
    places: dict[Key, str] = {}
    for place, row in _rows(path):
        key, decision = _check_row(f"{path}, {place}", row)
        if known is not None and key not in known:
            raise ConfigError(
                f"{path}, {place}: this run has no item {key[0]!r} with the label {key[1]!r}; "
                "take the review that was saved from this run's report"
            )
        if decisions.setdefault(key, decision) != decision:
            raise ConfigError(
                f"{path}, {place}: {decision} for {key[0]!r}, {key[1]!r}, but {places[key]} "
                f"says {decisions[key]}; keep one of them"
            )
        places.setdefault(key, place)
    return decisions


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(what the row is called, the row), one by one."""
    suffix = path.suffix.lower()
    if suffix == ".csv":
        table = read_table(path, columns=COLUMNS)
        rows = zip(*(table[name] for name in COLUMNS), strict=True)
        return ((f"row {k}", dict(zip(COLUMNS, row, strict=True))) for k, row in enumerate(rows, 1))
    if suffix != ".json":
        raise ConfigError(f"expected a review as .json or .csv, got {path}")
    try:
        return _json_rows(path, path.read_text("utf-8-sig"))
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"cannot read the review {path}: {exc}") from exc


def _json_rows(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    try:
        page = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise ConfigError(f"{path} is not valid JSON: {exc}") from exc
    found = page.get("medclipsam_review") if isinstance(page, dict) else None
    if found is not True and found == VERSION and isinstance(page.get("decisions"), list):
        return ((f"decision {k}", row) for k, row in enumerate(page["decisions"], start=1))
    raise ConfigError(
        f'expected {path} to hold {{"medclipsam_review": {VERSION}, "decisions": […]}}; '
        "save the review again from the report"
    )


def _check_row(place: str, row: Any) -> tuple[Key, Decision]:
    if not isinstance(row, dict):
        raise ConfigError(f"{place}: expected item, label and decision, got {row!r:.80}")
    for name in COLUMNS:
        if not isinstance(row.get(name), str) or not row[name]:
            raise ConfigError(f"{place}: expected a text as {name}, got {row.get(name)!r:.80}")
    if row["decision"] not in DECISIONS:
        raise ConfigError(
            f"{place}: expected a decision out of {', '.join(DECISIONS)}, "
            f"got {row['decision']!r:.80}"
        )
    return (row["item"], row["label"]), row["decision"]
