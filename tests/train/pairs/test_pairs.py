"""Every kind of source gives its pairs, and whatever is wrong is named and counted."""

import io
import tarfile

import cv2
import numpy as np
import pytest

from medclipsam.engine.archive import Decoders
from medclipsam.engine.errors import ConfigError, InputError
from medclipsam.engine.tables import read_table
from medclipsam.train.pairs.captions import clean_caption
from medclipsam.train.pairs.pairs import load_image, read_pairs
from medclipsam.train.pairs.prepared import prepare
from medclipsam.train.problems import SHOWN, Problems

CAPTION = "breast ultrasound showing a mass in the upper left"


def png(seed=0, shape=(40, 50)):
    pixels = np.random.default_rng(seed).integers(0, 255, shape, np.uint8)
    return cv2.imencode(".png", pixels)[1].tobytes()


@pytest.fixture
def folder(tmp_path):
    for n, name in enumerate(("a.png", "b.png", "sub/c.png")):
        path = tmp_path / "scans" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(n))
    return tmp_path / "scans"


def read(source, **options):
    lines = []
    found = read_pairs(str(source), log=lines.append, **options)
    return [(pair.image, pair.caption) for pair in found.pairs], found.problems, lines


def table(folder, text, name="pairs.csv"):
    path = folder / name
    path.write_text(text, "utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  A  mass,\n in the\tbreast. ", "A mass, in the breast."),
        ("CT (axial): 3.5 cm <lesion> @#$ 'left' ☠ µm", "CT (axial): 3.5 cm <lesion> 'left' µm"),
        ("a_b|c*d", "a b c d"),
        ("Tumeur du sein gauche, 乳癌", "Tumeur du sein gauche, 乳癌"),
        ("e\u0301cho", "écho"),
        ("☠☠ \x00", ""),
    ],
)
def test_captions_are_cleaned(text, cleaned):
    assert clean_caption(text) == cleaned
    assert clean_caption(cleaned) == cleaned


def test_a_table_with_quotes_line_breaks_and_names_without_suffix(folder):
    path = table(folder, f'image,caption\na,"{CAPTION},\nsecond line"\nsub/c.png,{CAPTION}\n')
    pairs, problems, _ = read(path)
    assert pairs == [("a", f"{CAPTION}, second line"), ("sub/c.png", CAPTION)]
    assert not problems


def test_other_columns_folders_and_kinds_of_tables(folder, tmp_path):
    from pyarrow import Table, parquet

    parquet.write_table(
        Table.from_pydict({"file": ["b.png"], "text": [CAPTION]}), tmp_path / "p.parquet"
    )
    table(tmp_path, f"file\ttext\nb.png\t{CAPTION}\n", "p.tsv")
    for name in ("p.parquet", "p.tsv"):
        pairs, _, _ = read(
            tmp_path / name, image_column="file", caption_column="text", images=folder
        )
        assert pairs == [("b.png", CAPTION)]


def test_roco_captions(folder):
    path = table(folder, f"a\t{CAPTION}\n\nb\t {CAPTION} \n", "captions.txt")
    assert read(path)[0] == [("a", CAPTION), ("b", CAPTION)]
    (folder.parent / "images").mkdir()
    (folder.parent / "images" / "x.png").write_bytes(png())
    path = table(folder.parent, f"x\t{CAPTION}\n", "captions.txt")
    assert read(path)[0] == [("x", CAPTION)]


def test_a_folder_with_texts_beside_images(folder):
    for name in ("a", "b", "sub/c"):
        (folder / name).with_suffix(".txt").write_text(CAPTION)
    assert [image for image, _ in read(folder)[0]] == ["a.png", "b.png", "sub/c.png"]


def shard(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_webdataset_shards(tmp_path):
    for n in range(2):
        shard(
            tmp_path / f"s-{n:02d}.tar",
            [
                (f"x{n}.png", png(n)),
                (f"x{n}.txt", CAPTION.encode()),
                (f"x{n}.cls", b"3"),
                (f"y{n}.txt", CAPTION.encode()),
            ],
        )
    found = read_pairs(str(tmp_path / "s-{00..01}.tar"), on_error="skip", log=lambda line: None)
    assert [pair.image.rpartition("/")[2] for pair in found.pairs] == ["x0.png", "x1.png"]
    assert found.problems == {"no image": 2}
    with Decoders(1) as decoders:
        pixels = [load_image(decoders, pair) for pair in reversed(found.pairs)]
        again = load_image(decoders, found.pairs[0])
    assert [p.shape for p in pixels] == [(40, 50, 3)] * 2
    np.testing.assert_array_equal(again, pixels[1])


BAD = f"""image,caption
a.png,{CAPTION}
gone.png,{CAPTION}
b.png,
b.png,too short
,{CAPTION}
b.png,{CAPTION},more
"""


def test_bad_rows_are_left_out_named_and_counted(folder):
    pairs, problems, lines = read(table(folder, BAD), on_error="skip")
    assert pairs == [("a.png", CAPTION)]
    assert problems == {"no image": 2, "no caption": 1, "short caption": 1, "malformed row": 1}
    told = "\n".join(lines)
    for sentence in (
        "row 2: there is no file", "row 3: the caption is empty", "row 4: 'too short' has fewer",
        "row 5: no image is named", "row 6: expected 2 cells, got 3",
    ):  # fmt: skip
        assert sentence in told


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (f"gone.png,{CAPTION}", r"row 1: there is no file .*gone.png \(no image\); mend it, or"),
        ("a.png,", r"row 1: the caption is empty \(no caption\)"),
        (f"a.png,{CAPTION},x", r"row 1: expected 2 cells, got 3 \(malformed row\)"),
    ],
)
def test_the_first_bad_row_is_fatal_by_default(folder, row, sentence):
    with pytest.raises(ConfigError, match=sentence):
        read(table(folder, f"image,caption\n{row}\n"))


def test_many_problems_of_a_kind_are_counted_not_listed():
    lines = []
    problems = Problems(False, lines.append)
    for n in range(100):
        problems.add("no image", f"row {n}", "gone")
    assert problems.counts == {"no image": 100} and len(lines) == SHOWN + 1


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("p.csv", "picture,caption\na.png,b\n", "no column 'image'"),
        ("p.csv", "image,caption\n", "no usable pair"),
        ("p.xlsx", "x", "neither .csv, .tsv nor .parquet"),
        ("p.tar.gz", "x", "unpack the .gz"),
        ("p.parquet", "no parquet", "cannot read the table"),
    ],
)
def test_sources_that_are_none(folder, name, text, sentence):
    with pytest.raises(ConfigError, match=sentence):
        read(table(folder, text, name))
    with pytest.raises(ConfigError, match="there are no image–caption pairs at"):
        read(folder / "nothing.csv")
    with pytest.raises(ConfigError, match="there is no shard"):
        read(folder / "nothing-{0..1}.tar")


def test_a_table_that_is_cut_is_named(folder):
    for text, line in (('a,b\n1,"2\n', 2), ('a,b\n1,"2\n2"\n\n3,"4\n5,6\n', 5), ('a,"b', 1)):
        with pytest.raises(ConfigError, match=rf"unexpected end .*line {line}; look for a quote"):
            read_table(table(folder, text))
    with pytest.raises(ConfigError, match="row 1: expected 2 cells, got 1"):
        read_table(table(folder, "a,b\n1\n"))
    with pytest.raises(ConfigError, match="must name its columns"):
        read_table(table(folder, "a,a\n1,2\n"))


def prepared(folder, source, tmp_path, on_error="skip", side=32):
    lines = []
    pairs = read_pairs(str(source), on_error=on_error, log=lines.append)
    problems = Problems(on_error == "fail", lines.append, pairs.problems)
    return prepare(pairs, tmp_path / "data", side, "squash", problems, 2), problems


def test_images_are_prepared_once_and_unreadable_ones_left_out(folder, tmp_path, monkeypatch):
    (folder / "b.png").write_bytes(png()[:100])
    rows = "".join(f"{name},{CAPTION} {name}\n" for name in ("a.png", "b.png", "sub/c.png"))
    source = table(folder, f"image,caption\n{rows}")
    found, problems = prepared(folder, source, tmp_path)
    assert found.captions == (f"{CAPTION} a.png", f"{CAPTION} sub/c.png")
    assert found.images.shape == (2, 32, 32, 3) and found.masks is None
    assert problems.counts == {"unreadable image": 1}
    expected = cv2.resize(
        cv2.imread(str(folder / "sub/c.png")), (32, 32), interpolation=cv2.INTER_AREA
    )
    np.testing.assert_array_equal(found.images[1], expected)
    monkeypatch.setattr(
        "medclipsam.train.pairs.prepared.load_image", None
    )  # nothing is decoded again
    again, _ = prepared(folder, source, tmp_path)
    np.testing.assert_array_equal(again.images, found.images)


def test_an_unreadable_image_is_fatal_by_default(folder, tmp_path):
    (folder / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nx")
    source = table(folder, f"image,caption\na.png,{CAPTION}\n")
    with pytest.raises(ConfigError, match=r"row 1: .*\(unreadable image\); mend it"):
        prepared(folder, source, tmp_path, on_error="fail")
    with pytest.raises(ConfigError, match="none of the images can be read"):
        prepared(folder, source, tmp_path)


def test_masks_come_along(folder, tmp_path):
    mask = np.zeros((40, 50), np.uint8)
    mask[10:30, 20:40] = 255
    (folder / "m.png").write_bytes(cv2.imencode(".png", mask)[1].tobytes())
    (folder / "none.png").write_bytes(cv2.imencode(".png", 0 * mask)[1].tobytes())
    source = table(folder, f"image,caption,mask\na.png,{CAPTION},m.png\nb.png,{CAPTION},none.png\n")
    pairs = read_pairs(str(source), log=print, mask_column="mask")
    problems = Problems(True, print)
    found = prepare(pairs, tmp_path / "data", 100, "pad", problems, 1)
    assert found.masks.sum(axis=(1, 2)).tolist() == [40 * 40, 0]
    assert found.masks[0, 10 + 20 : 10 + 60, 40:80].all()
    with pytest.raises(ConfigError, match="no mask"):
        read_pairs(
            str(table(folder, f"image,caption,mask\na.png,{CAPTION},gone.png\n")),
            log=print, mask_column="mask",
        )  # fmt: skip
    (folder / "m.png").write_bytes(png(shape=(7, 8)))
    problems = Problems(False, lambda line: None)
    assert len(prepare(pairs, tmp_path / "two", 100, "pad", problems, 1)) == 1
    assert problems.counts == {"unreadable image": 1}


def test_a_pair_says_what_is_wrong_with_its_image(folder):
    (folder / "a.png").write_bytes(b"no picture")
    pairs = read_pairs(str(table(folder, f"image,caption\na.png,{CAPTION}\n")), log=print)
    with Decoders(1) as decoders, pytest.raises(InputError, match="expected PNG"):
        load_image(decoders, pairs.pairs[0])
