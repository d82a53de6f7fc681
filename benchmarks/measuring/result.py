"""A result: one JSON file with what was measured and how, and a page made of nothing else."""

import json
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch

from medclipsam.benchmarks.measuring.machine import (
    CPU,
    describe_machine,
    find_revision,
    list_versions,
)
from medclipsam.engine.durable import write_durable

Facts = dict[str, Any]

RESULTS = click.option(
    "-o", "--out", default="benchmarks/results", show_default=True,
    type=click.Path(file_okay=False, path_type=Path), help="Folder of results.",
)  # fmt: skip
PAGES = "pages"  # folder of pages and plots, below the results
HEAD = ("command", "date", "revision", "machine", "versions")


def open_facts(packages: Sequence[str] = (), device: torch.device = CPU) -> Facts:
    """What every result says first; the command is the one at work, with all of its options."""
    return {
        "command": name_command(click.get_current_context()),
        "date": time.strftime("%Y-%m-%d"),
        "revision": find_revision(),
        "machine": describe_machine(device),
        "versions": list_versions(packages),
    }


def name_command(context: click.Context) -> str:
    """``python -m medclipsam.benchmarks.NAME`` with every option, paths as a word for them."""
    module = context.command.callback.__globals__["__spec__"].name  # type: ignore[union-attr]
    words = [f"python -m {module.removesuffix('.__main__')}"]
    for option in context.command.params:
        value = context.params[option.name or ""]
        if option.name == "out" or value is None:
            continue
        if isinstance(value, bool):
            words += [_longest(option.opts if value else option.secondary_opts)]
            continue
        for each in value if isinstance(value, tuple) else (value,):
            if isinstance(option.type, click.Path) or isinstance(each, Path):
                each = (option.metavar or (option.name or "").rstrip("s")).upper()
            words += [_longest(option.opts), shlex.quote(str(each))]
    return " ".join(filter(None, words))


def _longest(flags: Sequence[str]) -> str:
    return max(flags, key=len, default="")


def publish(
    out: Path, name: str, facts: Facts, to_markdown: Callable[[Mapping[str, Any]], str]
) -> None:
    """Write NAME.json and pages/NAME.md, which is made of what the former holds; say the page."""
    text = json.dumps(facts, indent=1, allow_nan=False)
    write_durable(out / f"{name}.json", f"{text}\n".encode())
    page = to_page(json.loads(text), to_markdown)
    write_durable(out / PAGES / f"{name}.md", page.encode())
    click.echo(page)


def to_page(facts: Mapping[str, Any], to_markdown: Callable[[Mapping[str, Any]], str]) -> str:
    """The page of a result: how it was measured, and its tables."""
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    lines = [
        f"`{facts['command']}`\n",
        f"{facts['date']}, revision {facts['revision']}; {facts['machine']}; {versions}\n",
    ]
    if facts.get("note"):
        lines.append(f"{facts['note']}.\n")
    return "\n".join([*lines, to_markdown(facts)])
