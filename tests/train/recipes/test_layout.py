"""Layouts: whole miniature trees pass, and each thing that is wrong is named with its counts."""

import csv
import shutil

import numpy as np
import pytest
from recipe_trees import (
    COUNT,
    COVID,
    medpix,
    roco,
    small,
    write,
    write_mask,
    write_phantom_captions,
    write_tree,
)

from medclipsam.engine.errors import ConfigError
from medclipsam.engine.outputs import read_mask
from medclipsam.train.recipes.layout import examine, read_captions, require
from medclipsam.train.recipes.view import write_view

SIDES = {"busi": (6, 3), "brain": (5, 1), "covid-lungs": (18, 9), "phantom": (3, 3)}
FIRST = {  # of each: a folder of images, a mask, and a file that is a mask of no image
    "busi": ("UDIAT/original", "UDIAT/GT/000000.png", "UDIAT/GT/000009.png"),
    "brain": ("images", "masks/1.png", "masks/77.png"),
    "covid-lungs": (
        f"{COVID}/Test/Normal/images",
        f"{COVID}/Train/Non-COVID/lung masks/x_0.png",
        f"{COVID}/Val/COVID-19/lung masks/y.png",
    ),
    "phantom": ("train/images", "test/masks/mass/0000.png", "test/masks/mass/0009.png"),
}


def problems(name, data):
    return [str(problem) for problem in examine(small(name), data)[1]]


@pytest.mark.parametrize("name", SIDES)
def test_a_whole_tree_is_as_expected(tmp_path, name):
    layout, found = examine(small(name), write_tree(name, tmp_path))
    assert not found
    assert (len(layout.of("train")), len(layout.of("test"))) == SIDES[name]
    assert [case.item for case in layout.cases] == sorted(case.item for case in layout.cases)


@pytest.mark.parametrize("name", SIDES)
def test_a_missing_folder_is_named(tmp_path, name):
    folder = FIRST[name][0]
    shutil.rmtree(write_tree(name, tmp_path) / folder)
    found = problems(name, tmp_path)
    where = folder if "*" not in folder and name != "covid-lungs" else "Normal"
    assert any(where in text and f"found 0, expected {COUNT};" in text for text in found)


@pytest.mark.parametrize("name", SIDES)
def test_an_image_without_mask_is_named(tmp_path, name):
    mask = write_tree(name, tmp_path) / FIRST[name][1]
    mask.unlink()
    (text,) = problems(name, tmp_path)
    assert "no mask for " in text and mask.name in text and "restore the masks" in text


@pytest.mark.parametrize("name", SIDES)
def test_a_mask_without_image_is_named(tmp_path, name):
    mask = write_tree(name, tmp_path) / FIRST[name][2]
    write_mask(mask, 1)
    (text,) = problems(name, tmp_path)
    assert "no image for the masks " in text and mask.name in text


@pytest.mark.parametrize("name", SIDES)
def test_a_folder_of_masks_that_is_missing_leaves_no_case(tmp_path, name):
    folder = (write_tree(name, tmp_path) / FIRST[name][1]).parent
    shutil.rmtree(folder)
    (text,) = problems(name, tmp_path)
    assert "found 0" in text or name == "covid-lungs", text
    assert folder.name in text and "no mask for " in text


@pytest.mark.parametrize("name", SIDES)
def test_too_few_images_are_accepted_only_when_asked_for(tmp_path, name):
    write_tree(name, tmp_path)
    recipe = small(name)
    (enough, _), parts = examine(recipe, tmp_path), recipe.parts
    object.__setattr__(recipe, "parts", tuple(type(p)(**{**vars(p), "least": 50}) for p in parts))
    few, found = examine(recipe, tmp_path)
    assert few == enough and all(problem.few for problem in found)
    assert len(found) == sum(len(part.images) for part in parts)
    require(found, recipe, tmp_path, incomplete=True)
    with pytest.raises(
        ConfigError, match=r"not laid out[\s\S]*--incomplete accepts fewer[\s\S]*50"
    ):
        require(found, recipe, tmp_path, incomplete=False)


def test_other_problems_stay_fatal_with_incomplete(tmp_path):
    shutil.rmtree(write_tree("busi", tmp_path) / "UDIAT")
    recipe = small("busi")
    with pytest.raises(ConfigError, match="there is no folder UDIAT/original/"):
        require(examine(recipe, tmp_path)[1], recipe, tmp_path, incomplete=True)


def test_busi_unites_the_masks_of_an_image_and_leaves_normal_ones_out(tmp_path):
    layout, _ = examine(small("busi"), write_tree("busi", tmp_path))
    masks = {case.item.rpartition("/")[2]: case.masks["tumor"] for case in layout.cases}
    assert [len(masks[f"benign ({n}).png"]) for n in (1, 2, 3)] == [2, 1, 1]
    assert not [item for item in masks if item.startswith("normal")]


def test_names_with_signs_of_globs_are_taken_as_they_are(tmp_path):
    write_tree("busi", tmp_path)
    folder = tmp_path / "Dataset_BUSI_with_GT/benign"
    write(folder / "odd [1]*.png")
    write_mask(folder / "odd [1]*_mask.png", 1)
    layout, found = examine(small("busi"), tmp_path)
    assert not found
    (odd,) = [case for case in layout.cases if "odd" in case.item]
    assert odd.masks["tumor"] == (odd.item.replace(".png", "_mask.png"),)


def test_covid_lungs_may_lie_in_a_single_folder(tmp_path):
    write_tree("covid-lungs", tmp_path / "a")
    (tmp_path / "a" / COVID).rename(tmp_path / "Lung Segmentation Data")
    layout, found = examine(small("covid-lungs"), tmp_path)
    assert not found and len(layout.cases) == 27


def test_a_drawn_split_is_the_same_every_time_and_keeps_patients_together(tmp_path):
    write_tree("brain", tmp_path)
    recipe = small("brain")
    assert examine(recipe, tmp_path) == examine(recipe, tmp_path)
    rows = [(f"images/{n}.png", f"p{(n + 1) // 2}") for n in range(1, 7)]
    with (tmp_path / "patients.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("item", "patient"), *rows])
    layout, found = examine(recipe, tmp_path)
    assert not found and len(layout.of("test")) == 2
    assert len({layout.patients[case.item] for case in layout.of("test")}) == 1
    assert not {layout.patients[c.item] for c in layout.of("train")} & {
        layout.patients[c.item] for c in layout.of("test")
    }
    (tmp_path / "images/6.png").unlink()
    found = problems("brain", tmp_path)
    assert any(text.startswith("patients.csv: found 5, expected 6; no image for") for text in found)


def test_the_view_lists_images_and_unites_masks(tmp_path):
    write_tree("busi", tmp_path / "downloads")
    layout, _ = examine(small("busi"), tmp_path / "downloads")
    swapped = tuple(
        type(c)(c.item, {"train": "test", "test": "train"}[c.split], c.masks) for c in layout.cases
    )
    layout = type(layout)(swapped)
    write_view(layout, tmp_path / "downloads", tmp_path / "out")
    listed = (tmp_path / "out/test.csv").read_text().splitlines()
    assert listed[0] == "item" and len(listed) == 7
    assert str(layout) == "3 images for train, 6 images for test"
    assert all((tmp_path / "out" / item).is_file() for item in listed[1:])
    truth = tmp_path / "out/truth/tumor" / listed[1]
    united, _ = read_mask(truth)
    np.testing.assert_array_equal(np.nonzero(united.any((0, 1)))[0], [1, 2, 6, 7])
    before = truth.stat().st_mtime_ns
    write_view(layout, tmp_path / "downloads", tmp_path / "out")
    assert truth.stat().st_mtime_ns == before


def test_the_view_refuses_masks_that_cannot_be_united(tmp_path):
    write_tree("busi", tmp_path)
    folder = tmp_path / "UDIAT/GT"
    (folder / "000001.png").write_bytes(b"no picture")
    with pytest.raises(ConfigError, match=r"cannot read the mask UDIAT/GT/000001\.png"):
        write_view(examine(small("busi"), tmp_path)[0], tmp_path, tmp_path / "out")


def test_a_limit_draws_the_same_images_every_time(tmp_path):
    layout, _ = examine(small("covid-lungs"), write_tree("covid-lungs", tmp_path))
    few = layout.limited(2, 0)
    assert few == layout.limited(2, 0) and layout.limited(0, 0) == layout
    assert [len(few.of(split)) for split in ("train", "test")] == [2, 2]


@pytest.mark.parametrize(("name", "lay"), [("medpix", medpix), ("roco", roco)])
def test_captions_with_images_are_as_expected(tmp_path, name, lay):
    rows = write_phantom_captions(tmp_path, 4)
    lay(tmp_path, rows)
    pairs, found = read_captions(small(name), tmp_path)
    assert not found and [pair.caption for pair in pairs.pairs] == [text for _, text in rows]


@pytest.mark.parametrize(("name", "lay"), [("medpix", medpix), ("roco", roco)])
def test_captions_without_images_are_named(tmp_path, name, lay):
    rows = write_phantom_captions(tmp_path, 5)
    (tmp_path / "images" / rows[2][0]).unlink()
    lay(tmp_path, rows)
    recipe = small(name)
    (problem,) = read_captions(recipe, tmp_path)[1]
    assert "found 4, expected 5; 1 rows cannot be used" in str(problem)
    assert rows[2][0].removesuffix(".png") in str(problem)
    require([problem], recipe, tmp_path, incomplete=True)
    for path in sorted(tmp_path.rglob("*.png"))[:2]:
        path.unlink()
    few, _ = read_captions(recipe, tmp_path)[1]
    assert "found 2, expected 3; too few usable pairs" in str(few)


def test_missing_tables_and_folders_of_captions_are_named(tmp_path):
    (problem,) = read_captions(small("roco"), tmp_path)[1]
    assert str(problem).startswith("test/radiology/captions.txt: found 0, expected 3; there is no")
    medpix(tmp_path, [("a.png", "a chest x-ray that shows a nodule")])
    (problem,) = read_captions(small("medpix"), tmp_path)[1]
    assert problem.pattern == "images" and not problem.few
