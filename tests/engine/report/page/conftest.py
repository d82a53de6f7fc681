"""The browser with empty memory, and pages of few and of many outcomes."""

import pytest
from reports.chromium import CHROME, Browser
from reports.outcomes import SMALL, done, write

from medclipsam.engine.report.report import write_report

LABELS = ("mass", "cyst")


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    return write(tmp_path_factory.mktemp("small"), SMALL)


@pytest.fixture(scope="session")
def large(tmp_path_factory):
    outcomes = [done(f"p{i // 10}/{i}.png", i / 5000, LABELS[i % 2]) for i in range(5000)]
    return write_report(tmp_path_factory.mktemp("large"), outcomes, {}, identity="large")
