"""From a bundle to one that names TensorRT plans of this machine, by way of its ONNX export."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medclipsam.engine.backends import open_device
from medclipsam.engine.backends.defaults import settle
from medclipsam.engine.backends.plans import find_machine, machine_name
from medclipsam.engine.backends.tensorrt_runtime import load_runtime, require_gpu
from medclipsam.engine.config import make_config
from medclipsam.engine.errors import BackendError
from medclipsam.engine.types import Prompts
from medclipsam.engine.weights.bundle import DESCRIPTION, Bundle, open_bundle
from medclipsam.export.parity import Parity, measure
from medclipsam.export.publish import export_onnx, find_layer
from medclipsam.export.report import write_report
from medclipsam.export.scans import PROMPTS, draw_scans
from medclipsam.export.tensorrt import batch_sizes, export_tensorrt


def publish_plans(
    bundle: Bundle,
    precision: str,
    target: Path,
    images: Sequence[np.ndarray],
    prompts: Prompts,
    device: torch.device,
    log: Callable[[str], None],
    settings: Mapping[str, Any],
) -> Bundle:
    """Build plans of the bundle at ``target``, compare, and name them there.

    The ONNX export is made first where there is none of these weights.

    Args:
        settings: over the bundle's defaults, as ``medclipsam run`` will get them.

    Raises:
        BackendError: TensorRT or its GPU is missing, or the plans differ by more than they may.
        OutputError: the bundle cannot be written.
    """
    device = require_gpu(device)
    version = load_runtime().__version__
    config = make_config(bundle.defaults, settings, {"precision": precision})
    config = settle(config, bundle, device, "tensorrt")
    here = open_bundle(str(target)) if (target / DESCRIPTION).is_file() else None
    if (
        here is None
        or here.digest != bundle.digest
        or precision not in here.exports.get("onnx", {})
    ):
        here = export_onnx(bundle, precision, target, images, prompts, device, log)
    exported = here

    def judge(staged: Bundle) -> dict[str, Any]:
        sizes = batch_sizes(config)
        parity = judge_plans(
            exported, staged, precision, sizes, images, prompts, device, version, log
        )
        facts = {"tensorrt": version, "sizes": sizes}
        report_file = write_report(bundle, "tensorrt", precision, facts, parity)
        if parity.failures:
            raise BackendError(
                f"the TensorRT plans of {bundle.name!r} in {precision} are not published: "
                f"{'; '.join(parity.failures)}. Figures: {report_file}"
            )
        return parity.figures()

    told: dict[str, int] = {}

    def report(graph: str, phase: str, done: int, steps: int) -> None:
        tenth = 10 * done // max(steps, 1)
        if told.get(phase, -1) != tenth and steps > 1:
            told[phase] = tenth
            log(f"{graph}: {phase}, {done} of {steps}")

    export_tensorrt(exported, config, device, judge, report=report)
    return open_bundle(str(target))


def judge_plans(
    bundle: Bundle,
    exported: Bundle,
    precision: str,
    sizes: Mapping[str, int],
    images: Sequence[np.ndarray],
    prompts: Prompts,
    device: torch.device,
    version: str,
    log: Callable[[str], None],
) -> Parity:
    """Figures of the plans that ``exported`` names, each for as many rows as it is for."""
    explain = partial(find_layer, bundle, bundle, precision)
    ran = f"tensorrt {version} on {torch.cuda.get_device_name(device)}"
    settings = {
        "saliency": {"rows": sizes["score"]},
        "segment": {"batch": sizes["sam_encoder"], "boxes": sizes["sam_decoder"]},
    }
    return measure(
        bundle, exported, "tensorrt", precision, images, prompts, device, ran, explain, log,
        settings, sizes,
    )  # fmt: skip


def verify_plans(bundle: Bundle, log: Callable[[str], None]) -> None:
    """Compare the plans of this machine once more; those of others are only counted.

    Args:
        log: takes a line per precision.

    Raises:
        BackendError: a plan is missing, stale or altered, or no longer agrees with torch.
    """
    for precision, entry in bundle.exports.get("tensorrt", {}).items():
        machines = entry["machines"]
        try:
            version, device = load_runtime().__version__, require_gpu(open_device())
            name = machine_name({**find_machine(device), "tensorrt": version})
        except BackendError as exc:
            log(f"tensorrt in {precision}: not compared: {exc}")
            continue
        if name not in machines:
            log(f"tensorrt in {precision}: plans of {len(machines)} other machines, none of this")
            continue
        found = judge_plans(
            bundle, bundle, precision, machines[name]["sizes"], draw_scans(), Prompts(PROMPTS),
            device, version, lambda line: None,
        )  # fmt: skip
        if found.failures:
            raise BackendError(
                f"the TensorRT plans of {bundle.name!r} in {precision} no longer agree with torch: "
                f"{'; '.join(found.failures)}. Export them again"
            )
        recorded = machines[name]["parity"]["mean_iou"]
        log(
            f"tensorrt in {precision}: mask IoU {found.mean_iou:.5f}, worst {found.worst_iou:.5f}, "
            f"recorded mean {recorded:.5f} ({found.ran})"
        )
