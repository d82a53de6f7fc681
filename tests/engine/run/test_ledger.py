"""The ledger keeps what it was given: all of a transaction or nothing, through a kill."""

import math
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medclipsam.engine.errors import OutputError
from medclipsam.engine.run.ledger import Ledger
from medclipsam.engine.types import Outcome

FULL = Outcome(
    item="a/ü 1.png",
    label="mass",
    status="done",
    prompt="a mass|a tumor",
    stage="segment",
    reason="failed",
    message="said 'no'\n",
    mask="masks/m.png",
    frames=3,
    area=1234,
    figures={"iou": 0.5, "nothing": None, "tiny": 1e-300},
    boxes=[[[1, 2, 3, 4]], [], [[0, 0, 9, 9]]],
    seconds=0.25,
)


def row(n, label="mass", status="done"):
    return Outcome(f"item-{n:04}", label, status)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


def test_round_trip(path):
    with Ledger(path) as ledger:
        assert (ledger.items(), list(ledger.outcomes()), ledger.counts()) == (0, [], Counter())
        ledger.commit([row(2, status="absent"), FULL, row(1, "b"), row(1, "a", "quarantined")])
        ledger.commit([])
    with Ledger(path) as ledger:
        expected = [FULL, row(1, "a", "quarantined"), row(1, "b"), row(2, status="absent")]
        assert list(ledger.outcomes()) == expected
        assert ledger.counts() == {"done": 2, "quarantined": 1, "absent": 1}
        assert ledger.items() == 3
        assert ledger.holds("item-0001") and ledger.holds(FULL.item)
        assert not ledger.holds("item-00") and not ledger.holds("")


outcomes = st.builds(
    Outcome,
    item=st.text(min_size=1, max_size=8),
    label=st.text(max_size=4),
    status=st.sampled_from(["done", "absent", "quarantined"]),
    message=st.text(max_size=20),
    area=st.integers(0, 2**62),
    figures=st.dictionaries(st.text(max_size=3), st.none() | st.floats(allow_nan=False)),
    boxes=st.lists(
        st.lists(st.lists(st.integers(0, 99), min_size=4, max_size=4), max_size=2), max_size=2
    ),
    seconds=st.floats(0, 1e6),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(outcomes, max_size=8, unique_by=lambda o: (o.item, o.label)))
def test_everything_comes_back_in_order(rows):
    with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder) / "l") as ledger:
        ledger.commit(rows)
        # SQLite orders by bytes, as UTF-8 and code points do
        assert list(ledger.outcomes()) == sorted(rows, key=lambda o: (o.item, o.label))
        assert ledger.counts() == Counter(o.status for o in rows)
        assert ledger.items() == len({o.item for o in rows})


def test_figures_without_a_value_survive(path):
    with Ledger(path) as ledger:
        ledger.commit([Outcome("a", "b", "done", figures={"x": math.nan})])
        (found,) = ledger.outcomes()
    assert math.isnan(found.figures["x"])


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_duplicate_takes_its_whole_transaction_with_it(path, at):
    with Ledger(path) as ledger:
        ledger.commit([row(0)])
        more = [row(1), row(2)]
        more.insert(at, row(0, status="absent"))
        with pytest.raises(OutputError, match=r"UNIQUE.*same command again") as caught:
            ledger.commit(more)
        assert str(path) in str(caught.value)
        assert list(ledger.outcomes()) == [row(0)]
        ledger.commit([row(1)])  # and the ledger is still good
    with Ledger(path) as ledger:
        assert list(ledger.outcomes()) == [row(0), row(1)]


def test_an_unknown_status_is_refused(path):
    with Ledger(path) as ledger:
        with pytest.raises(OutputError, match="CHECK"):
            ledger.commit([row(1), row(2, status="perhaps")])
        assert ledger.items() == 0


def test_rows_that_cannot_be_made_leave_nothing_open(path):
    def rows():
        yield row(1)
        raise KeyError("the caller's own")

    with Ledger(path) as ledger:
        with pytest.raises(KeyError):
            ledger.commit(rows())
        ledger.commit([row(2)])
        assert list(ledger.outcomes()) == [row(2)]


def test_reading_goes_on_beside_writing(path):
    with Ledger(path) as ledger, Ledger(path) as reader:
        ledger.commit([row(1)])
        assert reader.holds("item-0001")
        ledger.commit([row(2)])
        assert reader.items() == 2


WRITER = """
import sys
from pathlib import Path
from medclipsam.engine.run.ledger import Ledger
from medclipsam.engine.types import Outcome
ledger = Ledger(Path(sys.argv[1]))
for n in range(100_000):
    ledger.commit([Outcome(f"item-{n:04}", label, "done") for label in "ab"])
    print(n, flush=True)
"""


@pytest.mark.parametrize("after", [1, 7, 23])
def test_a_killed_writer_loses_nothing_it_was_told_is_safe(path, after):
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        told = [int(writer.stdout.readline()) for _ in range(after)]
        writer.send_signal(signal.SIGKILL)
        told += [int(line) for line in writer.stdout.read().split("\n") if line]
    assert writer.returncode == -signal.SIGKILL and told == list(range(len(told)))
    with Ledger(path) as ledger:
        found = [(o.item, o.label) for o in ledger.outcomes()]
        counts = Counter(item for item, _ in found)
        assert set(counts.values()) == {2}  # never half of a transaction
        # the last commit may have been safe before it could be told
        assert len(counts) in (len(told), len(told) + 1)
        assert all(ledger.holds(f"item-{n:04}") for n in told)
        ledger.commit([row(99_999)])
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize("content", [b"not a database, but long enough to look" * 40, b"\0" * 4096])
def test_what_is_no_database_is_refused_and_left_alone(path, content):
    path.write_bytes(content)
    with pytest.raises(OutputError, match=r"ledger.*cannot be used"):
        Ledger(path)
    assert path.read_bytes() == content


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(OutputError, match=r"nowhere.*unable to open"):
        Ledger(tmp_path / "nowhere" / "ledger.sqlite")


def test_a_damaged_page_is_reported(path):
    with Ledger(path) as ledger:
        ledger.commit(row(n) for n in range(2000))
    data = bytearray(path.read_bytes())
    assert len(data) > 3 * 4096
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(data)
    with Ledger(path) as ledger, pytest.raises(OutputError, match="cannot be used"):
        list(ledger.outcomes())


def make_old(path, rows):
    """A ledger as version 2 wrote it."""
    with Ledger(path) as ledger:
        ledger.commit(rows)
    with sqlite3.connect(path) as db:
        db.execute("ALTER TABLE outcomes DROP COLUMN geometry")
        db.execute("PRAGMA user_version = 2")


def test_geometry_is_kept_and_counted_by_items(path):
    tilted, flat = (replace(row(n), geometry="uneven", mask="m", frames=n) for n in (1, 2))
    lost = replace(row(4), geometry="uneven", status="quarantined")
    with Ledger(path) as ledger:
        ledger.commit([tilted, replace(tilted, label="b"), flat, row(3), lost])
        assert (ledger.doubtful(), ledger.doubtful(2), ledger.doubtful(3)) == (2, 1, 0)
        assert next(iter(ledger.outcomes())).geometry == "uneven"


def test_a_ledger_of_the_version_before_is_read_and_goes_on(path):
    make_old(path, [FULL, row(1)])
    before = path.read_bytes()
    with Ledger(path, readonly=True) as ledger:
        assert list(ledger.outcomes()) == [FULL, row(1)] and ledger.rows(FULL.item) == [FULL]
        assert ledger.doubtful() == 0 and ledger.items() == 2
    assert path.read_bytes() == before, "reading changes nothing"
    for _ in range(2):
        with Ledger(path) as ledger:
            assert list(ledger.outcomes())[:2] == [FULL, row(1)]
            ledger.commit([replace(row(2 + ledger.items()), geometry="flat", mask="m", frames=1)])
    with Ledger(path, readonly=True) as ledger:
        assert ledger.doubtful() == 2
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (3,)
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize("found", [1, 4])
def test_other_versions_are_refused_and_left_alone(path, found):
    make_old(path, [FULL])
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {found}")
    before = path.read_bytes()
    for readonly in (True, False):
        with pytest.raises(OutputError, match=f"of version {found}.*start another folder"):
            Ledger(path, readonly=readonly)
    assert path.read_bytes() == before
