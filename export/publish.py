"""From a bundle to a bundle with an export: grown aside, judged, and only then put in place.

A refused export leaves what was published before as it was; its figures go to a report.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medclipsam.engine.backends.session import load_runtime
from medclipsam.engine.durable import sync_folder, write_durable
from medclipsam.engine.errors import BackendError, ConfigError, OutputError
from medclipsam.engine.types import Prompts
from medclipsam.engine.weights.bundle import DESCRIPTION, SHIPPED, Bundle, open_bundle, user_folder
from medclipsam.engine.weights.exports import GRAPHS, graph_file
from medclipsam.export.emulation import emulate
from medclipsam.export.graphs import make_spec
from medclipsam.export.layers import find_deviation
from medclipsam.export.onnx import OPSET, build_model, hash_files, versions, write_model
from medclipsam.export.parity import LIMITS, Parity, measure, rows_of
from medclipsam.export.report import write_report

GROWING, OLD = ".exporting-", ".replaced-"  # folders that are not, or no longer, an export


def export_onnx(
    bundle: Bundle,
    precision: str,
    target: Path,
    images: Sequence[np.ndarray],
    prompts: Prompts,
    device: torch.device,
    log: Callable[[str], None],
) -> Bundle:
    """Export every graph, compare, and publish into the bundle at ``target``.

    Args:
        target: ``bundle``'s own folder, or where a copy of it is (made) that gets the export.

    Raises:
        BackendError: the export differs by more than it may; nothing was published.
        OutputError: it cannot be written.
    """
    load_runtime()
    root = start_export(target, precision)
    try:
        written = []
        for graph in GRAPHS:
            log(f"exporting {graph} in {precision}")
            model = build_model(bundle, graph, precision)
            written += write_model(model, root / "onnx" / precision / f"{graph}.onnx")
        entry: dict[str, Any] = {
            "files": hash_files(written, root),
            "opset": OPSET,
            "versions": versions(),
        }
        staged = bundle.with_exports(root, {"onnx": {precision: entry}})
        parity = judge(bundle, staged, precision, images, prompts, device, log)
        report = write_report(bundle, "onnx", precision, entry, parity)
        if parity.failures:
            raise BackendError(
                f"the onnx export of {bundle.name!r} in {precision} is not published: "
                f"{'; '.join(parity.failures)}. Figures: {report}"
            )
        _publish(bundle, root, target, precision, {**entry, "parity": parity.figures()})
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return open_bundle(str(target))


def judge(
    bundle: Bundle,
    exported: Bundle,
    precision: str,
    images: Sequence[np.ndarray],
    prompts: Prompts,
    device: torch.device,
    log: Callable[[str], None],
) -> Parity:
    """Figures of an export that lies in ``exported``; emulated where it cannot run here."""
    with tempfile.TemporaryDirectory() as name:
        ran = f"onnxruntime {load_runtime().__version__} on {device.type}"
        if precision == "bf16" and device.type == "cpu":
            exported = _emulated(exported, precision, Path(name))
            ran += ", bf16 by rounding float32"
        explain = partial(find_layer, bundle, exported, precision)
        return measure(
            bundle, exported, "onnx", precision, images, prompts, device, ran, explain, log
        )


def find_layer(
    bundle: Bundle, exported: Bundle, precision: str, graph: str, inputs: Sequence[Tensor]
) -> str:
    """Which layer of the ONNX graph in ``exported`` is the first that is off."""
    path = graph_file(exported, "onnx", precision, graph)
    given = [tensor.cpu() for tensor in rows_of(graph, inputs, 2)]
    return find_deviation(make_spec(bundle, graph), path, given, LIMITS[precision].error)


def _emulated(exported: Bundle, precision: str, folder: Path) -> Bundle:
    for graph in GRAPHS:
        source = graph_file(exported, "onnx", precision, graph)
        emulate(source, folder / "onnx" / precision / source.name)
    files = hash_files(sorted((folder / "onnx" / precision).iterdir()), folder)
    return exported.with_exports(folder, {"onnx": {precision: {"files": files}}})


def choose_target(bundle: Bundle, out: Path | None) -> Path:
    """Where an export of ``bundle`` goes: ``out``, its own folder, or a copy under its name.

    Raises:
        ConfigError: ``out`` holds something else.
    """
    if out is None:
        shipped = bundle.folder.resolve().is_relative_to(SHIPPED.resolve())
        writable = os.access(bundle.folder, os.W_OK) and not shipped
        return bundle.folder if writable else user_folder() / bundle.name
    if out.exists() and any(out.iterdir()) and open_bundle(str(out)).digest != bundle.digest:
        raise ConfigError(f"{out} holds a bundle of other weights; choose another folder with -o")
    return out


def start_export(target: Path, precision: str) -> Path:
    """An empty folder on the file system of ``target``; what a killed predecessor left goes."""
    root = (target if target.exists() else target.parent) / f"{GROWING}{target.name}-{precision}"
    try:
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
    except OSError as exc:
        raise OutputError(f"cannot write {root}: {exc.strerror}; choose a folder with -o") from exc
    return root


def _publish(
    bundle: Bundle, root: Path, target: Path, precision: str, entry: dict[str, Any]
) -> None:
    """Move the export from ``root`` to ``target``, and name it there."""
    if not (target / DESCRIPTION).is_file():
        try:
            _copy(bundle, target)
        except OSError as exc:
            raise OutputError(f"cannot write {target}: {exc.strerror or exc}") from exc
    put_export(root, target, precision, entry, DESCRIPTION)


def put_export(
    root: Path, target: Path, precision: str, entry: dict[str, Any], description: str
) -> None:
    """Move an export from ``root`` to ``target`` in place of an earlier one, and name it in
    the file ``description`` there.

    Raises:
        OutputError: it cannot be written.
    """
    final = target / "onnx" / precision
    old = final.with_name(OLD + final.name)
    try:
        final.parent.mkdir(exist_ok=True)
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():
            os.replace(final, old)
        os.replace(root / "onnx" / precision, final)
        sync_folder(final.parent)
    except OSError as exc:
        raise OutputError(f"cannot write {target}: {exc.strerror or exc}") from exc
    name_export(target / description, "onnx", precision, entry)
    shutil.rmtree(old, ignore_errors=True)


def name_export(path: Path, backend: str, precision: str, entry: dict[str, Any]) -> None:
    """Put an export into the description at ``path``, in place of an earlier one.

    Raises:
        OutputError: it cannot be written.
    """
    facts = json.loads(path.read_text("utf-8"))
    facts.setdefault("exports", {}).setdefault(backend, {})[precision] = entry
    write_durable(path, (json.dumps(facts, indent=2, ensure_ascii=False) + "\n").encode())


def _copy(bundle: Bundle, target: Path) -> None:
    """The bundle without exports, its description last."""
    for relative in bundle.description["files"]:
        path = target / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.folder / relative, path)
    facts = {key: value for key, value in bundle.description.items() if key != "exports"}
    text = json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
    write_durable(target / DESCRIPTION, text.encode())
