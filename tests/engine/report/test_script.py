"""The parts of the report's script that know no document, run by Node."""

import json
import random
import shutil
import subprocess

import pytest

from medclipsam.engine.report.report import PAGE

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="no Node to run the report's script")

PURE = ("rows.js", "view.js", "decisions.js")
MEMORY = """
class Memory {
  constructor(left = 1e9) { this.left = left; this.kept = new Map(); }
  getItem(key) { return this.kept.has(key) ? this.kept.get(key) : null; }
  setItem(key, value) { if (this.left-- <= 0) throw new Error("full"); this.kept.set(key, value); }
  removeItem(key) { this.kept.delete(key); }
}
"""
COLUMNS = (
    *("item", "label", "prompt", "status", "reason", "mask", "area", "confidence"),
    *("predicted_iou", "stability", "agreement", "contrast", "area_share", "border"),
)
EVERYTHING = {
    **{"text": "", "label": None, "status": "", "reason": "", "low": 0, "high": 1},
    **{"decision": "", "sort": "item", "down": False},
}
REASONS = {"done": ("",), "absent": ("no-saliency", "empty-mask"), "quarantined": ("truncated",)}


def node(code, **given):
    """What ``code`` returns, as a function that sees the page's pure parts and ``given``."""
    sources = [(PAGE / name).read_text("utf-8") for name in PURE]
    given_lines = [f"const {name} = {json.dumps(value)};" for name, value in given.items()]
    body = f"(() => {{ {code} }})()"
    script = "\n".join([*sources, MEMORY, *given_lines, f"console.log(JSON.stringify({body}));"])
    done = subprocess.run(
        [NODE, "-"], input=script, capture_output=True, text=True, encoding="utf-8", timeout=500
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def make_rows(rng, n):
    """Rows as data.js has them, figures on a coarse grid so that many are equal."""
    rows = []
    for i in range(n):
        status = rng.choice(("done", "done", "absent", "quarantined"))
        doubtful = status == "quarantined" and rng.random() < 0.5
        row = dict.fromkeys(COLUMNS)
        row |= {"item": f"{rng.choice(('A', 'b'))}/{i}.png", "label": rng.choice(("mass", "cyst"))}
        row |= {"prompt": 0, "status": status, "reason": rng.choice(REASONS[status])}
        row |= {"mask": "", "area": 0, "confidence": 0.0 if status == "absent" else None}
        if status == "done" or doubtful:
            row |= {name: rng.randint(0, 20) / 20 for name in COLUMNS[7:]}
            row |= {"mask": "m", "area": rng.randint(1, 9)}
            row["reason"] = "low-confidence" if doubtful else ""
        if status == "absent":
            row |= {"mask": "m", "contrast": rng.choice((None, 0.1, 0.2))}
        rows.append(row)
    return rows


def make_view(rng):
    view = {"text": rng.choice(("", "a/", "1", "PNG b/", "7 .png"))}
    view |= {"label": rng.choice((None, "mass")), "status": rng.choice(("", "", "done"))}
    view |= {"reason": rng.choice(("", "", "", "low-confidence", "empty-mask"))}
    view |= {"low": rng.choice((0, 0, 0.25)), "high": rng.choice((1, 1, 0.5))}
    view |= {"decision": rng.choice(("", "", "undecided", "decided", "reject"))}
    sort = rng.choice(("item", "area", *COLUMNS[7:]))
    return view | {"sort": sort, "down": rng.random() < 0.5}


def value_of(row, name):
    """The figure that a row has as a mask; of an absent one the contrast alone is told."""
    if row["status"] != "done" and not (row["status"] == "quarantined" and row["mask"]):
        return row["contrast"] if row["status"] == "absent" and name == "contrast" else None
    return row[name]


def expect(rows, decisions, view):
    """Items that fit, by the plainest means: filter by filter, sorted by Python."""
    left = [
        row for row in rows if all(w in row["item"].lower() for w in view["text"].lower().split())
    ]
    for name in ("label", "status", "reason"):
        left = [row for row in left if not view[name] or row[name] == view[name]]
    if (view["low"], view["high"]) != (0, 1):
        left = [row for row in left if value_of(row, "confidence") is not None]
        left = [row for row in left if row["confidence"] >= view["low"]]
        left = [row for row in left if row["confidence"] < view["high"] or view["high"] == 1]
    if view["decision"]:
        left = [row for row in left if row["status"] != "quarantined" or row["mask"]]
        got = {"undecided": ("",), "decided": ("accept", "reject", "unsure")}
        wanted = got.get(view["decision"], (view["decision"],))
        left = [row for row in left if decisions.get(row["item"], "") in wanted]
    folder, number = (lambda r: r["item"][0].lower()), (lambda r: int(r["item"][2:-4]))
    left.sort(key=lambda row: (folder(row), number(row)))
    if view["sort"] == "item":
        return [row["item"] for row in (left[::-1] if view["down"] else left)]
    known = [row for row in left if value_of(row, view["sort"]) is not None]
    sign = -1 if view["down"] else 1
    known.sort(key=lambda row: sign * value_of(row, view["sort"]))
    return [row["item"] for row in known + [row for row in left if row not in known]]


def test_filters_and_orders_agree_with_plain_python():
    rng = random.Random(0)
    rows = make_rows(rng, 300)
    can = [row["item"] for row in rows if row["status"] != "quarantined" or row["mask"]]
    decisions = {item: rng.choice(("accept", "reject", "unsure")) for item in can[::3]}
    views = [make_view(rng) for _ in range(400)]
    found = node(
        "const rows = readRows(data);"
        "for (const row of rows) row.decision = decisions[row.item] || '';"
        "return views.map((view) => matchRows(rows, view)"
        ".filter((row) => fitsDecision(row, view.decision)).map((row) => row.item))",
        data={"columns": COLUMNS, "prompts": [""], "rows": [list(row.values()) for row in rows]},
        decisions=decisions,
        views=views,
    )
    sizes = set()
    for view, items in zip(views, found, strict=True):
        assert items == expect(rows, decisions, view), view
        sizes.add(len(items))
    assert len(sizes) > 20  # the views do differ


def test_a_view_survives_its_hash():
    rng = random.Random(1)
    choices = {"labels": ["mass", "a&b=c#%", "", "é"], "reasons": ["low-confidence", "empty-mask"]}
    views = [make_view(rng) | {"label": rng.choice((None, *choices["labels"]))} for _ in range(200)]
    hashes, back = node(
        "const hashes = views.map((view) => viewToHash(view, false));"
        "return [hashes, hashes.map((hash) => viewFromHash('#' + hash, choices))]",
        **{"views": views, "choices": choices},
    )
    assert back == views
    assert len(set(hashes)) == len({json.dumps(view) for view in views})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "#",
        "#%",
        "#min=nan&max=&sort=-",
        "#label=x&status=x&reason=x&decision=x&sort=x",
        "#&&==",
    ],
)
def test_a_hash_that_means_nothing_is_the_plain_view(text):
    view = node("return viewFromHash(text, { labels: [], reasons: [] })", text=text)
    assert view == EVERYTHING


@pytest.mark.parametrize(("text", "value"), [("7", 1), ("-3", 0), (" 0.25 ", 0.25), ("1e-1", 0.1)])
def test_bounds_of_confidence_lie_between_0_and_1(text, value):
    assert node("return parseBound(text, 9)", text=text) == value


def test_a_bar_counts_what_its_filter_shows():
    rng = random.Random(2)
    values = [round(rng.random(), 4) for _ in range(2000)] + [i / 100 for i in range(101)]
    sizes, shown = node(
        "const bins = [...Array(20).keys()];"
        "return [binValues(values, 20, 1), bins.map((b) => values.filter("
        "(v) => inRange(v, binEnd(b, 20, 1), binEnd(b + 1, 20, 1))).length)]",
        values=values,
    )
    assert sizes == shown and sum(sizes) == len(values)


REVIEWED = """
  const columns = ["item", "label", "prompt", "status", "mask"], none = "quarantined";
  const made = [0, 1, 2, 3, 4, 5].map((i) => [`${i}.png`, "mass", 0, i < 5 ? "done" : none, ""]);
  const read = () => readRows({ columns, prompts: [""], rows: made });
  const rows = read(), told = (all) => all.map((row) => row.decision);
"""


def test_decisions_are_kept_under_the_run_and_undone_step_by_step():
    script = """
      const memory = new Memory(), kept = new Decisions("one", rows, memory);
      const open = (run) => {
        const all = read();
        new Decisions(run, all, memory);
        return told(all);
      };
      kept.decide([[rows[0], "accept"]]);
      kept.decide([[rows[0], "accept"], [rows[5], "accept"]]); // changes nothing: no step
      kept.decide([[rows[1], "reject"], [rows[2], "unsure"]]);
      kept.decide([[rows[0], ""]]);
      const found = [told(rows), open("one"), open("two")];
      kept.undo();
      kept.undo();
      found.push(told(rows));
      kept.undo();
      kept.undo();
      return [...found, memory.kept.size];
    """
    first, again, other, undone, left = node(REVIEWED + script)
    assert first == again == ["", "reject", "unsure", "", "", ""]
    assert other == [""] * 6 and left == 0
    assert undone == ["accept", "", "", "", "", ""]


def test_a_full_storage_is_noticed_and_nothing_is_forgotten():
    script = """
      const kept = new Decisions("one", rows, new Memory(1));
      kept.decide([[rows[0], "accept"]]);
      const before = kept.lost;
      kept.decide([[rows[1], "accept"]]);
      return [before, kept.lost, told(rows)];
    """
    before, after, told = node(REVIEWED + script)
    assert (before, after) == (False, True) and told[:2] == ["accept", "accept"]


def test_the_next_undecided_row_is_found_around_the_end():
    script = """
      const next = (i) => { const row = nextUndecided(rows, rows[i]); return row && row.item; };
      rows[1].decision = "accept";
      const found = [next(0), next(3), next(4)];
      for (const row of rows) row.decision = "reject";
      rows[3].decision = "";
      return [...found, next(3), next(4), nextUndecided([], rows[0])];
    """
    found = node(REVIEWED + script)
    assert found == ["2.png", "4.png", "0.png", None, "3.png", None]
