"""Who may import whom, what an import costs, and what no source may contain."""

import ast
import importlib
import re
import subprocess
import sys
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import click
import pytest

from medclipsam.engine.cli.main import main

ROOT = Path(__file__).parent.parent
FOLDERS = ("engine", "export", "train", "benchmarks")
FORBIDDEN = {
    "engine": {"export", "train", "benchmarks"},
    "export": {"train", "benchmarks"},
    "train": {"export", "benchmarks"},
}
# Rooms and flat files of each folder, from the top: nothing imports what stands above it.
# ``docs/developers.md`` draws it.
LAYERS = {
    "engine": (
        "cli",
        "tuning unet",
        "__init__",
        "engine",
        "run",
        "pipeline evaluation report",
        "saliency segment outputs",
        "encoder archive",
        "boxes crf fit quality",
        "backends prompts",
        "weights config tables presence",
        "settings jit durable",
        "home types errors",
    ),
    "train": (
        "cli demo",
        "recipes",
        "phantoms",
        "clip sam unet retrieval",
        "pairs",
        "*",  # flat files
    ),
    "benchmarks": (
        "__main__",
        "figures gpu guard",
        "*",  # flat files
        "bench",
        "inputs",
        "rivals measuring",
    ),
}
FILES, LINES = 18, 350  # the most of a folder, and of a file
UNPICKLES = re.compile(r"(pickle|dill|joblib|shelve|marshal)\.(loads?|open|Unpickler)$")
HEAVY = {"torch", "tensorrt", "ray", "monai", "onnxruntime", "transformers", "cv2", "numba"}
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
TREES = {path.relative_to(ROOT): ast.parse(path.read_text("utf-8")) for path in SOURCES}


def module_name(path):
    parts = ["medclipsam", *path.with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = sorted(map(module_name, TREES))


def imported(tree):
    """Every module name in an import statement, wherever it stands; relative as dots."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield base
            yield from (f"{base}.{name.name}" for name in node.names)


def python(code):
    """Run ``code`` in a fresh interpreter in the repository and give back its words."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_sources_are_found():
    assert {path.parts[0] for path in TREES} == set(FOLDERS) and len(TREES) > 30


@pytest.mark.parametrize("path", TREES, ids=str)
def test_imports_run_one_way(path):
    names = set(imported(TREES[path]))
    for folder in FORBIDDEN.get(path.parts[0], ()):
        wrong = [n for n in names if re.match(rf"medclipsam\.{folder}(\.|$)", n)]
        assert not wrong, f"{path} imports {wrong}"
    assert not [n for n in names if n.startswith(".")], f"{path} has relative imports"
    bare = [n for n in names if n.split(".")[0] in FOLDERS]
    assert not bare, f"{path} imports {bare} without medclipsam"


def wanted(tree, always=True):
    """Modules of this project that a file imports; without ``always`` only when it is loaded."""
    hidden = (ast.FunctionDef, ast.AsyncFunctionDef) if not always else ()

    def walk(node):
        for child in ast.iter_child_nodes(node):
            typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            if isinstance(child, hidden) or typing:
                continue
            yield from imported(ast.Module([child], [])) if isinstance(child, ast.stmt) else ()
            yield from walk(child)

    names = {name for name in walk(tree) if name in MODULES}
    return names - {n for n in names if any(other.startswith(f"{n}.") for other in names)}


def place(folder, path):
    """The room, or the flat file, that lies directly in ``folder``."""
    return path.relative_to(folder).parts[0].removesuffix(".py")


@pytest.mark.parametrize("folder", LAYERS)
def test_arrows_inside_a_folder_run_downwards(folder):
    """Lazy imports count, too: only what types need may look upwards."""
    level = {name: n for n, names in enumerate(LAYERS[folder]) for name in names.split()}
    paths = {module_name(path): path for path in TREES if path.parts[0] == folder}
    rooms = {place(folder, path) for path in paths.values()}
    assert set(level) - {"*"} <= rooms
    if "*" not in level:
        assert rooms == set(level), "every room has its level"
    wrong = []
    for name, path in paths.items():
        room = place(folder, path)
        for other in wanted(TREES[path]) & paths.keys():
            below = place(folder, paths[other])
            high, low = level.get(room, level.get("*")), level.get(below, level.get("*"))
            siblings = high == low and room != below and "*" not in (room, below)
            if high > low or (siblings and room in level):
                wrong.append(f"{name} imports {other}")
    assert not wrong


def test_no_two_files_import_each_other_when_they_are_loaded():
    names = {module_name(path): path for path in TREES}
    graph = {name: wanted(TREES[path], always=False) - {name} for name, path in names.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def kept_files():
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        pytest.skip("not a git checkout")
    return [Path(line) for line in done.stdout.splitlines() if (ROOT / line).is_file()]


def test_a_newcomer_overlooks_every_folder_and_every_file():
    files = kept_files()
    counts = Counter(path.parent for path in files)
    assert not {str(folder): n for folder, n in counts.items() if n > FILES}
    sources = [p for p in files if p.suffix in (".py", ".js", ".css", ".html", ".c")]
    lines = {str(p): len((ROOT / p).read_text("utf-8").splitlines()) for p in sources}
    assert not {name: n for name, n in lines.items() if n > LINES}


def test_whatever_is_imported_first_gdcm_stays_out():
    """GDCM must not enter the process that writes PNGs, see ``archive/readers/dicom/codecs``."""
    names = [
        module_name(path)
        for path, tree in TREES.items()
        if path.parts[0] == "engine" and "pydicom" in ast.unparse(tree)
    ]
    assert len(names) > 10
    loaded = python(
        "import importlib, os, sys\n"
        f"for name in {names}:\n"
        "    if not os.fork():\n"
        "        importlib.import_module(name)\n"
        "        if '_gdcm' in sys.modules: print(name, flush=True)\n"
        "        os._exit(0)\n"
        "    if os.wait()[1]: print(name, 'fails', flush=True)\n"
    )
    assert not loaded


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports(name):
    assert importlib.import_module(name).__name__ == name


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is(name):
    assert (importlib.import_module(name).__doc__ or "").strip()


@pytest.mark.parametrize("name", ["medclipsam.engine", "medclipsam.engine.cli.main"])
def test_a_plain_import_is_light(name):
    loaded = python(f"import sys, {name}; print(*sys.modules)")
    assert name in loaded
    assert not {module.split(".")[0] for module in loaded} & HEAVY


def test_the_engine_needs_no_optional_package():
    loaded = python(
        "import sys\n"
        "for name in ('tensorrt', 'ray', 'monai', 'onnxruntime', 'pydensecrf', 'sklearn'):\n"
        "    sys.modules[name] = None\n"
        "from medclipsam.engine import Engine\n"
        "import medclipsam.engine.run.runner\n"
        "print(*(name for name, module in sys.modules.items() if module))"
    )
    assert "medclipsam.engine.engine" in loaded


def test_folders_never_become_modules_of_their_own():
    """Run from the repository's root, where a bare ``import engine`` would succeed."""
    loaded = python(f"import sys, importlib\nfor n in {MODULES}: importlib.import_module(n)\n"
                    "print(*sys.modules)")  # fmt: skip
    assert set(MODULES) <= loaded
    assert not {name.split(".")[0] for name in loaded} & set(FOLDERS)
    assert not (ROOT / "medclipsam").exists()  # it would shadow the installed namespace


def test_engine_is_found_by_name_and_nothing_else():
    import medclipsam.engine as package

    assert package.Engine is importlib.import_module("medclipsam.engine.engine").Engine
    with pytest.raises(AttributeError, match="no attribute 'Motor'"):
        _ = package.Motor


def calls(tree):
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def keyword(call, name):
    return next((k.value for k in call.keywords if k.arg == name), None)


def is_true(node):
    return isinstance(node, ast.Constant) and node.value is True


@pytest.mark.parametrize("path", TREES, ids=str)
def test_nothing_that_could_run_foreign_code(path):
    tree = TREES[path]
    for call in calls(tree):
        where = f"{path}:{call.lineno}"
        for name in ("trust_remote_code", "allow_pickle"):
            value = keyword(call, name)
            assert value is None or getattr(value, "value", True) is False, where
        called = ast.unparse(call.func)
        if called in ("torch.load", "torch.serialization.load"):
            assert is_true(keyword(call, "weights_only")), where
        assert called not in ("eval", "exec", "os.system"), where
        assert not UNPICKLES.match(called), where
        assert not is_true(keyword(call, "shell")), where
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            keys = [k.value for k in node.keys if isinstance(k, ast.Constant)]
            assert "trust_remote_code" not in keys, path
    names = set(imported(tree))
    hidden = [name for name in names if name == "torch.load" or UNPICKLES.match(name)]
    assert not hidden, f"{path} imports {hidden} under a name that this test does not see"


def commands(command, path):
    """Every command below ``command``, lazily loaded ones included, with its full name."""
    yield command, path
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from commands(command.get_command(context, name), f"{path} {name}")


COMMANDS = list(commands(main, "medclipsam"))


def test_the_commands_are_there():
    names = {path for _, path in COMMANDS}
    assert {f"medclipsam {n}" for n in ("run", "inspect", "evaluate", "doctor")} <= names


@pytest.mark.parametrize(("command", "path"), COMMANDS, ids=[path for _, path in COMMANDS])
def test_every_command_has_help_with_an_example(command, path):
    assert command is not None and command.help and command.help.strip()
    if isinstance(command, click.Group):
        return
    examples = [line for line in command.help.splitlines() if line.strip().startswith(path)]
    assert examples, f"{path} has no example line"
    parameters = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
    for line in examples:
        used = set(re.findall(r"(?<=\s)--?[a-z][a-z-]*", line))
        assert used <= parameters, f"{line.strip()} uses {used - parameters}"
