"""Where in the image the prompt is: one interface, several methods.

Another method is one more file with a function ``probe_x`` that says which masked images
it wants to see and what it makes of them, and one more branch in ``_open_probe``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from medclipsam.engine.encoder import ClipEncoder
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.saliency.contrast import presence
from medclipsam.engine.saliency.contrastcam import contrastcam, probe_contrastcam
from medclipsam.engine.saliency.gradcam import gradcam, probe_gradcam
from medclipsam.engine.saliency.gscorecam import gscorecam, probe_gscorecam
from medclipsam.engine.saliency.m2ib import m2ib, probe_m2ib
from medclipsam.engine.saliency.rows import Probe, RowQueue
from medclipsam.engine.saliency.scorecam import probe_scorecam, scorecam

__all__ = [
    "Answer",
    "Question",
    "SaliencyConfig",
    "SaliencyQueue",
    "compute_saliency",
    "contrastcam",
    "gradcam",
    "gscorecam",
    "m2ib",
    "scorecam",
]

METHODS = ("gscorecam", "scorecam", "contrastcam", "gradcam", "m2ib")


@dataclass(frozen=True)
class SaliencyConfig:
    """Which method, and how.

    Attributes:
        method: ``gscorecam`` (the paper), ``scorecam``, ``contrastcam`` (ours), ``gradcam``
            (the paper's baseline) or ``m2ib`` (MedCLIP-SAMv2).
        k: channels scored per prompt by gscorecam.
        target: layer norm of the block whose tokens are the channels: ``norm1``, or
            ``norm2`` as published, where at the last block all gradients of patch tokens
            are exactly 0, so that the choice of channels ignores the prompt.
        block: transformer block of the channels, counted from 0 or back from −1.
        rows: masked images per forward batch.
        blur: deviation of contrastcam's neutral fill, as a share of the input's side.
        spot: deviation of contrastcam's spots in cells.
        ridge: contrastcam's regularisation, relative to the mean row energy.
        depth: share of the blocks below m2ib's bottleneck (published: 8 of 12).
        beta: weight of m2ib's compression.
        seed: of m2ib's noise.
    """

    method: Literal["gscorecam", "scorecam", "contrastcam", "gradcam", "m2ib"] = "gscorecam"
    k: int = 300
    target: Literal["norm1", "norm2"] = "norm1"
    block: int = -1
    rows: int = 64
    blur: float = 0.125
    spot: float = 1.0
    ridge: float = 1.0
    depth: float = 2 / 3
    beta: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(
                f"saliency.method must be one of {', '.join(METHODS)}, got {self.method!r}"
            )
        if self.target not in ("norm1", "norm2"):
            raise ConfigError(f"saliency.target must be norm1 or norm2, got {self.target!r}")
        for name in ("k", "rows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"saliency.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("blur", "spot", "ridge", "beta"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"saliency.{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.depth < 1:
            raise ConfigError(f"saliency.depth is a share in [0, 1), got {self.depth}")
        if self.seed < 0:
            raise ConfigError(f"saliency.seed must be at least 0, got {self.seed}")


@dataclass(frozen=True)
class Question:
    """One image and what is asked of it.

    Attributes:
        image: float32 (3, S, S) RGB in [0, 1].
        prompts: float32 (P, D) unit text embeddings.
        nulls: float32 (N, D) unit embeddings of null prompts; N may be 0 except for
            contrastcam.
    """

    image: Tensor
    prompts: Tensor
    nulls: Tensor


@dataclass(frozen=True)
class Answer:
    """What the model says of one image.

    Attributes:
        saliency: float32 (P, h, w) in [0, 1] over the whole square input.
        presence: float32 (P,), see ``medclipsam.engine.saliency.contrast.presence``.
    """

    saliency: Tensor
    presence: Tensor


class SaliencyQueue:
    """Questions in, answers out in the same order; their rows share batches."""

    def __init__(self, model: ClipEncoder, config: SaliencyConfig):
        self._model, self._config = model, config
        self._asked: deque[Question] = deque()
        self.rows = RowQueue(model)

    def ask(self, question: Question) -> None:
        """Encode the image and let its rows wait."""
        self.rows.add(_open_probe(self._model, question, self._config))
        self._asked.append(question)

    def answers(self) -> Iterator[Answer]:
        """Answers of those questions whose rows are all embedded."""
        for probe, saliency in self.rows.finished():
            question = self._asked.popleft()
            found = presence(question.prompts, question.nulls, probe.embedding)
            yield Answer(saliency, found)

    def clear(self) -> None:
        """Forget every question."""
        self.rows.clear()
        self._asked.clear()


def compute_saliency(
    model: ClipEncoder, questions: Iterable[Question], config: SaliencyConfig
) -> Iterator[Answer]:
    """Answer questions in order, as their rows come back from one queue over all of them.

    ``questions`` is consumed lazily; memory does not grow with their number.
    """
    queue = SaliencyQueue(model, config)
    for question in questions:
        queue.ask(question)
        while queue.rows.full:
            queue.rows.run()
        yield from queue.answers()
    if queue.rows.waiting:
        queue.rows.run()
    yield from queue.answers()


def _open_probe(model: ClipEncoder, question: Question, config: SaliencyConfig) -> Probe:
    image, prompts = model.normalise(question.image[None])[0], question.prompts
    if config.method == "gscorecam":
        return probe_gscorecam(model, image, prompts, config.k)
    if config.method == "scorecam":
        return probe_scorecam(model, image, prompts)
    if config.method == "gradcam":
        return probe_gradcam(model, image, prompts)
    if config.method == "m2ib":
        return probe_m2ib(model, image, prompts, config.beta, config.seed)
    return probe_contrastcam(
        model, image, prompts, question.nulls, config.blur, config.spot, config.ridge
    )
