"""A run accounts for every entry that was listed, and for whose run it is."""

import json
from dataclasses import replace

import numpy as np
import pytest
from running.attempts import COUNT, attempt

from medclipsam.engine.errors import ConfigError, OutputError
from medclipsam.engine.run import folder
from medclipsam.engine.run.device.executor import Executor
from medclipsam.engine.run.folder import RunFolder


def test_success_is_refused_where_an_entry_got_lost(engine, archive, tmp_path, monkeypatch):
    real = Executor.load

    def load(self, work):
        if work.ref.id != "11.png":
            real(self, work)

    out = tmp_path / "run"
    monkeypatch.setattr(Executor, "load", load)
    with pytest.raises(OutputError, match=f"listed {COUNT} entries and {COUNT - 1} are accounted"):
        attempt(engine, archive, out)
    assert not (out / "_SUCCESS").exists()


@pytest.mark.parametrize("threads", [1, 4])
def test_how_often_an_item_is_listed_does_not_depend_on_time(engine, archive, tmp_path, threads):
    """Counted against the list itself, whether the first one is in flight or long committed."""
    order = np.random.default_rng(threads).permutation(np.repeat(np.arange(8), 3))
    table = tmp_path / "list.csv"
    table.write_text("item\n" + "".join(f"{archive / f'{n:02}.png'}\n" for n in order))
    other = replace(engine, threads=threads)
    summary = attempt(other, table, tmp_path / "run")
    assert summary.items == 8 and summary.repeated == 16
    expected = {"listed": 24, "committed": 8, "resumed": 0, "repeated": 16}
    assert summary.listing == expected
    assert json.loads((tmp_path / "run" / "_SUCCESS").read_text()) == expected
    again = attempt(other, table, tmp_path / "run")
    assert again.listing == {"listed": 24, "committed": 0, "resumed": 8, "repeated": 16}
    assert again.repeated == 16


def test_a_run_that_ended_while_we_came_is_compared_as_well(tmp_path, monkeypatch):
    """Another process writes its fingerprint between our first look and our lock."""
    real = folder.take_lock

    def take(path, taken):
        lock = real(path, taken)
        (path.parent / "run.json").write_text(json.dumps({"labels": ["other"]}))
        return lock

    monkeypatch.setattr(folder, "take_lock", take)
    with pytest.raises(ConfigError, match="labels"):
        RunFolder(tmp_path / "run", {"labels": ["mine"]})
    monkeypatch.undo()
    with RunFolder(tmp_path / "run", {"labels": ["other"]}):
        pass
    assert json.loads((tmp_path / "run" / "run.json").read_text()) == {"labels": ["other"]}
