"""Whether data lie as a recipe expects: which masks, or which captions, belong to which image.

Looks at names only; no image is opened. Everything that is wrong is named with its pattern, how
many files were found and expected, and what to do; nothing is left out in silence.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

import numpy as np

from medclipsam.engine.archive.kinds import known_suffix
from medclipsam.engine.errors import ConfigError
from medclipsam.train.pairs.pairs import PairList, read_pairs
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
    patients: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return ", ".join(f"{len(self.of(split))} images for {split}" for split in ("train", "test"))

    def of(self, split: str) -> tuple[Case, ...]:
        """The cases of one side."""
        return tuple(case for case in self.cases if case.split == split)

    def limited(self, limit: int, seed: int) -> Layout:
        """At most ``limit`` cases of each side, drawn by ``seed``; 0 for all of them."""
        sides = [self.of(split) for split in ("train", "test")]
        kept = [side[n] for side in sides for n in choose(len(side), limit, seed)]
        return replace(self, cases=tuple(kept)) if limit else self


def choose(count: int, limit: int, seed: int) -> list[int]:
    """Places of at most ``limit`` out of ``count``, ascending; 0 for all."""
    order = np.random.default_rng([17, seed]).permutation(count)
    return sorted(order[: limit or count].tolist())


def look(recipe: Recipe, data: Path, incomplete: bool) -> Layout | PairList:
    """What lies in ``data``.

    Raises:
        ConfigError: it is not laid out as expected, every problem named.
    """
    found: Layout | PairList
    if recipe.task == "segmentation":
        found, problems = examine(recipe, data)
    else:
        found, problems = read_captions(recipe, data)
    require(problems, recipe, data, incomplete)
    return found


def examine(recipe: Recipe, data: Path) -> tuple[Layout, list[Problem]]:
    """Pair all images of a segmentation with their masks, and name what is wrong.

    Raises:
        ConfigError: the data folder is not there, or the table of patients cannot be read.
    """
    if not data.is_dir():
        raise ConfigError(f"there is no data folder {data}; {advice(recipe)}")
    found: dict[str, Case] = {}
    problems: list[Problem] = []
    for part in recipe.parts:
        images: dict[str, None] = {}
        for pattern in part.images:
            matches = _images(data, pattern, part.without)
            problems += _few(data, pattern, len(matches), part.least, recipe)
            images.update(dict.fromkeys(image for image in matches if image not in found))
        cases, unpaired = _pair(data, part, list(images))
        found.update((case.item, case) for case in cases)
        problems += unpaired
    table = data / recipe.draw.patients
    patients = read_patients(table) if recipe.draw.patients and table.is_file() else {}
    if lost := sorted(set(patients) - set(found)):
        remedy = f"no image for the rows {_some(lost)}: name images by their path in {data}"
        kept = len(patients) - len(lost)
        problems.append(Problem(recipe.draw.patients, kept, len(patients), remedy, few=kept > 0))
    cases = _share_out([found[item] for item in sorted(found)], recipe.draw, patients)
    return Layout(tuple(cases), patients), problems


def read_captions(recipe: Recipe, data: Path) -> tuple[PairList, list[Problem]]:
    """All usable pairs, and what is wrong with the others.

    Raises:
        ConfigError: no pair is usable.
    """
    table = recipe.pairs
    assert table  # as the recipe was checked for
    path, images = data / table.table, data / table.images
    for place, kind in ((path, "table of captions"), (images, "folder of images")):
        if not place.exists():
            name = place.relative_to(data).as_posix()
            remedy = f"there is no {kind} {name}: {advice(recipe)}"
            return PairList((), Counter()), [Problem(name, 0, table.least, remedy)]
    lines: list[str] = []
    pairs = read_pairs(
        os.fspath(path), table.image_column, table.caption_column,
        images if table.images else None, "skip", lines.append,
    )  # fmt: skip
    usable, problems = len(pairs.pairs), []
    if usable < table.least:
        remedy = "too few usable pairs: unpack or download the data again"
        problems.append(Problem(table.table, usable, table.least, remedy, few=True))
    for kind, count in sorted(pairs.problems.items()):
        if kind != "short caption":  # always left out, as the paper does
            example = next((line for line in lines if line.startswith(f"left out, {kind}")), kind)
            remedy = f"{count} rows cannot be used, {example}: restore them"
            problems.append(Problem(table.table, usable, usable + count, remedy, few=True))
    return pairs, problems


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


def advice(recipe: Recipe) -> str:
    """How to come by the data."""
    if recipe.phantoms:
        return f"'medclipsam recipe run {recipe.name}' writes it"
    return f"unpack the download there, from {', '.join(recipe.source.pages)}"


def _some(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    return ", ".join(paths[:NAMED]) + more


def _images(data: Path, pattern: str, without: Sequence[str]) -> list[str]:
    paths = [p for p in data.glob(pattern) if not any(fnmatchcase(p.name, n) for n in without)]
    return sorted(path.relative_to(data).as_posix() for path in paths)


def _few(data: Path, pattern: str, found: int, least: int, recipe: Recipe) -> Iterator[Problem]:
    folders = PurePosixPath(pattern).parent.parts
    wild = next((n for n, name in enumerate(folders) if glob.has_magic(name)), len(folders))
    fixed = "/".join(folders[:wild])
    if not found and not (data / fixed).is_dir():
        yield Problem(pattern, 0, least, f"there is no folder {fixed}/: {advice(recipe)}")
    elif found < least:
        remedy = "the data are not complete: unpack or download them again"
        yield Problem(pattern, found, least, remedy, few=found > 0)


def _pair(data: Path, part: Part, images: Sequence[str]) -> tuple[list[Case], list[Problem]]:
    """Cases of the images with all their masks; images and masks that lack the other."""
    masks: dict[str, dict[str, tuple[str, ...]]] = {image: {} for image in images}
    problems: list[Problem] = []
    for label, template in part.masks.items():
        for image in images:
            if found := _matches(data, _fill(template, image)):
                masks[image][label] = found
        if without := [image for image in images if label not in masks[image]]:
            remedy = f"no mask for {_some(without)}: restore the masks or remove the images"
            shown = os.path.normpath(_fill(template, images[0], wild=True))
            problems.append(Problem(shown, len(images) - len(without), len(images), remedy))
        used = {mask for found in masks.values() for mask in found.get(label, ())}
        problems += _orphans(data, template, images, used)
    whole = [image for image in images if len(masks[image]) == len(part.masks)]
    return [Case(image, part.split, masks[image]) for image in whole], problems


def _fill(template: str, image: str, wild: bool = False) -> str:
    """The glob of an image's masks, or with ``wild`` of those of all images beside it."""
    path = PurePosixPath(image)
    stem = path.name[: len(path.name) - len(known_suffix(path.name))]
    words = {"name": path.name, "stem": stem}
    words = {key: "*" if wild else glob.escape(word) for key, word in words.items()}
    folder, parent = (glob.escape(p.as_posix()) for p in (path.parent, path.parent.parent))
    return template.format(folder=folder, parent=parent, **words)


def _matches(data: Path, pattern: str) -> tuple[str, ...]:
    if not glob.has_magic(pattern):  # far faster than a look into the folder for every image
        return (os.path.normpath(pattern),) if (data / pattern).is_file() else ()
    return tuple(sorted(map(os.path.normpath, glob.glob(pattern, root_dir=data))))


def _orphans(
    data: Path, template: str, images: Sequence[str], used: Collection[str]
) -> Iterator[Problem]:
    """Masks of no image, in the folders where masks of images are expected."""
    patterns = {_fill(template, image, wild=True): None for image in images}
    found = {path for pattern in patterns for path in _matches(data, pattern) if known_suffix(path)}
    if left := sorted(found.difference(used, images)):
        remedy = f"no image for the masks {_some(left)}: restore the images or remove the masks"
        yield Problem(os.path.normpath(next(iter(patterns))), len(found), len(used), remedy)


def _share_out(cases: list[Case], draw: Draw, patients: dict[str, str]) -> list[Case]:
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
