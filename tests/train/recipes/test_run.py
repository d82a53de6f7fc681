"""Recipes carried out on phantoms: from data to tables, and once more without doing it again."""

import json

import pytest
from click.testing import CliRunner
from recipe_trees import medpix, roco, small, write_phantom_captions, write_tree

from medclipsam.engine.cli.main import main
from medclipsam.engine.errors import ConfigError
from medclipsam.train.recipes.job import Job
from medclipsam.train.recipes.phantoms import write_phantoms
from medclipsam.train.recipes.recipe import read_recipe
from medclipsam.train.recipes.run import carry_out

QUICK = (
    *("--limit", "6", "--device", "cpu", "--threads", "1", "--set", "training.epochs=1"),
    *("--set", "training.val_share=0.4", "--set", "network.image_size=32"),
    *("--set", "network.channels=[4, 8]", "--set", "settings.saliency.k=16"),
)
ROWS = ("saliency", "+ SAM", "weakly supervised")


def call(*words):
    result = CliRunner().invoke(main, [*map(str, words)])
    assert "Traceback" not in result.output
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Data and output folder of the phantom recipe, carried out."""
    folder = tmp_path_factory.mktemp("recipe")
    code, text = call("recipe", "run", "phantom", folder / "data", "-o", folder / "out", *QUICK)
    assert code == 0, text
    return folder


def times(folder, pattern):
    return {path: path.stat().st_mtime_ns for path in folder.glob(pattern)}


def test_a_recipe_goes_from_data_to_a_table(finished):
    facts = json.loads((finished / "out/table.json").read_text())
    names = [f"{cam}, phantom: {row}" for cam in ("gScoreCAM", "GradCAM") for row in ROWS]
    assert [row["predictions"] for row in facts["rows"]] == names and not facts["notes"]
    assert all(row["n"] == 6 and not row["missing"] for row in facts["rows"])
    assert all(row["auc"]["mean"] is not None for row in facts["rows"])
    assert facts["images"] == {"train": 6, "test": 6} and len(facts["bundles"]["phantom"]) == 64
    text = (finished / "out/table.md").read_text()
    assert text.startswith("# Masses in synthetic") and all(f"| {name} |" in text for name in names)


def test_once_more_does_nothing_twice(finished):
    made = (
        "out/runs/*/*/*/masks/**/*.png",
        "out/runs/*/*/model/*",
        "out/truth/**/*.png",
        "data/**/*.png",
    )
    before = [times(finished, pattern) for pattern in made]
    assert all(before)
    table = finished / "out/table.md"
    text = table.read_text()
    table.unlink()
    code, told = call("recipe", "run", "phantom", finished / "data", "-o", finished / "out", *QUICK)
    assert code == 0 and told.count("6 items, 6 of them before") == 6 and "epoch" not in told
    assert [times(finished, pattern) for pattern in made] == before and table.read_text() == text


def test_what_a_kill_left_undone_is_done_again(finished):
    folder = finished / "out/runs/phantom/gradcam"
    (folder / "model/unet.json").unlink()
    before = times(folder, "zero-shot/masks/**/*.png")
    words = ("recipe", "run", "phantom", finished / "data", "-o", finished / "out", *QUICK)
    code, told = call(*words)
    assert code == 0 and told.count("epoch 1/1") == 1 and (folder / "model/unet.json").is_file()
    assert times(folder, "zero-shot/masks/**/*.png") == before


def test_another_job_in_the_same_folder_is_refused(finished):
    words = ("recipe", "run", "phantom", finished / "data", "-o", finished / "out", *QUICK)
    code, told = call(*words, "--set", "training.epochs=2")
    assert code == 2 and "with different training" in told
    code, told = call(*words[:5], finished / "data", *QUICK)
    assert code == 2 and "holds other files" in told


def test_stages_alone(finished, tmp_path):
    words = ("recipe", "run", "phantom", finished / "data", "-o", tmp_path / "out", *QUICK)
    code, told = call(*words, "--stage", "zero-shot", "--set", 'methods=["gradcam"]')
    assert code == 0 and "epoch" not in told
    rows = json.loads((tmp_path / "out/table.json").read_text())["rows"]
    assert [row["predictions"].rpartition(": ")[2] for row in rows] == ["saliency", "+ SAM"]


def test_masks_that_do_not_suffice_leave_a_note(finished, tmp_path):
    words = ("recipe", "run", "phantom", finished / "data", "-o", tmp_path / "out", *QUICK)
    code, told = call(*words, "--set", 'methods=["gradcam"]', "--set", "min_confidence=1")
    text = (tmp_path / "out/table.md").read_text()
    assert (
        code == 0 and "GradCAM, phantom: no weakly supervised row: " in told and "no mask" in text
    )


def test_wrong_data_are_refused_before_any_work(tmp_path):
    write_tree("busi", tmp_path / "data")
    (tmp_path / "data/UDIAT/GT/000001.png").unlink()
    job = Job(small("busi"), tmp_path / "data", tmp_path / "out", {"a": "phantom"})
    with pytest.raises(ConfigError, match=r"no mask for UDIAT/original/000001\.png"):
        carry_out(job)
    assert not (tmp_path / "out").exists()


def test_phantoms_are_the_same_every_time(tmp_path):
    phantoms = read_recipe("phantom").phantoms
    for name, limit in (("a", 2), ("b", 3), ("b", 2)):
        write_phantoms(tmp_path / name, phantoms, limit)
    for path in (tmp_path / "a").rglob("*.png"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
    assert len(list((tmp_path / "b").rglob("*.png"))) == 12


def test_fine_tuning_ends_with_a_bundle_and_its_retrieval(tmp_path):
    medpix(tmp_path, write_phantom_captions(tmp_path, 24))
    changes = {"epochs": 1, "batch": 8, "warmup": 1}
    recipe = small("medpix")
    object.__setattr__(recipe, "training", {**recipe.training, **changes})
    told = []
    job = Job(recipe, tmp_path, tmp_path / "out", {"old": "phantom"}, device="cpu", threads=1,
              log=told.append)  # fmt: skip
    result = carry_out(job)
    facts = json.loads(result.table.with_suffix(".json").read_text())
    assert [row["bundle"] for row in facts["tables"][0]["rows"]] == ["old", "tuned"]
    assert "favours it" in result.table.read_text()
    bundle = tmp_path / "out/model/bundle/bundle.json"
    before, lines = bundle.stat().st_mtime_ns, len(told)
    assert carry_out(job) == result
    assert bundle.stat().st_mtime_ns == before and not any("step" in t for t in told[lines:])


def test_retrieval_ends_with_a_table_of_all_bundles(tmp_path):
    rows = write_phantom_captions(tmp_path, 12)
    roco(tmp_path, rows)
    recipe = small("roco")
    bundles = {"one": "phantom", "two": "phantom"}
    object.__setattr__(recipe.pairs, "pool", 3)
    job = Job(recipe, tmp_path, tmp_path / "out", bundles, limit=10, device="cpu", threads=1)
    result = carry_out(job)
    text = result.table.read_text()
    assert text.startswith("# Retrieval on ROCO") and "among 3 drawn" in text and "| two |" in text
    facts = json.loads(result.table.with_suffix(".json").read_text())
    assert [table["pool"] for table in facts["tables"]] == [None, 3]
    assert facts["tables"][0]["images"] == 10
