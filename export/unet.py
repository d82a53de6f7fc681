"""A task model as an ONNX graph: the same exporter, the same gate, one graph.

unet          pixels (B, 3, S, S)                  → logits (B, L, S, S)
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from medclipsam.engine.backends import open_device
from medclipsam.engine.backends.session import load_runtime
from medclipsam.engine.errors import BackendError, ConfigError
from medclipsam.engine.unet.graph import GRAPH, open_unet
from medclipsam.engine.unet.model import DESCRIPTION, TaskModel, open_task_model
from medclipsam.engine.unet.pipeline import UnetPipeline
from medclipsam.engine.weights.bundle import verify_file
from medclipsam.export.graphs import EXAMPLES, Graph, Spec
from medclipsam.export.layers import find_deviation, relative_error
from medclipsam.export.onnx import OPSET, finish, hash_files, trace, versions, write_model
from medclipsam.export.parity import BATCHES, LIMITS, Parity, compare_segments
from medclipsam.export.publish import put_export, start_export
from medclipsam.export.report import write_report
from medclipsam.export.scans import draw_scans

PRECISIONS = ("fp32", "fp16")

Log = Callable[[str], None]


def export_unet(
    folder: str | Path,
    to: str,
    precision: str,
    images: Sequence[np.ndarray],
    device: torch.device,
    log: Log,
) -> TaskModel:
    """Export the task model in ``folder``, compare, and publish into its own folder.

    Args:
        images: uint8 (H, W, 3), to compare on.

    Raises:
        BundleError: no task model.
        BackendError: it cannot be exported so, or the export differs by more than it may;
            nothing was published.
        OutputError: it cannot be written.
    """
    if to != "onnx" or precision not in PRECISIONS:
        raise BackendError(
            f"a task model is exported to onnx in {' or '.join(PRECISIONS)}, got {to} in "
            f"{precision}; ONNX Runtime runs it on the GPU too"
        )
    model = open_task_model(folder)
    load_runtime()
    root = start_export(model.folder, precision)
    try:
        log(f"exporting {GRAPH} in {precision}")
        spec = make_unet_spec(model)
        path = root / "onnx" / precision / f"{GRAPH}.onnx"
        written = write_model(finish(trace(spec), spec, model.digest, precision), path)
        entry: dict[str, Any] = {
            "files": hash_files(written, root),
            "opset": OPSET,
            "versions": versions(),
        }
        staged = model.with_exports(root, {"onnx": {precision: entry}})
        parity = measure_unet(model, staged, precision, images, device, log)
        report = write_report(cast(Any, model), "onnx", precision, entry, parity)
        if parity.failures:
            raise BackendError(
                f"the onnx export of {model.folder} in {precision} is not published: "
                f"{'; '.join(parity.failures)}. Figures: {report}"
            )
        entry["parity"] = parity.figures()
        put_export(root, model.folder, precision, entry, DESCRIPTION)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return open_task_model(model.folder)


def require_plain(flags: dict[str, Any]) -> None:
    """Refuse what only bundles have.

    Raises:
        ConfigError: names the flag.
    """
    for name, value in flags.items():
        if value:
            raise ConfigError(
                f"{name} is for bundles; a task model is exported into its own folder and takes "
                "no prompts or settings"
            )


def make_unet_spec(model: TaskModel) -> Spec:
    """The network, ready for an exporter; its last block and head stay float32."""
    side = model.config.image_size
    pixels = torch.zeros(EXAMPLES, 3, side, side)
    net = model.net.cpu()
    return Spec(
        GRAPH, Graph(net, _run), (pixels,), ("pixels",), ("logits",), ({0: "B"},),
        island="model.body.model.2",
    )  # fmt: skip


def _run(net: nn.Module, pixels: Tensor) -> Tensor:
    return net(pixels)


def measure_unet(
    model: TaskModel,
    exported: TaskModel,
    precision: str,
    images: Sequence[np.ndarray],
    device: torch.device,
    log: Log,
) -> Parity:
    """Compare ``exported`` in ONNX Runtime with ``model`` in float32 torch: the graph in
    batches of each size, then masks on ``images``."""
    parity = Parity(f"onnxruntime {load_runtime().__version__} on {device.type}", len(images))
    limits = LIMITS[precision]
    reference = UnetPipeline(open_unet(model, device), model.config, device, 1)
    pixels = torch.stack([reference.prepare(rgb) for rgb in images])
    given = pixels[torch.arange(max(BATCHES)) % len(pixels)]
    errors = []
    for rows in BATCHES:
        graph = open_unet(exported, device, "onnx", precision, rows)
        part = given[:rows].to(device)
        found, expected = graph(part).cpu().numpy(), reference.graph(part).cpu().numpy()
        errors.append(relative_error(found, expected))
    most, mean, nonfinite = zip(*errors, strict=True)
    figures = {"max_error": max(most), "mean_error": max(mean), "nonfinite": sum(nonfinite)}
    parity.graphs[GRAPH] = figures
    log(f"{GRAPH}: largest error {max(most):.2g}, {sum(nonfinite)} not finite")
    if figures["nonfinite"] or not figures["max_error"] <= limits.error:
        parity.failures.append(
            f"graph {GRAPH!r} differs by {max(most):.2g} (at most {limits.error:g}), "
            f"{sum(nonfinite)} values not finite: "
            f"{_explain(model, exported, precision, given, limits.error)}"
        )
        return parity
    ours = UnetPipeline(open_unet(exported, device, "onnx", precision, 1), model.config, device, 1)
    both = [(reference.segment(rgb), ours.segment(rgb)) for rgb in images]
    pairs = [(one[label], two[label]) for one, two in both for label in one]
    if not any(one.mask.any() or two.mask.any() for one, two in pairs):
        parity.failures.append(
            "the task model found nothing on these images, so masks cannot be compared: give "
            "images of what it was trained for with --images"
        )
        return parity
    compare_segments(parity, pairs, limits)
    log(f"masks: IoU {parity.mean_iou:.5f}, worst {parity.worst_iou:.5f} of {parity.masks}")
    return parity


def verify_unet(model: TaskModel, log: Log) -> None:
    """Hash every export of a task model and measure it once more, on synthetic pictures.

    Raises:
        BundleError: a file is missing or altered.
        BackendError: an export no longer agrees with torch.
    """
    for precision, entry in model.exports.get("onnx", {}).items():
        for path, digest in entry["files"].items():
            verify_file(model.folder, path, digest, "export it again")
        found = measure_unet(model, model, precision, draw_scans(), open_device(), lambda _: None)
        error = found.graphs[GRAPH]["max_error"]
        if found.failures and (found.masks or error > LIMITS[precision].error):
            raise BackendError(
                f"the onnx export of {model.folder} in {precision} no longer agrees with torch: "
                f"{'; '.join(found.failures)}. Export it again"
            )
        masks = f"mask IoU {found.mean_iou:.5f}" if found.masks else "no masks on these pictures"
        log(f"onnx in {precision}: files as described, largest error {error:.2g}, {masks}")


def _explain(
    model: TaskModel, exported: TaskModel, precision: str, given: Tensor, limit: float
) -> str:
    path = exported.folder / "onnx" / precision / f"{GRAPH}.onnx"
    return find_deviation(make_unet_spec(model), path, [given[:EXAMPLES]], limit)
