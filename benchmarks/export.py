"""Full-size graphs exported and run: error against torch at several batch sizes, time, memory.

    python -m medclipsam.benchmarks.export

BiomedCLIP and SAM ViT-B, L and H with random weights, each in a process of its own. Error: the
largest over outputs and batches, relative to the largest value, ONNX Runtime's CPU against float32
torch, which computes one row at a time. bf16, which that provider lacks, by rounding float32.
"""

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from medclipsam.benchmarks.biomedclip import random_biomedclip
from medclipsam.engine.backends.onnxruntime import FIRST, Graph
from medclipsam.engine.backends.session import open_session
from medclipsam.engine.durable import write_durable
from medclipsam.engine.weights.bundle import Bundle
from medclipsam.engine.weights.exports import GRAPHS
from medclipsam.engine.weights.models import SAM_PRESETS, build_sam
from medclipsam.export.emulation import emulate
from medclipsam.export.graphs import Spec, make_spec
from medclipsam.export.layers import relative_error
from medclipsam.export.onnx import build_model, write_model
from medclipsam.export.parity import BATCHES, rows_of

CPU = torch.device("cpu")
MODELS = {
    "biomedclip": ("fp32", "fp16", "bf16"),
    "vit_b": ("fp32", "fp16", "bf16"),
    "vit_l": ("fp32",),
    "vit_h": ("fp32",),
}
POSITIONS = 0.02  # deviation of relative positions, which segment_anything starts at zero
PACKAGES = ("medclipsam", "torch", "onnx", "onnxscript", "onnxruntime-gpu")


def random_bundle(model: str) -> Bundle:
    """Weights of a model's full size, and nothing on disk."""
    torch.manual_seed(0)
    if model == "biomedclip":
        bundle = Bundle(Path("random"), {"files": {}})
        bundle.__dict__["clip"] = random_biomedclip().clip
        return bundle
    config = SAM_PRESETS[model]
    sam = build_sam(config)
    for name, parameter in sam.named_parameters():
        if "rel_pos" in name:
            torch.nn.init.normal_(parameter, std=POSITIONS)
    bundle = Bundle(Path("random"), {"files": {}, "sam": asdict(config)})
    bundle.__dict__["sam"] = sam
    return bundle


def random_inputs(spec: Spec, rows: int) -> tuple[Tensor, ...]:
    """Inputs of the kind that the graph sees."""
    torch.manual_seed(1)
    if spec.name == "text":
        return (torch.randint(5, 30_000, (rows, 12)),)
    if spec.name == "sam_decoder":
        corners = torch.rand(rows, 4) * 400
        return torch.randn(rows, *spec.examples[0].shape[1:]), corners + torch.tensor(
            [0, 0, 500, 500]
        )
    return (torch.randn(rows, *spec.examples[0].shape[1:]), *spec.examples[1:])


def measure_graph(
    bundle: Bundle, name: str, precision: str, batches: Sequence[int]
) -> dict[str, Any]:
    """Export one graph, run it at every batch size."""
    spec = make_spec(bundle, name)
    inputs = random_inputs(spec, max(batches))
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        path = Path(folder) / f"{name}.onnx"
        files = write_model(build_model(bundle, name, precision), path)
        row: dict[str, Any] = {
            "graph": name,
            "precision": precision,
            "files": len(files),
            "mib": round(sum(file.stat().st_size for file in files) / 2**20),
            "export_s": round(time.perf_counter() - begin, 1),
        }
        if precision == "bf16":
            emulated = Path(folder) / "emulated" / path.name
            emulate(path, emulated)
            path = emulated
        expected, row["torch_s"] = reference(spec, inputs, max(batches))
        for rows in batches:
            fixed = {FIRST[name]: rows}
            graph = Graph(open_session(path, "cpu", CPU, fixed), CPU, fixed)
            begin = time.perf_counter()
            found = as_tuple(graph(*rows_of(name, inputs, rows)))
            row[f"onnx_s_{rows}"] = round(time.perf_counter() - begin, 2)
            row[f"error_{rows}"] = max(
                relative_error(f.numpy(), e[:rows].numpy())[0]
                for f, e in zip(found, expected, strict=True)
            )
    return row


@torch.inference_mode()
def reference(spec: Spec, inputs: tuple[Tensor, ...], count: int) -> tuple[list[Tensor], float]:
    """Outputs of torch, row by row, and seconds of one row."""
    begin = time.perf_counter()
    rows = []
    for n in range(count):
        whole = spec.name == "features"
        given = [t if whole and k == 1 else t[n : n + 1] for k, t in enumerate(inputs)]
        rows.append(as_tuple(spec.module(*given)))
    seconds = round((time.perf_counter() - begin) / len(rows), 2)
    return [torch.cat(part) for part in zip(*rows, strict=True)], seconds


def as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    """One output or several."""
    return outputs if isinstance(outputs, tuple) else (outputs,)


def measure_alone(model: str, precision: str) -> None:
    """All graphs of one model in this process; says rows and peak memory as JSON."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    bundle = random_bundle(model)
    graphs = [name for name in GRAPHS if name.startswith("sam_") == (model != "biomedclip")]
    if precision != "fp32":
        graphs = [name for name in graphs if make_spec(bundle, name).island]
    rows = [measure_graph(bundle, name, precision, BATCHES) for name in graphs]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    click.echo(json.dumps([{"model": model, **row, "peak_gib": round(peak, 1)} for row in rows]))


def to_markdown(rows: list[dict[str, Any]]) -> str:
    """One line a graph."""
    text = "# Full-size graphs in ONNX Runtime (CPU)\n\n"
    text += (__doc__ or "").split("\n\n")[2].strip().replace("\n", " ") + "\n\n"
    text += "| model | graph | precision | MiB | files | export s | "
    text += " | ".join(f"error at {n}" for n in BATCHES) + " | torch s, 1 row | "
    text += " | ".join(f"ONNX s, {n}" for n in BATCHES) + " | peak GiB of the process |\n"
    text += "|" + " --- |" * (9 + 2 * len(BATCHES) - 1) + "\n"
    for row in rows:
        cells = [row["model"], row["graph"], row["precision"], row["mib"], row["files"]]
        cells += [row["export_s"], *(_shown(row.get(f"error_{n}")) for n in BATCHES)]
        cells += [row["torch_s"], *(row.get(f"onnx_s_{n}", "") for n in BATCHES), row["peak_gib"]]
        text += "| " + " | ".join(map(str, cells)) + " |\n"
    return text


def _shown(error: float | None) -> str:
    return "" if error is None else f"{error:.1e}"


@click.command()
@click.option("--model", "models", multiple=True, type=click.Choice([*MODELS]), help="[all]")
@click.option("-o", "--out", default="benchmarks/results", show_default=True, type=Path)
def main(models: tuple[str, ...], out: Path) -> None:
    """Writes export.json and export.md; rows of models not asked for stay."""
    path = out / "data" / "export.json"
    known = json.loads(path.read_text())["rows"] if path.exists() else []
    program = (
        "import sys; from medclipsam.benchmarks.export import measure_alone; "
        "measure_alone(sys.argv[1], sys.argv[2])"
    )
    for model in models or MODELS:
        known = [row for row in known if row["model"] != model]
        for precision in MODELS[model]:
            done = subprocess.run(
                [sys.executable, "-c", program, model, precision],
                stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
            known += json.loads(done.stdout.splitlines()[-1])
            click.echo(done.stdout.splitlines()[-1])
    order = [*MODELS]
    rows = sorted(known, key=lambda row: order.index(row["model"]))
    facts = {
        "command": "python -m medclipsam.benchmarks.export",
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "versions": {name: version(name) for name in PACKAGES},
        "rows": rows,
    }
    write_durable(path, (json.dumps(facts, indent=2) + "\n").encode())
    write_durable(out / "export.md", to_markdown(rows).encode())


if __name__ == "__main__":
    main()
