"""How fast a device is: its products of matrices, every graph, and whole runs.

Models are of full size, with random weights: times are those of released weights, masks mean
nothing. No presence threshold is set, so that every image costs all that it can cost.
"""

import gc
import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

from medclipsam.benchmarks.gpu.setting import Setting
from medclipsam.benchmarks.inputs.archive import write_phantoms
from medclipsam.benchmarks.inputs.models import random_pair
from medclipsam.benchmarks.measuring.machine import count_cores
from medclipsam.benchmarks.measuring.spread import Spread, clock, take_turns
from medclipsam.benchmarks.rivals.run_jobs import PROMPTS
from medclipsam.benchmarks.saliency import count_flops
from medclipsam.engine.archive import open_archive
from medclipsam.engine.backends.arithmetic import DTYPES, make_autocast
from medclipsam.engine.config import make_config
from medclipsam.engine.engine import Engine
from medclipsam.engine.errors import MedclipsamError
from medclipsam.engine.pipeline import Pipeline
from medclipsam.engine.prompts import make_prompts
from medclipsam.engine.run.runner import RunSummary, run
from medclipsam.engine.weights.bundle import Bundle, open_bundle
from medclipsam.engine.weights.models import SamConfig

NULLS = ("breast ultrasound", "brain mri")
TOKENS, WIDTH, HIDDEN = 197 * 64, 768, 3072  # of 64 rows of a ViT-B/16
SHAPES = ((TOKENS, WIDTH, HIDDEN), (TOKENS, HIDDEN, WIDTH), (4096,) * 3, (8192,) * 3)
SMALL = ((256, 64, 128), (128,) * 3)
METHODS: dict[str, Any] = {"gscorecam": {"k": 300}, "contrastcam": {}}
TURNS = 3
LONG = 0.1  # seconds of calls that are timed as one: to wait for them is nothing beside it

Facts = dict[str, Any]


def measure_ceiling(setting: Setting) -> Facts:
    """TFLOP/s of matrix products, by precision and shape."""
    rows = []
    for precision in ("fp32", "tf32", "bf16", "fp16"):
        if precision == "tf32" and setting.device.type != "cuda":
            continue
        dtype = DTYPES.get(precision, torch.float32)
        exact = make_autocast(setting.device, "tf32") if precision == "tf32" else nullcontext
        found = {}
        for m, k, n in SMALL if setting.tiny else SHAPES:
            a = torch.randn(m, k, device=setting.device, dtype=dtype)
            b = torch.randn(k, n, device=setting.device, dtype=dtype)
            flops = 2.0 * m * k * n
            with exact():
                rate = _rate(setting, partial(torch.mm, a, b, out=a.new_empty(m, n)), flops)
            found[f"({m}, {k}) × ({k}, {n})"] = rate.scaled(1e-12).to_json()
        best = max(rate["median"] for rate in found.values())
        rows.append({"precision": precision, "tflops": best, "shapes": found})
    return {"rows": rows}


def measure_rates(sam: str, precision: str, setting: Setting) -> Facts:
    """Graphs and runs with BiomedCLIP and one SAM in one precision."""
    bundle = open_bundle("phantom") if setting.tiny else random_pair(sam)
    facts: Facts = {
        "sam": sam,
        "precision": precision,
        "weights": "the phantom bundle" if setting.tiny else "random: masks mean nothing",
    }
    try:
        facts["graphs"] = measure_graphs(bundle, precision, setting)
        facts["runs"] = [measure_run(bundle, name, precision, setting) for name in METHODS]
    except MedclipsamError as exc:
        facts["refused"] = str(exc)
    return facts


def measure_graphs(bundle: Bundle, precision: str, setting: Setting) -> list[Facts]:
    """Rows, images and boxes per second of each graph alone, and the TFLOP/s that they make."""
    rows, device = [], setting.device
    sizes = (8,) if setting.tiny else (64, 128, 256)
    clip: Any = bundle.clip
    flops = count_flops(clip.model, cls_only=True)
    for size in sizes:
        pipeline = _open(bundle, "gscorecam", precision, device, saliency={"rows": size})
        encoder = pipeline.encoder
        side = encoder.image_size
        pixels = torch.randn(size, 3, side, side, device=setting.device)
        work = {
            "score": (encoder.score, flops),
            "embed": (encoder.embed, flops),  # the same graph, in parts of one shape
        }
        for name, (graph, each) in work.items():
            rate = _rate(setting, partial(graph, pixels), size)
            rows.append(_row(name, size, rate, each))
    for batch in (1, 4):
        pipeline = _open(bundle, "gscorecam", precision, device, segment={"batch": batch})
        segmenter, config = pipeline.segmenter, pipeline.segmenter.config
        side = config.image_size
        pixels = torch.randn(batch, 3, side, side, device=setting.device)
        rate = _rate(setting, partial(segmenter.encoder, pixels), batch)
        rows.append(_row("sam_encoder", batch, rate, count_sam_flops(config)))
    boxes, cells = segmenter.boxes, config.image_size // config.patch_size
    embeddings = torch.randn(boxes, config.channels, cells, cells, device=setting.device)
    corners = torch.tensor([[0.1, 0.2, 0.6, 0.7]], device=setting.device) * config.image_size
    decode = partial(segmenter.decoder, embeddings, corners.expand(boxes, 4).contiguous())
    rows.append(_row("sam_decoder", boxes, _rate(setting, decode, boxes), None))
    return rows


def _row(graph: str, batch: int, rate: Spread, flops: float | None) -> Facts:
    row: Facts = {"graph": graph, "batch": batch, "per_s": rate.to_json()}
    if flops:
        row["tflops"] = float(f"{rate.median * flops / 1e12:.4g}")
    return row


def _rate(setting: Setting, call: Callable[[], object], items: float) -> Spread:
    """Items per second; a call is repeated until it is long enough to be timed."""

    def wait_for(times: int) -> None:
        with torch.inference_mode():
            for _ in range(times):
                call()
        setting.wait()

    wait_for(3)  # chooses kernels, captures graphs
    times = 1 if setting.tiny else math.ceil(LONG / clock(partial(wait_for, 1)))
    found = take_turns({"it": partial(wait_for, times)}, TURNS, short=0)
    return found.rate("it", times * items)


def measure_run(bundle: Bundle, method: str, precision: str, setting: Setting) -> Facts:
    """Images per second of whole runs, how busy the device was, and its memory."""
    count, side = (3, 96) if setting.tiny else (64, 512)
    folder = setting.scratch / method
    write_phantoms(folder / "archive", count, side)
    pipeline = _open(bundle, method, precision, setting.device)
    engine = Engine(bundle, pipeline.config, pipeline, count_cores())
    prompts, summaries = make_prompts(PROMPTS), list[RunSummary]()

    def label() -> None:
        out = folder / f"run-{len(summaries)}"
        archive = open_archive(str(folder / "archive"))
        summaries.append(run(engine, archive, prompts, out))

    cuda = setting.device.type == "cuda"
    if cuda:  # what was held before the run does not count
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(setting.device)
    found = take_turns({"run": label}, 1 if setting.tiny else TURNS, short=0)
    last = summaries[-1]
    return {
        "method": method,
        "images": count,
        "images_per_s": found.rate("run", count).to_json(),
        "device_busy": round(last.busy / last.seconds, 3),
        "waited_for_work": round(last.idle / last.seconds, 3),
        "device_gib": torch.cuda.max_memory_reserved(setting.device) / 2**30 if cuda else None,
        "outcomes": dict(last.counts),
        "stages": [{"stage": s.stage, "items": s.items, "busy": s.busy} for s in last.stages],
    }


def _open(
    bundle: Bundle, method: str, precision: str, device: torch.device, **sizes: Facts
) -> Pipeline:
    """``sizes`` are settings of ``saliency`` or ``segment``."""
    saliency = {"method": method, **METHODS[method], **sizes.get("saliency", {})}
    chosen = {"saliency": saliency, "segment": sizes.get("segment", {}), "precision": precision}
    config = make_config({"null_prompts": list(NULLS)}, chosen)
    return Pipeline.open(bundle, config, device)


def count_sam_flops(config: SamConfig) -> float:
    """FLOPs of SAM's encoder for one image, two per multiply-add, of products alone."""
    cells = config.image_size // config.patch_size
    tokens, width, window = cells**2, config.encoder_width, config.window
    windows = math.ceil(cells / window) ** 2
    heads_width = width // config.encoder_heads
    total = tokens * 3 * config.patch_size**2 * width
    for block in range(config.encoder_depth):
        whole = block in config.global_blocks
        pairs = tokens**2 if whole else windows * window**4
        side, queries = (cells, tokens) if whole else (window, windows * window**2)
        positions = 2 * queries * side * heads_width * config.encoder_heads
        total += tokens * 12 * width**2 + 2 * pairs * width + positions
    neck = width * config.channels + 9 * config.channels**2
    return 2.0 * (total + tokens * neck)
