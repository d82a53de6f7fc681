"""Whether a device draws the masks of float32 torch on the CPU, by every method and backend.

Everything is done with the phantom bundle, whose masks mean something.
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medclipsam.benchmarks.gpu.setting import Setting
from medclipsam.benchmarks.inputs.archive import write_phantoms
from medclipsam.benchmarks.measuring.machine import count_cores
from medclipsam.benchmarks.streaming import Contest
from medclipsam.engine.backends.arithmetic import identify_device
from medclipsam.engine.cli.doctor import examine
from medclipsam.engine.engine import Engine
from medclipsam.engine.errors import MedclipsamError
from medclipsam.engine.evaluation.metrics import iou
from medclipsam.engine.run.trial import Sample
from medclipsam.engine.types import Prompts
from medclipsam.train.phantoms.phantoms import MODALITIES, PROMPTS, TARGETS, make_phantom

METHODS = ("contrastcam", "gscorecam", "gradcam", "m2ib", "scorecam")
QUICK = "gradcam"  # the method where all is tiny: it takes no rows
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
BACKENDS = {"onnx": "onnx", "onnx-tensorrt": "onnx", "tensorrt": "tensorrt"}  # → its export
FIRST_SEED = 8_500_000
IMAGES, FEW = 12, 2  # phantoms to compare on; the latter where all is tiny

Facts = dict[str, Any]


def describe(setting: Setting) -> Facts:
    """The machine, and what ``medclipsam doctor`` says of it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    facts: Facts = {"cores": count_cores(), "memory_gib": round(memory / 2**30, 1)}
    if setting.device.type == "cuda":
        total = torch.cuda.get_device_properties(setting.device).total_memory
        facts |= {**identify_device(setting.device), "device_gib": round(total / 2**30, 1)}
    return facts | {"checks": [asdict(check) for check in examine()]}


def compare_masks(setting: Setting) -> Facts:
    """Every method in every precision on the device, beside float32 on the CPU."""
    rows, samples = [], _draw_samples(setting)
    for method in (QUICK,) if setting.tiny else METHODS:
        settings = {"saliency": {"method": method}}
        here = Engine.open("phantom", "cpu", settings={**settings, "precision": "fp32"})
        exact = _draw_masks(here, samples)
        for precision in PRECISIONS:
            row: Facts = {"method": method, "precision": precision}
            try:
                other = Engine.open(
                    "phantom", str(setting.device), settings={**settings, "precision": precision}
                )
                row |= _compare(exact, _draw_masks(other, samples))
            except MedclipsamError as exc:
                row["refused"] = str(exc)
            rows.append(row)
    return {"rows": rows}


def compare_backends(setting: Setting) -> Facts:
    """Every backend that starts on the device, beside float32 torch on the CPU.

    In float32 alone: one export takes a minute or two.
    """
    rows, samples, precision = [], _draw_samples(setting), PRECISIONS[0]
    settings = {**({"saliency": QUICK} if setting.tiny else {}), "precision": precision}
    exact = _draw_masks(Engine.open("phantom", "cpu", settings=settings), samples)
    for backend, export in BACKENDS.items():
        row: Facts = {"backend": backend, "precision": precision}
        folder = setting.scratch / f"{export}-{precision}"
        try:
            row["exported"] = _export(export, precision, folder, setting)
            other = Engine.open(str(folder), str(setting.device), backend, settings)
            row |= _compare(exact, _draw_masks(other, samples))
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
        if done.returncode:  # one that crashed may have said nothing
            said = done.stderr.strip().splitlines() or [f"export ended with {done.returncode}"]
            raise MedclipsamError(said[-1])
    return kind


def _draw_samples(setting: Setting) -> list[Sample]:
    """Phantoms of all modalities, which show all that they are asked for."""
    samples = []
    for n in range(FEW if setting.tiny else IMAGES):
        modality = MODALITIES[n % len(MODALITIES)]
        wanted = TARGETS[modality]
        prompts = Prompts({target: (PROMPTS[target],) for target in wanted})
        samples.append((make_phantom(FIRST_SEED + n, modality, wanted).rgb, prompts))
    return samples


def _draw_masks(engine: Engine, samples: Sequence[Sample]) -> list[np.ndarray]:
    """Masks of all samples, prompt by prompt."""
    found = (engine.pipeline.segment([rgb], [prompts], False)[0] for rgb, prompts in samples)
    return [segment.mask for segments in found for segment in segments.values()]


def _compare(exact: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> dict[str, float]:
    """IoU of the masks that either has drawn; 0 if there are none."""
    pairs = [(a, b) for a, b in zip(exact, other, strict=True) if a.any() or b.any()]
    found = [iou(a, b) for a, b in pairs] or [0.0]
    mean, worst = float(np.mean(found)), float(np.min(found))
    return {"masks": len(pairs), "mean_iou": mean, "worst_iou": worst}


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
