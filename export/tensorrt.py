"""TensorRT plans from exported ONNX graphs, built on the machine that will run them.

Every layer computes in the type that the graph asks for, which is checked in the finished plan.
Plans go to the user's own cache (``medclipsam.engine.backends.plans``); a bundle names the sha256
of those that passed the comparison with torch.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from medclipsam.engine.backends.plans import (
    PlanKey,
    Unusable,
    building,
    make_key,
    read_plan,
    write_plan,
)
from medclipsam.engine.backends.shapes import graph_ranges
from medclipsam.engine.backends.tensorrt_runtime import (
    current,
    load_engine,
    load_runtime,
    require_gpu,
)
from medclipsam.engine.config import EngineConfig
from medclipsam.engine.errors import BackendError
from medclipsam.engine.weights.bundle import DESCRIPTION, Bundle
from medclipsam.engine.weights.exports import GRAPHS, graph_file
from medclipsam.export.publish import name_export
from medclipsam.export.tensorrt_builder import WORKSPACE, Report, build_engine
from medclipsam.export.tensorrt_layers import check_layers, inspect_engine, read_graph

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """One plan in the cache.

    Attributes:
        built: whether it was built now; else it was there.
    """

    key: PlanKey
    sha256: str
    built: bool


def batch_sizes(config: EngineConfig) -> dict[str, int]:
    """Graph → rows per call, as the engine makes them."""
    return {
        "text": 1,
        "features": 1,
        "score": config.saliency.rows,
        "sam_encoder": config.segment.batch,
        "sam_decoder": config.segment.boxes,
    }


def export_tensorrt(
    bundle: Bundle,
    config: EngineConfig,
    device: torch.device,
    judge: Callable[[Bundle], dict[str, Any]],
    workspace: int = WORKSPACE,
    report: Report | None = None,
) -> list[Plan]:
    """Plans of every graph in ``config.precision``, compared with torch and named in the bundle.

    Args:
        bundle: has an ONNX export in this precision; its ``bundle.json`` can be written.
        judge: takes the bundle as it would be published; returns figures, or raises.
        workspace: bytes of GPU memory that the builder may use for one layer.
        report: takes graph, phase, steps done and steps in all.

    Raises:
        BackendError: TensorRT is missing or refuses a graph, layers are of other types than the
            graph's, or ``judge`` finds the plans unlike torch; the bundle then stays as it was.
    """
    device = require_gpu(device)
    plans = [
        build_plan(bundle, name, config.precision, rows, device, workspace, report)
        for name, rows in batch_sizes(config).items()
    ]
    entry = _entry(bundle, config, plans)
    staged = {**bundle.exports, "tensorrt": {config.precision: entry}}
    figures = judge(bundle.with_exports(bundle.folder, staged))
    entry["machines"][plans[0].key.machine]["parity"] = figures
    name_export(bundle.folder / DESCRIPTION, "tensorrt", config.precision, entry)
    return plans


def build_plan(
    bundle: Bundle,
    name: str,
    precision: str,
    rows: int,
    device: torch.device,
    workspace: int = WORKSPACE,
    report: Report | None = None,
) -> Plan:
    """The plan of one graph: the one in the cache, if it is sound and current, else a new one.

    Raises:
        BackendError: see ``export_tensorrt``.
        BundleError: a file of the graph is missing or altered.
    """
    if name not in GRAPHS:
        raise BackendError(f"unknown graph {name!r}; choose from {', '.join(GRAPHS)}")
    device = require_gpu(device)
    runtime = load_runtime()
    ranges = graph_ranges(bundle, name, rows)
    key = make_key(bundle, name, precision, ranges, device, runtime.__version__)
    with building(key), current(device):
        try:
            return Plan(key, read_plan(key)[1], built=False)
        except Unusable as exc:
            log.info("building the TensorRT plan of %s in %s: %s", name, precision, exc)
        source = graph_file(bundle, "onnx", precision, name)
        graph = read_graph(source)
        _require_source(graph.metadata, bundle, name, precision)
        started = time.monotonic()
        data = build_engine(runtime, source, name, ranges, key.machine, workspace, report)
        layers = inspect_engine(runtime, load_engine(runtime, data, name))
        notes = {
            "layers": check_layers(layers, graph.wanted, name, precision),
            "seconds": round(time.monotonic() - started, 1),
            "workspace": workspace,
        }
        return Plan(key, write_plan(key, data, notes), built=True)


def _require_source(metadata: dict[str, str], bundle: Bundle, name: str, precision: str) -> None:
    """Refuse a graph that says itself that it is another than the one asked for."""
    wanted = {"bundle": bundle.digest, "graph": name, "precision": precision}
    for part, value in wanted.items():
        found = metadata.get(f"medclipsam.{part}", "unknown")
        if found != value:
            raise BackendError(
                f"the exported graph {name!r} in {precision} of {bundle.folder} is one of another "
                f"{part} ({found[:16]}, expected {value[:16]}); export it again with 'medclipsam "
                f"export {bundle.name} --to onnx --precision {precision}'"
            )


def _entry(bundle: Bundle, config: EngineConfig, plans: Sequence[Plan]) -> dict[str, Any]:
    """``exports · tensorrt · PRECISION``: per machine, its plans and their figures.

    Plans named before stay so: those for other batch sizes are good, the rest is never found.
    """
    before = bundle.exports.get("tensorrt", {}).get(config.precision, {}).get("machines", {})
    key = plans[0].key
    known = before.get(key.machine, {}).get("plans", {})
    machine = {
        "gpu": key.gpu,
        "driver": key.driver,
        "tensorrt": key.tensorrt,
        "plans": {**known, **{plan.sha256: plan.key.graph for plan in plans}},
        "sizes": batch_sizes(config),
    }
    return {"files": {}, "machines": {**before, key.machine: machine}}
