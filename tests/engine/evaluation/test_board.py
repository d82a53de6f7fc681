"""Several predictions in one table."""

import numpy as np
import pytest
from PIL import Image

from medclipsam.engine.errors import ConfigError
from medclipsam.engine.evaluation.board import Entry, parse_entry, score, to_json, to_markdown


def save(path, left):
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((20, 30), np.uint8)
    mask[5:15, left : left + 10] = 255
    Image.fromarray(mask).save(path)


@pytest.fixture
def folders(tmp_path):
    for label in ("cyst", "mass"):
        for name in ("1.png", "2.png"):
            save(tmp_path / "truth" / label / name, 5)
            save(tmp_path / "a/masks" / label / name, 5)
            save(tmp_path / "a/crf" / label / name, 10)
        save(tmp_path / "b/masks" / label / "1.png", 5)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "name", "folder", "part"),
    [
        ("a=runs/x", "a", "runs/x", "mask"),
        ("a b =runs/x:crf", "a b", "runs/x", "crf"),
        ("a=runs/x:mask", "a", "runs/x", "mask"),
        ("a=runs/x=1:2", "a", "runs/x=1:2", "mask"),
    ],
)
def test_entries_are_parsed(text, name, folder, part):
    entry = parse_entry(text)
    assert (entry.name, entry.predictions.as_posix(), entry.part) == (name, folder, part)


@pytest.mark.parametrize("text", ["runs/x", "=runs/x", "a=", "a=:crf", " =x"])
def test_entries_without_name_or_folder_are_refused(text):
    with pytest.raises(ConfigError, match="expected NAME=FOLDER or"):
        parse_entry(text)


def test_a_line_for_each_label_and_entry(folders):
    entries = [Entry("saliency", folders / "a", "crf"), Entry("+ SAM", folders / "a")]
    board = score([*entries, Entry("half|b", folders / "b")], folders / "truth")
    lines = [(row.label, name, row.n, row.missing, row.dice.mean) for name, row in board.lines()]
    assert lines[:3] == [
        ("cyst", "saliency", 2, 0, 0.5),
        ("cyst", "+ SAM", 2, 0, 1.0),
        ("cyst", "half|b", 2, 1, 0.5),
    ]
    assert [line[0] for line in lines] == ["cyst"] * 3 + ["mass"] * 3 + ["overall"] * 3
    text = to_markdown(board)
    assert "| label | predictions | n | missing | unreadable | DSC | IoU | NSD (2) | HD95 |" in text
    assert "| cyst | half\\|b | 2 | 1 | 0 | 0.500 [0.000, 1.000] |" in text
    assert "0.00 (1 undefined)" in text and "AUC" not in text
    facts = to_json(board)["rows"][2]
    assert (facts["predictions"], facts["hd95"]["undefined"]) == ("half|b", 1)
    assert facts["hd95"]["low"] is None and facts["auc"]["mean"] is None


def test_one_label_has_no_overall_line(folders):
    board = score([Entry("a", folders / "a/masks/mass")], folders / "truth/mass")
    assert [row.n for _, row in board.lines()] == [2]


def test_mistakes_are_told(folders):
    twice = [Entry("a", folders / "a"), Entry("a", folders / "b")]
    with pytest.raises(ConfigError, match="two predictions are called 'a'"):
        score(twice, folders / "truth")
    with pytest.raises(ConfigError, match="got none"):
        score([], folders / "truth")
    with pytest.raises(ConfigError, match="no folder crf/"):
        score([Entry("b", folders / "b", "crf")], folders / "truth")
    with pytest.raises(ConfigError, match="no folder of predictions at"):
        score([Entry("c", folders / "c")], folders / "truth")
