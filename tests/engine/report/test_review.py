"""Decisions of a person: what is read, and how anything else is refused."""

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medclipsam.engine.errors import ConfigError
from medclipsam.engine.report.review import DECISIONS, read_review

ROWS = [
    {"item": "a/b.png", "label": "mass", "decision": "accept"},
    {"item": "a/b.png", "label": "cyst", "decision": "reject", "note": "artefact"},
    {"item": "ü, 2.dcm", "label": "mass", "decision": "unsure", "note": None},
]
EXPECTED = {(row["item"], row["label"]): row["decision"] for row in ROWS}


def as_json(rows, **others) -> str:
    return json.dumps({"medclipsam_review": 1, "run": "r1", "decisions": rows} | others)


def as_csv(rows, columns=("item", "label", "decision", "note")) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


@pytest.fixture
def review(tmp_path):
    def read(text: str | bytes, name: str = "review.json", **options):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_review(path, **options)

    return read


def test_both_forms_say_the_same(review):
    assert review(as_json(ROWS)) == EXPECTED
    assert review(as_csv(ROWS), "review.CSV") == EXPECTED
    assert review(b"\xef\xbb\xbf" + as_csv(ROWS).encode(), "r.csv") == EXPECTED
    assert review(as_csv(ROWS, ("note", "decision", "label", "item")), "r.csv") == EXPECTED
    assert review(as_csv(ROWS).replace("\r\n", "\n") + "\n\n", "r.csv") == EXPECTED
    assert review(as_json([])) == {}


def test_a_row_may_repeat_but_not_contradict(review):
    assert review(as_json([*ROWS, ROWS[0]])) == EXPECTED
    other = ROWS[0] | {"decision": "reject"}
    with pytest.raises(ConfigError, match=r"decision 4: reject.* but decision 1 says accept"):
        review(as_json([*ROWS, other]))
    with pytest.raises(ConfigError, match=r"row 4: reject.* but row 1 says accept"):
        review(as_csv([*ROWS, other]), "r.csv")


def test_it_must_be_of_this_run(review):
    assert review(as_json(ROWS), known=EXPECTED) == EXPECTED
    with pytest.raises(ConfigError, match=r"decision 2: this run has no item 'a/b.png'.*'cyst'"):
        review(as_json(ROWS), known={key for key in EXPECTED if key[1] == "mass"})


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"item": "a", "label": "m", "decision": "Accept"}, "out of accept, reject, unsure"),
        ({"item": "a", "label": "m", "decision": None}, "a text as decision, got None"),
        ({"item": "a", "decision": "accept"}, "a text as label, got None"),
        ({"item": 7, "label": "m", "decision": "accept"}, "a text as item, got 7"),
        ({"item": "", "label": "m", "decision": "accept"}, "a text as item, got ''"),
        (["a", "m", "accept"], "expected item, label and decision"),
        (None, "expected item, label and decision"),
    ],
)
def test_faults_of_a_row_are_named(review, row, fault):
    with pytest.raises(ConfigError, match=rf"review.json, decision 4: .*{fault}"):
        review(as_json([*ROWS, row]))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "null",
        json.dumps({"decisions": ROWS}),
        as_json(ROWS, medclipsam_review=2),
        as_json(ROWS, medclipsam_review=True),
        as_json({"item": "a"}),
        "[" * 100_000,
    ],
)
def test_other_json_is_refused(review, text):
    with pytest.raises(ConfigError, match=r"review\.json"):
        review(text)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "must name its columns"),
        ("item,label\na,m\n", "no column 'decision'"),
        ("item,label,decision,item\na,m,accept,b\n", "must name its columns"),
        ("item,label,decision\na,m\n", "row 1: expected 3 cells, got 2"),
        ("item,label,decision\na,b.png,m,accept\n", "row 1: expected 3 cells, got 4"),
        ("item,label,decision\na,m,\n", "row 1: expected a text as decision"),
        ('item,label,decision\n"a,m,accept\n', "cannot be read|cannot read"),
        (b"item,label,decision\n\xff,m,accept\n", "cannot read"),
    ],
)
def test_other_csv_is_refused(review, text, fault):
    with pytest.raises(ConfigError, match=fault):
        review(text, "r.csv")


def test_other_files_are_refused(review, tmp_path):
    with pytest.raises(ConfigError, match=r"as \.json or \.csv"):
        review(as_json(ROWS), "review.txt")
    with pytest.raises(ConfigError, match="cannot read the review"):
        read_review(tmp_path / "missing.json")


TEXTS = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=8
)


@given(st.dictionaries(st.tuples(TEXTS, TEXTS), st.sampled_from(DECISIONS), max_size=6))
def test_whatever_items_are_called_both_forms_keep_it(tmp_path_factory, decisions):
    rows = [{"item": i, "label": k, "decision": d} for (i, k), d in decisions.items()]
    folder = tmp_path_factory.mktemp("review")
    (folder / "r.json").write_text(as_json(rows), "utf-8")
    (folder / "r.csv").write_bytes(as_csv(rows).encode())
    assert read_review(folder / "r.json") == read_review(folder / "r.csv") == decisions
