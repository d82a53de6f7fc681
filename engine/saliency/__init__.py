"""Where in the image the prompt is: one interface, several methods.

A method is a file with a function ``probe(model, question, config)``, which says which masked
images it wants to see, in rounds if need be, and what it makes of them: a function that gives
the maps (``Maps``). Another one is one more file, and its name in ``SaliencyConfig.method``.
"""

from collections.abc import Iterable, Iterator
from importlib import import_module

from medclipsam.engine.config import SaliencyConfig
from medclipsam.engine.encoder import ClipEncoder
from medclipsam.engine.saliency.contrast import contrasts
from medclipsam.engine.saliency.contrastcam import contrastcam
from medclipsam.engine.saliency.gradcam import gradcam
from medclipsam.engine.saliency.gscorecam import gscorecam
from medclipsam.engine.saliency.m2ib import m2ib
from medclipsam.engine.saliency.question import Answer, Maps, Question, ask
from medclipsam.engine.saliency.rows import Probe, Round, RowQueue, run_probes, then
from medclipsam.engine.saliency.scorecam import scorecam

__all__ = [
    "Answer",
    "Probe",
    "Question",
    "Round",
    "RowQueue",
    "SaliencyConfig",
    "ask",
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


def open_probe(model: ClipEncoder, question: Question, config: SaliencyConfig) -> Round:
    """The first round of a question; the last one finishes with its ``Answer``."""
    contrast = contrasts(question.prompts, question.nulls, question.embedding)

    def answer(maps: Maps) -> Answer:
        return Answer(maps, question.wanted, contrast)

    method = import_module(f"{__name__}.{config.method}")
    return then(method.probe(model, question, config), answer)
