"""Results are measured anew by the commands that they name, and documents follow."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from medclipsam.benchmarks import __main__ as anew

COMMANDS = {
    "hare": "python -m medclipsam.benchmarks.hare --count 3 --text 'two words'",
    "snail": "python -m medclipsam.benchmarks.snail --work WORK",
    "twins": "python -m medclipsam.benchmarks.twins --against CHECKOUT",
}


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Runs the command in a checkout with three results; records what it starts."""
    monkeypatch.chdir(tmp_path)
    folder = Path(anew.RESULTS)
    folder.mkdir(parents=True)
    for name, command in COMMANDS.items():
        facts = {"command": command, "date": "2001-02-03", "revision": "abc"}
        (folder / f"{name}.json").write_text(json.dumps(facts))
    started = []

    def run(words, check=False):
        started.append(words)
        return SimpleNamespace(returncode="medclipsam.benchmarks.snail" in words)

    monkeypatch.setattr(anew.subprocess, "run", run)

    def call(*arguments):
        done = CliRunner().invoke(anew.main, arguments)
        return done, [words[1:] for words in started if words[0] == sys.executable]

    return call


FIGURES = ["-m", "medclipsam.benchmarks.figures"]


def test_a_result_is_measured_by_its_own_command(call):
    done, started = call("hare")
    words = ["-m", "medclipsam.benchmarks.hare", "--count", "3", "--text", "two words"]
    assert done.exit_code == 0 and started == [words, FIGURES]


def test_all_are_measured_and_what_was_not_is_named(call):
    done, started = call("--work", "place")
    assert [words[1].rpartition(".")[2] for words in started] == ["hare", "snail", "figures"]
    assert started[1][-2:] == ["--work", "place/snail"]
    assert done.exit_code == 1 and "not measured: snail, twins" in done.output
    assert "give its paths yourself" in done.output


def test_a_list_measures_nothing(call):
    done, started = call("--list")
    assert done.exit_code == 0 and not started
    assert f"hare: 2001-02-03, abc: {COMMANDS['hare']}" in done.output


def test_what_is_unknown_is_refused(call, tmp_path, monkeypatch):
    done, started = call("tortoise")
    assert done.exit_code == 2 and "there are hare, snail, twins" in done.output and not started
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    done, _ = call()
    assert done.exit_code == 1 and "run this in the root of a checkout" in done.output
