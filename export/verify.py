"""Exports of a bundle once more: every file hashed, every parity figure measured again."""

from collections.abc import Callable

from medclipsam.engine.backends import open_device
from medclipsam.engine.backends.session import load_runtime
from medclipsam.engine.errors import BackendError
from medclipsam.engine.types import Prompts
from medclipsam.engine.weights.bundle import Bundle, verify_file
from medclipsam.engine.weights.exports import find_export
from medclipsam.export.publish import judge
from medclipsam.export.scans import PROMPTS, draw_scans
from medclipsam.export.tensorrt_publish import verify_plans


def verify_exports(bundle: Bundle, log: Callable[[str], None]) -> None:
    """Hash and compare every ONNX export, without ONNX Runtime only hash; compare TensorRT plans.

    Args:
        log: takes a line of figures per export.

    Raises:
        BundleError: a file is missing or altered.
        BackendError: an export no longer agrees with torch.
    """
    device, images, prompts = open_device(), draw_scans(), Prompts(PROMPTS)
    for precision in bundle.exports.get("onnx", {}):
        entry = find_export(bundle, "onnx", precision)
        for path, digest in entry["files"].items():
            verify_file(bundle.folder, path, digest, "export it again")
        what = f"onnx in {precision}: {len(entry['files'])} files as described"
        try:
            load_runtime()
        except BackendError as exc:
            log(f"{what}, not compared: {exc}")
            continue
        found = judge(bundle, bundle, precision, images, prompts, device, lambda line: None)
        if found.failures:
            raise BackendError(
                f"the onnx export of {bundle.name!r} in {precision} no longer agrees with torch: "
                f"{'; '.join(found.failures)}. Export it again"
            )
        recorded = entry.get("parity", {}).get("mean_iou", float("nan"))
        log(
            f"{what}, mask IoU {found.mean_iou:.5f}, worst {found.worst_iou:.5f}, recorded mean "
            f"{recorded:.5f} ({found.ran})"
        )
    verify_plans(bundle, log)
