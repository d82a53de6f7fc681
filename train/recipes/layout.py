"""Whether data lie as a recipe expects, and which masks belong to which image.

Looks at names only. Everything that is wrong is named with its pattern, how many files were
found and expected, and what to do; nothing is left out in silence.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

import numpy as np

from medclipsam.engine.archive.kinds import known_suffix
from medclipsam.engine.errors import ConfigError
from medclipsam.train.patients import read_patients
from medclipsam.train.recipes.recipe import Draw, Part, Recipe

NAMED = 3  # files that a problem names


@dataclass(frozen=True)
class Problem:
    """One expectation that is not met.

    Attributes:
        pattern: of paths below the data folder.
        remedy: what is wrong and what to do about it.
        few: only so few that the recipe can be run on what is there.
    """

    pattern: str
    found: int
    expected: int
    remedy: str
    few: bool = False

    def __str__(self) -> str:
        return f"{self.pattern}: found {self.found}, expected {self.expected}; {self.remedy}"


@dataclass(frozen=True)
class Case:
    """One image.

    Attributes:
        item: its path below the data folder.
        masks: label → the files that hold its mask together, likewise.
    """

    item: str
    split: str
    masks: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Layout:
    """What was found.

    Attributes:
        cases: in order of path.
        patients: item → patient, where a table tells.
    """

    cases: tuple[Case, ...]
    problems: tuple[Problem, ...]
    patients: dict[str, str] = field(default_factory=dict)

    def of(self, split: str) -> tuple[Case, ...]:
        """The cases of one side."""
        return tuple(case for case in self.cases if case.split == split)


def examine(recipe: Recipe, data: Path) -> Layout:
    """Pair all images of a segmentation with their masks, and name what is wrong.

    Raises:
        ConfigError: the data folder is not there, or the table of patients cannot be read.
    """
    if not data.is_dir():
        raise ConfigError(f"there is no data folder {data}; {_advice(recipe)}")
    found: dict[str, Case] = {}
    problems: list[Problem] = []
    for part in recipe.parts:
        images: list[str] = []
        for pattern in part.images:
            matches = _images(data, pattern, part)
            problems += _few(data, pattern, len(matches), part.least, recipe)
            images += matches
        images = [image for image in dict.fromkeys(images) if image not in found]
        cases, unpaired = _pair(data, part, images)
        found.update((case.item, case) for case in cases)
        problems += unpaired
    patients = _patients(data, recipe.draw)
    problems += _unknown(recipe.draw, patients, found)
    cases = _draw([found[item] for item in sorted(found)], recipe.draw, patients)
    return Layout(tuple(cases), tuple(problems), patients)


def require(problems: Iterable[Problem], recipe: Recipe, data: Path, incomplete: bool) -> None:
    """Refuse data that are not as expected.

    Args:
        incomplete: whether fewer images than expected are accepted.

    Raises:
        ConfigError: names every problem.
    """
    fatal = [problem for problem in problems if not (incomplete and problem.few)]
    if fatal:
        lines = "".join(f"\n  {problem}" for problem in fatal)
        more = "; --incomplete accepts fewer" if all(problem.few for problem in fatal) else ""
        raise ConfigError(
            f"{data} is not laid out as the recipe {recipe.name!r} expects, see 'medclipsam recipe "
            f"show {recipe.name}'{more}:{lines}"
        )


def examples(paths: Sequence[str]) -> str:
    """The first of them, for a message."""
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    return ", ".join(paths[:NAMED]) + more


def _images(data: Path, pattern: str, part: Part) -> list[str]:
    paths = (path.relative_to(data).as_posix() for path in data.glob(pattern))
    return sorted(
        path
        for path in paths
        if not any(fnmatchcase(PurePosixPath(path).name, name) for name in part.without)
    )


def _few(data: Path, pattern: str, found: int, least: int, recipe: Recipe) -> list[Problem]:
    if found >= least:
        return []
    folder = _fixed_folder(pattern)
    if not (data / folder).is_dir():
        remedy = f"there is no folder {folder}/: {_advice(recipe)}"
        return [Problem(pattern, 0, least, remedy)]
    remedy = "the data are not complete: unpack or download them again"
    return [Problem(pattern, found, least, remedy, few=bool(found))]


def _advice(recipe: Recipe) -> str:
    if recipe.phantoms:
        return f"'medclipsam recipe run {recipe.name}' writes it"
    return f"unpack the download there, from {', '.join(recipe.source.pages)}"


def _fixed_folder(pattern: str) -> str:
    """The folders that ``pattern`` names without a wildcard."""
    folders = PurePosixPath(pattern).parent.parts
    fixed = [n for n, name in enumerate(folders) if glob.has_magic(name)]
    return "/".join(folders[: fixed[0]] if fixed else folders)


def _pair(data: Path, part: Part, images: Sequence[str]) -> tuple[list[Case], list[Problem]]:
    """Cases of the images with all their masks; images and masks that lack the other."""
    masks: dict[str, dict[str, tuple[str, ...]]] = {image: {} for image in images}
    problems: list[Problem] = []
    for label, template in part.masks.items():
        for image in images:
            if found := _matches(data, _fill(template, image)):
                masks[image][label] = found
        without = [image for image in images if label not in masks[image]]
        if without:
            remedy = f"no mask for {examples(without)}: restore the masks or remove the images"
            paired = len(images) - len(without)
            problems.append(Problem(_shown(template, images), paired, len(images), remedy))
        problems += _orphans(data, template, masks, label)
    whole = [image for image in images if len(masks[image]) == len(part.masks)]
    return [Case(image, part.split, masks[image]) for image in whole], problems


def _fill(template: str, image: str) -> str:
    """The glob of an image's masks."""
    path = PurePosixPath(image)
    stem = path.name[: -len(known_suffix(path.name))] if known_suffix(path.name) else path.name
    words = {
        "folder": path.parent.as_posix(),
        "parent": path.parent.parent.as_posix(),
        "name": path.name,
        "stem": stem,
    }
    return template.format(**{name: glob.escape(word) for name, word in words.items()})


def _matches(data: Path, pattern: str) -> tuple[str, ...]:
    if not glob.has_magic(pattern):  # far faster than a look into the folder for every image
        return (os.path.normpath(pattern),) if (data / pattern).is_file() else ()
    names = glob.glob(pattern, root_dir=data)
    return tuple(sorted(os.path.normpath(name) for name in names))


def _orphans(
    data: Path, template: str, masks: dict[str, dict[str, tuple[str, ...]]], label: str
) -> list[Problem]:
    """Masks of no image, in the folders where masks of images are expected."""
    used = {mask for found in masks.values() for mask in found.get(label, ())}
    wild = template.replace("{stem}", "*").replace("{name}", "*")
    patterns = {_fill(wild, image) for image in masks}
    found = {path for pattern in patterns for path in _matches(data, pattern) if known_suffix(path)}
    if not (left := sorted(found - used - set(masks))):
        return []
    remedy = f"no image for the masks {examples(left)}: restore the images or remove the masks"
    return [Problem(_shown(template, list(masks)), len(found), len(used), remedy)]


def _shown(template: str, images: Sequence[str]) -> str:
    """A template with the folders of an example filled in."""
    path = PurePosixPath(images[0])
    folder, parent = path.parent.as_posix(), path.parent.parent.as_posix()
    return os.path.normpath(template.format(folder=folder, parent=parent, stem="*", name="*"))


def _patients(data: Path, draw: Draw) -> dict[str, str]:
    table = data / draw.patients
    return read_patients(table) if draw.patients and table.is_file() else {}


def _unknown(draw: Draw, patients: dict[str, str], found: dict[str, Case]) -> list[Problem]:
    """Rows of the table of patients that no image has."""
    if not (lost := sorted(set(patients) - set(found))):
        return []
    remedy = f"no image for the rows {examples(lost)}: name images by their path in the data folder"
    matched = len(patients) - len(lost)
    return [Problem(draw.patients, matched, len(patients), remedy, few=bool(matched))]


def _draw(cases: list[Case], draw: Draw, patients: dict[str, str]) -> list[Case]:
    """Share the drawn ones out, all images of a patient to one side."""
    known = [patients.get(case.item, f"item {case.item}") for case in cases]
    drawn = sorted({who for who, case in zip(known, cases, strict=True) if case.split == "drawn"})
    count = min(max(1, round(draw.test_share * len(drawn))), max(len(drawn) - 1, 0))
    order = np.random.default_rng([13, draw.seed]).permutation(len(drawn))
    tested = {drawn[n] for n in order[:count]}
    return [
        replace(case, split="test" if who in tested else "train") if case.split == "drawn" else case
        for who, case in zip(known, cases, strict=True)
    ]
