"""ScoreCAM (Wang et al., CVPR Workshops 2020): every channel is scored, none preferred."""

from torch import Tensor

from medclipsam.engine.config import SaliencyConfig
from medclipsam.engine.encoder import ClipEncoder
from medclipsam.engine.saliency.gscorecam import probe_gscorecam
from medclipsam.engine.saliency.question import Question, ask
from medclipsam.engine.saliency.rows import Round, stack_maps

ALL = 1 << 30


def scorecam(model: ClipEncoder, images: Tensor, prompts: Tensor) -> Tensor:
    """gScoreCAM without its choice of channels; args and result as there."""
    return stack_maps(model, (probe_scorecam(model, q) for q in ask(model, images, prompts)))


def probe_scorecam(model: ClipEncoder, question: Question) -> Round:
    """Rows of one image: one a channel, whatever the prompts."""
    return probe_gscorecam(model, question, ALL)


def probe(model: ClipEncoder, question: Question, config: SaliencyConfig) -> Round:
    """The method as settings name it."""
    return probe_scorecam(model, question)
