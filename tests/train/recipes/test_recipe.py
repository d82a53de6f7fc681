"""Recipes as files: those of the package are sound, others are refused with a reason."""

import re

import pytest
from click.testing import CliRunner
from recipe_trees import write_tree

from medclipsam.engine.cli.main import main
from medclipsam.engine.config import make_config
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.unet.model import UnetConfig
from medclipsam.train.clip.settings import ClipTraining
from medclipsam.train.recipes.job import Job
from medclipsam.train.recipes.recipe import find_recipe, list_recipes, read_recipe, record
from medclipsam.train.unet.settings import UnetTraining

NAMES = ("brain", "busi", "covid-lungs", "medpix", "phantom", "roco")


def call(*words):
    result = CliRunner().invoke(main, [*map(str, words)])
    assert "Traceback" not in result.output
    return result.exit_code, result.output


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_of_the_package_is_sound(name):
    recipe = read_recipe(name)
    assert recipe.name == name and recipe.title and recipe.source.licence
    assert bool(recipe.source.pages) == (name != "phantom")
    assert recipe.source.known and recipe.source.chosen
    training = ClipTraining if recipe.pairs else UnetTraining
    record(training, recipe.training, "training")
    if recipe.task == "segmentation":
        record(UnetConfig, {"labels": list(recipe.prompts), **recipe.network}, "network")
        for method in recipe.methods:
            make_config(recipe.settings, {"saliency": method})


def test_there_are_no_others():
    assert tuple(list_recipes()) == NAMES


def test_lungs_are_several_boxes_and_others_one():
    select = {name: read_recipe(name).settings.get("boxes") for name in NAMES}
    assert select.pop("covid-lungs") == {"select": "all"} and set(select.values()) == {None}


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('title = "', 'titel = "', "(missing|unknown) setting tit"),
        ('task = "segmentation"\n', "", "missing setting task"),
        ('task = "segmentation"', 'task = "sorting"', "task must be segmentation, fine"),
        ("min_confidence = 0.0", 'min_confidence = "none"', r"is a number \(float\), got 'none'"),
        ("least = 1\n", "least = 0\n", r"parts\.0\.least must be at least 1, got 0"),
        ('methods = ["gscorecam", "gradcam"]\n', "", "needs parts, prompts and methods"),
        (
            "[phantoms]\nmodality",
            "[phantoms]\ncolour = 1\nmodality",
            r"unknown setting phantoms\.colour",
        ),
        ('split = "test"', 'split = "train"', "need both splits"),
        ("{parent}/masks", "{place}/masks", r"cannot use the pattern '{place}"),
        ('mass = "breast ultrasound showing a mass"', 'cyst = "a cyst"', "labels of prompts"),
        ('mass = "breast ultrasound showing a mass"', "mass = []", "needs a text"),
        ('phantom = "phantom"\n', "", "bundles names at least one"),
        ("[network]", "[settings]\nsaliency = 'gradcam'\n[network]", "saliency is a table"),
        ("train = 120", "train = 120 images", "Expected newline"),
    ],
)
def test_what_is_no_recipe_is_refused_by_name(tmp_path, old, new, told):
    text = find_recipe("phantom").read_text("utf-8")
    path = tmp_path / "mine.toml"
    path.write_text(re.sub(re.escape(old), new.replace("\\", r"\\"), text), "utf-8")
    assert path.read_text("utf-8") != text
    with pytest.raises(ConfigError, match=f"mine.toml.*{told}"):
        read_recipe(str(path))


def test_changes_are_laid_over_a_recipe():
    changes = ("training.epochs=2", "network.channels=[4, 8]", "prompts.mass=a mass")
    recipe = read_recipe("phantom", changes)
    assert recipe.training["epochs"] == 2 and recipe.training["batch"] == 8
    assert recipe.network["channels"] == [4, 8] and recipe.prompts == {"mass": ("a mass",)}
    with pytest.raises(ConfigError, match="NAME=VALUE"):
        read_recipe("phantom", ("training.epochs",))


def test_a_job_has_the_stages_and_bundles_of_its_recipe(tmp_path):
    busi, medpix = (read_recipe(name) for name in ("busi", "medpix"))
    assert Job(busi, tmp_path, tmp_path).stages == ("zero-shot", "weak")
    assert Job(medpix, tmp_path, tmp_path).bundles == {"pretrained": "biomedclip"}
    with pytest.raises(ConfigError, match="has no stage 'train'; it has zero-shot, weak"):
        Job(busi, tmp_path, tmp_path, stages=("train",))
    with pytest.raises(ConfigError, match="starts from one bundle, got a, b"):
        Job(medpix, tmp_path, tmp_path, {"a": "x", "b": "y"})


def test_list_names_all_and_show_prints_a_file_that_can_be_used(tmp_path):
    code, text = call("recipe", "list")
    assert code == 0 and [line.split()[0] for line in text.splitlines()] == list(NAMES)
    code, text = call("recipe", "show", "brain")
    assert code == 0 and "figshare" in text
    mine = tmp_path / "mine.toml"
    mine.write_text(text, "utf-8")
    write_tree("brain", tmp_path / "data")
    code, text = call("recipe", "check", mine, tmp_path / "data", "--incomplete")
    assert code == 0 and text == "as expected: 5 images for train, 1 images for test\n"


def test_check_says_what_is_wrong(tmp_path):
    write_tree("busi", tmp_path)
    code, text = call("recipe", "check", "busi", tmp_path)
    assert code == 2 and "--incomplete accepts fewer" in text
    assert "benign/*.png: found 3, expected 437; the data are not complete" in text
    code, text = call("recipe", "check", "busi", tmp_path / "nowhere")
    assert code == 2 and "there is no data folder" in text and "https://www.kaggle.com" in text
    code, text = call("recipe", "check", "bus", tmp_path)
    assert code == 2 and "choose from brain, busi" in text
