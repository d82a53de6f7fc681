"""Whether a device draws the masks of float32 torch on the CPU, by every method and backend.

Everything is done with the phantom bundle, whose masks mean something.
"""

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medclipsam.benchmarks.gpu.setting import Setting
from medclipsam.benchmarks.inputs.archive import write_phantoms
from medclipsam.benchmarks.streaming import Contest
from medclipsam.engine.cli.doctor import examine
from medclipsam.engine.engine import Engine
from medclipsam.engine.errors import MedclipsamError
from medclipsam.engine.run.trial import Sample, compare
from medclipsam.engine.types import Prompts
from medclipsam.train.phantoms.phantoms import MODALITIES, PROMPTS, TARGETS, make_phantom

METHODS = ("contrastcam", "gscorecam", "gradcam", "m2ib", "scorecam")
QUICK = "gradcam"  # the method where all is tiny: it takes no rows
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
BACKENDS = {"onnx": "onnx", "onnx-tensorrt": "onnx", "tensorrt": "tensorrt"}  # → its export
FIRST_SEED = 8_500_000
FEW = 2  # images where all is tiny

Facts = dict[str, Any]


def describe(setting: Setting) -> Facts:
    """What ``medclipsam doctor`` says of the machine."""
    return {"checks": [asdict(check) for check in examine()]}


def compare_masks(setting: Setting) -> Facts:
    """Every method in every precision on the device, beside float32 on the CPU."""
    rows = []
    for method in (QUICK,) if setting.tiny else METHODS:
        settings = {"saliency": {"method": method}}
        exact = Engine.open("phantom", "cpu", settings={**settings, "precision": "fp32"})
        for precision in PRECISIONS:
            row: Facts = {"method": method, "precision": precision}
            try:
                other = Engine.open(
                    "phantom", str(setting.device), settings={**settings, "precision": precision}
                )
                row |= _compare(exact, other, setting)
            except MedclipsamError as exc:
                row["refused"] = str(exc)
            rows.append(row)
    return {"rows": rows}


def compare_backends(setting: Setting) -> Facts:
    """Every backend that starts on the device, beside float32 torch on the CPU."""
    rows = []
    settings = {"saliency": QUICK} if setting.tiny else {}
    exact = Engine.open("phantom", "cpu", settings={**settings, "precision": "fp32"})
    for precision in ("fp32",) if setting.tiny else ("fp32", "fp16", "bf16"):
        for backend, export in BACKENDS.items():
            row: Facts = {"backend": backend, "precision": precision}
            folder = setting.scratch / f"{export}-{precision}"
            try:
                row["exported"] = _export(export, precision, folder, setting)
                chosen = {**settings, "precision": precision}
                other = Engine.open(str(folder), str(setting.device), backend, chosen)
                row |= _compare(exact, other, setting)
            except MedclipsamError as exc:
                row["refused"] = str(exc)
            rows.append(row)
    return {"rows": rows}


def _export(kind: str, precision: str, folder: Path, setting: Setting) -> str:
    """Put an export into a copy of the phantom bundle, once.

    Raises:
        MedclipsamError: it was refused, with the command's own words.
    """
    if not folder.exists():
        command = [sys.executable, "-m", "medclipsam.engine.cli", "export", "phantom"]
        command += ["--to", kind, "--precision", precision, "-o", str(folder)]
        if kind == "tensorrt":
            command += ["--device", str(setting.device)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise MedclipsamError(done.stderr.strip().splitlines()[-1])
    return kind


def _compare(exact: Engine, other: Engine, setting: Setting) -> dict[str, float]:
    return compare(exact.pipeline, other.pipeline, _samples(FEW if setting.tiny else 8))


def _samples(count: int) -> Iterator[Sample]:
    for n in range(count):
        modality = MODALITIES[n % len(MODALITIES)]
        wanted = TARGETS[modality]
        prompts = Prompts({target: (PROMPTS[target],) for target in wanted})
        yield make_phantom(FIRST_SEED + n, modality, wanted).rgb, prompts


def compare_runs(setting: Setting) -> Facts:
    """Whether a run gives the bytes of the loop, and its own again."""
    count = 6 if setting.tiny else 48
    write_phantoms(setting.scratch / "archive", count, 160)
    prompts = Prompts({target: (PROMPTS[target],) for target in TARGETS[MODALITIES[0]]})
    settings = {"saliency": QUICK} if setting.tiny else {}
    engine = Engine.open("phantom", str(setting.device), settings=settings)
    contest = Contest(engine, setting.scratch / "archive", prompts, setting.scratch)
    contest.loop()
    contest.stream()
    same, first = contest.same(), _hash_masks(setting.scratch / "stream")
    contest.stream()
    again = first == _hash_masks(setting.scratch / "stream")
    return {
        "images": count,
        "precision": engine.config.precision,
        "same_masks_as_loop": same,
        "same_masks_again": again,
    }


def _hash_masks(run: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(run.glob("masks/**/*.png")):
        found.update(path.relative_to(run).as_posix().encode() + path.read_bytes())
    return found.hexdigest()
