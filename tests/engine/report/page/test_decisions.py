"""Decisions are taken by keys and buttons, and kept by the browser."""

import pytest
from reports.chromium import CHROME
from reports.outcomes import SMALL, write

pytestmark = pytest.mark.skipif(CHROME is None, reason="no Chromium or Chrome to open the page in")


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
