"""Frozen records of settings: pydantic checks every value, the words about a wrong one are ours.

Refuses to know which settings there are.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Annotated, Any, TypeVar, dataclass_transform, get_args, get_type_hints

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from medclipsam.engine.errors import ConfigError

Kind = TypeVar("Kind")

SAID = {  # pydantic's type of error → what is said of the setting
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "finite_number": "must be finite",
    "dataclass_type": "is a group of settings",
    "string_type": "is a text",
    "tuple_type": "is a list",
}
UNKNOWN = "unexpected_keyword_argument"


def _number(wanted: type) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        """A number, or a text that writes one; True is none."""
        try:
            if isinstance(value, bool) or (wanted is int and float(value) != int(float(value))):
                raise ValueError
            return wanted(float(value))
        except (TypeError, ValueError, OverflowError):
            raise PydanticCustomError("kind", f"is a number ({wanted.__name__})") from None

    return convert


def _maybe_number(value: Any) -> Any:
    return None if value in (None, "none") else _number(float)(value)


def _switch(value: Any) -> Any:
    if isinstance(value, bool):
        return value
    if value not in ("true", "false"):
        raise PydanticCustomError("kind", "is true or false")
    return value == "true"


def _texts(value: Any) -> Any:
    parts = value.split("|") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)) or not all(isinstance(p, str) for p in parts):
        raise PydanticCustomError("kind", "is a list of texts")
    return tuple(parts)


Whole = Annotated[int, BeforeValidator(_number(int))]
Real = Annotated[float, BeforeValidator(_number(float)), Field(allow_inf_nan=False)]
Count = Annotated[Whole, Field(ge=1)]
Natural = Annotated[Whole, Field(ge=0)]
Positive = Annotated[Real, Field(gt=0)]
NotNegative = Annotated[Real, Field(ge=0)]
Share = Annotated[Real, Field(ge=0, le=1)]
MaybeReal = Annotated[float | None, BeforeValidator(_maybe_number)]
Switch = Annotated[bool, BeforeValidator(_switch)]
Texts = Annotated[tuple[str, ...], BeforeValidator(_texts)]


@dataclass_transform(frozen_default=True)
def settings(kind: type[Kind]) -> type[Kind]:
    """A frozen dataclass whose values are checked when it is made.

    Raises:
        ConfigError: names the setting, what it must be and what it was.
    """
    made: Any = dataclass(frozen=True, config=ConfigDict(extra="forbid"))(kind)
    checked = made.__init__

    @wraps(checked)
    def init(self: Any, *args: Any, **values: Any) -> None:
        try:
            checked(self, *args, **values)
        except ValidationError as exc:
            raise ConfigError(f"{made.__name__}: {_explain(made, exc)}") from None

    made.__init__ = init
    return made


def build(kind: type[Kind], values: Mapping[str, Any]) -> Kind:
    """Nested plain values → a record of ``kind``; texts from the command line are parsed.

    Raises:
        ConfigError: an unknown setting or a wrong value.
    """
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as exc:
        raise ConfigError(_explain(kind, exc)) from None


def _explain(kind: type, exc: ValidationError) -> str:
    errors = exc.errors(include_url=False)
    error = next((e for e in errors if e["type"] == UNKNOWN), errors[0])
    *groups, last = error["loc"] or ("",)
    prefix = "".join(f"{group}." for group in groups)
    if error["type"] in (UNKNOWN, "missing"):
        known = sorted(prefix + field.name for field in dataclasses.fields(_kind_at(kind, groups)))
        what = "missing" if error["type"] == "missing" else "unknown"
        return f"{what} setting {prefix}{last}; known are {', '.join(known)}"
    context = error.get("ctx", {})
    if error["type"] == "literal_error":
        said = f"must be {context['expected'].replace(chr(39), '')}"
    elif context.get("gt") == 0:
        said = "must be positive"
    else:
        said = SAID.get(error["type"], error["msg"]).format(
            **{name: _plain(value) for name, value in context.items()}
        )
    return f"{prefix}{last} {said}, got {error['input']!r}"


def _kind_at(kind: Any, groups: Sequence[int | str]) -> Any:
    """The record that lies inside ``kind`` on the way ``groups``, through tuples and options."""
    for group in groups:
        hint = kind if isinstance(group, int) else get_type_hints(kind)[group]
        inner = (hint, *get_args(hint))
        kind = next((h for h in inner if dataclasses.is_dataclass(h)), hint)
    return kind


def _plain(value: Any) -> Any:
    """2 rather than 2.0."""
    whole = isinstance(value, float) and math.isfinite(value) and value == int(value)
    return int(value) if whole else value
