"""From a bundle, images and masks to a bundle whose SAM has learned from them."""

import shutil
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from medclipsam.engine.backends.arithmetic import require_precision
from medclipsam.engine.durable import growing_folder
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.weights.bundle import (
    CLIP_FOLDER,
    SAM_FOLDER,
    WEIGHTS,
    Bundle,
    write_description,
)
from medclipsam.engine.weights.models import build_sam, load_weights
from medclipsam.train.checkpoint import hold
from medclipsam.train.patients import PatientRule
from medclipsam.train.problems import OnError, Problems
from medclipsam.train.sam.cases import list_cases
from medclipsam.train.sam.data import SamSamples, gather_samples
from medclipsam.train.sam.fit import CPU, split_samples, train_sam
from medclipsam.train.sam.settings import SamTraining

Log = Callable[[str], None]


def fine_tune_sam(
    bundle: Bundle,
    images: Path,
    masks: Path,
    out: Path,
    training: SamTraining,
    log: Log = print,
    device: torch.device = CPU,
    on_error: OnError = "fail",
    threads: int = 1,
    patients: PatientRule | None = None,
) -> Bundle:
    """Train the SAM of ``bundle`` on masks and write a bundle with the same CLIP.

    Called again after a kill, it goes on: what it has done lies beside ``out`` until that is
    written.

    Args:
        bundle: verified; its SAM gives the sizes and, but for ``from_scratch``, the weights.
        images: a folder of images of any size and kind.
        masks: LABEL/… with the paths of the images.
        out: a folder that does not exist yet.
        on_error: whether a file that cannot be used ends it, or is left out, named and counted.
        threads: that decode images.
        patients: whose images are kept on one side of the split.

    Raises:
        ConfigError: ``out`` exists, the data cannot be used, or the folder beside ``out`` holds
            another training.
        BackendError: the device has no arithmetic of that precision.
        OutputError: the disk is full.
    """
    if out.exists():
        raise ConfigError(f"{out} exists already; choose a new folder for the bundle with -o")
    require_precision(device, training.precision)
    folder = out.absolute().with_name(f".{out.name}.training")
    with hold(folder):
        problems = Problems(on_error == "fail", log)
        cases = list_cases(images, masks, problems)
        samples = gather_samples(
            cases, bundle.sam_config, training.components, problems, folder, threads, patients
        )
        facts = _count(samples, training, problems, log)
        sam = _starting_sam(bundle, training)
        history = train_sam(sam, samples, training, folder, device, log)
        best = max(history, key=lambda judged: judged.score, default=None)
        facts |= {
            "settings": asdict(training),
            "kept": asdict(best) if best else None,
            "history": [asdict(judged) for judged in history],
            "device": device.type,
            "versions": {name: version(name) for name in ("medclipsam", "torch")},
        }
        log(
            f"kept: the weights after {best.step} steps, DSC {best.exact:.4f}, {best.jittered:.4f}"
            if best
            else "kept: the last weights; none were judged"
        )
        made = write_sam_bundle(bundle, sam, out, facts)
        if "confidence" in bundle.defaults:
            log("the base's confidence was fitted to its own masks and is not taken over")
    shutil.rmtree(folder, ignore_errors=True)
    return made


def _starting_sam(bundle: Bundle, training: SamTraining) -> nn.Module:
    torch.manual_seed(training.seed)
    sam = build_sam(bundle.sam_config)
    if not training.from_scratch:
        load_weights(sam, bundle.folder / SAM_FOLDER / WEIGHTS)
    return sam


def _count(
    samples: SamSamples, training: SamTraining, problems: Problems, log: Log
) -> dict[str, Any]:
    """What there is to train on, said and for the bundle."""
    learn, judge = split_samples(samples, training)
    left_out = dict(sorted(problems.counts.items()))
    log(
        f"{len(samples.images)} images with {len(samples.masks)} masks: {len(learn)} to learn "
        f"from, {len(judge)} to judge on"
    )
    if left_out:
        log("left out: " + ", ".join(f"{kind}: {count}" for kind, count in left_out.items()))
    return {
        "images": len(samples.images),
        "masks": len(samples.masks),
        "groups": len(set(samples.groups)),
        "images_to_learn_from": len(learn),
        "images_to_judge_on": len(judge),
        "left_out": left_out,
    }


def write_sam_bundle(base: Bundle, sam: nn.Module, out: Path, training: dict[str, Any]) -> Bundle:
    """The base's CLIP and defaults with other SAM weights, as a bundle named like its folder.

    Exports are not copied, and the confidence is dropped: both belong to the base's weights.

    Args:
        training: where the weights come from, for people to read.

    Raises:
        OutputError: it cannot be written.
    """
    out = out.absolute()
    about = base.description
    how = f"{about['sam'].get('identity', base.name)}, fine-tuned"
    if training["settings"]["from_scratch"]:
        how = "trained from scratch"
    origin = {"name": base.name, "digest": base.digest, "notes": about.get("notes", {})}
    defaults = {k: v for k, v in base.defaults.items() if k != "confidence"}
    with growing_folder(out) as growing:
        for name in about["files"]:
            if name.startswith(f"{CLIP_FOLDER}/"):
                (growing.path / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(base.folder / name, growing.path / name)
        (growing.path / SAM_FOLDER).mkdir()
        state = {k: v.detach().cpu().contiguous() for k, v in sam.state_dict().items()}
        save_file(state, growing.path / SAM_FOLDER / WEIGHTS)
        made = write_description(
            growing.path, out.name, about["clip"], f"{how} by medclipsam train sam",
            base.sam_config, defaults, {"base": origin, "sam_training": training},
        )  # fmt: skip
    return Bundle(out, made.description)
