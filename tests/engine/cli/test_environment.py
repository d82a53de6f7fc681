"""Every option has an environment variable, which works, is shown, and loses against the flag."""

import json

import click
import pytest
from click.testing import CliRunner

from medclipsam.engine.cli.environment import split_values
from medclipsam.engine.cli.main import main


def leaves(command, path=()):
    """(path, command) of every command that is no group, lazily loaded ones included."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from leaves(command.get_command(context, name), (*path, name))
    else:
        yield path, command


OPTIONS = [
    (path, command, option)
    for path, command in leaves(main)
    for option in command.params
    if isinstance(option, click.Option)
]
IDS = [" ".join((*path, max(option.opts, key=len))) for path, _, option in OPTIONS]


def sample(option, folder):
    """A text that the option takes, other than its default, and with a blank where it may."""
    kind = option.type
    if option.is_flag:
        return "0" if option.default is True else "1"
    if isinstance(kind, click.Choice):
        return next(c for c in kind.choices if c != option.default)
    if isinstance(kind, click.Path):
        wanted = folder / "a b"
        if kind.exists and kind.file_okay:
            wanted.write_text("")
        elif kind.exists:
            wanted.mkdir()
        return str(wanted)
    if isinstance(kind, (click.types.IntParamType, click.types.FloatParamType)):
        least = getattr(kind, "min", None) or 0
        most = getattr(kind, "max", None) or least + 2
        whole = isinstance(kind, click.types.IntParamType)
        steps = range(1, 9) if whole else (share / 8 for share in range(1, 8))
        found = (least + step if whole else least + step * (most - least) for step in steps)
        return str(next(value for value in found if value != option.default))
    return {"SIZE": "7M"}.get(kind.name, "a b")


@pytest.mark.parametrize(("path", "command", "option"), OPTIONS, ids=IDS)
def test_each_variable_is_worth_its_flag(path, command, option, tmp_path, monkeypatch):
    text, flag = sample(option, tmp_path), max(option.opts, key=len)
    plain = [flag] if option.is_flag else [flag, *[text] * option.nargs]
    if option.is_flag and option.default is True:
        plain = [option.secondary_opts[0]]
    name = option.envvar[0]
    assert name == name.upper() and name.startswith("MEDCLIPSAM_" + "_".join(path).upper()[:3])
    by_flag = value(command, option, plain)
    monkeypatch.setenv(name, " ; ".join([text] * option.nargs))
    assert value(command, option, []) == by_flag
    assert value(command, option, []) != option.default
    if option.multiple:
        monkeypatch.setenv(name, f"{text} ; {text}")
        assert len(value(command, option, [])) == 2


def value(command, option, words):
    """What the command would get, whatever else it asks for."""
    parsed, _, _ = command.make_parser(click.Context(command)).parse_args(list(words))
    context = click.Context(command, info_name="x", resilient_parsing=False)
    found, _ = option.handle_parse_result(context, parsed, [])
    return found


@pytest.mark.parametrize(("path", "command", "option"), OPTIONS, ids=IDS)
def test_each_variable_stands_in_the_help(path, command, option):
    words = CliRunner().invoke(main, [*path, "--help"], terminal_width=200).output.split()
    assert all(any(name in word for word in words) for name in option.envvar)


def test_no_two_options_share_a_variable():
    names = [name for _, _, option in OPTIONS for name in option.envvar]
    assert len(names) == len(set(names))


def test_several_values_are_separated_by_semicolons_and_keep_their_blanks():
    assert split_values(" mass=a mass|a lump ;cyst=a cyst;; ") == [
        "mass=a mass|a lump",
        "cyst=a cyst",
    ]


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """(words, environment) → the settings and prompts that ``run`` would start with."""
    from medclipsam.engine.cli import run as run_cli

    (tmp_path / "scan.png").write_bytes(b"")

    def record(words=(), **environment):
        seen = {}
        monkeypatch.setattr(run_cli, "open_engine", seen.update)
        monkeypatch.setattr(
            run_cli,
            "label_archive",
            lambda engine, archive, prompts, *_: seen.update(found=prompts),
        )
        for name, text in environment.items():
            monkeypatch.setenv(f"MEDCLIPSAM_RUN_{name}", text)
        arguments = ["run", str(tmp_path / "scan.png"), "-o", str(tmp_path / "r"), *words]

        def keep(options):
            from medclipsam.engine.cli.options import read_settings

            seen["settings"] = read_settings(options)

        monkeypatch.setattr(run_cli, "open_engine", keep)
        done = CliRunner().invoke(main, arguments)
        for name in environment:
            monkeypatch.delenv(f"MEDCLIPSAM_RUN_{name}")
        return done, seen

    return record


def test_flags_win_over_the_environment_whatever_they_are_called(recorded):
    config = ["-p", "a mass"]
    cases = [
        (["--set", "saliency.method=gradcam"], {"SALIENCY": "m2ib"}, ("saliency", "method")),
        (["--saliency", "gradcam"], {"SET": "saliency.method=m2ib"}, ("saliency", "method")),
        (["--set", "saliency=gradcam"], {"SET": "saliency=m2ib"}, ("saliency", "method")),
        (["--set", "boxes.select=gradcam"], {"BOXES": "all"}, ("boxes", "select")),
        (["--set", "boxes.k=gradcam"], {"TOP_K": "3"}, ("boxes", "k")),
        (["--set", "crf.solver=gradcam"], {"CRF": "pydensecrf"}, ("crf", "solver")),
        (["--set", "precision=gradcam"], {"PRECISION": "bf16"}, ("precision",)),
    ]
    for words, environment, where in cases:
        _, seen = recorded([*config, *words], **environment)
        found = seen["settings"]
        for name in where:
            found = found[name]
        assert found == "gradcam", (words, environment)


def test_the_environment_wins_over_the_file(recorded, tmp_path):
    file = tmp_path / "s.toml"
    file.write_text("[saliency]\nmethod = 'gradcam'\nk = 7\n")
    _, seen = recorded(["-p", "a", "--config", str(file)], SET="saliency.method=m2ib; crf.tau=1.2")
    assert seen["settings"] == {"saliency": {"method": "m2ib", "k": 7}, "crf": {"tau": "1.2"}}


@pytest.mark.parametrize("name", ["PROMPT", "PROMPTS"])
def test_a_prompt_in_the_environment_keeps_its_blanks(recorded, name):
    _, seen = recorded(**{name: "breast tumor"})
    assert seen["found"].texts == {"breast_tumor": ("breast tumor",)}
    _, seen = recorded(**{name: "mass=a mass|a solid mass; cyst=a cyst"})
    assert seen["found"].texts == {"mass": ("a mass", "a solid mass"), "cyst": ("a cyst",)}


def test_a_prompt_flag_wins_over_a_table_in_the_environment(recorded, tmp_path):
    table = tmp_path / "p.csv"
    table.write_text("item,prompt\nscan.png,a cyst\n")
    done, seen = recorded(["-p", "a mass"], TABLE=str(table))
    assert seen["found"].labels == ("a_mass",), done.output
    _, seen = recorded(["--prompts", str(table)], PROMPT="a mass")
    assert seen["found"].source == table
    done, _ = recorded(["-p", "a mass", "--prompts", str(table)])
    assert done.exit_code == 2 and "either -p" in done.output


def test_a_variable_that_no_option_reads_is_named(recorded):
    done, _ = recorded(["-p", "a mass"], SALIENY="gradcam")
    assert "MEDCLIPSAM_RUN_SALIENY is set, but is no option of 'run'" in done.stderr
    assert "MEDCLIPSAM" not in recorded(["-p", "a mass"], SALIENCY="gradcam")[0].stderr


def test_the_run_itself_takes_them(tiny_bundle_folder, tmp_path):
    import cv2
    import numpy as np

    cv2.imwrite(str(tmp_path / "a.png"), np.arange(48 * 40, dtype=np.uint8).reshape(48, 40))
    environment = {
        "MEDCLIPSAM_RUN_PROMPTS": "breast tumor",
        "MEDCLIPSAM_RUN_SET": "saliency.method=gradcam;crf.iterations=0",
        "MEDCLIPSAM_RUN_OUT": str(tmp_path / "run"),
        "MEDCLIPSAM_RUN_BUNDLE": str(tiny_bundle_folder),
        "MEDCLIPSAM_RUN_DEVICE": "cpu",
    }
    done = CliRunner().invoke(main, ["run", str(tmp_path / "a.png")], env=environment)
    assert done.exit_code == 0, done.output
    told = json.loads((tmp_path / "run" / "run.json").read_text())
    assert told["labels"] == ["breast_tumor"]
    assert told["config"]["saliency"]["method"] == "gradcam"
    assert told["config"]["crf"]["iterations"] == 0
