"""Patients: where they are known from, and that none is on both sides of a split."""

import io
import re
import zipfile

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medclipsam.engine.archive import open_archive
from medclipsam.engine.errors import ConfigError
from medclipsam.train.patients import (
    PatientRule,
    compile_pattern,
    join_groups,
    read_patients,
    split_groups,
)
from medclipsam.train.phantoms.archive import encode_dicom


def dicom(patient, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 4095, (8, 9)).astype(np.uint16)
    dataset = pydicom.dcmread(io.BytesIO(encode_dicom(pixels, False)))
    if patient is not None:
        dataset.PatientID = patient
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def tell(archive, rule):
    """item → (key, what told it)."""
    found = {}
    for entry in open_archive(archive):
        data = entry.fetch() if entry.fetch else None
        found[entry.ref.id] = rule.find(entry.ref.id, entry, data)
    return found


@pytest.fixture
def scans(tmp_path):
    root = tmp_path / "scans"
    root.mkdir()
    for name, patient in (("a", "Doe 1"), ("b", "Doe 1 "), ("c", "Roe"), ("d", ""), ("e", None)):
        (root / f"{name}.dcm").write_bytes(dicom(patient))
    (root / "f.png").write_bytes(b"no picture")
    (root / "g.dcm").write_bytes(dicom("Doe 1")[:300])
    return root


def test_dicom_headers_tell_patients_and_their_names_stay_there(scans):
    found = tell(scans, PatientRule())
    assert found["a.dcm"] == found["b.dcm"] and found["a.dcm"][1] == "DICOM"
    assert found["c.dcm"][0] != found["a.dcm"][0]
    unknown = [found[name] for name in ("d.dcm", "e.dcm", "f.png")]
    assert {told for _, told in unknown} == {"nothing"} and len(set(unknown)) == 3
    assert not any("Doe" in key or "Roe" in key for key, _ in found.values())


def test_members_of_containers_have_patients_too(scans, tmp_path):
    with zipfile.ZipFile(tmp_path / "scans.zip", "w") as file:
        for path in sorted(scans.iterdir()):
            file.write(path, path.name)
    inside, outside = tell(tmp_path / "scans.zip", PatientRule()), tell(scans, PatientRule())
    assert {v for v in inside.values() if v[1] == "DICOM"} == {
        v for v in outside.values() if v[1] == "DICOM"
    }


def test_what_was_said_wins_over_headers(scans, tmp_path):
    table = tmp_path / "patients.csv"
    table.write_text("item,patient\na.dcm,X\nc.dcm,X\n")
    rule = PatientRule(read_patients(table), re.compile(r"^([bd])\."))
    found = tell(scans, rule)
    assert found["a.dcm"] == found["c.dcm"] and found["a.dcm"][1] == "table"
    assert found["b.dcm"][1] == found["d.dcm"][1] == "pattern" and found["b.dcm"] != found["d.dcm"]
    whole = PatientRule(pattern=compile_pattern("[ab]"))
    assert whole.find("x/a", None, b"")[0] != whole.find("x/b", None, b"")[0]
    assert whole.find("x/a", None, b"") == whole.find("y/a", None, b"")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("item,who\na,b\n", "no column 'patient'"),
        ("", "must name its columns"),
        ("item,patient\na,\n", "row 1: item or patient is empty"),
        ("item,patient\na\n", "row 1: expected 2 cells, got 1"),
        ("item,patient\na,b\na,c\n", "two patients"),
        ('item,patient\n"a,b\n', "cannot read"),
    ],
)
def test_bad_tables(tmp_path, text, message):
    table = tmp_path / "patients.csv"
    table.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_patients(table)


def test_bad_pattern_and_no_table(tmp_path):
    with pytest.raises(ConfigError, match="no regular expression"):
        compile_pattern("p(")
    with pytest.raises(ConfigError, match="cannot read"):
        read_patients(tmp_path / "none.csv")


def test_equal_pictures_belong_together_whoever_they_show():
    groups = join_groups([("p", "1"), ("q", "2"), ("r", "2"), ("p", "3"), ("s", "3"), ("t", "4")])
    assert groups[1] == groups[2] and groups[0] == groups[3] == groups[4]
    assert len(set(groups)) == 3


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12), st.randoms())
def test_groups_are_the_components_whatever_the_order(pairs, chance):
    named = [(str(a), str(b)) for a, b in pairs]
    groups = join_groups(named)
    for (a, x), one in zip(named, groups, strict=True):
        for (b, y), two in zip(named, groups, strict=True):
            if a == b or x == y:
                assert one == two
    order = list(range(len(named)))
    chance.shuffle(order)
    assert [groups[n] for n in order] == join_groups([named[n] for n in order])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 99), st.integers(3, 12), st.floats(0.05, 0.95))
def test_no_group_is_on_both_sides(seed, count, share):
    rng = np.random.default_rng(seed)
    groups = [str(g) for g in rng.integers(0, count, 40)]
    present = np.ones((40, 2), bool)
    if len(set(groups)) < 2:
        return
    learn, judge = split_groups(groups, present, ("a", "b"), share, seed)
    assert sorted([*learn, *judge]) == list(range(40)) and len(learn) and len(judge)
    assert not {groups[n] for n in learn} & {groups[n] for n in judge}
    total = len(set(groups))
    wanted = min(max(1, round(share * total)), total - 1)
    assert len({groups[n] for n in judge}) == wanted
    again = split_groups(groups, present, ("a", "b"), share, seed)
    assert np.array_equal(again[0], learn) and np.array_equal(again[1], judge)


def test_both_sides_have_every_label():
    groups = [str(n) for n in range(30)]
    present = np.zeros((30, 2), bool)
    present[:, 0] = True
    present[[4, 9], 1] = True
    for seed in range(5):
        learn, judge = split_groups(groups, present, ("common", "rare"), 0.2, seed)
        assert present[learn, 1].sum() == present[judge, 1].sum() == 1


def test_too_few_patients_are_named():
    present = np.ones((5, 1), bool)
    with pytest.raises(ConfigError, match=r"1 patients .* with masks: mass 1.*--patient-pattern"):
        split_groups(["same"] * 5, present, ("mass",), 0.2, 0)
    present = np.zeros((6, 2), bool)
    present[:, 0], present[0, 1] = True, True
    with pytest.raises(ConfigError, match="mass 6, cyst 1"):
        split_groups(list("abcdef"), present, ("mass", "cyst"), 0.2, 0)
