"""ScoreCAM (Wang et al., CVPR Workshops 2020): every channel is scored, none preferred."""

from torch import Tensor

from medclipsam.engine.config import SaliencyConfig
from medclipsam.engine.encoder import ClipEncoder
from medclipsam.engine.saliency.gscorecam import probe_gscorecam
from medclipsam.engine.saliency.question import Question
from medclipsam.engine.saliency.rows import Probe, stack_maps

ALL = 1 << 30


def scorecam(model: ClipEncoder, images: Tensor, prompts: Tensor) -> Tensor:
    """gScoreCAM without its choice of channels; args and result as there."""
    return stack_maps(
        model, (probe_scorecam(model, image, prompts) for image in model.normalise(images))
    )


def probe_scorecam(model: ClipEncoder, image: Tensor, prompts: Tensor) -> Probe:
    """Rows of one normalised (3, S, S) image: one a channel, whatever the prompts."""
    return probe_gscorecam(model, image, prompts, ALL)


def probe(model: ClipEncoder, image: Tensor, question: Question, config: SaliencyConfig) -> Probe:
    """The method as settings name it."""
    return probe_scorecam(model, image, question.prompts)
