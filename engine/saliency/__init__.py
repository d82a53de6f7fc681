"""Where in the image the prompt is: one interface, several methods.

A method is a file with a function ``probe(model, image, question, config)``, which says
which masked images it wants to see and what it makes of them. Another one is one more file,
and its name in ``SaliencyConfig.method``.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib import import_module

from medclipsam.engine.config import SaliencyConfig
from medclipsam.engine.encoder import ClipEncoder
from medclipsam.engine.saliency.contrast import contrasts
from medclipsam.engine.saliency.contrastcam import contrastcam
from medclipsam.engine.saliency.gradcam import gradcam
from medclipsam.engine.saliency.gscorecam import gscorecam
from medclipsam.engine.saliency.m2ib import m2ib
from medclipsam.engine.saliency.question import Answer, Question
from medclipsam.engine.saliency.rows import Probe, RowQueue, run_probes
from medclipsam.engine.saliency.scorecam import scorecam

__all__ = [
    "Answer",
    "Probe",
    "Question",
    "RowQueue",
    "SaliencyConfig",
    "compute_saliency",
    "contrastcam",
    "gradcam",
    "gscorecam",
    "m2ib",
    "open_probe",
    "run_probes",
    "scorecam",
]


def compute_saliency(
    model: ClipEncoder, questions: Iterable[Question], config: SaliencyConfig
) -> Iterator[Answer]:
    """Answer questions in order, as their rows come back from one queue over all of them.

    ``questions`` is consumed lazily; memory does not grow with their number.
    """
    return run_probes(model, (open_probe(model, question, config) for question in questions))


def open_probe(model: ClipEncoder, question: Question, config: SaliencyConfig) -> Probe:
    """Encode the image of ``question``; the probe finishes with its ``Answer``."""
    method = import_module(f"{__name__}.{config.method}")
    image = model.normalise(question.image[None])[0]
    probe: Probe = method.probe(model, image, question, config)
    contrast = contrasts(question.prompts, question.nulls, probe.embedding)
    return replace(probe, finish=lambda rows: Answer(probe.finish(rows), contrast))
