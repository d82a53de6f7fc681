"""Tables of paths, and the globs that choose items."""

import os
from pathlib import Path

import pyarrow as pa
import pytest
from bad_input import NOISE, picture, tar
from pyarrow import csv, parquet

from medclipsam.engine.archive import decode, open_archive
from medclipsam.engine.archive.patterns import Patterns
from medclipsam.engine.errors import ConfigError, InputError

MEMORY = 12 << 20  # bytes of a list of 24 MB
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
    with pytest.raises(ConfigError, match="cannot read the list"):
        ids(path)
    path.write_text("item\n")
    with pytest.raises(ConfigError, match="no images"):
        ids(path)
    path.write_text("")
    with pytest.raises(ConfigError, match="cannot read the list"):
        ids(path)
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ConfigError, match="cannot read the list"):
        ids(tmp_path / "x.parquet")
    path.write_text("item\na\0b.png\n")
    (entry,) = open_archive(path)
    with pytest.raises(InputError):
        decode(entry.files)


@pytest.mark.parametrize("suffix", WRITERS)
def test_long_lists_are_read_in_batches(tmp_path, suffix):
    names = [f"{'folder with a long name ' * 8}/{k:08}.png" for k in range(60_000)]
    path = write(tmp_path / f"x{suffix}", {"item": names, "more": names})
    archive = open_archive(path)
    before = pa.total_allocated_bytes()
    for number, entry in enumerate(archive):
        assert entry.ref.path == names[number]
        if number % 5000 == 0:
            assert pa.total_allocated_bytes() - before < MEMORY
    assert number == len(names) - 1


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
