"""gScoreCAM: rows per second, what rows cost beyond the model, and a straightforward run.

    python -m medclipsam.benchmarks.saliency

Measured in one run, on the same threads: the device's matrix products; ``encoder.score``
and open_clip's plain forward against batch size; our saliency of one and of several
prompts; the published procedure written plainly, prompt by prompt; fewer channels
against all. Without ``--bundle`` the model is BiomedCLIP's architecture with random
weights: times are those of the released weights, maps are arbitrary.
"""

import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import torch
from torch import Tensor

from medclipsam.benchmarks.inputs.biomedclip import TEXTS, draw, random_biomedclip
from medclipsam.benchmarks.measuring.result import RESULTS, open_facts, publish
from medclipsam.benchmarks.measuring.spread import Ratio, Spread, clock, take_turns
from medclipsam.benchmarks.rivals.published_saliency import straightforward
from medclipsam.engine.backends.handover import fetch
from medclipsam.engine.encoder import ClipEncoder
from medclipsam.engine.saliency import SaliencyConfig, ask, compute_saliency
from medclipsam.engine.saliency.gscorecam import probe_gscorecam
from medclipsam.engine.weights.bundle import Bundle, open_bundle

CPU = torch.device("cpu")
REPEATS = 3

Row = dict[str, Any]


def measure_products(trunk: Any, rows: int) -> dict[str, float]:
    """GFLOP/s of float32 products in the ViT's own shapes and in large squares."""
    tokens, width = trunk.pos_embed.shape[1] * rows, trunk.embed_dim
    hidden = trunk.blocks[0].mlp.fc1.out_features
    shapes = [(tokens, width, hidden), (tokens, hidden, width), (tokens, width, 3 * width)]
    found = {}
    for m, k, n in [*shapes, (1024,) * 3, (2048,) * 3, (4096,) * 3]:
        product = partial(torch.mm, torch.randn(m, k), torch.randn(k, n), out=torch.empty(m, n))
        seconds = take_turns({"it": product}, REPEATS).spread("it").low  # a ceiling is the best
        found[f"({m}, {k}) × ({k}, {n})"] = round(2 * m * k * n / seconds / 1e9, 1)
    return found


def count_flops(clip: Any, cls_only: bool) -> int:
    """FLOPs of one row, two per multiply-add; norms, softmax and GELU are not counted.

    Args:
        cls_only: the last block computes keys and values of all tokens, the rest for CLS
            alone, as ``score`` does.
    """
    trunk = clip.visual.trunk
    n, c = trunk.pos_embed.shape[1], trunk.embed_dim
    hidden, depth = trunk.blocks[0].mlp.fc1.out_features, len(trunk.blocks)
    embed = (n - trunk.num_prefix_tokens) * trunk.patch_embed.proj.weight.numel()

    def block(queries: int) -> int:
        linear = 2 * n * c * c + queries * (2 * c * c + 2 * c * hidden)
        return linear + 2 * queries * n * c

    head = sum(p.numel() for p in clip.visual.head.parameters() if p.ndim == 2)
    return 2 * (embed + (depth - 1) * block(n) + block(1 if cls_only else n) + head)


def measure_batches(encoder: ClipEncoder, model: Any, sizes: Sequence[int]) -> list[Row]:
    """Rows per second of ``score`` and of open_clip's ``encode_image``, in turns."""

    @torch.inference_mode()
    def plain(pixels: Tensor) -> Tensor:
        return model.encode_image(pixels)

    found = []
    for size in sizes:
        pixels = encoder.normalise(draw(size, encoder.image_size))
        row: Row = {"batch": size}
        calls = {"score": partial(encoder.score, pixels), "plain": partial(plain, pixels)}
        turns = take_turns(calls, REPEATS)
        for name in calls:
            rate = turns.rate(name, size)
            gflops = rate.median * count_flops(model, name == "score") / 1e9
            row[name] = {"rows_per_s": rate.to_json(), "gflop_per_s": round(gflops, 1)}
        click.echo(json.dumps(row))
        found.append(row)
    return found


def run_ours(
    encoder: ClipEncoder, images: Tensor, texts: Sequence[str], config: SaliencyConfig
) -> tuple[Row, Tensor]:
    """Saliency of all images through one queue, texts included → (B, P, g, g) maps."""
    embedded = 0

    def score(rows: Tensor) -> Tensor:
        nonlocal embedded
        embedded += len(rows)
        return encoder.score(rows)

    counting = replace(encoder, score=score)

    maps = torch.empty(0)

    def run() -> None:
        nonlocal maps
        prompts = counting.encode_text(texts)
        asked = ask(counting, images, prompts)
        maps = torch.stack([a.saliency for a in compute_saliency(counting, asked, config)])

    seconds = clock(run)
    k = config.k if config.method == "gscorecam" else sys.maxsize
    prompts = encoder.encode_text(texts)
    questions = ask(encoder, images, prompts)
    asked = [probe_gscorecam(encoder, question, k) for question in questions]
    wanted = sum(probe.finish(*fetch(encoder.device, *probe.tensors)).rows for probe in asked)
    return {
        "prompts": len(texts),
        "s_per_image": round(seconds / len(images), 3),
        "rows_per_image": round(wanted / len(images), 2),
        "rows_with_padding_per_image": round(embedded / len(images), 2),
    }, maps


def run_straightforward(
    clip: Any, images: Tensor, texts: Sequence[str], k: int
) -> tuple[Tensor, Tensor]:
    """Seconds (B, P) and maps (B, P, g, g), every prompt of every image from scratch."""
    seconds, maps = [], []
    for n, image in enumerate(images):
        for text in texts:
            begun = time.perf_counter()
            maps.append(straightforward(clip, image, text, k))
            spent = time.perf_counter() - begun
            seconds.append(spent)
            click.echo(f"straightforward, image {n}, {text!r}: {spent:.2f} s")
    shape = (len(images), len(texts))
    return torch.tensor(seconds).view(shape), torch.stack(maps).unflatten(0, shape)


def compare_channels(encoder: ClipEncoder, images: Tensor, ks: Iterable[str]) -> list[Row]:
    """Time and likeness of the maps of the first prompt, against the last of ``ks``."""
    found, maps = [], []
    for k in ks:
        config = SaliencyConfig("scorecam") if k == "all" else SaliencyConfig(k=int(k))
        row, saliency = run_ours(encoder, images, TEXTS[:1], config)
        found.append({"k": k, **row})
        maps.append(saliency[:, 0].flatten(1).numpy())
        click.echo(json.dumps(found[-1]))
    for row, some in zip(found, maps, strict=True):
        pairs = zip(some, maps[-1], strict=True)
        row["correlation"] = round(float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairs])), 4)
        row["max_difference"] = round(float(abs(some - maps[-1]).max()), 4)
    return found


def to_markdown(facts: Mapping[str, Any]) -> str:
    """Everything measured, as tables."""
    best, ceiling, flops = facts["best_row_s"], facts["ceiling_gflop_per_s"], facts["gflop_per_row"]
    arbitrary = (
        " Its maps are arbitrary: only times, rows and the difference of both procedures' maps "
        "mean something. Its prompts lie far apart and share few channels; a real model's may "
        "share more, and then need fewer rows."
    )
    batches = [
        [row["batch"]]
        + [
            cell
            for name in ("score", "plain")
            for cell in (
                Spread.from_json(row[name]["rows_per_s"]).show(),
                f"{row[name]['gflop_per_s'] / ceiling:.0%}",
            )
        ]
        for row in facts["batches"]
    ]
    gscorecam = ["prompts", "straightforward_s_per_image", "s_per_image", "times_faster"]
    gscorecam += ["rows_per_image", "overhead_plain", "overhead_score", "max_difference"]
    channels = ["k", "s_per_image", "rows_per_image", "correlation", "max_difference"]
    last = facts["channels"][-1]["k"]
    parts = [
        f"Model: {facts['model']}.{arbitrary * facts['random']}",
        f"Matrix products reach {ceiling} GFLOP/s: "
        + "; ".join(f"{shape} {rate}" for shape, rate in facts["products"].items())
        + f". One row takes {flops['score']} GFLOP in score, {flops['plain']} in a plain forward.",
        _table("rows a batch | score rows/s | of ceiling | plain rows/s | of ceiling", batches),
        f"gScoreCAM, k = {facts['k']}, {facts['images']} image(s), {facts['rows']} rows a batch. "
        f"Overhead is time over rows × the best row of a plain forward ({best['plain']} s) or of "
        f"score ({best['score']} s); it takes in texts, features, masks and padding.",
        _table(
            "prompts | straightforward s/image | ours s/image | × | rows/image "
            "| overhead, plain | overhead, score | max difference of maps",
            [
                [
                    Ratio.from_json(row[key]).show() if key == "times_faster" else row[key]
                    for key in gscorecam
                ]
                for row in facts["gscorecam"]
            ],
        ),
        _table(
            f"k, one prompt | s/image | rows/image | correlation with {last} | max difference",
            [[row[key] for key in channels] for row in facts["channels"]],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _table(header: str, rows: Iterable[Sequence[object]]) -> str:
    lines = [f"| {header} |", "| --- " * (header.count("|") + 1) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def compare_procedures(
    encoder: ClipEncoder, clip: Any, images: Tensor, texts: Sequence[str], k: int, best: Row
) -> list[Row]:
    """Ours and the straightforward run, for the first prompt and for all."""
    ours = []
    for count in sorted({1, len(texts)}):
        row, maps = run_ours(encoder, images, texts[:count], SaliencyConfig(k=k))
        for name in ("plain", "score"):
            least = row["rows_per_image"] * best[name]
            row[f"overhead_{name}"] = round(row["s_per_image"] / least, 3)
        click.echo(json.dumps(row))
        ours.append((row, maps))
    seconds, expected = run_straightforward(clip, images, texts, k)
    for row, maps in ours:
        count = row["prompts"]
        theirs = float(seconds[:, :count].sum(1).mean())
        row["straightforward_s_per_image"] = round(theirs, 3)
        row["times_faster"] = Ratio.of([theirs / row["s_per_image"]]).to_json()
        row["max_difference"] = float(f"{(maps - expected[:, :count]).abs().max():.2g}")
        click.echo(json.dumps(row))
    return [row for row, _ in ours]


@click.command(context_settings={"show_default": True})
@click.option("--threads", default=2, type=click.IntRange(1))
@click.option("--k", default=300, type=click.IntRange(1), help="Channels per prompt.")
@click.option("--prompts", default=10, type=click.IntRange(1, len(TEXTS)))
@click.option("--images", default=1, type=click.IntRange(1))
@click.option("--rows", default=16, type=click.IntRange(1), help="Rows per batch of ours.")
@click.option("--batches", default="1,2,4,8,16,32,64")
@click.option("--ks", default="50,100,300,all", help="Channels, compared with the last.")
@click.option("--bundle", help="Instead of a full-size BiomedCLIP with random weights.")
@RESULTS
def main(threads: int, rows: int, bundle: str | None, out: Path, **settings: Any) -> None:
    """gScoreCAM beside its straightforward form; writes saliency.md and saliency.json."""
    torch.set_num_threads(threads)
    cv2.setNumThreads(1)
    opened = open_bundle(bundle) if bundle else random_biomedclip()
    facts: Row = {
        **open_facts(("open_clip_torch",)),
        "model": f"bundle {bundle}" if bundle else "BiomedCLIP's architecture, random weights",
        "random": bundle is None,
        **{"threads": threads, "rows": rows, **settings},
    }
    measure(opened, facts)
    publish(out, "saliency", facts, to_markdown)


def measure(bundle: Bundle, facts: Row) -> None:
    """All measurements, into ``facts``, as its settings say."""
    clip: Any = bundle.clip
    encoder = ClipEncoder.open(bundle, CPU, rows=facts["rows"])
    before = measure_products(clip.model.visual.trunk, facts["rows"])
    click.echo(json.dumps(before))
    facts["gflop_per_row"] = {
        name: round(count_flops(clip.model, name == "score") / 1e9, 3)
        for name in ("score", "plain")
    }
    sizes = [int(size) for size in facts["batches"].split(",")]
    facts["batches"] = measure_batches(encoder, clip.model, sizes)
    # a second time, so that one busy moment of the machine cannot lower the ceiling
    after = measure_products(clip.model.visual.trunk, facts["rows"])
    facts["products"] = {shape: max(rate, after[shape]) for shape, rate in before.items()}
    facts["ceiling_gflop_per_s"] = max(facts["products"].values())
    facts["best_row_s"] = best = {
        name: round(1 / max(row[name]["rows_per_s"]["median"] for row in facts["batches"]), 5)
        for name in ("score", "plain")
    }
    images, texts = draw(facts["images"], encoder.image_size), TEXTS[: facts["prompts"]]
    facts["gscorecam"] = compare_procedures(encoder, clip, images, texts, facts["k"], best)
    facts["channels"] = compare_channels(encoder, images, facts["ks"].split(","))


if __name__ == "__main__":
    main()
