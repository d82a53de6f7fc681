"""Which settings serve a user's own images, judged on a few with true masks.

A search along one axis after another, from what is in use; ``axes`` says which. With a
dozen images the best of forty candidates is mostly lucky. So a candidate is taken only if
its gain would be that large by chance, for *any* candidate of *any* axis, in less than one
search of twenty: ``chance`` corrects for the candidates of an axis, and the 5 % are shared
out among the axes. What a candidate chose on the images is judged on the others.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from medclipsam.engine.archive import Decoders, Entry
from medclipsam.engine.backends.defaults import settle
from medclipsam.engine.config import EngineConfig, make_config
from medclipsam.engine.engine import Engine
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.evaluation.metrics import dice, mean_interval
from medclipsam.engine.evaluation.pairing import Files, files_by_label, match_files, walk_files
from medclipsam.engine.outputs import read_mask, safe_label
from medclipsam.engine.pipeline import Located, Pipeline
from medclipsam.engine.tuning.axes import AXES, Candidate, needs_gradients
from medclipsam.engine.tuning.chance import chance, least_cases
from medclipsam.engine.types import ItemRef, Prompts, Segmentation

ERROR = 0.05  # chance that a search takes anything where nothing is better


@dataclass(frozen=True)
class Sample:
    """One labelled frame.

    Attributes:
        frame: uint8 (H, W, 3).
        truth: label → bool (H, W); labels without a true mask are not scored.
        image: the file it comes from; frames of one file are no independent witnesses.
    """

    frame: np.ndarray
    truth: dict[str, np.ndarray]
    image: str = ""


@dataclass(frozen=True)
class Trial:
    """A candidate and how it did.

    Attributes:
        scores: DSC of every labelled mask.
        gains: per image, mean difference to what was in use; empty for the start.
        p: chance of a gain as large where no candidate of the axis is better; NaN at the start.
        verdict: ``in use``, ``taken``, or empty.
    """

    candidate: Candidate
    scores: np.ndarray
    gains: np.ndarray
    p: float
    verdict: str

    @property
    def gain(self) -> tuple[float, float, float]:
        """Mean and 95 % bootstrap interval over images, of this candidate alone."""
        return mean_interval(self.gains if self.gains.size else [0.0, 0.0])


def read_samples(images: Path, truth: Path, labels: Sequence[str]) -> list[Sample]:
    """Pair images with masks: ``TRUTH/LABEL/…`` mirrors IMAGES, as for ``evaluate``.

    With one label, the level LABEL may be left out. Every frame of a volume is a sample.

    Raises:
        ConfigError: nothing fits, or a mask has another shape than its image.
        InputError: a file cannot be read.
    """
    files = dict(walk_files(images))
    found: dict[Path, dict[str, Path]] = {}
    for label in labels:
        pairs, _ = match_files(label, files, _masks_of(truth, label, len(labels) == 1))
        for _, image, mask in pairs:
            if image is not None:
                found.setdefault(image, {})[label] = mask
    if not found:
        raise ConfigError(
            f"no mask of {truth} fits an image of {images}: expected {truth}/LABEL/… with the "
            f"paths of the images, for the labels {', '.join(labels)}"
        )
    with Decoders(1) as decoders:
        return [s for image in sorted(found) for s in _read_frames(decoders, image, found[image])]


def _masks_of(truth: Path, label: str, alone: bool) -> Files:
    folders = files_by_label(truth)
    for name in (label, safe_label(label)):
        if name in folders:
            return folders[name]
    return dict(walk_files(truth)) if alone else {}


def _read_frames(decoders: Decoders, path: Path, masks: Mapping[str, Path]) -> Iterator[Sample]:
    frames = decoders.decode(Entry(ItemRef(path.name), files=(path,))).frames
    truths = {label: read_mask(mask)[0] for label, mask in masks.items()}
    for label, mask in truths.items():
        truths[label] = mask = mask if mask.ndim == 3 else mask[None]
        if mask.shape != frames.shape[:3]:
            raise ConfigError(
                f"{masks[label]} has the shape {mask.shape} (frames, rows, columns), but its "
                f"image {path} has {frames.shape[:3]}; masks must lie on the image's own grid"
            )
    for n, frame in enumerate(frames):
        yield Sample(frame, {label: mask[n] for label, mask in truths.items()}, str(path))


@dataclass
class Tuner:
    """The search over one engine and its samples.

    Attributes:
        engine: open, with the settings in use.
        samples: labelled frames.
        settings: what the user already set over the bundle's defaults.
        nulls: further null prompts to try.
        observer: called with each trial.
        left_out: candidates that the engine's backend cannot run.
    """

    engine: Engine
    samples: Sequence[Sample]
    settings: dict[str, Any]
    nulls: tuple[str, ...] = ()
    observer: Callable[[Trial], None] = lambda trial: None
    left_out: list[str] = field(default_factory=list)
    _answers: dict[Any, list[Located]] = field(default_factory=dict)

    def search(self, prompts: Prompts) -> tuple[Candidate, list[Trial]]:
        """The best settings found and every trial on the way."""
        best = Candidate("start", "in use", self.settings, prompts)
        scores = self.score(best)
        trials = [self._report(Trial(best, scores, np.empty(0), float("nan"), "in use"))]
        for axis in AXES:
            rivals = self._rivals(axis(self, best), best)
            if not rivals:
                continue
            judged = [self.score(r) if r.scores is None else r.scores for r in rivals]
            gains = np.stack([self._by_image(found - scores) for found in judged], axis=1)
            chances = chance(gains)
            winner = int(chances.argmin())
            taken = chances[winner] <= ERROR / len(AXES)
            for n, rival in enumerate(rivals):
                verdict = "taken" if taken and n == winner else ""
                trial = Trial(rival, judged[n], gains[:, n], float(chances[n]), verdict)
                trials.append(self._report(trial))
            if taken:
                best = replace(rivals[winner], scores=None)
                scores = self.score(best)
        return best, trials

    def _rivals(self, proposed: Iterator[Candidate], best: Candidate) -> list[Candidate]:
        """Those that differ from what is in use and that the backend can run."""
        rivals = []
        for rival in proposed:
            config = self.config(rival)
            if (config, rival.prompts) == (self.config(best), best.prompts):
                continue
            if self.engine.backend != "torch" and needs_gradients(config.saliency):
                self.left_out.append(f"{rival.axis} {rival.name}")
                continue
            rivals.append(rival)
        return rivals

    def _by_image(self, values: np.ndarray) -> np.ndarray:
        """Values of every labelled mask → their mean in each image."""
        owners = [s.image or n for n, s in enumerate(self.samples) for _ in s.truth]
        if len(owners) != len(values):
            raise ValueError(f"expected {len(owners)} values, one a mask, got {len(values)}")
        _, index = np.unique(list(map(str, owners)), return_inverse=True)
        return np.bincount(index, values) / np.bincount(index)

    @property
    def images(self) -> int:
        """Number of independent witnesses."""
        return len({s.image or n for n, s in enumerate(self.samples) if s.truth})

    @property
    def too_few(self) -> int:
        """Images that a gain needs at least to be told from chance, where there are fewer; or 0."""
        least = least_cases(ERROR / len(AXES))
        return least if self.images < least else 0

    def _report(self, trial: Trial) -> Trial:
        self.observer(trial)
        return trial

    def config(self, candidate: Candidate) -> EngineConfig:
        """All settings of a candidate, none left to the device."""
        config, engine = make_config(self.engine.bundle.defaults, candidate.settings), self.engine
        return settle(config, engine.bundle, engine.pipeline.encoder.device, engine.backend)

    def score(self, candidate: Candidate) -> np.ndarray:
        """DSC of every labelled mask, in the order of samples and labels."""
        return np.array(
            [
                dice(found[label].mask, mask)
                for sample, found in zip(self.samples, self.segment(candidate), strict=True)
                for label, mask in sample.truth.items()
            ]
        )

    def segment(self, candidate: Candidate) -> list[dict[str, Segmentation]]:
        """Segments of every sample; saliency is computed once for equal saliency settings."""
        config = self.config(candidate)
        pipeline = self._pipeline(config)
        frames = [sample.frame for sample in self.samples]
        prompts = [candidate.prompts] * len(frames)
        texts = tuple(candidate.prompts.texts.items())
        key = (config.saliency, config.null_prompts, config.fit, config.precision, texts)
        if key not in self._answers:
            asked = zip(frames, prompts, strict=True)
            self._answers[key] = list(pipeline.compute_saliency(asked))
        batch, out = config.segment.batch, []
        for start in range(0, len(frames), batch):
            part = slice(start, start + batch)
            out += pipeline.draw(frames[part], prompts[part], self._answers[key][part])
        return out

    def _pipeline(self, config: EngineConfig) -> Pipeline:
        """The engine's own models wherever the settings allow it."""
        mine = self.engine.pipeline
        layer = ("target", "block", "depth", "rows")
        same = all(getattr(config.saliency, n) == getattr(mine.config.saliency, n) for n in layer)
        if same and config.precision == mine.config.precision:
            return replace(mine, config=config)
        device = mine.encoder.device
        return Pipeline.open(self.engine.bundle, config, device, self.engine.backend)
