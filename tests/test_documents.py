"""README, CONTRIBUTING and docs/ say what is there: links, paths, commands, snippets."""

import re
import shlex
from pathlib import Path

import click
import cv2
import pytest

from medclipsam.engine.cli.main import main
from medclipsam.train.phantoms.phantoms import make_phantom

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text("utf-8") for page in PAGES}
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
PATH = re.compile(r"(?<![\w./~-])(?:engine|export|train|tests|benchmarks|docs)/[\w./-]*")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
BENCHMARK = re.compile(r"python -m medclipsam\.benchmarks\.(\w+)([^`]*)")
SNIPPETS = {
    code: f"{name}-{number}"
    for name, text in reversed(TEXTS.items())
    for number, (_, kind, code) in enumerate(FENCE.findall(text))
    if kind == "python"
}


def prose(text):
    """``text`` without its blocks of code."""
    return FENCE.sub("", text)


def anchors(page):
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.+)$", prose(page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", h).strip().lower()) for h in headings}


def commands(command, words):
    """Words of each command below ``command`` → its options."""
    yield words, {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from commands(command.get_command(context, name), (*words, name))


COMMANDS = dict(commands(main, ("medclipsam",)))
OTHERS = ("benchmarks/__main__.py", "benchmarks/gpu.sh", "benchmarks/gpu/__main__.py")
OPTIONS = set().union(*COMMANDS.values()) | {"--version"}
OPTIONS |= {flag for name in OTHERS for flag in OPTION.findall((ROOT / name).read_text("utf-8"))}


def lines_of_code(text):
    """Lines of blocks, continued ones joined, and the words between single backticks."""
    for _, kind, code in FENCE.findall(text):
        if kind != "python":
            yield from re.sub(r"\\\n\s*", "", code).splitlines()
    yield from re.findall(r"`([^`]+)`", prose(text))


def test_readme_is_short():
    assert len(TEXTS["README.md"].splitlines()) <= 180


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name):
    page = ROOT / name
    for link in LINK.findall(prose(TEXTS[name])):
        if link.startswith(("https://", "http://")):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{name} links to {link}"
        assert not anchor or anchor in anchors(path), f"{name} links to {link}"


@pytest.mark.parametrize("name", TEXTS)
def test_paths_exist(name):
    text = LINK.sub("", TEXTS[name])
    wrong = [path for path in PATH.findall(text) if not (ROOT / path.rstrip(".")).exists()]
    assert not wrong, f"{name} names {wrong}"


@pytest.mark.parametrize("name", TEXTS)
def test_commands_are_there(name):
    for line in lines_of_code(TEXTS[name]):
        if not line.startswith("medclipsam "):
            continue
        words = shlex.split(line, comments=True)
        known = [tuple(words[:n]) for n in range(len(words), 0, -1) if tuple(words[:n]) in COMMANDS]
        is_group = any(len(other) > len(known[0]) for other in COMMANDS if known[0] == other[:-1])
        assert not is_group, f"{name} has {line!r}, which is no command"
        used = {word.partition("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)}
        assert used <= COMMANDS[known[0]], f"{line!r} uses {used - COMMANDS[known[0]]}"


@pytest.mark.parametrize("name", TEXTS)
def test_options_exist(name):
    text = BENCHMARK.sub("", TEXTS[name])
    assert set(OPTION.findall(text)) <= OPTIONS


@pytest.mark.parametrize("name", TEXTS)
def test_benchmarks_are_there(name):
    for module, arguments in BENCHMARK.findall(TEXTS[name]):
        source = (ROOT / "benchmarks" / f"{module}.py").read_text("utf-8")
        known = re.findall(r"--[a-z-]+(?=[\"/])", source)
        wrong = set(OPTION.findall(arguments)) - set(known)
        assert not wrong, f"{name}: {module} has no {wrong}"


@pytest.mark.parametrize("code", SNIPPETS, ids=SNIPPETS.values())
def test_snippets_run(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scans").mkdir()
    scan = (make_phantom(7, "ultrasound").pixels * 255).astype("uint8")
    for name in ("scan.png", "scans/a.png"):
        assert cv2.imwrite(name, scan)
    exec(compile(code, "snippet", "exec"), {})


def test_snippets_are_found():
    assert any(place.startswith("README") for place in SNIPPETS.values())
