"""Calibration from files: what tables say, what is read, and the command from end to end."""

import csv
import shutil
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from pyarrow import parquet

from medclipsam.engine.archive import open_archive
from medclipsam.engine.cli.main import main
from medclipsam.engine.config import make_config, read_toml
from medclipsam.engine.engine import Engine
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.presence import NOT_IN_IMAGE
from medclipsam.engine.prompts import make_prompts
from medclipsam.engine.tuning.evidence import (
    NULL_PROMPTS,
    count_answers,
    find_candidates,
    gather,
    match_table,
    pair_archives,
    read_answers,
)
from medclipsam.train.phantoms.archive import write_phantom_archive
from medclipsam.train.phantoms.phantoms import PROMPTS, TARGETS, make_phantom

QUICK = ("--threads", "1", "--device", "cpu", "--set", "saliency.rows=4")
MANIFEST = 6e-5  # what rounding to four decimals takes from a contrast
WANTED = make_prompts({"mass": PROMPTS["mass"]})
MASS = f"mass={PROMPTS['mass']}"


def write_scans(folder, count, targets, first):
    folder.mkdir(parents=True)
    for n in range(count):
        grey = make_phantom(4_200_000 + first + n, "ultrasound", targets).grey
        assert cv2.imwrite(str(folder / f"{n}.png"), grey)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Twelve ultrasound phantoms with a mass and as many without, under the same names."""
    root = tmp_path_factory.mktemp("scans")
    write_scans(root / "with", 12, ("mass",), 0)
    write_scans(root / "without", 12, (), 500)
    return root


@pytest.fixture(scope="module")
def engine():
    return Engine.open("phantom", "cpu", settings={"saliency": {"rows": 4}}, threads=1)


def call(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments], env={"COLUMNS": "80"})


def write_table(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


@pytest.mark.parametrize(
    ("cell", "answer"),
    [
        *((cell, True) for cell in ("yes", "Yes", "1", "TRUE", " true ", "1.0")),
        *((cell, False) for cell in ("no", "0", "False", "0.0")),
        *((cell, None) for cell in ("", " ")),
    ],
)
def test_cells(tmp_path, cell, answer):
    table = write_table(tmp_path / "t.csv", [("item", "mass"), ("./a\\b.png", cell)])
    expected = {} if answer is None else {"mass": answer}
    assert read_answers(table, {"mass": "mass"}) == {"a/b.png": expected}


@pytest.mark.parametrize(
    "column",
    [[True, False, None], [1, 0, None], [1.0, 0.0, float("nan")], ["yes", "no", None]],
)
def test_parquet_keeps_its_types(tmp_path, column):
    path = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"file": ["a", "b", "c"], "m": pa.array(column)}), path)
    found = read_answers(path, {"mass": "m"}, "file")
    assert found == {"a": {"mass": True}, "b": {"mass": False}, "c": {}}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("item", "mass"), ("a", "perhaps")], "row 1, column 'mass': .* got 'perhaps'"),
        ([("item", "mass"), ("a", "2")], "got '2'"),
        ([("item", "mass"), ("a", "1"), ("./a", "1")], r"row 2: the item './a' has a row already"),
        ([("item", "mass"), ("", "1")], "row 1: the item is empty"),
        ([("path", "mass"), ("a", "1")], "no column 'item'.*--item-column"),
        ([("item", "tumor"), ("a", "1")], "no column 'mass'.*--column"),
    ],
)
def test_tables_that_say_nothing_clear_are_refused(tmp_path, rows, words):
    table = write_table(tmp_path / "t.csv", rows)
    with pytest.raises(ConfigError, match=words):
        read_answers(table, {"mass": "mass"})


def test_table_and_archive_must_fit(scans, tmp_path):
    archive = open_archive(scans / "with")
    rows = [("item", "mass"), *((f"{n}.png", "yes") for n in range(12))]
    whole = write_table(tmp_path / "t.csv", rows)
    assert count_answers([match_table(archive, whole, {"mass": "mass"})], ["mass", "cyst"]) == {
        "mass": (12, 0),
        "cyst": (0, 0),
    }
    more = write_table(tmp_path / "more.csv", [*rows, *((f"x{n}", "no") for n in range(5))])
    with pytest.raises(ConfigError, match=r"names 5 items .* not hold: x0, x1, x2 …"):
        match_table(archive, more, {"mass": "mass"})
    with pytest.raises(ConfigError, match=r"holds 2 items .* not name: 8.png, 9.png;"):
        match_table(
            archive, write_table(tmp_path / "less.csv", rows[:9] + rows[11:]), {"mass": "mass"}
        )


def test_candidates_are_told_apart_by_the_model(engine):
    used = engine.config.null_prompts
    mine = ("A  Healthy Breast", "a healthy breast", used[1].upper())
    found = find_candidates(engine.pipeline, WANTED, mine)
    assert found[: len(used) + 1] == (*used, "A Healthy Breast")
    assert set(found[len(used) + 1 :]) <= set(NULL_PROMPTS)
    for text in NULL_PROMPTS:
        if text not in found:  # no word is known to this small vocabulary, or too few are
            continue
        engine.pipeline.encoder.encode_text([text])
    with pytest.raises(ConfigError, match="the same to this model"):
        find_candidates(engine.pipeline, WANTED, (PROMPTS["mass"].upper(),))


def test_every_image_is_read_once_and_by_its_best_frame(scans, engine, tmp_path):
    """A volume, a damaged file, the same bytes twice, and one of which nothing is known."""
    folder = tmp_path / "scans"
    shutil.copytree(scans / "with", folder)
    shutil.copy(folder / "0.png", folder / "copy.png")
    (folder / "damaged.png").write_bytes((folder / "1.png").read_bytes()[:200])
    small = [cv2.resize(cv2.imread(str(folder / f"{n}.png"), 0), (64, 64)) for n in range(3)]
    assert cv2.imwritemulti(str(folder / "volume.tif"), small)
    names = sorted(path.name for path in folder.iterdir())
    answers = [(name, "" if name == "5.png" else "yes") for name in names]
    table = write_table(tmp_path / "t.csv", [("item", "mass"), *answers])
    source = match_table(open_archive(folder), table, {"mass": "mass"})
    finished = []
    found = gather(engine.pipeline, [source], WANTED, NULL_PROMPTS[:1], 2, finished.append)
    assert finished == list(range(1, 15))
    assert found.repeated == 1 and found.unreadable[0][0] == "scans/damaged.png"
    assert found.counts == {"mass": (12, 0)} and len(found.own) == 14
    texts = [
        engine.pipeline.encode_prompts(WANTED)[0],
        engine.pipeline.encoder.encode_ensemble(NULL_PROMPTS[:1]),
    ]
    own, null = (
        np.array([*engine.pipeline.embed(np.stack([s] * 3, -1) for s in small)]) @ t.numpy()
        for t in texts
    )
    assert found.contrast((0,))[-1, 0] == pytest.approx((own - null).max(), abs=1e-6)


def test_what_contradicts_itself_is_refused(scans, engine, tmp_path):
    both = tmp_path / "both"
    shutil.copytree(scans / "without", both)
    shutil.copy(scans / "with/3.png", both / "other name.png")
    sources = pair_archives(open_archive(scans / "with"), open_archive(both), "mass")
    with pytest.raises(
        ConfigError, match=r"with/3.png and both/other name.png have the same bytes"
    ):
        gather(engine.pipeline, sources, WANTED, NULL_PROMPTS[:1])
    with pytest.raises(ConfigError, match="given twice"):
        pair_archives(open_archive(both), open_archive(both), "mass")


def test_unreadable_images_only_are_refused(engine, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(name.encode())
    sources = pair_archives(open_archive(tmp_path / "a"), open_archive(tmp_path / "b"), "mass")
    with pytest.raises(ConfigError, match=r"none of the 2 images can .*: a/x.png: unreadable"):
        gather(engine.pipeline, sources, WANTED, NULL_PROMPTS[:1])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("with",), "expected two archives"),
        (("with", "without", "--table", "t.csv"), "expected two archives"),
        (("with", "without", "-p", "cyst=a cyst"), "two archives say whether one target"),
        (("with", "--table", "t.csv", "-p", "cyst=a cyst", "--column", "x"), "--column names"),
        (("with", "without", "--column", "x"), "--column names"),
        (("with", "without"), "12 images that show it cannot tell a sensitivity of 0.98"),
        (("with", "without", "--sensitivity", "2"), "between 0 and 1"),
        (("with", "without", "-o", "with/0.png"), "exists"),
    ],
)
def test_the_command_refuses(scans, monkeypatch, arguments, words):
    monkeypatch.chdir(scans)
    write_table(scans / "t.csv", [("item", "mass")])
    done = call("calibrate", *arguments, "-p", MASS, *QUICK)
    assert done.exit_code == 2 and words in " ".join(done.output.split()), done.output
    assert not (scans / "calibrated.toml").exists()


def test_the_command_on_two_archives(scans, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (scans / "without/damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    command = ("calibrate", scans / "with", scans / "without", "--sensitivity", "0.9", *QUICK)
    done = call(*command, "-p", PROMPTS["mass"], "--null", "a breast ultrasound", "-o", "x.toml")
    (scans / "without/damaged.png").unlink()
    assert done.exit_code == 0, done.output
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "left out: without/damaged.png: " in done.stderr
    said = " ".join(done.stdout.split())
    assert "24 images, 1 more unreadable" in said and "mass: 12 with it, 12 without" in said
    assert "Skips 12 of 12 images without it, 1.000 [0.735, 1.000]" in said
    settings = read_toml(tmp_path / "x.toml")
    assert settings.pop("prompts") == {"breast_ultrasound_showing_a_mass": [PROMPTS["mass"]]}
    assert make_config(settings).saliency.rows == 4 and -1 < settings["presence"] < 1
    again = call(*command, "-p", PROMPTS["mass"], "--null", "a breast ultrasound", "-o", "y.toml")
    assert again.exit_code == 0
    assert (tmp_path / "x.toml").read_bytes() == (tmp_path / "y.toml").read_bytes()


@pytest.mark.slow
def test_a_run_with_the_result_holds_known_images_absent(tmp_path, monkeypatch):
    """Targets of two modalities, asked for in phantoms of all three, some with look-alikes."""
    monkeypatch.chdir(tmp_path)
    archive, wanted = write_phantom_archive(tmp_path, 16).archive, ("mass", "tumor")
    shown, items = set(), ["xray/patient 1/corrupt.png"]
    for path in archive.rglob("*/scan *"):
        item, modality = path.relative_to(archive).as_posix(), path.parts[-3]
        number = int(path.name.split(".")[0].removeprefix("scan ")) - 1
        items.append(item)
        if number % 4 < 2:
            shown.add((item, TARGETS[modality][0]))
    said = [(item, *("yes" if (item, t) in shown else "no" for t in wanted)) for item in items]
    write_table(tmp_path / "known.csv", [("item", *wanted), *said])
    prompts = [a for t in wanted for a in ("-p", f"{t}={PROMPTS[t]}")]
    flags = ("--sensitivity", "0.875", "-o", "c.toml", "--saliency", "gradcam", *QUICK)
    done = call("calibrate", "archive", "--table", "known.csv", *prompts, *flags)
    assert done.exit_code == 0, done.output
    assert f"left out: archive/{items[0]}" in done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    run = call("run", "archive", "--config", "c.toml", "-o", "runs/x", "--threads", "1")
    assert run.exit_code == 3, run.output  # the corrupt one
    table = parquet.read_table(tmp_path / "runs/x/manifest.parquet").to_pylist()
    rows = {(row["item"], row["label"]): row for row in table if row["item"] != items[0]}
    presence = read_toml(Path("c.toml"))["presence"]
    gaps = {key: row["contrast"] - presence for key, row in rows.items()}
    low = {key for key, gap in gaps.items() if gap < -MANIFEST}
    assert {key for key in low if rows[key]["status"] != "absent"} == set()
    cut = {key for key, row in rows.items() if row["reason"] == NOT_IN_IMAGE}
    assert max(gaps[key] for key in cut) < MANIFEST
    for label in wanted:
        keys = [key for key in rows if key[1] == label]
        assert sum(key in low for key in keys if key in shown) <= 1  # of eight, as wanted
        assert sum(key in low for key in keys if key not in shown) >= 26  # of forty


def test_the_page_on_models_names_what_is_tried():
    page = Path(__file__).parents[3] / "docs/models.md"
    text = " ".join(page.read_text("utf-8").split())
    assert [null for null in NULL_PROMPTS if f'"{null}"' not in text] == []
