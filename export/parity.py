"""Exported graphs against float32 torch: each for itself, then the whole pipeline, on images.

Refuses to know files: what it finds wrong is said, not acted upon.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medclipsam.engine.backends import open_graph
from medclipsam.engine.config import make_config
from medclipsam.engine.evaluation.metrics import iou
from medclipsam.engine.pipeline import Pipeline
from medclipsam.engine.types import Prompts, Segmentation
from medclipsam.engine.weights.bundle import Bundle
from medclipsam.engine.weights.exports import GRAPHS
from medclipsam.export.layers import relative_error

BATCHES = (1, 2, 3)


@dataclass(frozen=True)
class Limits:
    """What an export may differ by at most.

    Attributes:
        error: of any output, relative to its largest value.
        correlation: least, of saliency maps.
        mean_iou, worst_iou: least, of masks.
    """

    error: float
    correlation: float
    mean_iou: float
    worst_iou: float


LIMITS = {
    "fp32": Limits(error=1e-3, correlation=0.9999, mean_iou=0.999, worst_iou=0.98),
    "fp16": Limits(error=1e-2, correlation=0.99, mean_iou=0.99, worst_iou=0.9),
    "bf16": Limits(error=5e-2, correlation=0.95, mean_iou=0.97, worst_iou=0.8),
}


@dataclass
class Parity:
    """Figures of one export.

    Attributes:
        ran: what computed the exported graphs.
        images, masks: how many were compared; masks empty on both sides are not.
        graphs: graph → ``max_error``, ``mean_error`` (relative), ``nonfinite``, worst of all
            outputs and batches.
        correlation, worst_correlation: of the saliency maps.
        mean_iou, worst_iou: of the masks; one that is empty on one side only counts 0.
        failures: what is beyond the limits; empty if the export may be published.
    """

    ran: str
    images: int = 0
    masks: int = 0
    graphs: dict[str, dict[str, float]] = field(default_factory=dict)
    correlation: float = 1.0
    worst_correlation: float = 1.0
    mean_iou: float = 1.0
    worst_iou: float = 1.0
    failures: list[str] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        """For ``bundle.json``."""
        figures = asdict(self)
        del figures["failures"]
        return figures


Explain = Callable[[str, Sequence[Tensor]], str]


def measure(
    bundle: Bundle,
    exported: Bundle,
    backend: str,
    precision: str,
    images: Sequence[np.ndarray],
    prompts: Prompts,
    device: torch.device,
    ran: str,
    explain: Explain,
    log: Callable[[str], None],
    settings: Mapping[str, Any] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Parity:
    """Compare ``exported`` on ``backend`` with ``bundle`` in float32 torch.

    Args:
        images: uint8 (H, W, 3).
        ran: what computes the exported graphs, for the record.
        explain: (graph, its inputs) → which layer is off, asked where a graph is.
        log: takes a line per graph.
        settings: of the pipeline, over the bundle's defaults.
        sizes: graph → the only number of rows it takes; else those in ``BATCHES``.

    Raises:
        BackendError: a graph that the backend cannot open.
    """
    parity = Parity(ran, len(images))
    limits = LIMITS[precision]
    settings = settings or {}
    reference = Pipeline.open(bundle, _config(bundle, settings, "fp32"), device)
    inputs = make_inputs(reference, images, prompts)
    for name in GRAPHS:
        graph = _compare_graph(
            bundle, exported, backend, precision, name, inputs[name], device,
            (sizes[name],) if sizes else BATCHES,
        )  # fmt: skip
        parity.graphs[name] = graph
        log(f"{name}: largest error {graph['max_error']:.2g}, {graph['nonfinite']} not finite")
        if graph["nonfinite"] or not graph["max_error"] <= limits.error:
            where = explain(name, inputs[name])
            parity.failures.append(
                f"graph {name!r} differs by {graph['max_error']:.2g} (at most {limits.error:g}), "
                f"{graph['nonfinite']} values not finite: {where}"
            )
    if parity.failures:
        return parity
    ours = Pipeline.open(exported, _config(bundle, settings, precision), device, backend)
    pairs = []
    for rgb in images:
        both = [pipeline.segment([rgb], [prompts])[0] for pipeline in (reference, ours)]
        pairs += [(both[0][label], both[1][label]) for label in prompts.labels]
    compare_segments(parity, pairs, limits)
    log(f"masks: IoU {parity.mean_iou:.5f}, worst {parity.worst_iou:.5f} of {parity.masks}")
    return parity


def _config(bundle: Bundle, settings: Mapping[str, Any], precision: str) -> Any:
    return make_config(bundle.defaults, settings, {"precision": precision})


def make_inputs(
    pipeline: Pipeline, images: Sequence[np.ndarray], prompts: Prompts
) -> dict[str, tuple[Tensor, ...]]:
    """Inputs of every graph, as many rows as the largest of ``BATCHES``."""
    rows = max(BATCHES)
    encoder, segmenter = pipeline.encoder, pipeline.segmenter
    chosen = [images[n % len(images)] for n in range(rows)]
    pixels = pipeline.to_pixels([pipeline.fit(rgb) for rgb in chosen])
    texts = [text for group in prompts.texts.values() for text in group]
    tokens = encoder.tokenizer([texts[n % len(texts)] for n in range(rows)])
    tokens = tokens[:, : int((tokens != 0).sum(1).max())].to(encoder.device)
    large = segmenter.prepare([segmenter.resize(rgb) for rgb in chosen])
    side = segmenter.config.image_size
    boxes = torch.tensor([[0.1, 0.2, 0.6, 0.7], [0.3, 0.3, 0.9, 0.8], [0.2, 0.1, 0.5, 0.4]])
    return {
        "text": (tokens,),
        "features": (pixels, pipeline.encode_prompts(prompts).to(encoder.device)),
        "score": (pixels,),
        "sam_encoder": (large,),
        "sam_decoder": (segmenter.encoder(large), (boxes * side).to(encoder.device)),
    }


def rows_of(name: str, inputs: Sequence[Tensor], rows: int) -> list[Tensor]:
    """``rows`` rows of a graph's inputs, from the first on, again if need be; prompts of
    ``features`` stay."""
    return [
        t if name == "features" and n == 1 else t[torch.arange(rows, device=t.device) % len(t)]
        for n, t in enumerate(inputs)
    ]


def _compare_graph(
    bundle: Bundle,
    exported: Bundle,
    backend: str,
    precision: str,
    name: str,
    inputs: Sequence[Tensor],
    device: torch.device,
    batches: Sequence[int],
) -> dict[str, float]:
    """The worst over all outputs, in batches of each size."""
    reference = open_graph(bundle, name, device)
    errors = []
    for rows in batches:
        graph = open_graph(exported, name, device, backend, batch=rows, precision=precision)
        given = rows_of(name, inputs, rows)
        pairs = zip(_as_tuple(graph(*given)), _as_tuple(reference(*given)), strict=True)
        errors += [relative_error(f.cpu().numpy(), e.cpu().numpy()) for f, e in pairs]
    most, mean, nonfinite = zip(*errors, strict=True)
    return {"max_error": max(most), "mean_error": max(mean), "nonfinite": sum(nonfinite)}


def _as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def compare_segments(
    parity: Parity, pairs: Sequence[tuple[Segmentation, Segmentation]], limits: Limits
) -> None:
    """Fill in figures of saliency and masks of (torch, exported), and what is beyond
    ``limits``."""
    correlations = [_correlation(one.saliency, two.saliency) for one, two in pairs]
    shown = [(one.mask, two.mask) for one, two in pairs if one.mask.any() or two.mask.any()]
    overlaps = [iou(one, two) for one, two in shown]
    parity.masks = len(shown)
    parity.correlation = float(np.mean(correlations))
    parity.worst_correlation = float(np.min(correlations))
    if not shown:
        parity.failures.append(
            "no mask was drawn on these images, so masks cannot be compared: give images of what "
            "the bundle knows with --images, and its prompts with -p"
        )
        return
    parity.mean_iou, parity.worst_iou = float(np.mean(overlaps)), float(np.min(overlaps))
    judged: Mapping[str, tuple[float, float]] = {
        "saliency correlation": (parity.correlation, limits.correlation),
        "mean mask IoU": (parity.mean_iou, limits.mean_iou),
        "worst mask IoU": (parity.worst_iou, limits.worst_iou),
    }
    worst = max(parity.graphs, key=lambda name: parity.graphs[name]["max_error"])
    parity.failures += [
        f"{what} is {found:.4f} (at least {least:g}); the graph that differs most is {worst!r}"
        for what, (found, least) in judged.items()
        if not found >= least
    ]


def _correlation(one: np.ndarray, two: np.ndarray) -> float:
    """Pearson's of two maps; of constant ones, whether they are equal."""
    if np.ptp(one) == 0 or np.ptp(two) == 0:
        return float(np.array_equal(one, two))
    return float(np.corrcoef(one.ravel(), two.ravel())[0, 1])
