"""The report folder: complete, closed to the outside and proof against hostile names."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import PurePosixPath
from urllib.parse import unquote_to_bytes

import pytest

from medclipsam.engine.outputs import preview_path
from medclipsam.engine.report import report
from medclipsam.engine.report.report import write_report
from medclipsam.engine.types import FIGURES, Outcome

HOSTILE = [
    "a b/[x] (1).png",
    "100% #1 ?.png",
    "quote\"'`.png",
    "back\\slash.png",
    "<img src=x onerror=alert(1)>.png",
    "</script><script>alert(1)</script>.png",
    "line\u2028end\u2029.png",
    "new\nline\x7f.png",
    "bytes-\udcff.png",
    "中文-é.png",
    "javascript:alert(1)",
]


def outcome(item, status="done", label="mass", **more):
    figures = dict.fromkeys(FIGURES, 0.25)
    figures |= {"confidence": 0.5, "predicted_iou": float("nan"), "contrast": None}
    del figures["stability"]
    mask = f"masks/{label}/{item}" if status != "quarantined" else ""
    return Outcome(item, label, status, mask=mask, area=12, frames=1, figures=figures, **more)


def read(folder):
    text = (folder / "report/data.js").read_text(encoding="ascii")
    assert text.startswith("window.medclipsam = ") and text.endswith(";\n")
    data = json.loads(text.removeprefix("window.medclipsam = ").removesuffix(";\n"))
    return data, [dict(zip(data["columns"], row, strict=True)) for row in data["rows"]]


class Page(HTMLParser):
    """Collects every attribute and checks that elements are closed in order."""

    VOID = ("meta", "link", "input", "br", "img")

    def __init__(self):
        super().__init__()
        self.open, self.attributes, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parse(folder):
    page = Page()
    page.feed((folder / "report/index.html").read_text(encoding="utf-8"))
    page.close()
    assert page.open == []
    return page


def test_every_outcome_is_listed_and_counted(tmp_path):
    outcomes = [
        outcome("a/1.png", boxes=[[[1, 2, 3, 4], [5, 6, 7, 8]], [[0, 0, 1, 1]]]),
        outcome("a/2.png", "absent", reason="no-saliency"),
        outcome("3.dcm", "quarantined", stage="read_image", reason="truncated", message="cut"),
    ]
    facts = {"name": "trial", "prompts": {"mass": "a mass"}, "seconds": 3.25, "versions": {}}
    page = write_report(tmp_path, iter(outcomes), facts)
    assert page == tmp_path / "report/index.html" and page.is_file()
    data, rows = read(tmp_path)
    assert data["title"] == "trial"
    assert data["facts"] == [[name, value] for name, value in facts.items()]
    assert data["counts"] == {"done": 1, "absent": 1, "quarantined": 1}
    assert data["evaluation"] is None
    assert [row["item"] for row in rows] == ["a/1.png", "a/2.png", "3.dcm"]
    first, _, last = rows
    assert (first["boxes"], first["area"], first["confidence"]) == (3, 12, 0.5)
    assert set(FIGURES) < set(first)
    assert first["predicted_iou"] is first["contrast"] is first["stability"] is None
    assert first["agreement"] == first["area_share"] == first["border"] == 0.25
    assert (first["mask"], first["preview"]) == (
        "../masks/mass/a/1.png",
        "previews/mass/a/1.png.jpg",
    )
    assert (last["mask"], last["preview"]) == ("", "")
    assert (last["stage"], last["reason"], last["message"]) == ("read_image", "truncated", "cut")
    assert set(data["reasons"]) >= {"truncated", "low-confidence", "no-saliency", "empty-mask"}
    assert sorted(data["why"]) == [["absent", "no-saliency", 1], ["quarantined", "truncated", 1]]


def test_masks_of_low_confidence_keep_their_mask_and_preview(tmp_path):
    kept = outcome("1.png", "quarantined", reason="low-confidence")
    kept = replace(kept, mask="quarantine/mass/1.png", area=3)
    write_report(tmp_path, [kept, outcome("2.png", "quarantined", reason="constant")], {})
    _, (first, second) = read(tmp_path)
    assert first["mask"] == "../quarantine/mass/1.png"
    assert first["preview"] == "previews/mass/1.png.jpg"
    assert (second["mask"], second["preview"]) == ("", "")


def test_prompts_are_written_once(tmp_path):
    prompts = ["a mass", "a cyst", "a mass", ""]
    write_report(tmp_path, [outcome(f"{i}", prompt=p) for i, p in enumerate(prompts)], {})
    data, rows = read(tmp_path)
    assert data["prompts"] == ["a mass", "a cyst", ""]
    assert [data["prompts"][row["prompt"]] for row in rows] == prompts


def test_a_run_has_an_identity_of_its_own(tmp_path):
    def identity(items, facts, **given):
        write_report(tmp_path, map(outcome, items), facts, **given)
        return read(tmp_path)[0]["run"]

    assert identity(["1"], {}, identity="<run>") == "<run>"
    assert identity(["1"], {"seconds": 1}) == identity(["1"], {"seconds": 2})
    assert identity(["1"], {}) != identity(["2"], {})


def test_a_run_without_outcomes_has_a_report(tmp_path):
    write_report(tmp_path, [], {})
    data, rows = read(tmp_path)
    assert rows == [] and data["counts"] == {} and data["title"] == tmp_path.name


def test_facts_and_evaluation_may_hold_anything(tmp_path):
    facts = {"device": tmp_path, "share": float("nan"), "labels": ("a", "b"), "n": {1: None}}
    write_report(tmp_path, [], facts, {"tolerance": 2.0, "dice": float("inf")})
    data, _ = read(tmp_path)
    assert data["facts"] == [
        ["device", str(tmp_path)],
        ["share", None],
        ["labels", ["a", "b"]],
        ["n", {"1": None}],
    ]
    assert data["evaluation"] == {"tolerance": 2.0, "dice": None}


def test_hostile_names_stay_text_and_links_lead_to_the_very_file(tmp_path):
    write_report(
        tmp_path,
        [outcome(name, message=name, reason=name, prompt=name) for name in HOSTILE],
        {"</script>": "<b>\u2028"},
    )
    text = (tmp_path / "report/data.js").read_bytes()
    assert not re.search(rb"[<>&\x00-\x09\x0b-\x1f\x7f-\xff]", text)
    _, rows = read(tmp_path)
    for name, row in zip(HOSTILE, rows, strict=True):
        assert row["item"] == name.encode("utf-8", "surrogateescape").decode(
            "utf-8", "backslashreplace"
        )
        assert row["message"] == name
        for link, path in (
            (row["mask"], f"../masks/mass/{name}"),
            ("report/" + row["preview"], str(preview_path("mass", name))),
        ):
            assert re.fullmatch(r"[A-Za-z0-9_.~%/-]+", link)
            assert unquote_to_bytes(link) == path.encode("utf-8", "surrogateescape")
        assert row["mask"].startswith("../masks/") and row["preview"].startswith("previews/")


def test_the_page_parses_and_asks_nothing_of_the_network(tmp_path):
    write_report(tmp_path, [outcome("1.png")], {})
    page = parse(tmp_path)
    text = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    assert "Research use only. Not a medical device." in [part.strip() for part in page.text]
    assert not re.search(r"https?:|//[a-z0-9-]+\.[a-z]|@import|url\(|fetch\(|XMLHttp", text)
    sources = [value for _, name, value in page.attributes if name in ("src", "href")]
    assert sources == ["data:,", "data.js"]
    policy = next(v for _, n, v in page.attributes if n == "content" and "default-src" in v)
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy
    for tag in ("style", "script"):
        inlined = re.search(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(inlined.encode()).digest()).decode()
        assert f"{tag}-src" in policy and f"'sha256-{digest}'" in policy
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]


def test_the_page_never_builds_markup_from_data():
    words = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function"
    for path in report.PAGE.iterdir():
        assert not re.search(words, path.read_text("utf-8")), path.name


def test_every_part_of_the_page_is_inlined(tmp_path):
    write_report(tmp_path, [], {})
    text = (tmp_path / "report/index.html").read_text("utf-8")
    assert {*report.SCRIPTS, "report.html", "report.css"} == {p.name for p in report.PAGE.iterdir()}
    for name in (*report.SCRIPTS, "report.css"):
        assert (report.PAGE / name).read_text("utf-8") in text
    assert text.count("</script>") == 2 and text.count("</style>") == 1
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"index.html", "data.js"}


def test_long_lists_are_cut_but_counted_and_keep_the_quarantine(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "LISTED", 4)
    late = [outcome(f"bad{i}", "quarantined") for i in range(7)]
    write_report(tmp_path, [outcome(f"{i}.png") for i in range(10)] + late, {})
    data, rows = read(tmp_path)
    assert data["counts"] == {"done": 10, "quarantined": 7}
    assert [row["item"] for row in rows] == [f"{i}.png" for i in range(4)] + [
        f"bad{i}" for i in range(4)
    ]


@pytest.mark.parametrize("item", ["a/1.png", "a b/100%.nii.gz", *HOSTILE])
def test_previews_mirror_the_archive(item):
    name = item.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    assert preview_path("mass", item) == PurePosixPath("report/previews/mass", f"{name}.jpg")


@pytest.mark.parametrize(
    "item",
    [
        "../up.png",
        "/etc/passwd",
        "a/../../b.png",
        "a//b.png",
        "./a.png",
        "",
        "folder/",
        "nul\0.png",
        "é" * 120 + ".png",
        "/".join(["folder" * 10] * 40),
        "x.jpg/1.png",
    ],
)
def test_unsafe_items_get_a_hashed_preview(item):
    path = preview_path("mass", item)
    assert re.fullmatch(r"report/previews/mass/[0-9a-f]{64}\.jpg", str(path))
    assert path != preview_path("mass", item + "2")


def test_labels_are_made_safe_for_previews():
    assert preview_path("../lung, left", "1.png").parent.parent == PurePosixPath("report/previews")
