"""A result's command is the one at work, and its page is made of what its JSON holds."""

import json
from importlib import import_module
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from medclipsam.benchmarks.measuring.result import name_command, open_facts, publish, to_page

ROOT = Path(__file__).parents[2]
MODULES = {
    path.stem: import_module(f"medclipsam.benchmarks.{path.stem}")
    for path in sorted((ROOT / "benchmarks").glob("[!_]*.py"))
}
BENCHMARKS = {name: each.main for name, each in MODULES.items() if hasattr(each, "to_markdown")}
FACTS = {
    "command": "python -m medclipsam.benchmarks.shadows",
    "date": "2001-02-03",
    "revision": "abc",
    "machine": "a lamp",
    "versions": {"python": "3", "torch": "2"},
}


def name(command, *arguments):
    return name_command(command.make_context("", list(arguments)))


@click.command()
@click.option("--count", default=3)
@click.option("--stall", default=0.0)
@click.option("--bundle")
@click.option("--size", "sizes", multiple=True)
@click.option("--quick", is_flag=True)
@click.option("--exact/--no-exact", default=True)
@click.option("--work", type=Path, required=True)
@click.option("--against", "checkouts", metavar="checkout", type=click.Path(), multiple=True)
@click.option("-o", "--out", default="results")
def made_up(**_):
    """Has every kind of option."""


def test_a_command_has_all_options_and_no_path():
    module = f"python -m {__spec__.name}"
    expected = f"{module} --count 3 --stall 0.0 --exact --work WORK"
    assert name(made_up, "--work", "/secret") == expected
    words = ["--work", "/secret", "--count", "0", "--no-exact", "--quick", "-o", "/elsewhere"]
    words += ["--size", "1", "--size", "two words", "--against", "/a", "--against", "/b"]
    assert name(made_up, *words) == (
        f"{module} --count 0 --stall 0.0 --size 1 --size 'two words' --quick --no-exact "
        "--work WORK --against CHECKOUT --against CHECKOUT"
    )


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_the_command_of_every_benchmark_gives_its_own_settings_again(benchmark):
    main = BENCHMARKS[benchmark]
    required = [flag for option in main.params if option.required for flag in (*option.opts, "x")]
    command = name(main, *required)
    head = f"python -m medclipsam.benchmarks.{benchmark}"
    assert command.startswith(head) and "--out" not in command
    context = main.make_context("", [*required])
    again = main.make_context("", command.removeprefix(head).split())
    same = {option.name for option in main.params if not option.required}
    assert {k: again.params[k] for k in same} == {k: context.params[k] for k in same}


def test_what_every_result_says_first_is_found():
    @click.command()
    def shadows():
        click.echo(json.dumps(open_facts(("click",))))

    facts = json.loads(CliRunner().invoke(shadows, catch_exceptions=False).output)
    assert facts.keys() == FACTS.keys() and all(facts.values())
    assert {"python", "medclipsam", "torch", "numpy", "click"} == facts["versions"].keys()


def test_a_page_says_how_it_was_measured_and_what():
    page = to_page({**FACTS, "note": "By night", "n": 7}, lambda facts: f"n = {facts['n']}\n")
    assert page == (
        "`python -m medclipsam.benchmarks.shadows`\n\n"
        "2001-02-03, revision abc; a lamp; python 3, torch 2\n\nBy night.\n\nn = 7\n"
    )


def test_what_is_published_is_made_of_the_json(tmp_path):
    facts = {**FACTS, "sides": {512: (1, 2)}}

    def to_markdown(found):
        assert found == {**FACTS, "sides": {"512": [1, 2]}}
        return "a table\n"

    publish(tmp_path, "shadows", facts, to_markdown)
    kept = json.loads((tmp_path / "shadows.json").read_text())
    assert (tmp_path / "pages" / "shadows.md").read_text() == to_page(kept, to_markdown)


def test_a_figure_that_is_no_number_is_refused(tmp_path):
    with pytest.raises(ValueError):
        publish(tmp_path, "shadows", {**FACTS, "n": float("nan")}, lambda facts: "")
    assert not list(tmp_path.iterdir())
