"""The environment variable of every option: ``medclipsam run --set`` is MEDCLIPSAM_RUN_SET.

Its name is the command's and the option's long name. An option that may be repeated takes
several values, separated by ``;``, blanks around them apart; so does one of several values.
"""

import copy
import os
from collections.abc import Iterator

import click
from click.core import ParameterSource

SEPARATOR = ";"
# Two options of one command whose names hardly differ, and what users call the first one.
NAMES = {"--prompt": ("PROMPT", "PROMPTS"), "--prompts": ("TABLE",)}


def name_variables(command: click.Command, prefix: str) -> set[str]:
    """Give each option of ``command``, and of those below it, its variable; returns them all."""
    if isinstance(command, click.Group):
        below = (name_variables(c, f"{prefix}_{_word(n)}") for n, c in command.commands.items())
        return set().union(*below)
    return {name for option in _options(command) for name in _name(option, prefix)}


def _options(command: click.Command) -> Iterator[click.Option]:
    return (parameter for parameter in command.params if isinstance(parameter, click.Option))


def _name(option: click.Option, prefix: str) -> list[str]:
    flag = max(option.opts, key=len)
    names = [f"{prefix}_{name}" for name in NAMES.get(flag, (_word(flag),))]
    option.envvar, option.show_envvar = names, True
    if option.multiple or option.nargs > 1:
        option.type = copy.copy(option.type)  # a type may serve several options
        option.type.split_envvar_value = split_values  # type: ignore[assignment,method-assign]
    return names


def _word(text: str) -> str:
    return text.strip("-").replace("-", "_").upper()


def split_values(text: str) -> list[str]:
    """``"a b; c"`` → ``["a b", "c"]``."""
    return [part.strip() for part in text.split(SEPARATOR) if part.strip()]


def unknown_variables(known: set[str], prefix: str) -> list[str]:
    """Variables that begin as those of a command do and belong to none of its options."""
    return sorted(n for n in os.environ if n.startswith(f"{prefix}_") and n not in known)


def is_flag(name: str) -> bool:
    """Whether the parameter ``name`` of the command at work was given on the command line.

    Without a command, as in a call from Python, everything counts as given.
    """
    context = click.get_current_context(silent=True)
    return context is None or context.get_parameter_source(name) is ParameterSource.COMMANDLINE
