"""Full-size graphs exported and run: error against torch at several batch sizes, time, memory.

    python -m medclipsam.benchmarks.export

BiomedCLIP and SAM ViT-B, L and H with random weights, each in a process of its own. Error: the
largest over outputs and batches, relative to the largest value, ONNX Runtime's CPU against float32
torch, which computes one row at a time. bf16, which that provider lacks, by rounding float32.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from medclipsam.benchmarks.inputs.models import random_bundle
from medclipsam.benchmarks.measuring.result import RESULTS, open_facts, publish
from medclipsam.engine.backends.onnxruntime import FIRST, Graph
from medclipsam.engine.backends.session import open_session
from medclipsam.engine.weights.bundle import Bundle
from medclipsam.engine.weights.exports import GRAPHS
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
PACKAGES = ("onnx", "onnxscript", "onnxruntime-gpu")


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


LEGEND = """Error: the largest over outputs, relative to the largest value, ONNX Runtime's CPU \
against float32 torch, which computes one row at a time. bf16, which that provider lacks, by \
rounding float32. Weights are random. Seconds are of one call, measured once.

"""


def to_markdown(facts: Mapping[str, Any]) -> str:
    """One line a graph."""
    batches = facts["batches"]
    heads = ["model", "graph", "precision", "MiB", "files", "export s"]
    heads += [f"error at {n}" for n in batches] + ["torch s, 1 row"]
    heads += [f"ONNX s, {n}" for n in batches] + ["peak GiB of the process"]
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for row in facts["rows"]:
        cells = [row["model"], row["graph"], row["precision"], row["mib"], row["files"]]
        cells += [row["export_s"], *(f"{row[f'error_{n}']:.1e}" for n in batches)]
        cells += [row["torch_s"], *(row[f"onnx_s_{n}"] for n in batches), row["peak_gib"]]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return LEGEND + "\n".join(lines) + "\n"


@click.command()
@click.option("--model", "models", multiple=True, type=click.Choice([*MODELS]), help="[all]")
@RESULTS
def main(models: tuple[str, ...], out: Path) -> None:
    """Writes export.json and export.md; rows of models not asked for stay."""
    facts = open_facts(PACKAGES)
    path = out / "export.json"
    known = json.loads(path.read_text())["rows"] if path.exists() else []
    kept = [model for model in MODELS if models and model not in models]
    if kept:
        facts["note"] = f"Rows of {', '.join(kept)} are of an earlier run"
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
    facts["batches"] = BATCHES
    facts["rows"] = sorted(known, key=lambda row: order.index(row["model"]))
    publish(out, "export", facts, to_markdown)


if __name__ == "__main__":
    main()
