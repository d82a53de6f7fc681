"""The page shows what a run was, what came of it, and every name as text."""

import pytest
from reports.chromium import CHROME
from reports.outcomes import SMALL, done, lost, write

from medclipsam.engine.evaluation.evaluate import Case, Evaluation
from medclipsam.engine.evaluation.table import to_json
from medclipsam.engine.report.report import write_report

pytestmark = pytest.mark.skipif(CHROME is None, reason="no Chromium or Chrome to open the page in")


def test_the_head_tells_of_the_run_and_leaves_out_what_is_empty(browser, tmp_path):
    facts = {"name": "trial", "device": "cpu", "note": "", "ignored": {}, "none": None}
    facts |= {"versions": {"numpy": "2.0", "torch": ""}, "items": 0, "lists": [[], ""]}
    browser.open(write(tmp_path, SMALL, facts))
    assert browser.text("title") == "trial"
    assert browser.run("$('tally').innerText").split() == [
        *("7", "outcomes", "3", "done", "1", "absent", "3", "quarantined")
    ]
    told = browser.run("[...document.querySelectorAll('#facts > div')].map((d) => d.innerText)")
    assert [line.split() for line in told] == [
        *(["name", "trial"], ["device", "cpu"], ["versions", "numpy", "2.0"], ["items", "0"])
    ]


@pytest.mark.parametrize("auc", [0.75, float("nan")])
def test_figures_against_the_truth_stand_in_a_table(browser, tmp_path, auc):
    scored = {"dice": 0.5, "iou": 0.25, "nsd": 0.125, "hd95": 3.25, "status": "scored"}
    cases = (Case("mass", "1", **scored, auc=auc), Case("cyst", "2"))
    evaluation = to_json(Evaluation(cases, 2.0))
    browser.open(write_report(tmp_path, SMALL, {}, evaluation, identity="scored"))
    cells = "[...document.querySelectorAll('#evaluation tr')].map((r) => [...r.cells].map(TEXT))"
    head, cyst, mass, overall = browser.run(cells.replace("TEXT", "(c) => c.innerText.trim()"))
    known = auc == auc
    assert head[4:] == ["DSC", "IoU", "NSD at 2", "HD95", "AUC of saliency"][: 4 + known]
    assert mass == ["mass", "1", "0", "0", "0.500", "0.250", "0.125", "3.25", "0.750"][: 8 + known]
    assert ("AUC is undefined" in browser.text("evaluation-note")) is known
    assert cyst[:7] == ["cyst", "1", "1", "0", "0.000", "0.000", "0.000"]
    assert "1 undefined" in cyst[7] and "1 undefined" in overall[7] and overall[1] == "2"


@pytest.mark.parametrize("outcomes", [[], SMALL[:1], SMALL[5:]])
def test_a_run_of_few_outcomes_has_a_page(browser, tmp_path, outcomes):
    browser.open(write(tmp_path, outcomes))
    assert browser.text("count") == f"{len(outcomes)} of {len(outcomes)} outcomes"
    assert len(browser.names()) == len(outcomes)
    assert browser.hidden("nothing") is bool(outcomes)


def test_quarantine_is_counted_listed_and_doubtful_masks_have_a_card(browser, small):
    browser.open(small)
    told = browser.run("[...$('quarantine-reasons').children].map((b) => b.innerText)")
    assert [line.split("\n")[:2] for line in told] == [
        *(["1", "low-confidence"], ["1", "truncated"], ["1", "constant"])
    ]
    lines = browser.run(
        "[...$('quarantine-rows').rows].map((r) => [...r.cells].map((c) => c.textContent))"
    )
    assert lines[1] == ["b/6.dcm", "mass", "read_image", "truncated", "cut"]
    assert len(lines) == 3
    browser.click("#quarantine-reasons button:nth-child(2)")
    assert browser.run("$('quarantine-rows').rows.length") == 1
    shown = browser.run(
        "Object.fromEntries([...document.querySelectorAll('.card')].map((c) => "
        "[c.querySelector('.name').title, [c.querySelector('img') !== null,"
        " c.querySelectorAll('.decide button').length]]))"
    )
    assert shown["b/5.png"] == [True, 3] and shown["a/4.png"] == [True, 3]
    assert shown["b/6.dcm"] == [False, 0]
    browser.until(
        "document.querySelector('.card:nth-child(2) img') === null"
    )  # its file is missing
    assert "no preview" in browser.run("document.querySelector('.card:nth-child(2)').innerText")


def test_many_quarantined_outcomes_are_listed_page_by_page(browser, tmp_path):
    browser.open(write(tmp_path, [lost(f"{i}.dcm") for i in range(250)]))
    browser.run("$('quarantine-list').open = true")
    assert browser.run("$('quarantine-rows').rows.length") == 100
    browser.click("#quarantine-on")
    browser.click("#quarantine-on")
    assert browser.text("quarantine-place") == "201 to 250 of 250"
    assert browser.run("$('quarantine-rows').rows.length") == 50
    assert browser.run("$('quarantine-on').disabled && !$('quarantine-back').disabled")


def test_hostile_names_stay_text_and_their_pictures_load(browser, tmp_path):
    names = ["<b>1</b>#?%.png", "a b/[x] (1).png", "javascript:alert(1)", "\u202egnp.png"]
    browser.open(write(tmp_path, [done(name, 0.5, message=name) for name in names]))
    assert sorted(browser.names()) == sorted(names)
    browser.until(
        "[...document.querySelectorAll('.card img')].filter((i) => i.naturalWidth === 64).length"
        f" === {len(names)}"
    )
    assert browser.run("document.querySelector('.card b b, .card script')") is None


@pytest.mark.parametrize(("width", "columns"), [(1200, 4), (390, 2), (320, 2)])
def test_nothing_is_wider_than_the_window(browser, small, width, columns):
    browser.call(
        "Emulation.setDeviceMetricsOverride",
        **{"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    browser.open(small, "#review=1")
    assert browser.run("document.documentElement.scrollWidth") <= width
    places = browser.run(
        "new Set([...$('cards').children].map((c) => c.offsetLeft + "
        "new DOMMatrix(getComputedStyle(c).transform).m41)).size"
    )
    assert places == columns
    browser.press("Enter")
    assert browser.run("$('large').scrollWidth <= innerWidth")
    browser.call("Emulation.clearDeviceMetricsOverride")
