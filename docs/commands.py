"""Shows mkdocs-click every command, those loaded lazily as well. A hook of mkdocs."""

import inspect
import re

import click

from medclipsam.engine.cli.main import main

EXAMPLES = re.compile(r"^\x08\n((?:.+(?:\n|$))+)", re.MULTILINE)


def on_startup(command, dirty):
    """Load all commands; what their help shows verbatim becomes blocks of code."""
    main.context_settings["terminal_width"] = 76
    for name in main.list_commands(click.Context(main)):
        main.commands[name] = main.get_command(click.Context(main), name)
    quote_examples(main)


def quote_examples(command):
    """``\\b`` keeps the lines of a paragraph apart in a terminal; a page needs a fence."""
    command.help = EXAMPLES.sub(r"```\n\1\n```\n", inspect.cleandoc(command.help or ""))
    for below in getattr(command, "commands", {}).values():
        quote_examples(below)
