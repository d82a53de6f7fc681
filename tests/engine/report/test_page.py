"""The report in a browser: what it shows, filters, sorts and keeps of a review.

Needs Chromium or Chrome; ``test_engine_report_script.py`` needs Node only.
"""

import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time

import pytest
from PIL import Image

from medclipsam.engine.evaluation.evaluate import Case, Evaluation
from medclipsam.engine.evaluation.table import to_json
from medclipsam.engine.outputs import preview_path
from medclipsam.engine.report.report import write_report
from medclipsam.engine.report.review import read_review
from medclipsam.engine.types import Outcome

CHROME = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROME is None, reason="no Chromium or Chrome to open the page in")

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--remote-debugging-pipe", "--window-size=1200,900"),
)
# Chromium reads commands from descriptor 3 and answers on 4, ended by a zero byte each.
LAUNCH = """
import fcntl, os, sys
heard, said = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3])
os.dup2(heard, 3), os.dup2(said, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
PATIENCE = 240  # seconds; only what hangs reaches them
CARDS = 80  # more than fit into three windows of 1200 × 900 pixels
KEY_CODES = {"ArrowLeft": 37, "ArrowRight": 39, "Enter": 13, "Escape": 27, " ": 32}
LABELS = ("mass", "cyst")
CONTRADICTION = [
    {"item": "a/2.png", "label": "mass", "decision": decision} for decision in ("accept", "reject")
]


class Browser:
    """One page, driven over the DevTools protocol."""

    def __init__(self, profile):
        heard, self.ours = os.pipe()
        self.theirs, said = os.pipe()
        command = [*(sys.executable, "-c", LAUNCH, str(heard), str(said)), CHROME, *FLAGS]
        command += [f"--user-data-dir={profile}", "about:blank"]
        self.log = (profile / "log").open("wb")
        self.process = subprocess.Popen(command, pass_fds=(heard, said), stderr=self.log)
        os.close(heard), os.close(said)
        self.numbers, self.buffer, self.events = itertools.count(1), b"", []
        self.session = None
        pages = self.call("Target.getTargets")["targetInfos"]
        target = next(page["targetId"] for page in pages if page["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self.call(f"{domain}.enable")

    def close(self):
        self.process.terminate()
        self.process.wait(PATIENCE)
        os.close(self.ours), os.close(self.theirs)
        self.log.close()

    def receive(self):
        while b"\0" not in self.buffer:
            if not select.select([self.theirs], [], [], PATIENCE)[0]:
                raise TimeoutError("the browser says nothing")
            part = os.read(self.theirs, 1 << 20)
            if not part:
                raise EOFError("the browser has ended")
            self.buffer += part
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def keep(self, event):
        self.events.append(event)
        if event.get("method") == "Page.javascriptDialogOpening":
            self.call("Page.handleJavaScriptDialog", accept=True)

    def call(self, method, **params):
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.ours, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.keep(answer)

    def open(self, path, fragment=""):
        for url in ("about:blank", path.as_uri() + fragment):  # else a new hash opens nothing
            self.events.clear()
            self.call("Page.navigate", url=url)
            while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
                self.keep(self.receive())

    def run(self, code):
        answer = self.call(
            "Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, code):
        end = time.monotonic() + PATIENCE
        while not (value := self.run(code)):
            assert time.monotonic() < end, f"never came true: {code}"
            time.sleep(0.02)
        return value

    def press(self, *keys):
        for key in keys:
            code = KEY_CODES.get(key, ord(key[0].upper()))
            named = {"key": key, "windowsVirtualKeyCode": code}
            text = "\r" if key == "Enter" else key if len(key) == 1 else ""
            self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **named)
            self.call("Input.dispatchKeyEvent", type="keyUp", **named)

    def choose(self, field, value):
        event = "input" if field in ("search", "low", "high") else "change"
        self.run(
            f"$('{field}').value = {json.dumps(value)};"
            f"$('{field}').dispatchEvent(new Event('{event}'))"
        )

    def click(self, selector):
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def text(self, field):
        return self.run(f"$('{field}').textContent")

    def hidden(self, field):
        return self.run(f"$('{field}').hidden")

    def names(self):
        """Names of the cards there are, in the order of the document."""
        return self.run(
            "[...document.querySelectorAll('.card')].map((c) => c.querySelector('.name').title)"
        )

    def current(self):
        return self.run("document.querySelector('.card.current .name')?.title")

    def decided(self):
        return dict(
            self.run(
                "[...document.querySelectorAll('.card')].map((c) =>"
                "[c.querySelector('.name').title, c.querySelector('.badge').textContent])"
                ".filter(([, text]) => text)"
            )
        )

    def hash(self):
        return self.run("location.hash")

    def faults(self):
        """Exceptions and broken policies, dialogs and requests to elsewhere so far."""
        found = []
        for event in self.events:
            params = event.get("params", {})
            if event.get("method") in ("Runtime.exceptionThrown", "Page.javascriptDialogOpening"):
                found.append(params)
            if event.get("method") == "Log.entryAdded" and params["entry"]["source"] == "security":
                found.append(params)
            if event.get("method") == "Network.requestWillBeSent":
                url = params["request"]["url"]
                found += [url] if not url.startswith(("file:", "data:", "blob:")) else []
        return found


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    try:
        browser = Browser(tmp_path_factory.mktemp("profile"))
    except (OSError, EOFError) as exc:
        pytest.skip(f"{CHROME} does not start: {exc}")
    yield browser
    browser.close()


@pytest.fixture
def browser(started):
    """The browser with empty memory; afterwards nothing may have gone wrong on the page."""
    started.events.clear()
    yield started
    assert started.faults() == []
    started.run("try { localStorage.clear() } catch {}")


def figures(confidence, **more):
    return {"confidence": confidence, "predicted_iou": 0.9, "contrast": 0.1, **more}


def done(item, confidence, label="mass", **more):
    values = {name: more.pop(name) for name in ("area_share", "border") if name in more}
    mask = f"masks/{label}/{item}.png"
    return Outcome(
        item, label, "done", mask=mask, frames=1, figures=figures(confidence, **values), **more
    )


def absent(item, label="mass"):
    known = {"confidence": 0.0, "contrast": 0.02}
    mask = f"masks/{label}/{item}.png"
    return Outcome(item, label, "absent", reason="no-component", mask=mask, figures=known)


def doubtful(item, confidence, label="mass"):
    return Outcome(
        *(item, label, "quarantined"),
        **{"stage": "segment", "reason": "low-confidence", "message": "too low"},
        mask=f"quarantine/{label}/{item}.png",
        frames=1,
        figures=figures(confidence),
    )


def lost(item, reason="truncated", label="mass"):
    return Outcome(item, label, "quarantined", stage="read_image", reason=reason, message="cut")


SMALL = [
    done("a/10.png", 0.9, area_share=0.2),
    done("a/2.png", 0.55, area_share=0.01, border=0.3),
    done("a/3.png", 0.6, "cyst", area_share=0.1),
    absent("a/4.png"),
    doubtful("b/5.png", 0.2),
    lost("b/6.dcm"),
    lost("b/7.dcm", "constant"),
]
ORDER = ["a/2.png", "a/3.png", "a/4.png", "a/10.png", "b/5.png", "b/6.dcm", "b/7.dcm"]


def write(folder, outcomes, facts=None, identity="one"):
    """A report and its previews: the page's path."""
    for outcome in outcomes:
        if outcome.mask and outcome.item != "a/3.png":
            path = folder / preview_path(outcome.label, outcome.item)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 48), (60, 90, 120)).save(path)
    return write_report(folder, outcomes, facts or {"name": "trial"}, identity=identity)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write(tmp_path_factory.mktemp("small"), SMALL)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    outcomes = [done(f"p{i // 10}/{i}.png", i / 5000, LABELS[i % 2]) for i in range(5000)]
    return write_report(tmp_path_factory.mktemp("large"), outcomes, {}, identity="large")


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


def test_filters_combine_are_counted_and_live_in_the_hash(browser, small):
    browser.open(small)
    assert browser.names() == ORDER and browser.hash() == ""
    browser.choose("status", "done")
    browser.choose("label", "=mass")
    assert browser.names() == ["a/2.png", "a/10.png"]
    assert browser.text("count") == "2 of 7 outcomes"
    browser.choose("high", "0.9")
    browser.until("$('count').textContent === '1 of 7 outcomes'")
    assert browser.hash() == "#label=mass&status=done&max=0.9"
    browser.choose("search", "PNG a/")
    browser.until("location.hash.includes('q=')")
    shared = browser.hash()
    browser.open(small, shared)
    assert browser.names() == ["a/2.png"] and browser.hash() == shared
    assert browser.run("[$('search').value, $('high').value, $('low').value]") == [
        *("PNG a/", "0.9", "")
    ]
    browser.choose("search", "elsewhere")
    browser.until("!$('nothing').hidden")
    assert browser.text("count") == "0 of 7 outcomes"
    browser.click("#clear")
    assert browser.names() == ORDER and browser.hash() == ""
    browser.choose("reason", "no-component")
    assert browser.names() == ["a/4.png"]
    browser.run("location.hash = 'reason=low-confidence&label=nobody&min=x&sort=-nothing'")
    browser.until("document.querySelector('.name').title === 'b/5.png'")
    assert browser.hash() == "#reason=low-confidence"


def test_cards_sort_in_both_directions_with_missing_figures_last(browser, small):
    browser.open(small, "#sort=confidence")
    rest = ["a/4.png", "b/6.dcm", "b/7.dcm"]
    assert browser.names() == ["b/5.png", "a/2.png", "a/3.png", "a/10.png", *rest]
    browser.click("#direction")
    assert browser.names() == ["a/10.png", "a/3.png", "a/2.png", "b/5.png", *rest]
    assert browser.hash() == "#sort=-confidence"
    assert browser.text("direction") == "highest first"
    browser.choose("sort", "border")
    assert browser.names()[0] == "a/2.png"
    browser.choose("sort", "item")
    assert browser.names() == ORDER[::-1]


def test_a_bar_of_the_histogram_filters_to_what_it_counts(browser, small):
    browser.open(small)
    bars = browser.run("[...document.querySelectorAll('button.bar')].map((b) => b.ariaLabel)")
    assert bars == [*("0.2 to 0.25: 1", "0.55 to 0.6: 1", "0.6 to 0.65: 1", "0.9 to 0.95: 1")]
    browser.click("button.bar:nth-child(12)")  # 0.6 itself is in the next
    assert browser.names() == ["a/2.png"] and browser.hash() == "#min=0.55&max=0.6"
    browser.click("button.bar")
    assert browser.names() == ORDER
    titles = browser.run("[...document.querySelectorAll('.histogram h3')].map((h) => h.innerText)")
    assert titles == ["Confidence", "Area, share of the picture"]  # no agreement in these rows
    assert "median 10 % of 3" in browser.text("histograms")


def test_only_cards_near_the_window_exist(browser, large):
    browser.open(large)
    assert browser.text("count") == "5,000 of 5,000 outcomes"
    counts = []
    for share in (0, 0.25, 0.5, 0.75, 1, 0):
        browser.run(f"scrollTo(0, {share} * document.documentElement.scrollHeight)")
        browser.run("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
        places = browser.run(
            "[...$('cards').children].map((c) => +c.getAttribute('aria-posinset'))"
        )
        assert places == list(range(places[0], places[0] + len(places)))
        counts.append(browser.run("document.querySelectorAll('*').length"))
        assert 0 < len(places) <= CARDS
        if share == 1:
            assert places[-1] == 5000 and browser.names()[-1] == "p499/4999.png"
    assert max(counts) < 6000 and counts[-1] == counts[0]


def test_a_decision_moves_on_to_the_next_undecided_card_of_the_view(browser, small):
    browser.open(small, "#sort=-confidence&review=1")
    assert browser.current() == "a/10.png"
    browser.press("a", "ArrowRight")
    assert browser.current() == "a/2.png"
    browser.press("r")
    assert browser.current() == "b/5.png"  # after a/2.png; a/3.png was passed over
    browser.press("u")
    assert browser.current() == "a/4.png"
    browser.press("a")
    assert browser.current() == "a/3.png"  # around the end, over what cannot be reviewed
    assert browser.text("progress") == ("4 of 5 reviewed: 2 accepted, 1 rejected, 1 unsure")
    assert "rightly absent" in browser.text("said")
    browser.press("z", "z")
    assert browser.current() == "b/5.png"
    assert browser.decided() == {"a/10.png": "accepted", "a/2.png": "rejected"}
    browser.press("k", "j", "j", "j", "a")
    assert browser.current() == "b/6.dcm" and "no mask" in browser.text("said")
    browser.press("Escape", "a", "r")
    assert len(browser.decided()) == 2 and browser.hidden("review")


def test_decided_cards_leave_a_view_of_undecided_ones_and_undo_brings_them_back(browser, small):
    browser.open(small, "#decision=undecided&status=done&review=1")
    assert browser.names() == ["a/2.png", "a/3.png", "a/10.png"]
    browser.press("a")
    assert browser.names() == ["a/3.png", "a/10.png"] and browser.current() == "a/3.png"
    assert browser.text("count") == "2 of 7 outcomes"
    assert browser.text("progress").startswith("1 of 3 reviewed")
    browser.press("r", "r")
    assert browser.names() == [] and "All that is shown" in browser.text("said")
    browser.press("z")
    assert browser.names() == ["a/10.png"] == [browser.current()]
    browser.choose("decision", "accept")
    assert browser.names() == ["a/2.png"]


def test_keys_do_not_touch_what_is_typed(browser, small):
    browser.open(small, "#review=1")
    browser.run("$('search').focus()")
    browser.press("a", "r", "z", "?", " ")
    assert browser.decided() == {} and not browser.run("$('keys').open")
    assert browser.run("$('search').value") == "arz? "
    browser.choose("search", "")
    browser.until("!location.hash.includes('q=')")
    browser.run("$('search').blur(); $('sort').focus()")
    browser.press("a")
    assert browser.decided() == {}


def test_the_large_view_works_by_keys_alone(browser, small):
    browser.open(small, "#review=1&label=mass")
    browser.press("Enter")
    assert browser.run("$('large').open") and browser.text("large-name") == "a/2.png"
    browser.until("$('large-stage').querySelector('img')?.naturalWidth === 64")
    assert "0.550" in browser.text("large-about") and browser.text("large-place") == "1 of 6"
    browser.press("a")
    assert browser.text("large-name") == "a/4.png"
    browser.press("ArrowLeft")
    assert browser.text("large-name") == "a/2.png" and "accepted" in browser.text("large-tags")
    browser.press(" ")
    assert not browser.run("$('large').open") and browser.current() == "a/2.png"
    assert browser.run("document.activeElement.closest('.current') !== null")
    browser.press(" ")
    assert browser.run("$('large').open")
    browser.press("Escape")
    assert not browser.run("$('large').open") and not browser.hidden("review")
    browser.press("?")
    assert browser.run("$('keys').open")
    browser.press("a", "Escape")
    assert not browser.run("$('keys').open") and len(browser.decided()) == 1


def test_buttons_do_what_keys_do(browser, small):
    browser.open(small)
    browser.click(".card:nth-child(4) .picture")
    assert browser.text("large-name") == "a/10.png"
    browser.click("#large [data-decision=reject]")
    browser.click("#large [data-act=shut]")
    browser.click("#start")
    browser.click(".card:nth-child(2) [data-decision=accept]")
    assert browser.decided() == {"a/10.png": "rejected", "a/3.png": "accepted"}
    browser.click(".card:nth-child(2) [data-decision=accept]")
    assert browser.decided() == {"a/10.png": "rejected"}
    browser.click("#review [data-act=undo]")
    browser.click("#review [data-act=undo]")
    assert browser.decided() == {"a/10.png": "rejected"}
    browser.click("#start")
    assert browser.hidden("review") and browser.hash() == ""
    assert browser.run(
        "[...document.querySelectorAll('button, input, select')].every((b) =>"
        "b.textContent.trim() && b.localName === 'button' || b.ariaLabel)"
    )


def test_decisions_survive_a_reload_and_belong_to_one_run(browser, small, tmp_path):
    browser.open(small, "#review=1")
    browser.press("a", "r")
    other = write(tmp_path, SMALL, identity="two")
    browser.open(other)
    assert browser.decided() == {}
    browser.open(small)
    assert browser.decided() == {"a/2.png": "accepted", "a/3.png": "rejected"}
    browser.open(small, "#decision=decided")
    assert browser.names() == ["a/2.png", "a/3.png"]


def test_without_storage_the_page_says_so(browser, small):
    broken = "Object.defineProperty(window, 'localStorage', { get() { throw new Error('no'); } })"
    script = browser.call("Page.addScriptToEvaluateOnNewDocument", source=broken)
    browser.open(small, "#review=1")
    browser.press("a")
    assert not browser.hidden("unsaved") and len(browser.decided()) == 1
    browser.call("Page.removeScriptToEvaluateOnNewDocument", identifier=script["identifier"])
    browser.run("$('review').querySelector('[data-act=export]').click()")  # nothing to lose now
    browser.open(small, "#review=1")
    assert browser.hidden("unsaved")


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
