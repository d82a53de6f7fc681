"""The data of a recipe as runs and evaluation take them, without copying an image.

OUT/recipe.json        what is worked on; another recipe or other data are refused
OUT/data               a link to the data folder
OUT/train.csv          the images to learn from, and those to be judged on: a list that
OUT/test.csv           'medclipsam run' takes, too
OUT/truth/LABEL/…      one mask per image to be judged on, several of the data united
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medclipsam.engine.durable import make_folder, write_durable
from medclipsam.engine.errors import ConfigError, InputError, OutputError
from medclipsam.engine.outputs import encode_mask, output_path, read_mask, safe_label
from medclipsam.engine.types import Grid, ItemRef
from medclipsam.train.recipes.layout import Case, Layout

FACTS, LINK, TRUTH = "recipe.json", "data", "truth"


@dataclass(frozen=True)
class View:
    """Where it lies.

    Attributes:
        train, test: lists of images.
        truth: one folder a label.
        patients: item of the lists → patient, where known.
        counts: images on each side.
    """

    train: Path
    test: Path
    truth: Path
    patients: dict[str, str]
    counts: dict[str, int]


def write_view(layout: Layout, data: Path, out: Path) -> View:
    """Lists and truth of what was found; what is there already stays.

    Raises:
        ConfigError: a mask cannot be read, or masks to be united differ in size.
        OutputError: something cannot be written.
    """
    make_folder(out)
    _link(out / LINK, data)
    for split in ("train", "test"):
        _write_list(out / f"{split}.csv", layout.of(split))
    for case in layout.of("test"):
        for label, masks in case.masks.items():
            path = out / output_path(
                (TRUTH, safe_label(label)), ItemRef(_listed(case.item)), ".png"
            )
            if not path.is_file():
                write_durable(path, encode_mask(_unite(data, masks), Grid("raster"))[1])
    return View(
        out / "train.csv",
        out / "test.csv",
        out / TRUTH,
        {_listed(item): patient for item, patient in layout.patients.items()},
        {split: len(layout.of(split)) for split in ("train", "test")},
    )


def limited(layout: Layout, limit: int, seed: int) -> Layout:
    """At most ``limit`` cases of each side, drawn by ``seed``; 0 for all of them."""
    if not limit:
        return layout
    kept: list[Case] = []
    for split in ("train", "test"):
        cases = layout.of(split)
        kept += [cases[n] for n in drawn(len(cases), limit, seed)]
    return Layout(tuple(kept), layout.problems, layout.patients)


def drawn(count: int, limit: int, seed: int) -> list[int]:
    """Places of at most ``limit`` out of ``count``, ascending; 0 for all."""
    order = np.random.default_rng([17, seed]).permutation(count)
    return sorted(order[: limit or count].tolist())


def claim(out: Path, facts: Mapping[str, Any]) -> None:
    """Take a new or empty folder for the work that ``facts`` describe, or go on in it.

    Raises:
        ConfigError: it holds something else.
        OutputError: it cannot be written.
    """
    text = json.dumps(facts, indent=2)
    file = out / FACTS
    if not file.exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigError(f"{out} holds other files; choose a new folder with -o")
        make_folder(out)
        write_durable(file, text.encode())
        return
    try:
        before = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{file} cannot be read: {exc}; choose another folder with -o") from exc
    if changed := [name for name, value in json.loads(text).items() if before.get(name) != value]:
        raise ConfigError(
            f"{out} holds the work of another command, with different {', '.join(changed)}; choose "
            "another folder with -o, or repeat that command to go on"
        )


def _link(link: Path, data: Path) -> None:
    """Point to the data, which may have been moved since."""
    target = data.resolve()
    try:
        if link.is_symlink() and link.readlink() != target:
            link.unlink()
        if not link.is_symlink():
            link.symlink_to(target, target_is_directory=True)
    except OSError as exc:
        raise OutputError(
            f"cannot link {link} to {target}: {exc.strerror}; choose an output folder on a file "
            "system with symbolic links"
        ) from exc


def _listed(item: str) -> str:
    return f"{LINK}/{item}"


def _write_list(path: Path, cases: Sequence[Case]) -> None:
    table = io.StringIO()
    rows = [(_listed(case.item),) for case in cases]
    csv.writer(table, lineterminator="\n").writerows([("item",), *rows])
    write_durable(path, table.getvalue().encode())


def _unite(data: Path, masks: Sequence[str]) -> np.ndarray:
    """bool (F, H, W)."""
    united: np.ndarray | None = None
    for name in masks:
        try:
            mask, _ = read_mask(data / name)
        except InputError as exc:
            raise ConfigError(f"cannot read the mask {name} of {data}: {exc}; restore it") from exc
        if united is not None and united.shape != mask.shape:
            raise ConfigError(
                f"masks of one image differ in size: {masks[0]} is {united.shape}, {name} "
                f"{mask.shape} of {data}; restore them"
            )
        united = mask if united is None else united | mask
    if united is None:
        raise ValueError("expected at least one mask to unite")
    return united
