"""Names of members are distinct, safe or harmless, and not held in memory."""

import re
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medclipsam.engine.archive.containers import members
from medclipsam.engine.archive.containers.members import Names, harmless_name, safe_name


@pytest.mark.parametrize("repeated", [1, 4])
def test_names_of_many_members_are_not_held(repeated):
    """Bytes that Python holds for each name; a dictionary of names takes more than 100."""
    count = 25_000
    with Names() as names:
        names.distinct("first")
        tracemalloc.start()
        for number in range(count * repeated):
            names.distinct(f"folder of the container/{number % count:012}.png")
        held, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert held < 2 * count and peak < 4 * count


def test_distinct_names():
    names = Names()
    given_names = ["a", "a#2", "a", "a", "b", "a#2"]
    assert [names.distinct(n) for n in given_names] == ["a", "a#2", "a#2#2", "a#3", "b", "a#2#3"]


def test_safe_and_harmless_names():
    assert safe_name("./a//b/./c.png") == "a/b/c.png"
    for name in ("", "/a", "../a", "a/..", "a\\..\\b", "C:a", "\\\\host\\a", "a\0b", "\\a"):
        assert safe_name(name) == ""
    assert harmless_name("../../a.png") == "%2e%2e/%2e%2e/a.png"


@given(st.text(), st.text())
def test_harmless_names_differ_and_stay_inside(one, other):
    for name in (one, other):
        parts = harmless_name(name).split("/")
        assert ".." not in parts and "" not in parts and "\0" not in harmless_name(name)
        assert not re.search(r"[\\:]", harmless_name(name))
    assert (harmless_name(one) == harmless_name(other)) == (one == other)
    assert members.is_hidden(".a") and members.is_hidden("a/.b/c") and not members.is_hidden("a.b")
