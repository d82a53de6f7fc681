"""Miniature data sets, laid out as the recipes of the package expect them."""

import csv
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from medclipsam.train.phantoms.phantoms import make_phantom
from medclipsam.train.recipes.recipe import read_recipe

COUNT = 3  # images where a glob of the recipe matches
COVID = "Lung Segmentation Data/Lung Segmentation Data"
COVID_FOLDERS = [
    f"{COVID}/{split}/{kind}"
    for split in ("Train", "Val", "Test")
    for kind in ("COVID-19", "Non-COVID", "Normal")
]


def small(name):
    """A recipe that is content with the images of a miniature tree."""
    recipe = read_recipe(name)
    if recipe.pairs:
        return replace(recipe, pairs=replace(recipe.pairs, least=COUNT))
    parts = tuple(replace(part, least=COUNT) for part in recipe.parts)
    return replace(recipe, parts=parts)


def write(path: Path, value=0, size=(8, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", np.full(size, value, np.uint8))[1].tobytes())


def write_mask(path: Path, left):
    write(path)
    mask = np.zeros((8, 10), np.uint8)
    mask[2:6, left : left + 2] = 255
    path.write_bytes(cv2.imencode(".png", mask)[1].tobytes())


def write_tree(name: str, data: Path) -> Path:
    {"busi": _busi, "brain": _brain, "covid-lungs": _covid, "phantom": _phantom}[name](data)
    return data


def _busi(data):
    for kind in ("benign", "malignant", "normal"):
        for n in range(1, COUNT + 1):
            image = data / "Dataset_BUSI_with_GT" / kind / f"{kind} ({n}).png"
            write(image, 90)
            write_mask(image.with_name(f"{kind} ({n})_mask.png"), 1)
    folder = data / "Dataset_BUSI_with_GT/benign"
    write_mask(folder / "benign (1)_mask_1.png", 6)
    for n in range(COUNT):
        write(data / f"UDIAT/original/{n:06d}.png", 90)
        write_mask(data / f"UDIAT/GT/{n:06d}.png", n)


def _brain(data):
    for n in range(1, 2 * COUNT + 1):
        write(data / f"images/{n}.png", 90)
        write_mask(data / f"masks/{n}.png", 2)


def _covid(data):
    for folder in COVID_FOLDERS:
        for n in range(COUNT):
            write(data / folder / f"images/x_{n}.png", 90)
            write_mask(data / folder / f"lung masks/x_{n}.png", 3)


def _phantom(data):
    for split in ("train", "test"):
        for n in range(COUNT):
            write(data / split / f"images/{n:04d}.png", 90)
            write_mask(data / split / f"masks/mass/{n:04d}.png", 3)


def write_phantom_captions(data: Path, count: int) -> list[tuple[str, str]]:
    """``images/N.png`` of phantoms; their names and captions."""
    rows = []
    for n in range(count):
        phantom = make_phantom(7_000_000 + n)
        path = data / f"images/{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(".png", phantom.grey)[1].tobytes())
        rows.append((path.name, phantom.caption))
    return rows


def medpix(data, rows):
    with (data / "medpix.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *rows])


def roco(data, rows):
    folder = data / "test/radiology"
    (folder / "images").parent.mkdir(parents=True)
    (data / "images").rename(folder / "images")
    lines = [f"{name.removesuffix('.png')}\t{caption}" for name, caption in rows]
    (folder / "captions.txt").write_text("\n".join(lines) + "\n", "utf-8")
