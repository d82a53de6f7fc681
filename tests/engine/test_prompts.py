"""Prompts from flags and tables."""

import csv
import re

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medclipsam.engine.errors import ConfigError
from medclipsam.engine.prompts import make_prompts, parse_prompts, read_prompt_table


@pytest.mark.parametrize(
    ("flags", "texts"),
    [
        (["breast tumor"], {"breast_tumor": ("breast tumor",)}),
        (["a,  b;c"], {"a_b_c": ("a, b;c",)}),
        (["cyst=a cyst|a  simple\tcyst"], {"cyst": ("a cyst", "a simple cyst")}),
        (["a tumor|a mass"], {"a_tumor": ("a tumor", "a mass")}),
        ([" left-lung = x=1"], {"left-lung": ("x=1",)}),
        (["größe=ein Knoten"], {"größe": ("ein Knoten",)}),
        (["ratio a/b = 3"], {"ratio_a_b_3": ("ratio a/b = 3",)}),
        (["b=x", "a=y", "c"], {"b": ("x",), "a": ("y",), "c": ("c",)}),
    ],
)
def test_flags(flags, texts):
    prompts = parse_prompts(flags)
    assert prompts.texts == texts
    assert prompts.labels == tuple(texts)


@pytest.mark.parametrize("flag", ["", "  ", "a=", "a= ", "a=x|", "a=|x", "x||y", "|", "!?", "..."])
def test_empty_texts_and_labels_are_refused(flag):
    with pytest.raises(ConfigError, match=re.escape(repr(flag))):
        parse_prompts([flag])


@pytest.mark.parametrize("flags", [["a=x", "a=y"], ["a b", "a-b=x", "a_b=z"], ["a b", "a, b"]])
def test_labels_are_given_once(flags):
    with pytest.raises(ConfigError, match="share the label"):
        parse_prompts(flags)


def test_no_prompt_is_refused():
    with pytest.raises(ConfigError, match="-p"):
        parse_prompts([])


words = st.from_regex(r"[a-zé0-9,;:'()/-]{1,6}", fullmatch=True)
text = st.lists(words, min_size=1, max_size=4).map(" ".join)


@given(st.from_regex(r"[\w-]{1,9}", fullmatch=True), st.lists(text, min_size=1, max_size=3))
def test_labelled_ensembles_survive(label, wordings):
    flag = f"{label}={' | '.join(wordings)}"
    assert parse_prompts([flag]).texts == {label: tuple(wordings)}


@given(st.text(max_size=30))
def test_labels_are_always_fit_for_folder_names(flag):
    try:
        (label,) = parse_prompts([flag]).labels
    except ConfigError:
        return
    assert re.fullmatch(r"[\w-]+", label)


ROWS = [
    ("a/1.png", "a mass, solid", "mass"),
    ("a/1.png", 'a "cyst"|a cyst', "cyst"),
    ("b 2.dcm", "007", "12"),
]
EXPECTED = {
    "a/1.png": {"mass": ("a mass, solid",), "cyst": ('a "cyst"', "a cyst")},
    "b 2.dcm": {"12": ("007",)},
}


def write_table(path, rows, header=("item", "prompt", "label"), encoding="utf-8"):
    if path.suffix == ".parquet":
        columns = [list(column) for column in zip(*rows, strict=True)]
        pa.parquet.write_table(pa.table(dict(zip(header, columns, strict=True))), path)
    else:
        with path.open("w", encoding=encoding, newline="") as file:
            writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writerows([header, *rows])
    return path


def texts_of(table):
    return {item: prompts.texts for item, prompts in table.by_item.items()}


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.parquet", "T.CSV"])
def test_tables(tmp_path, name):
    table = read_prompt_table(write_table(tmp_path / name, ROWS))
    assert texts_of(table) == EXPECTED
    assert table.source == tmp_path / name
    assert list(table.unmatched({"a/1.png"})) == ["b 2.dcm"]


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
@pytest.mark.parametrize("header", ["plain", "quoted"])
def test_a_byte_order_mark_is_no_part_of_a_column(tmp_path, name, header):
    path = write_table(tmp_path / name, ROWS, encoding="utf-8-sig")
    if header == "quoted":
        data = path.read_bytes()
        path.write_bytes(data.replace(b"item", b'"item"', 1).replace(b"label", b'"label"', 1))
    assert texts_of(read_prompt_table(path)) == EXPECTED


def test_other_columns_may_be_there_and_named_otherwise(tmp_path):
    rows = [("x", 1, "a.png", "a mass"), ("y", 2, "b.png", "a cyst")]
    path = write_table(tmp_path / "t.csv", rows, ("what", "age", "file", "text"))
    table = read_prompt_table(path, "file", "text", "what")
    assert texts_of(table) == {"a.png": {"x": ("a mass",)}, "b.png": {"y": ("a cyst",)}}


def test_without_labels_everything_is_the_target(tmp_path):
    rows = [("a.png", "a mass"), ("./b.png", "a cyst")]
    table = read_prompt_table(write_table(tmp_path / "t.csv", rows, ("item", "prompt")))
    assert texts_of(table) == {"a.png": {"target": ("a mass",)}, "b.png": {"target": ("a cyst",)}}


def test_windows_paths_and_labels_are_tidied(tmp_path):
    rows = [("a\\1.png", "x", "left lung"), (".\\b.png", "y", "../up")]
    table = read_prompt_table(write_table(tmp_path / "t.csv", rows))
    assert texts_of(table) == {"a/1.png": {"left_lung": ("x",)}, "b.png": {"up": ("y",)}}


def test_numbers_stay_as_they_were_written(tmp_path):
    rows = [("001", "1e3", "01"), ("002", "true", "02")]
    table = read_prompt_table(write_table(tmp_path / "t.csv", rows))
    assert texts_of(table) == {"001": {"01": ("1e3",)}, "002": {"02": ("true",)}}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("column", [0, 1, 2])
@pytest.mark.parametrize("row", [0, 2])
def test_empty_cells_are_named(tmp_path, suffix, column, row):
    rows = [list(line) for line in ROWS]
    rows[row][column] = None if suffix == ".parquet" else ""
    path = write_table(tmp_path / f"t{suffix}", rows)
    with pytest.raises(ConfigError, match=f"row {row + 1}: item, prompt or label is empty"):
        read_prompt_table(path)


@pytest.mark.parametrize("again", ["a/1.png", "./a/1.png", "a\\1.png"])
def test_duplicates_are_named(tmp_path, again):
    rows = [*ROWS, (again, "another", "mass")]
    with pytest.raises(ConfigError, match=r"row 4.*two prompts labelled 'mass'"):
        read_prompt_table(write_table(tmp_path / "t.csv", rows))


@pytest.mark.parametrize("missing", ["item", "prompt"])
def test_missing_columns_are_named(tmp_path, missing):
    header = ["item", "prompt", "label"]
    header[header.index(missing)] = "else"
    with pytest.raises(ConfigError, match=f"no column '{missing}'.*else.*--{missing}-column"):
        read_prompt_table(write_table(tmp_path / "t.csv", ROWS, header))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", b""),
        ("t.csv", b"item,prompt\na,b,c,d\n"),
        ("t.csv", b"item,prompt\na,\xff\xfe\n"),
        ("t.csv", b"\xff,prompt\na,b\n"),
        ("t.parquet", b"PAR1"),
        ("t.xlsx", b"item,prompt\n"),
        ("absent.csv", None),
    ],
)
def test_tables_that_cannot_be_read_are_named(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(name)):
        read_prompt_table(tmp_path / name)


cell = st.from_regex(r"[a-zA-Z0-9é,;'\"=. -]{0,8}[a-z0-9]", fullmatch=True).map(str.strip)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.dictionaries(cell.map(lambda s: "d/" + s), cell, min_size=1, max_size=6),
    st.sampled_from([".csv", ".tsv", ".parquet"]),
)
def test_any_words_survive_every_kind_of_table(tmp_path, items, suffix):
    path = write_table(tmp_path / f"t{suffix}", list(items.items()), ("item", "prompt"))
    expected = {item: {"target": (" ".join(text.split()),)} for item, text in items.items()}
    assert texts_of(read_prompt_table(path)) == expected


def test_prompts_of_a_settings_file():
    table = {"cyst": "a  cyst", "lung, left": ["left lung", "the left lung"]}
    expected = {"cyst": ("a cyst",), "lung, left": ("left lung", "the left lung")}
    assert make_prompts(table).texts == expected


@pytest.mark.parametrize("table", [{}, "a cyst", {"cyst": []}, {"cyst": [""]}, {"cyst": 3}])
def test_other_prompts_of_a_settings_file_are_refused(table):
    with pytest.raises(ConfigError, match="prompts"):
        make_prompts(table)
