"""What ``medclipsam export`` left in a bundle: its entries in ``bundle.json``, files verified.

    exports · BACKEND · PRECISION     files (path → sha256), opset, versions, parity

Files are hashed when a graph is opened, not with the bundle; what no entry names is not read.
"""

from pathlib import Path
from typing import Any

from medclipsam.engine.errors import BackendError, BundleError
from medclipsam.engine.weights.bundle import Bundle, verify_file

GRAPHS = ("text", "features", "score", "sam_encoder", "sam_decoder")


def find_export(bundle: Bundle, backend: str, precision: str) -> dict[str, Any]:
    """The entry of one export.

    Raises:
        BackendError: there is none.
        BundleError: it is not readable.
    """
    has = bundle.exports.get(backend, {})
    if precision not in has:
        known = f" (there is {', '.join(has)})" if has else ""
        raise BackendError(
            f"bundle {bundle.name!r} has no {backend} export in {precision}{known}; make it with "
            f"'medclipsam export {bundle.name} --to {backend} --precision {precision}'"
        )
    entry = has[precision]
    if not isinstance(entry, dict) or not isinstance(entry.get("files"), dict):
        raise BundleError(
            f"the entry of the {backend} export in {precision} of {bundle.folder} is not readable; "
            "export it again"
        )
    return entry


def graph_file(bundle: Bundle, backend: str, precision: str, graph: str) -> Path:
    """The file of one exported graph, it and its external data verified.

    Raises:
        BackendError: not exported.
        BundleError: a file is missing, altered or cut short.
    """
    files = find_export(bundle, backend, precision)["files"]
    path = f"{backend}/{precision}/{graph}.onnx"
    if path not in files:
        raise BundleError(
            f"the {backend} export in {precision} of {bundle.folder} has no graph {graph!r}; "
            "export it again"
        )
    for name in sorted(files):
        if name == path or name.startswith(f"{path}."):
            verify_file(bundle.folder, name, files[name], "export it again")
    return bundle.folder / path
