"""Cards are filtered, sorted, and only there while they are near the window."""

import pytest
from reports.chromium import CHROME
from reports.outcomes import ORDER

pytestmark = pytest.mark.skipif(CHROME is None, reason="no Chromium or Chrome to open the page in")

CARDS = 80  # more than fit into three windows of 1200 × 900 pixels


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
