"""Tables of paths, and the globs that choose items."""

import csv as stdlib_csv
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from archives.drawn import NOISE, picture, tar
from pyarrow import csv, parquet

from medclipsam.engine.archive import Decoders, Limits, decode, embedded, open_archive, table
from medclipsam.engine.archive.patterns import Patterns
from medclipsam.engine.errors import ConfigError, InputError

MEMORY = 12 << 20  # bytes that pyarrow may hold of a list of 24 MB
PEAK = 1 << 20  # bytes that Python may hold of a text of 4 MB
WRITERS = {
    ".csv": csv.write_csv,
    ".tsv": lambda table, path: csv.write_csv(table, path, csv.WriteOptions(delimiter="\t")),
    ".parquet": parquet.write_table,
}


def write(path: Path, columns: dict[str, list]) -> Path:
    WRITERS[path.suffix](pa.table(columns), path)
    return path


def ids(spec, **options) -> list[str]:
    return [entry.ref.id for entry in open_archive(spec, **options)]


@pytest.mark.parametrize("suffix", WRITERS)
def test_rows_are_items(tmp_path, suffix):
    for name in ("a.png", "sub/b c.png", "no suffix", "up.png"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(picture(NOISE))
    (tmp_path / "data/x.tar").write_bytes(tar({"1.png": b"1"}))
    (tmp_path / "lists").mkdir()
    root = str(tmp_path).lstrip("/")
    rows = {
        "./../data/a.png": f"{root}/data/a.png",
        f"{tmp_path}/data/a.png": f"{root}/data/a.png",
        "gone.png": "gone.png",
        "./gone.png": "gone.png",
        "sub\\gone.png": "sub/gone.png",
        "a/../gone.png": "gone.png",
        f"{tmp_path}/data/sub/b c.png": f"{root}/data/sub/b c.png",
        f"{tmp_path}/data/no suffix": f"{root}/data/no suffix",
        f"{tmp_path}/data/x.tar": f"{root}/data/x.tar/1.png",
        "s3://bucket/x.png": "s3://bucket/x.png",
    }
    columns = {"label": ["x"] * len(rows), "path": list(rows), "number": [7] * len(rows)}
    path = write(tmp_path / "lists" / f"list{suffix}", columns)
    archive = open_archive(path)
    entries = list(archive)
    assert [entry.ref.id for entry in entries] == list(rows.values())
    assert archive.identity == str(path) and archive.name == path.name and archive.count() == 10
    by_id = {entry.ref.id: entry for entry in entries}
    for item in ("data/a.png", "data/sub/b c.png", "data/no suffix"):
        assert decode(by_id[f"{root}/{item}"].files).frames.shape[1:3] == NOISE.shape
    with pytest.raises(InputError) as caught:
        decode(by_id["gone.png"].files)
    assert caught.value.reason == "vanished"
    error = by_id["s3://bucket/x.png"].error
    assert error is not None and error.reason == "unsupported"
    assert ids(path, include=["sub/*"]) == ["sub/gone.png"]


def test_which_column_is_meant(tmp_path):
    def chosen(*names: str) -> list[str]:
        return ids(write(tmp_path / "x.csv", {name: [f"{name}.png"] for name in names}))

    assert chosen("image", "path", "item", "prompt") == ["item.png"]
    assert chosen("prompt", "image", "path") == ["path.png"]
    assert chosen("prompt", "image") == ["image.png"]
    assert chosen("scan") == ["scan.png"]
    with pytest.raises(ConfigError, match="'prompt', 'scan'; name the one with the paths 'item'"):
        chosen("prompt", "scan")
    with pytest.raises(ConfigError, match=r"in its first row, which holds 'a\.png'"):
        chosen("a.png")


def test_lists_that_cannot_be_read(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('item\n""\n')
    with pytest.raises(ConfigError, match="row 1: the path is empty"):
        ids(path)
    path.write_text("item,label\na.png,x\nb.png\n")
    with pytest.raises(ConfigError, match="cannot read the table"):
        ids(path)
    path.write_text("item\n")
    with pytest.raises(ConfigError, match="no images"):
        ids(path)
    path.write_text("")
    with pytest.raises(ConfigError, match="cannot read the table"):
        ids(path)
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ConfigError, match="cannot read the table"):
        ids(tmp_path / "x.parquet")
    path.write_text("item\na\0b.png\n")
    (entry,) = open_archive(path)
    with pytest.raises(InputError):
        decode(entry.files)


@pytest.mark.parametrize("suffix", WRITERS)
def test_long_lists_are_read_in_batches(tmp_path, suffix):
    """Text is read line by line; of Parquet, pyarrow holds the batch that is being read."""
    names = [f"{'folder with a long name ' * 8}/{k:08}.png" for k in range(60_000)]
    path = write(tmp_path / f"x{suffix}", {"item": names, "more": names})
    archive = open_archive(path)
    before = pa.total_allocated_bytes()
    for number, entry in enumerate(archive):
        assert entry.ref.path == names[number]
        if number % 5000 == 0:
            assert pa.total_allocated_bytes() - before < MEMORY
    assert number == len(names) - 1


def test_of_a_long_text_one_row_is_held(tmp_path):
    """Below the paths, whose parts Python keeps in a table of its own."""
    with (tmp_path / "x.csv").open("w") as file:
        file.write("note,item\n")
        file.writelines(f"{'n' * 100},{k:0100}.png\n" for k in range(20_000))
    tracemalloc.start()
    for number, text in enumerate(table._text_rows(tmp_path / "x.csv", ",", 1)):
        assert text == f"{number:0100}.png"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert number == 19_999 and peak < PEAK


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("first", [True, False])
def test_separators_are_found_by_the_names_of_the_columns(tmp_path, separator, suffix, first):
    names = ["a,b;c|d.png", 'with "quotes".png', "two\nlines.png", "plain.png", "tab\t.png"]
    header = ["item", "note"] if first else ["note", "item"]
    with (tmp_path / f"x{suffix}").open("w", newline="", encoding="utf-8-sig") as file:
        writer = stdlib_csv.writer(file, delimiter=separator)
        writer.writerow(header)
        writer.writerows([n, "1;2,3"] if first else ["1;2,3", n] for n in names)
    assert ids(tmp_path / f"x{suffix}") == names


@pytest.mark.parametrize("header", ["file;label", "file|label", "file\tlabel"])
def test_columns_of_another_separator_never_become_names_of_items(tmp_path, header):
    path = tmp_path / "x.csv"
    path.write_text(f"{header}\na.png\n")
    with pytest.raises(ConfigError, match="'file', 'label'; name the one with the paths 'item'"):
        ids(path)
    path.write_text("item;label\na.png,x\n")
    with pytest.raises(ConfigError, match="row 1: expected 2 cells, got 1"):
        ids(path)


def cells(kind: str, pictures: list[bytes]):
    names = ["0.png", None, "sub/2.png", "0.png", "../up.png"]
    if kind == "bytes":
        return pa.array(pictures, pa.large_binary())
    if kind == "no path":
        return pa.array([{"bytes": data} for data in pictures])
    pairs = zip(pictures, names, strict=True)
    rows = [{"bytes": data, "path": name} for data, name in pairs]
    text = pa.large_string() if kind == "large" else pa.string()
    data = pa.large_binary() if kind == "large" else pa.binary()
    return pa.array(rows, pa.struct([("bytes", data), ("path", text)]))


@pytest.mark.parametrize("kind", ["struct", "large", "bytes", "no path"])
def test_images_in_a_column_of_parquet_are_read(tmp_path, kind):
    pictures = [picture(np.roll(NOISE, k, 1)) for k in range(5)]
    columns = {"label": list(range(5)), "image": cells(kind, pictures)}
    parquet.write_table(pa.table(columns), tmp_path / "x.parquet", row_group_size=2)
    archive = open_archive(tmp_path / "x.parquet")
    found = {entry.ref.id: entry.fetch() for entry in archive}
    rows = [f"row-{k}" for k in range(1, 6)]
    named = ["0.png", "row-2", "sub/2.png", "0.png#2", "%2e%2e/up.png"]
    expected = rows if kind in ("bytes", "no path") else named
    assert found == dict(zip(expected, pictures, strict=True))
    assert list(found) == ids(tmp_path / "x.parquet") and archive.count() is None
    assert all(entry.streamed for entry in archive)
    if kind == "struct":
        assert ids(tmp_path / "x.parquet", include=["sub/*"]) == ["sub/2.png"]
    with Decoders(1) as pool:
        for entry, data in zip(archive, pictures, strict=True):
            np.testing.assert_array_equal(pool.decode(entry).frames, decode(data).frames)


def test_a_cell_may_name_a_file_or_hold_nothing(tmp_path):
    (tmp_path / "a.png").write_bytes(picture(NOISE))
    rows = [{"bytes": None, "path": "a.png"}, {"bytes": b"", "path": "b.png"},
            {"bytes": None, "path": None}, None, {"bytes": b"12345", "path": "c.png"}]  # fmt: skip
    parquet.write_table(pa.table({"image": rows}), tmp_path / "x.parquet")
    named, *others = open_archive(tmp_path / "x.parquet", limits=Limits(max_bytes=4))
    assert (named.ref.id, named.files) == ("a.png", (tmp_path / "a.png",))
    assert [(entry.ref.id, entry.error.reason) for entry in others] == [
        ("b.png", "empty"), ("row-3", "empty"), ("row-4", "empty"), ("c.png", "too-large"),
    ]  # fmt: skip


TEXT_COLUMNS = {
    "string": pa.array(["a.png"]),
    "large": pa.array(["a.png"], pa.large_string()),
    "dictionary": pa.array(["a.png"]).dictionary_encode(),
    "large dictionary": pa.array(["a.png"], pa.large_string()).dictionary_encode(),
}
OTHER_COLUMNS = {
    "list": pa.array([["a.png"]]),
    "numbers": pa.array([7]),
    "struct": pa.array([{"url": "a.png"}]),
    "struct of texts": pa.array([{"bytes": "a.png"}]),
    "list of images": pa.array([[{"bytes": b"1", "path": "a"}]]),
    "map": pa.array([[("a", "b")]], pa.map_(pa.string(), pa.string())),
    "nothing": pa.nulls(1),
    "dictionary of bytes": pa.array([b"1"]).dictionary_encode(),
}


@pytest.mark.parametrize("kind", TEXT_COLUMNS)
def test_texts_of_every_kind_are_paths(tmp_path, kind):
    parquet.write_table(pa.table({"path": TEXT_COLUMNS[kind]}), tmp_path / "x.parquet")
    assert ids(tmp_path / "x.parquet") == ["a.png"]


@pytest.mark.parametrize("name", ["item", "image", "only"])
@pytest.mark.parametrize("kind", OTHER_COLUMNS)
def test_what_is_neither_text_nor_image_is_refused_before_any_item(tmp_path, kind, name):
    parquet.write_table(pa.table({name: OTHER_COLUMNS[kind]}), tmp_path / "x.parquet")
    with pytest.raises(ConfigError, match=f"expected paths as text in column '{name}'"):
        open_archive(tmp_path / "x.parquet")


def test_of_large_images_in_a_column_one_row_group_is_held(tmp_path, monkeypatch):
    """64 MB in row groups of 8, which are pages of the file: one is held, packed and unpacked."""
    rng = np.random.default_rng(5)
    pictures = [rng.bytes(1 << 20) for _ in range(64)]
    whole = pa.table({"image": pa.array([{"bytes": data} for data in pictures])})
    parquet.write_table(whole, tmp_path / "x.parquet", row_group_size=8)
    del whole
    before, most = pa.total_allocated_bytes(), 0
    for entry, data in zip(open_archive(tmp_path / "x.parquet"), pictures, strict=True):
        assert entry.fetch() == data
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 24 << 20
    monkeypatch.setattr(embedded, "GROUP", 8 << 20)  # pages have headers beside the pictures
    with pytest.raises(ConfigError, match="smaller row_group_size"):
        open_archive(tmp_path / "x.parquet")


GLOBS = {
    "*.png": ({"a.png", "a/b.png", "a/b/c.png", "x.tar/a.png"}, {"a.jpg", "a.pngx", "A.PNG"}),
    "a/*.png": ({"a/b.png"}, {"a.png", "a/b/c.png", "b/a/b.png"}),
    "a/**": ({"a/b.png", "a/b/c.png"}, {"a.png", "b/a/c.png"}),
    "a/": ({"a/b.png", "a/b/c.png"}, {"a.png", "b/a/c.png"}),
    "**/a/**": ({"a/b.png", "b/a/c/d.png"}, {"a.png", "ba/c.png"}),
    "a/**/b.png": ({"a/b.png", "a/c/b.png", "a/c/d/b.png"}, {"a/cb.png", "b.png"}),
    "a/**/b/*": ({"a/b/x", "a/c/b/x"}, {"a/b", "ab/x", "a/b/c/x"}),
    "?[0-9].png": ({"a1.png", "x/b2.png"}, {"a.png", "1.png", "ab.png", "/1.png"}),
    "[!a]*": ({"b.png", "a/b"}, {"a.png", "b/a"}),
    "[]x]*": ({"]a", "xa"}, {"a"}),
    "[a": ({"[a"}, {"a"}),
    "a.c": ({"a.c"}, {"abc"}),
    "./a.png": ({"a.png", "b/a.png"}, {"ba.png"}),
    "/a/b.png": ({"a/b.png"}, {"c/a/b.png"}),
    "**": ({"a", "a/b"}, set()),
    "x\ny": ({"x\ny"}, {"xy"}),
}


@pytest.mark.parametrize("glob", GLOBS)
def test_globs(glob):
    yes, no = GLOBS[glob]
    patterns, inverse = Patterns.of([glob], []), Patterns.of([], [glob])
    for path in yes:
        assert patterns.accept(path) and not inverse.accept(path), path
    for path in no:
        assert not patterns.accept(path) and inverse.accept(path), path


def test_globs_choose_items_and_folders_are_not_even_opened(tmp_path, monkeypatch):
    for name in ("a.png", "b.jpg", "sub/a.png", "sub/b.png", "thumbs/a.png", "sub/thumbs/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(picture(NOISE))
    assert ids(tmp_path, include=["*.jpg"]) == ["b.jpg"]
    assert ids(tmp_path, include=["sub/*", "b.*"]) == ["b.jpg", "sub/a.png", "sub/b.png"]
    assert ids(tmp_path, include=["a.png"], exclude=["**/thumbs/"]) == ["a.png", "sub/a.png"]
    opened, scan = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: opened.append(path) or scan(path))
    archive = open_archive(tmp_path, exclude=["thumbs/", "*.jpg"])
    assert len(list(archive)) == 4 and archive.ignored == {"left out by a pattern": 1}
    assert str(tmp_path / "thumbs") not in opened and str(tmp_path / "sub/thumbs") in opened
    with pytest.raises(ConfigError, match=r"no images.*left out by a pattern × 6"):
        ids(tmp_path, include=["*.dcm"])
    with pytest.raises(ConfigError, match="names nothing"):
        open_archive(tmp_path, include=[""])
