"""What a GPU machine must not get wrong: its torch, its packages, figures that would mislead."""

import json
import os
import stat
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from packaging.requirements import Requirement

from medclipsam.benchmarks.gpu import __main__ as command
from medclipsam.benchmarks.gpu import correctness, wheels
from medclipsam.benchmarks.gpu.rates import measure_graphs
from medclipsam.benchmarks.gpu.setting import Setting
from medclipsam.benchmarks.gpu.summary import summarise
from medclipsam.benchmarks.measuring.result import HEAD
from medclipsam.engine.errors import MedclipsamError
from medclipsam.engine.weights.bundle import open_bundle

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"
RECORD = "import sys; open({!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')"
SHOW = """import os, sys, torch
print(torch.__file__, sys.prefix, os.environ["MEDCLIPSAM_HOME"], os.environ["NUMBA_CACHE_DIR"])
"""


def call(tmp_path, *arguments, **variables):
    return subprocess.run(
        ["bash", SCRIPT, *map(str, arguments)], env={**os.environ, **variables}, cwd=tmp_path,
        capture_output=True, text=True,
    )  # fmt: skip


def make_wheels(folder, *names):
    folder.mkdir()
    for name in names:
        (folder / f"{name}-9-py3-none-any.whl").touch()
    return folder


def test_torch_stays_that_of_the_machine_whose_python_is_of_an_environment(tmp_path):
    """This Python may be one; pip and medclipsam are stand-ins."""
    package = tmp_path / "stub" / "medclipsam" / "benchmarks" / "gpu"
    package.mkdir(parents=True)
    (package / "__main__.py").write_text(SHOW)
    for folder in (package, package.parent, package.parents[1]):
        (folder / "__init__.py").touch()
    (tmp_path / "stub" / "pip.py").write_text(RECORD.format(str(tmp_path / "asked")))
    given = make_wheels(tmp_path / "wheels", "a", "torch", "torchvision")
    stub = {"PYTHON": sys.executable, "PYTHONPATH": str(tmp_path / "stub")}
    done = call(tmp_path, "out", "--wheels", given, **stub, MEDCLIPSAM_HOME="/elsewhere")
    assert done.returncode == 0, done.stderr
    found, prefix, home, cache = done.stdout.split()
    assert found == torch.__file__ and Path(prefix) == tmp_path / "out" / "venv"
    first, second = (tmp_path / "asked").read_text().splitlines()
    assert first == f"install --quiet --no-index --no-deps {given}/a-9-py3-none-any.whl"
    assert second.endswith(f"--no-build-isolation --editable {ROOT}")
    kept = (tmp_path / "out" / "venv" / "kept").read_text().split()
    assert kept == [f"{name}=={version(name)}" for name in ("torch", "torchvision")]
    assert Path(home) == tmp_path / "out" / "home"
    assert not stat.S_IMODE(Path(cache).stat().st_mode) & 0o077


@pytest.fixture
def machine(tmp_path):
    """A machine with the modules and packages that a test gives it."""
    python = tmp_path / "python"

    def have(modules, packages):
        python.write_text(f"""#!/bin/bash
case "$*" in
  *"-m venv"*) mkdir -p "${{!#}}/bin"; cp "$0" "${{!#}}/bin/python" ;;
  "-c import "*torchvision) [[ "{modules}" == *torchvision* ]] ;;
  "-c from contextlib"*) printf "{packages}" ;;
  "-m pip"*) echo "$*" ;;
esac
""")
        python.chmod(0o755)

    def run(*arguments):
        return call(tmp_path, "out", *arguments, PYTHON=str(python))

    return SimpleNamespace(have=have, run=run, path=tmp_path)


def test_torchvision_may_come_as_a_wheel(machine):
    machine.have("torch", r"torch==2.9\n")
    without = make_wheels(machine.path / "without", "a")
    refused = machine.run("--wheels", without)
    assert refused.returncode == 1 and "may also lie in the folder of --wheels" in refused.stderr
    done = machine.run("--wheels", make_wheels(machine.path / "with", "a", "torchvision"))
    assert done.returncode == 0 and "/torchvision-9-py3-none-any.whl" in done.stdout


def test_a_torch_that_pip_does_not_know_is_not_replaced(machine):
    machine.have("torch torchvision", "")
    done = machine.run()
    assert done.returncode == 1 and "pip would replace it" in done.stderr
    assert "install" not in done.stdout


def test_wheels_are_those_of_the_checkout():
    """Not those of a metadata file that an older checkout has left."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = map(Requirement, project["dependencies"])
    here = {wheels.normalise(r.name) for r in needed if not r.marker or r.marker.evaluate()}
    assert here - {*wheels.KEPT} <= {line.partition("==")[0] for line in wheels.list_packages()}


def test_extras_that_a_package_asks_for_are_followed(monkeypatch):
    needs = {
        "a": ["b[fast]", "torch", "never; python_version < '3'"],
        "b": ["c; extra == 'fast'", "d; extra == 'slow'"],
        "c": ["A"],
    }
    monkeypatch.setattr(wheels, "requires", needs.get)
    seen = set()
    wheels.close_over(["a"], seen)
    assert seen == {("a", ""), ("b", ""), ("b", "fast"), ("c", "")}


def test_a_folder_holds_parts_that_were_measured_in_one_way(tmp_path):
    (tmp_path / "ceiling.json").write_text(json.dumps({"device": "cpu", "tiny": True}))
    done = CliRunner().invoke(command.main, [str(tmp_path), "--minutes", "0"])
    assert done.exit_code == 2 and "was measured with --device cpu --tiny" in done.output


def test_masks_that_only_one_side_draws_count_as_lost():
    one, none = np.ones((4, 4), bool), np.zeros((4, 4), bool)
    found = correctness._compare([one, one, none], [one, none, none])
    assert found == {"masks": 2, "mean_iou": 0.5, "worst_iou": 0.0}
    assert correctness._compare([none], [none])["mean_iou"] == 0


def test_an_export_that_crashes_without_a_word_is_refused(monkeypatch, tmp_path):
    crashed = SimpleNamespace(returncode=-11, stderr="")
    monkeypatch.setattr(correctness.subprocess, "run", lambda *_, **__: crashed)
    setting = Setting(torch.device("cpu"), True, tmp_path)
    with pytest.raises(MedclipsamError, match="ended with -11"):
        correctness._export("onnx", "fp32", tmp_path / "copy", setting)


@pytest.mark.slow
def test_embed_and_score_are_one_graph_and_cost_the_same(tmp_path):
    setting = Setting(torch.device("cpu"), True, tmp_path)
    rows = measure_graphs(open_bundle("phantom"), "fp32", setting)
    cost = {r["graph"]: r["tflops"] / r["per_s"]["median"] for r in rows if "tflops" in r}
    assert cost["embed"] == pytest.approx(cost["score"], rel=0.01)


def test_graphs_are_shown_where_a_run_was_refused(tmp_path):
    rate = {"median": 50.0, "low": 49.0, "high": 51.0, "count": 3}
    facts = {
        **dict.fromkeys(HEAD, "x"), "versions": {"torch": "2"}, "tiny": False,
        "sam": "vit_h", "precision": "bf16", "weights": "random", "refused": "no memory",
        "graphs": [{"graph": "score", "batch": 64, "per_s": rate, "tflops": 300.0}],
    }  # fmt: skip
    (tmp_path / "rates-vit_h-bf16.json").write_text(json.dumps(facts))
    page = summarise(tmp_path, {})
    assert "| score | 64 | 50.0 [49.0, 51.0] |" in page and "Refused: no memory" in page
