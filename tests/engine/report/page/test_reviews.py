"""Reviews are exported to files and imported from them."""

import json
import time

import pytest
from reports.chromium import CHROME, PATIENCE
from reports.outcomes import SMALL, done, write

from medclipsam.engine.report.review import read_review

pytestmark = pytest.mark.skipif(CHROME is None, reason="no Chromium or Chrome to open the page in")

CONTRADICTION = [
    {"item": "a/2.png", "label": "mass", "decision": decision} for decision in ("accept", "reject")
]


def export(browser, folder):
    folder.mkdir(exist_ok=True)
    path = folder / "review.json"
    browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    browser.click("#review [data-act=export]")
    end = time.monotonic() + PATIENCE
    while not path.exists() or not path.read_text("utf-8").endswith("\n"):
        assert time.monotonic() < end, "nothing was downloaded"
        time.sleep(0.02)
    return path


def give(browser, path):
    browser.run("$('said').textContent = ''")
    document = browser.call("DOM.getDocument")["root"]["nodeId"]
    node = browser.call("DOM.querySelector", nodeId=document, selector="#file")["nodeId"]
    browser.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])
    return browser.until("$('said').textContent")


def test_an_exported_review_is_read_by_collect_and_imported_again(browser, tmp_path):
    odd = ["quote\"'.png", "<img src=x onerror=alert(1)>.png", "中文 é.png", "tab\\x.png"]
    outcomes = [*SMALL, *(done(name, 0.5, "cyst") for name in odd)]
    page = write(tmp_path / "run", outcomes, identity="run 1")
    browser.open(page, "#review=1")
    browser.press(*"arauaraar")
    path = export(browser, tmp_path / "saved")
    assert json.loads(path.read_text("utf-8"))["run"] == "run 1"
    known = {(outcome.item, outcome.label) for outcome in outcomes}
    decisions = read_review(path, known)
    assert len(decisions) == 9 and set(odd) < {item for item, _ in decisions}
    words = {"accept": "accepted", "reject": "rejected", "unsure": "unsure"}
    assert browser.decided() == {item: words[d] for (item, _), d in decisions.items()}
    browser.run("localStorage.clear()")
    browser.open(page, "#review=1")
    assert browser.decided() == {}
    browser.press("r")  # what the file says otherwise wins
    give(browser, path)
    assert browser.decided() == {item: words[d] for (item, _), d in decisions.items()}
    assert give(browser, path) == "0 decisions taken over from review.json, 9 were the same."
    browser.press("z")
    assert len(browser.decided()) == 1


def test_a_review_that_does_not_fit_is_told_and_changes_nothing(browser, small, tmp_path):
    browser.open(small, "#review=1")
    path = tmp_path / "other.json"
    for page in (
        *("{", "[]", "null", '{"medclipsam_review": 2, "decisions": []}'),
        '{"medclipsam_review": 1, "decisions": [{"item": "a/2.png", "label": "mass"}]}',
        '{"medclipsam_review": 1, "decisions": [null]}',
        json.dumps({"medclipsam_review": 1, "decisions": CONTRADICTION}),
    ):
        path.write_text(page)
        assert give(browser, path).startswith("other.json is no review: ")
    row = {"label": "mass", "decision": "accept"}
    items = [{"item": name, **row} for name in ("a/2.png", "b/6.dcm", "never.png")]
    review = {"medclipsam_review": 1, "decisions": items, "run": "one"}
    path.write_text(json.dumps(review))
    assert "1 decision taken over" in (said := give(browser, path)) and "2 on items" in said
    assert browser.decided() == {"a/2.png": "accepted"}
    browser.press("z")
    path.write_text(json.dumps({**review, "run": "another"}))
    assert "1 decision taken over" in give(browser, path)  # the question is answered with yes
    asked = [e for e in browser.events if e.get("method") == "Page.javascriptDialogOpening"]
    assert len(asked) == 1 and "another run" in asked[0]["params"]["message"]
    browser.events.clear()
