"""Status and retry: what they say of a run, and that the run itself is left in peace."""

import json
import shutil

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from medclipsam.engine.cli.main import main
from medclipsam.engine.errors import ConfigError, OutputError
from medclipsam.engine.run.folder import locked
from medclipsam.engine.run.ledger import Ledger
from medclipsam.engine.run.status import read_status
from medclipsam.engine.types import Outcome
from medclipsam.train.phantoms.phantoms import make_phantom

FAST = ["--device", "cpu", "--threads", "2", "--saliency", "gradcam"]


def call(*words):
    result = CliRunner().invoke(main, [*map(str, words)])
    assert "Traceback" not in result.output
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def finished(tiny_bundle_folder, tmp_path_factory):
    """An archive of two scans and two broken files, and the run over it."""
    root = tmp_path_factory.mktemp("runs")
    scans = root / "scans"
    scans.mkdir()
    for n in range(2):
        pixels = make_phantom(n, "mri", ("tumor",), (70, 90)).pixels
        assert cv2.imwrite(str(scans / f"{n}.png"), (pixels * 255).astype(np.uint8))
    (scans / "bad.png").write_bytes(b"no picture")
    (scans / "empty.png").write_bytes(b"")
    command = ["run", scans, "-p", "a tumor", "-o", root / "run", "--bundle", tiny_bundle_folder]
    code, _ = call(*command, *FAST)
    assert code == 3
    return root, [*command, *FAST]


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the run folder."""
    return shutil.copytree(finished[0] / "run", tmp_path / "run")


def test_status_of_a_finished_run(finished):
    folder = finished[0] / "run"
    status = read_status(folder)
    with Ledger(folder / "ledger.sqlite") as ledger:
        rows = list(ledger.outcomes())
    assert (status.state, status.items, status.total) == ("finished", 4, 4)
    assert sum(status.counts.values()) == len(rows) == 4
    expected = sorted(row.reason for row in rows if row.status == "quarantined")
    assert sorted(status.reasons) == expected and len(expected) == 2
    assert status.rate > 0 and status.eta == 0


def test_status_tells_running_from_stopped(run):
    (run / "_SUCCESS").unlink()
    assert read_status(run).state == "stopped"
    with locked(run):
        assert read_status(run).state == "running"
        with pytest.raises(ConfigError, match="going on"), locked(run):
            pass
    assert read_status(run, count=False).total is None


def test_status_is_read_while_rows_are_written(run):
    with Ledger(run / "ledger.sqlite") as ledger:
        for n in range(3):
            ledger.commit([Outcome(f"new {n}", "a_tumor", "done")])
            assert read_status(run).items == 5 + n


def test_rate_is_that_of_the_latest_attempt(run):
    events = [("start", 0), ("done", 100), ("start", 200), ("done", 201), ("quarantined", 204)]
    lines = [json.dumps({"time": time, "event": event}) for event, time in events]
    (run / "log.jsonl").write_text("\n".join(lines) + '\n{"time": 9')
    assert read_status(run).rate == pytest.approx(2 / 4)
    (run / "log.jsonl").unlink()
    assert read_status(run).rate is None


def test_status_before_the_first_row(run):
    (run / "ledger.sqlite").unlink()
    assert read_status(run).items == 0
    assert not (run / "ledger.sqlite").exists()  # asking creates nothing


def test_status_command(finished, tmp_path):
    code, text = call("status", finished[0] / "run")
    assert code == 0 and "finished: 4 of 4 items" in text and "quarantined" in text
    code, text = call("status", finished[0] / "run", "--json", "--no-count")
    found = json.loads(text)
    assert code == 0 and found["items"] == 4 and found["total"] is None
    code, text = call("status", tmp_path)
    assert code == 2 and "not a run folder" in text


def test_a_damaged_ledger_is_said(run):
    (run / "ledger.sqlite").write_bytes(b"no data base" * 100)
    with pytest.raises(OutputError, match="cannot be used"):
        read_status(run)
    code, text = call("status", run)
    assert code == 1 and "ledger" in text


def test_retry_takes_up_what_was_mended(finished):
    root, command = finished
    folder = root / "run"
    before = {row.item: row for row in _rows(folder)}
    shutil.copy(root / "scans/0.png", root / "scans/bad.png")
    code, text = call("retry", folder, "--reason", before["bad.png"].reason)
    assert code == 0 and "1 items" in text
    assert not (folder / "_SUCCESS").exists()
    assert {row.item for row in _rows(folder)} == {"0.png", "1.png", "empty.png"}
    code, _ = call(*command)
    after = {row.item: row for row in _rows(folder)}
    assert code == 3 and (folder / "_SUCCESS").exists()
    assert after["bad.png"].status != "quarantined"
    assert all(after[name] == before[name] for name in ("0.png", "1.png", "empty.png"))


def test_retry_refuses_what_is_not_there(run, tmp_path):
    code, text = call("retry", run, "--reason", "moonlight")
    assert code == 2 and "moonlight" in text and (run / "_SUCCESS").exists()
    with locked(run):
        code, text = call("retry", run)
    assert code == 2 and "going on" in text
    code, text = call("retry", tmp_path)
    assert code == 2 and "not a run folder" in text


def _rows(folder):
    with Ledger(folder / "ledger.sqlite") as ledger:
        return list(ledger.outcomes())
