"""Tables of a TOML file as frozen records: every entry known, every value of its field's type.

Refuses to know what the records are for; they check their own ranges.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from medclipsam.engine.errors import ConfigError

Record = TypeVar("Record")


def build(kind: type[Record], table: Mapping[str, Any], where: str) -> Record:
    """A ``kind`` of the entries of ``table``, lists as tuples, tables as records.

    Args:
        kind: a dataclass.
        where: of the table, for messages.

    Raises:
        ConfigError: an unknown entry, one that is missing, or a value of the wrong type.
    """
    known = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(table) - set(known)):
        raise ConfigError(
            f"{where} has an unknown entry {unknown[0]!r}; known are {', '.join(sorted(known))}"
        )
    if missing := [name for name in known if _required(known[name]) and name not in table]:
        raise ConfigError(f"{where} lacks the entry {missing[0]!r}; write it down there")
    hints = get_type_hints(kind)
    values = {name: _fit(hints[name], value, f"{where}.{name}") for name, value in table.items()}
    try:
        return kind(**values)
    except ConfigError as exc:
        raise ConfigError(f"{where}: {exc}") from exc


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is field.default_factory is dataclasses.MISSING


def _fit(hint: Any, value: Any, where: str) -> Any:
    """``value`` as its field wants it."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        hint = next(kind for kind in inner if kind is not type(None))  # TOML has no null
        return _fit(hint, value, where)
    if origin is tuple and inner == (str, ...) and isinstance(value, str):
        return (value,)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_fit(inner[0], entry, f"{where}[{n}]") for n, entry in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: _fit(inner[1], entry, f"{where}.{key}") for key, entry in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return build(hint, value, where)  # type: ignore[arg-type]
    if hint is float and type(value) is int:
        return float(value)
    if hint is Any or (origin is Literal and value in inner) or type(value) is hint:
        return value
    raise ConfigError(f"{where}: expected {_words(hint)}, got {value!r}")


def _words(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin is tuple:
        return f"a list, each {_words(inner[0])}"
    if origin is dict or dataclasses.is_dataclass(hint):
        return "a table"
    names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
    return names.get(hint, str(hint))
