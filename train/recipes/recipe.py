"""Recipes: what a data set is, how it lies on disk, and how its table comes about.

Refuses to know how anything is run. A recipe is one TOML file; those of the paper's data sets
lie in ``recipes/``, and ``recipe show`` prints them to be copied and changed.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medclipsam.engine.errors import ConfigError
from medclipsam.train.recipes.record import build

FOLDER = Path(__file__).parent
STAGES = {
    "segmentation": ("zero-shot", "weak"),
    "fine-tuning": ("train", "retrieval"),
    "retrieval": ("retrieval",),
}


@dataclass(frozen=True)
class Source:
    """Where the data are from.

    Attributes:
        pages: to download from; none where the command writes the data itself.
        licence: what is known of it.
        known: what the data's own authors or the paper say.
        chosen: what this recipe adds to that.
    """

    pages: tuple[str, ...]
    licence: str
    known: str
    chosen: str


@dataclass(frozen=True)
class Part:
    """Images that belong to one side of the split, and where their masks are.

    Attributes:
        split: ``train``, ``test``, or ``drawn`` to be shared out by ``Draw``.
        images: globs below the data folder, each of which must match.
        least: how many images each of them must match.
        masks: label → glob below the data folder with ``{folder}`` and ``{parent}`` (the image's
            folder, and that folder's), ``{name}`` and ``{stem}``; several masks are united.
        without: globs of names that ``images`` match and that are no images.
    """

    split: Literal["train", "test", "drawn"]
    images: tuple[str, ...]
    least: int
    masks: dict[str, str]
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.least < 1 or not self.images or not self.masks:
            raise ConfigError("a part has images, masks and a least count of 1 or more")
        for template in self.masks.values():
            try:
                template.format(folder="", parent="", name="", stem="")
            except (KeyError, IndexError, ValueError) as exc:
                raise ConfigError(
                    f"cannot use the pattern {template!r}: {exc}; it may hold {{folder}}, "
                    "{parent}, {name} and {stem}"
                ) from exc


@dataclass(frozen=True)
class Draw:
    """How images of parts that are ``drawn`` are shared out, equally on every machine.

    Attributes:
        test_share: of the patients.
        patients: a CSV below the data folder with the columns item and patient; where there is
            none, every image is its own patient.
    """

    test_share: float = 0.2
    seed: int = 0
    patients: str = "patients.csv"

    def __post_init__(self) -> None:
        if not 0 < self.test_share < 1 or self.seed < 0:
            raise ConfigError(
                f"expected a test_share in (0, 1) and a seed of 0 or more, got {self.test_share} "
                f"and {self.seed}"
            )


@dataclass(frozen=True)
class PairTable:
    """Images with captions, see ``medclipsam.train.pairs.pairs.read_pairs``.

    Attributes:
        table: below the data folder.
        images: folder of the images below the data folder; empty for the table's own.
        least: pairs that must be usable.
        validation: share of the pairs that a training is judged by.
        pool: candidates of a second table of retrieval, drawn at random; 0 for none.
    """

    table: str
    least: int
    images: str = ""
    image_column: str = "image"
    caption_column: str = "caption"
    validation: float = 0.15
    pool: int = 0

    def __post_init__(self) -> None:
        if self.least < 2 or not 0 < self.validation < 1 or self.pool in (1, *range(-9, 0)):
            raise ConfigError(
                "expected at least 2 pairs, a validation share in (0, 1) and a pool of 0 or of 2 "
                f"and more, got {self.least}, {self.validation} and {self.pool}"
            )


@dataclass(frozen=True)
class Phantoms:
    """Synthetic scans that the command writes, so many for each side of the split."""

    modality: Literal["ultrasound", "mri", "xray"]
    train: int
    test: int


@dataclass(frozen=True)
class Recipe:
    """One data set, from its layout to its table.

    Attributes:
        name: of the file.
        parts, draw, prompts, methods, settings, network: of a segmentation; label → wordings,
            saliency methods, settings of the engine and of ``UnetConfig``.
        min_confidence: masks below it are not learned from.
        pairs: of a fine-tuning or a retrieval.
        training: settings of ``UnetTraining`` or ``ClipTraining``.
        bundles: name → bundle, unless the command says otherwise.
    """

    name: str
    title: str
    task: Literal["segmentation", "fine-tuning", "retrieval"]
    source: Source
    bundles: dict[str, str]
    parts: tuple[Part, ...] = ()
    draw: Draw = field(default_factory=Draw)
    prompts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    methods: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)
    min_confidence: float = 0.0
    training: dict[str, Any] = field(default_factory=dict)
    pairs: PairTable | None = None
    phantoms: Phantoms | None = None

    def __post_init__(self) -> None:
        if not self.bundles:
            raise ConfigError("bundles names at least one, as name = bundle")
        if self.task != "segmentation":
            if self.pairs is None or self.parts:
                raise ConfigError(f"{self.task} needs the table pairs, and no parts")
            return
        if not (self.parts and self.prompts and self.methods) or self.pairs:
            raise ConfigError("segmentation needs parts, prompts and methods, and no pairs")
        if not isinstance(self.settings.get("saliency", {}), dict):
            raise ConfigError("settings.saliency is a table; methods names the saliency methods")
        if not all(map(all, self.prompts.values())) or not all(self.prompts.values()):
            raise ConfigError("every label of prompts needs a text or several, none of them empty")
        for part in self.parts:
            if set(part.masks) != set(self.prompts):
                raise ConfigError(
                    f"expected masks for the labels of prompts ({', '.join(self.prompts)}), got "
                    f"{', '.join(part.masks)}"
                )
        splits = {part.split for part in self.parts}
        if "drawn" not in splits and splits != {"train", "test"}:
            raise ConfigError("parts need both splits, train and test, or drawn")

    @property
    def stages(self) -> tuple[str, ...]:
        """What there is to do, in order."""
        return STAGES[self.task]


def list_recipes() -> list[str]:
    """Names of those that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def find_recipe(name: str) -> Path:
    """The file of a recipe by name, or ``name`` itself where it is a path to one.

    Raises:
        ConfigError: there is none.
    """
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file():
        raise ConfigError(
            f"there is no recipe {name!r}; choose from {', '.join(list_recipes())}, or give the "
            "path of a .toml file"
        )
    return path


def read_recipe(path: Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    """Read and check one file.

    Args:
        changes: nested entries to lay over those of the file.

    Raises:
        ConfigError: it cannot be read, or says something that is no recipe.
    """
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigError(f"cannot read the recipe {path}: {exc}") from exc
    return build(Recipe, {"name": path.stem, **_laid_over(table, changes or {})}, str(path))


def parse_changes(pairs: Sequence[str]) -> dict[str, Any]:
    """``("training.epochs=2", …)`` → nested entries; values as in TOML, else texts.

    Raises:
        ConfigError: a pair without ``=``.
    """
    nested: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"--set takes NAME=VALUE such as training.epochs=2, got {pair!r}")
        *tables, last = name.strip().split(".")
        change: dict[str, Any] = {last: _value(text.strip())}
        for table in reversed(tables):
            change = {table: change}
        nested = _laid_over(nested, change)
    return nested


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _laid_over(table: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(table)
    for name, value in changes.items():
        below = merged.get(name)
        both = isinstance(below, dict) and isinstance(value, dict)
        merged[name] = _laid_over(below, value) if both else value  # type: ignore[arg-type]
    return merged
