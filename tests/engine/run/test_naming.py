import csv
import os

import pytest

from medclipsam.engine.errors import ConfigError, OutputError
from medclipsam.engine.run.naming import HashedNames
from medclipsam.engine.types import ItemRef

REFS = [ItemRef("Doe^Jane/scan 1.PNG"), ItemRef("a.nii.gz"), ItemRef("IM0001"), ItemRef("a\udcff")]


def test_names_hide_everything_but_the_suffix_and_stay_apart(tmp_path):
    names = HashedNames(tmp_path, fresh=True)
    hashed = [names.name(ref).path for ref in REFS]
    assert len(set(hashed)) == len(REFS)
    assert [path.partition(".")[2] for path in hashed] == ["png", "nii.gz", "", ""]
    for path in hashed:
        folder, _, name = path.partition("/")
        assert name.startswith(folder) and len(name.partition(".")[0]) == 32
        assert "doe" not in path.lower() and "scan" not in path


def test_the_same_folder_gives_the_same_names_and_another_one_others(tmp_path):
    (tmp_path / "a").mkdir()
    first = HashedNames(tmp_path / "a", fresh=True)
    again = HashedNames(tmp_path / "a", fresh=False)
    (tmp_path / "b").mkdir()
    other = HashedNames(tmp_path / "b", fresh=True)
    assert first.name(REFS[0]) == again.name(REFS[0]) != other.name(REFS[0])


def test_the_list_that_leads_back_is_private(tmp_path):
    names = HashedNames(tmp_path, fresh=True)
    names.record(REFS[:2])
    names.record(REFS[2:])
    with (tmp_path / "private" / "names.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["item"] for row in rows] == [ref.id for ref in REFS]
    assert [row["name"] for row in rows] == [names.name(ref).id for ref in REFS]
    for path in (tmp_path / "private", *(tmp_path / "private").iterdir()):
        assert path.stat().st_mode & 0o077 == 0


def test_a_lost_key_is_named(tmp_path):
    HashedNames(tmp_path, fresh=True)
    os.unlink(tmp_path / "private" / "key")
    with pytest.raises(ConfigError, match="key is gone"):
        HashedNames(tmp_path, fresh=False)


def test_a_list_that_cannot_be_written_stops(tmp_path):
    names = HashedNames(tmp_path, fresh=True)
    (tmp_path / "private" / "names.csv").mkdir()
    with pytest.raises(OutputError, match=r"names\.csv"):
        names.record(REFS)
