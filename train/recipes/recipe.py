"""Recipes: what a data set is, how it lies on disk, and how its table comes about.

Refuses to know how anything is run. A recipe is one TOML file; those of the paper's data sets
lie beside this file, and ``recipe show`` prints them to be copied and changed.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field

from medclipsam.engine.errors import ConfigError
from medclipsam.engine.settings import Count, Natural, Real, build, settings

FOLDER = Path(__file__).parent
STAGES = {
    "segmentation": ("zero-shot", "weak"),
    "fine-tuning": ("train", "retrieval"),
    "retrieval": ("retrieval",),
}
Kind = TypeVar("Kind")
Words = Annotated[
    tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)
]
Fraction = Annotated[Real, Field(gt=0, lt=1)]


@settings
class Source:
    """Where the data are from.

    Attributes:
        pages: to download from; none where the command writes the data itself.
        licence: what is known of it.
        known: what the data's own authors or the paper say.
        chosen: what this recipe adds to that.
    """

    pages: Words
    licence: str
    known: str
    chosen: str


@settings
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
    images: Annotated[Words, Field(min_length=1)]
    least: Count
    masks: Annotated[dict[str, str], Field(min_length=1)]
    without: Words = ()

    def __post_init__(self) -> None:
        for template in self.masks.values():
            try:
                template.format(folder="", parent="", name="", stem="")
            except (KeyError, IndexError, ValueError) as exc:
                raise ConfigError(
                    f"cannot use the pattern {template!r}: {exc}; it may hold {{folder}}, "
                    "{parent}, {name} and {stem}"
                ) from exc


@settings
class Draw:
    """How images of parts that are ``drawn`` are shared out, equally on every machine.

    Attributes:
        test_share: of the patients.
        patients: a CSV below the data folder with the columns item and patient; where there is
            none, every image is its own patient.
    """

    test_share: Fraction = 0.2
    seed: Natural = 0
    patients: str = "patients.csv"


@settings
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
    least: Annotated[Count, Field(ge=2)]
    images: str = ""
    image_column: str = "image"
    caption_column: str = "caption"
    validation: Fraction = 0.15
    pool: Natural = 0

    def __post_init__(self) -> None:
        if self.pool == 1:
            raise ConfigError("a pool has 2 candidates or more, or is 0 for none, got 1")


@settings
class Phantoms:
    """Synthetic scans that the command writes, so many for each side of the split."""

    modality: Literal["ultrasound", "mri", "xray"]
    train: Count
    test: Count


@settings
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
    prompts: dict[str, Words] = field(default_factory=dict)
    methods: Words = ()
    settings: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)
    min_confidence: Real = 0.0
    training: dict[str, Any] = field(default_factory=dict)
    pairs: PairTable | None = None
    phantoms: Phantoms | None = None

    def __post_init__(self) -> None:
        masks, splits = self.task == "segmentation", {part.split for part in self.parts}
        named = all(texts and all(texts) for texts in self.prompts.values())
        other = next((p.masks for p in self.parts if set(p.masks) != set(self.prompts)), None)
        for wrong, said in (
            (not self.bundles, "bundles names at least one, as name = bundle"),
            (not masks and (not self.pairs or self.parts),
             f"{self.task} needs the table pairs, and no parts"),
            (masks and self.pairs, "segmentation needs no pairs"),
            (masks and not (self.parts and self.prompts and self.methods),
             "segmentation needs parts, prompts and methods"),
            (not isinstance(self.settings.get("saliency", {}), dict),
             "settings.saliency is a table; methods names the saliency methods"),
            (not named, "every label of prompts needs a text or several, none of them empty"),
            (masks and other, "expected masks for the labels of prompts "
             f"({', '.join(self.prompts)}), got {', '.join(other or ())}"),
            (masks and "drawn" not in splits and splits != {"train", "test"},
             "parts need both splits, train and test, or drawn"),
        ):  # fmt: skip
            if wrong:
                raise ConfigError(said)

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


def read_recipe(name: str, changes: Sequence[str] = ()) -> Recipe:
    """Read and check one file.

    Args:
        name: see ``find_recipe``.
        changes: entries to lay over those of the file, such as ``training.epochs=2``; values as
            in TOML, else texts.

    Raises:
        ConfigError: it cannot be read, or says something that is no recipe.
    """
    path = find_recipe(name)
    try:
        table = {"name": path.stem, **tomllib.loads(path.read_text("utf-8"))}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigError(f"cannot read the recipe {path}: {exc}") from exc
    for change in changes:
        entry, equals, text = change.partition("=")
        if not equals or not entry.strip():
            raise ConfigError(f"--set takes NAME=VALUE such as training.epochs=2, got {change!r}")
        value = _parse(text.strip())
        for step in reversed(entry.strip().split(".")):
            value = {step: value}
        table = _laid_over(table, value)
    return record(Recipe, table, str(path))


def record(kind: type[Kind], table: Any, where: str) -> Kind:
    """A ``kind`` of settings out of a table of a recipe.

    Raises:
        ConfigError: names the entry that is wrong, and where.
    """
    if not isinstance(table, dict):
        raise ConfigError(f"{where}: expected a table, got {table!r}")
    try:
        return build(kind, table)
    except ConfigError as exc:
        raise ConfigError(f"{where}: {exc}") from exc


def _parse(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _laid_over(below: Any, above: Any) -> Any:
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return {**below, **{k: _laid_over(below.get(k), value) for k, value in above.items()}}
