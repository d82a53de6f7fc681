"""What is asked of a GPU machine, tried on a CPU with tiny settings."""

import json
import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from click.testing import CliRunner

from medclipsam.benchmarks.gpu import __main__ as command
from medclipsam.benchmarks.gpu.parts import PARTS, Part
from medclipsam.benchmarks.gpu.rates import count_sam_flops
from medclipsam.benchmarks.gpu.summary import summarise
from medclipsam.benchmarks.gpu.wheels import list_packages
from medclipsam.benchmarks.measuring.result import HEAD
from medclipsam.engine.weights.models import SAM_PRESETS, SamConfig, build_sam

ROOT = Path(__file__).parents[2]
QUICK = ("machine", "masks", "runner", "ceiling", "rates-vit_b-bf16")
SCRIPT = ROOT / "benchmarks" / "gpu.sh"


def run(*arguments):
    return CliRunner().invoke(command.main, [str(each) for each in arguments])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The parts that take little on a CPU, once."""
    out = tmp_path_factory.mktemp("gpu") / "out"
    run_well(out, *(word for name in QUICK for word in ("--part", name)))
    return out


def run_well(out, *arguments):
    done = run(out, "--device", "cpu", "--tiny", "--minutes", "60", *arguments)
    logs = "\n".join(path.read_text()[-2000:] for path in (out / "log").iterdir())
    assert done.exit_code == 0, done.output + logs


def read(out, name):
    return json.loads((out / f"{name}.json").read_text())


@pytest.mark.long
def test_every_part_runs(tmp_path):
    run_well(tmp_path)
    assert {path.stem for path in tmp_path.glob("*.json")} == {part.name for part in PARTS}
    backends = {row["backend"]: row for row in read(tmp_path, "backends")["rows"]}
    assert backends["onnx"]["mean_iou"] > 0.99
    assert backends["tensorrt"]["refused"] and backends["onnx-tensorrt"]["refused"]


@pytest.mark.slow
def test_every_part_says_how_it_was_measured(tiny):
    assert {path.stem for path in tiny.glob("*.json")} == set(QUICK)
    for name in QUICK:
        facts = read(tiny, name)
        assert all(facts[key] for key in HEAD) and facts["tiny"]
        assert f"--part {name} " in facts["command"]
    assert {check["state"] for check in read(tiny, "machine")["checks"]} <= {"ok", "absent"}


@pytest.mark.slow
def test_masks_are_those_of_the_cpu(tiny):
    rows = {row["precision"]: row for row in read(tiny, "masks")["rows"]}
    assert rows["fp32"]["masks"] and rows["fp32"]["mean_iou"] == rows["fp32"]["worst_iou"] == 1
    assert "tf32" in rows["tf32"]["refused"] and rows["bf16"]["mean_iou"] > 0.9
    runner = read(tiny, "runner")
    assert runner["same_masks_as_loop"] and runner["same_masks_again"]


@pytest.mark.slow
def test_rates_are_there(tiny):
    precisions = [row["precision"] for row in read(tiny, "ceiling")["rows"]]
    assert precisions == ["fp32", "bf16", "fp16"]
    facts = read(tiny, "rates-vit_b-bf16")
    graphs = {(row["graph"], row["batch"]): row for row in facts["graphs"]}
    assert {name for name, _ in graphs} == {"score", "embed", "sam_encoder", "sam_decoder"}
    assert all(row["per_s"]["median"] > 0 for row in graphs.values())
    assert [row["method"] for row in facts["runs"]] == ["gscorecam", "contrastcam"]
    page = (tiny / "summary.md").read_text()
    assert "no figure here is one of the device" in page and "refused: " in page
    score = graphs["score", 8]
    assert f"| score | 8 | {score['per_s']['median']:.1f}" in page


@pytest.mark.slow
def test_what_is_done_is_not_done_again(tiny):
    before = {path: path.stat().st_mtime_ns for path in tiny.glob("*.json")}
    done = run(tiny, "--device", "cpu", "--tiny", "--minutes", "0")
    assert done.exit_code == 3 and done.output.count("is there already") == len(QUICK)
    assert {path: path.stat().st_mtime_ns for path in tiny.glob("*.json")} == before


def test_no_time_is_said_and_leaves_everything_to_the_next_call(tmp_path):
    done = run(tmp_path, "--device", "cpu", "--tiny", "--minutes", "0")
    assert done.exit_code == 3 and done.output.count("no time left") == len(PARTS)
    assert "the same command goes on" in done.output
    assert "machine (left)" in (tmp_path / "summary.md").read_text()


def test_a_part_that_fails_costs_itself(tmp_path):
    """A device that is not there breaks every part, and each is named with its log."""
    done = run(tmp_path, "--device", "cuda:99", "--tiny", "--part", "runner", "--part", "ceiling")
    assert done.exit_code == 1 and done.output.count("failed after") == 2
    assert "cuda:99" in (tmp_path / "log" / "ceiling.txt").read_text()
    assert not list(tmp_path.glob("*.json"))
    assert "ceiling (failed)" in (tmp_path / "summary.md").read_text()


def lives(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("seconds", "left", "state"), [(1.0, 100.0, "failed"), (50.0, 1.0, "left")]
)
def test_a_part_that_hangs_is_ended(tmp_path, monkeypatch, seconds, left, state):
    """It hangs before it has imported anything; what it started ends with it."""
    (tmp_path / "log").mkdir()
    begun, hang = tmp_path / "child", tmp_path / "hang"
    hang.write_text(f"#!/bin/sh\nsleep 1000 & echo $! > {begun}; wait\n")
    hang.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(hang))
    monkeypatch.setattr(command, "LEAST", 0.0)
    wait = subprocess.Popen.wait

    def wait_from_there(child, timeout=None):
        """The clock runs once the part hangs, however late that is."""
        while not (begun.exists() and begun.read_text()):
            time.sleep(0.01)
        return wait(child, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", wait_from_there)
    part = Part("machine", seconds, lambda setting: {})
    assert command.run_part(part, tmp_path, "cpu", True, left)[0] == state
    while lives(int(begun.read_text())):  # a process that was killed ends when the machine has time
        time.sleep(0.01)


def count_padding(config):
    """What segment_anything computes beyond ours: it projects the padding of its windows, too."""
    cells = config.image_size // config.patch_size
    padded = -(-cells // config.window) * config.window
    blocks = config.encoder_depth - len(config.global_blocks)
    return 2 * (padded**2 - cells**2) * 4 * config.encoder_width**2 * blocks


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_flops_of_sam_are_those_published(name):
    """timm counts 486, 1,494 and 2,980 billion multiply-adds at 1024²."""
    published = {"vit_b": 486, "vit_l": 1494, "vit_h": 2980}[name]
    config = SAM_PRESETS[name]
    found = count_sam_flops(config) + count_padding(config)
    assert found / 2e9 == pytest.approx(published, rel=0.01)


def test_flops_of_sam_are_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    config = SamConfig(
        image_size=160, patch_size=8, encoder_width=96, encoder_depth=3, encoder_heads=3,
        global_blocks=(1,), window=6, channels=32,
    )  # fmt: skip
    encoder = build_sam(config).image_encoder
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder(torch.zeros(1, 3, 160, 160))
    expected = count_sam_flops(config) + count_padding(config)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)


def test_shares_of_the_ceiling(tmp_path):
    head = dict.fromkeys(HEAD, "x") | {"versions": {"torch": "2"}, "tiny": False}
    rate = {"median": 50.0, "low": 49.0, "high": 51.0, "count": 3}
    graphs = [{"graph": "score", "batch": 64, "per_s": rate, "tflops": 300.0}]
    runs = [{"method": "gscorecam", "images_per_s": rate, "device_busy": 0.95, "device_gib": 7.5}]
    facts = {
        "ceiling": {"rows": [{"precision": "bf16", "tflops": 600.0, "shapes": {}}]},
        "rates-vit_b-bf16": {"sam": "vit_b", "precision": "bf16", "weights": "random",
                             "graphs": graphs, "runs": runs},
        "rates-vit_h-bf16": {"sam": "vit_h", "precision": "bf16", "weights": "random",
                             "refused": "no memory"},
    }  # fmt: skip
    for name, each in facts.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({**head, **each}))
    page = summarise(tmp_path, {"masks": "failed"})
    assert "| score | 64 | 50.0 [49.0, 51.0] | 300.0 | 50% |" in page
    assert "| gscorecam | 50.00 [49.00, 51.00] | 95% | 7.5 |" in page
    assert "Refused: no memory" in page and "masks (failed)" in page


def test_wheels_have_all_but_what_belongs_to_the_driver():
    names = {line.partition("==")[0] for line in list_packages()}
    assert {"open-clip-torch", "segment-anything", "numba", "numpy", "setuptools"} <= names
    assert not {name for name in names if name.startswith(("nvidia-cu", "cuda", "torch", "triton"))}
    assert "medclipsam" not in names and all("==" in line for line in list_packages())


@pytest.fixture
def machine(tmp_path):
    """A machine whose python has torch, records what it is asked, and makes no environment."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    python = bin_ / "python3"
    python.write_text(f"""#!/bin/bash
echo "$*" >> {tmp_path}/asked
case "$*" in
  "-m venv "*) mkdir -p "${{!#}}/bin"; cp "$0" "${{!#}}/bin/python" ;;
  "-c "*version*) echo torch==2.9 ;;
  "-c "*) [ ! -e {tmp_path}/no_torch ] ;;
esac
""")
    python.chmod(python.stat().st_mode | stat.S_IEXEC)
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "a-1-py3-none-any.whl").touch()

    def call(*arguments):
        env = {**os.environ, "PATH": f"{bin_}:/usr/bin:/bin"}
        env.pop("PYTHON", None)
        done = subprocess.run(
            ["bash", SCRIPT, *map(str, arguments)], env=env, capture_output=True, text=True,
            cwd=tmp_path,
        )  # fmt: skip
        asked = tmp_path / "asked"
        return done, asked.read_text().splitlines() if asked.exists() else []

    return SimpleNamespace(call=call, path=tmp_path, wheels=wheels)


def test_without_network_only_the_wheels_are_installed(machine):
    done, asked = machine.call("out", "--wheels", machine.wheels, "--minutes", "3")
    assert done.returncode == 0, done.stderr
    pip = [line for line in asked if "pip install" in line]
    assert len(pip) == 2 and all("--no-index --no-deps" in line for line in pip)
    assert pip[0].endswith("wheels/a-1-py3-none-any.whl") and pip[1].endswith(f"--editable {ROOT}")
    assert asked[-1] == "-m medclipsam.benchmarks.gpu out --minutes 3"
    again, asked = machine.call("out", "--wheels", machine.wheels)
    assert again.returncode == 0 and sum("pip install" in line for line in asked) == 2


def test_with_a_network_torch_stays_what_it_is(machine):
    done, asked = machine.call("out")
    assert done.returncode == 0, done.stderr
    (pip,) = (line for line in asked if "pip install" in line)
    assert "--constraint out/venv/kept" in pip
    assert (machine.path / "out/venv/kept").read_text() == "torch==2.9\n"


def test_what_is_wrong_with_a_machine_is_said(machine):
    (machine.path / "no_torch").touch()
    done, asked = machine.call("out")
    assert done.returncode == 1 and "has no torch and torchvision" in done.stderr
    assert not any("venv" in line for line in asked)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [((), 2), (("--wheels",), 2), (("out", "--wheels", "/nowhere"), 2), (("wheels",), 2),
     (("--help",), 0)],
)  # fmt: skip
def test_how_it_is_used(machine, arguments, code):
    done, asked = machine.call(*arguments)
    assert done.returncode == code and not asked
    assert "benchmarks/gpu.sh OUT" in done.stderr or "needs a folder of wheels" in done.stderr


def test_wheels_are_collected(machine):
    done, asked = machine.call("wheels", "there")
    assert done.returncode == 0, done.stderr
    assert asked[0] == "-m medclipsam.benchmarks.gpu.wheels"
    assert asked[1].startswith("-m pip wheel --quiet --no-deps --wheel-dir there --requirement ")


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck")
def test_the_script_is_clean():
    subprocess.run(["shellcheck", SCRIPT], check=True)
