"""Every setting of the engine, owned by one frozen record per concern.

Precedence, strongest first: command-line flags, ``MEDCLIPSAM_*`` environment, a TOML
file, the bundle's defaults, the defaults written here.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_type_hints

from medclipsam.engine.backends import PRECISIONS
from medclipsam.engine.boxes import BoxConfig
from medclipsam.engine.crf import CrfConfig
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.fit import FitMode
from medclipsam.engine.quality import ConfidenceConfig
from medclipsam.engine.saliency import SaliencyConfig

CHOICES = {"saliency": "method", "crf": "solver", "boxes": "select"}


@dataclass(frozen=True)
class SegmentConfig:
    """How SAM is fed.

    Attributes:
        batch: images per encoder call.
        boxes: boxes per decoder call.
    """

    batch: int = 4
    boxes: int = 16

    def __post_init__(self) -> None:
        for name in ("batch", "boxes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"segment.{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class EngineConfig:
    """All settings that decide what masks look like.

    Attributes:
        saliency, crf, boxes, segment: the stages' own settings.
        fit: how an image enters CLIP's square input: ``squash`` or ``pad``.
        null_prompts: texts that describe images without any target.
        presence: contrast (cosine to the prompt minus cosine to the nearest null prompt or
            other prompt) below which a target is absent; None asks nothing.
        confidence: how figures of a mask become its confidence.
        precision: ``fp32``, or ``bf16`` or ``fp16`` by autocast where the device has it.
    """

    saliency: SaliencyConfig = field(default_factory=SaliencyConfig)
    crf: CrfConfig = field(default_factory=CrfConfig)
    boxes: BoxConfig = field(default_factory=BoxConfig)
    segment: SegmentConfig = field(default_factory=SegmentConfig)
    fit: FitMode = "squash"
    null_prompts: tuple[str, ...] = ()
    presence: float | None = None
    confidence: ConfidenceConfig = field(default_factory=ConfidenceConfig)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"

    def __post_init__(self) -> None:
        if self.fit not in ("squash", "pad"):
            raise ConfigError(f"fit must be squash or pad, got {self.fit!r}")
        if self.precision not in PRECISIONS:
            raise ConfigError(
                f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}"
            )
        if self.presence is not None and not self.null_prompts:
            raise ConfigError("presence compares with null prompts; give null_prompts too")
        if self.saliency.method == "contrastcam" and not self.null_prompts:
            raise ConfigError(
                "contrastcam scores a prompt against null prompts and this bundle names none; "
                "set null_prompts in a --config file, or use --saliency gscorecam"
            )


def make_config(*layers: Mapping[str, Any]) -> EngineConfig:
    """Merge nested settings, later layers winning, and check them.

    Raises:
        ConfigError: an unknown setting or a value of the wrong type.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merge(merged, layer)
    return _build(EngineConfig, merged, "")


def merge(base: dict[str, Any], layer: Mapping[str, Any]) -> None:
    """Lay settings over others; a text for a group, as in ``crf = "pydensecrf"``, is its choice."""
    spelt = {
        key: {CHOICES[key]: value} if key in CHOICES and isinstance(value, str) else value
        for key, value in layer.items()
    }
    _merge(base, spelt)


def _merge(base: dict[str, Any], layer: Mapping[str, Any]) -> None:
    for key, value in layer.items():
        if isinstance(value, Mapping):
            below = base.setdefault(key, {})
            if not isinstance(below, dict):
                raise ConfigError(f"{key} is a single setting, not a group")
            _merge(below, value)
        else:
            base[key] = value


def _build(kind: type, values: Mapping[str, Any], prefix: str) -> Any:
    hints = get_type_hints(kind)
    known = {f.name for f in dataclasses.fields(kind)}
    if unknown := sorted(set(values) - known):
        raise ConfigError(
            f"unknown setting {prefix}{unknown[0]}; known are "
            + ", ".join(prefix + name for name in sorted(known))
        )
    built = {}
    for name, value in values.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{prefix}{name} is a group of settings, got {value!r}")
            built[name] = _build(hint, value, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            built[name] = _convert(hint, value, prefix + name)
    return kind(**built)


def _convert(hint: Any, value: Any, name: str) -> Any:
    """One value as its field wants it; texts from the command line are parsed."""
    if hint == tuple[str, ...]:
        parts = value.split("|") if isinstance(value, str) else value
        if not isinstance(parts, (list, tuple)) or not all(isinstance(p, str) for p in parts):
            raise ConfigError(f"{name} is a list of texts, got {value!r}")
        return tuple(parts)
    wanted = float if hint == (float | None) else hint
    if hint == (float | None) and value in (None, "none"):
        return None
    if wanted in (int, float):
        try:
            if isinstance(value, bool) or (wanted is int and float(value) != int(float(value))):
                raise ValueError
            return wanted(float(value))
        except (TypeError, ValueError, OverflowError):
            raise ConfigError(f"{name} is a number ({wanted.__name__}), got {value!r}") from None
    if not isinstance(value, str):
        raise ConfigError(f"{name} is a text, got {value!r}")
    return value


def read_toml(path: Path) -> dict[str, Any]:
    """Settings from a TOML file, shaped like ``EngineConfig``.

    Raises:
        ConfigError: the file cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigError(f"cannot read settings from {path}: {exc}") from exc


def parse_settings(pairs: tuple[str, ...]) -> dict[str, Any]:
    """``("crf.tau=1.2", "crf=pydensecrf", …)`` → nested settings.

    Raises:
        ConfigError: a pair without ``=``.
    """
    nested: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set takes NAME=VALUE such as crf.tau=1.2, got {pair!r}")
        *groups, last = name.strip().split(".")
        layer: dict[str, Any] = {last: value.strip()}
        for group in reversed(groups):
            layer = {group: layer}
        merge(nested, layer)
    return nested
