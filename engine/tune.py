"""Which settings serve a user's own images, judged on a few with true masks.

A search along one axis after another, from what is in use: null prompts, saliency method,
its layer, wordings, presence, CRF, boxes. A candidate is taken only if it is better with a
95 % paired bootstrap interval above zero, because with a dozen images the best of many
candidates is mostly lucky.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from medclipsam.engine.archive import read_image
from medclipsam.engine.config import EngineConfig, make_config, merge
from medclipsam.engine.engine import Engine
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.metrics import dice, mean_interval
from medclipsam.engine.outputs import read_mask, safe_label
from medclipsam.engine.pairing import Files, files_by_label, match_files, walk_files
from medclipsam.engine.pipeline import Pipeline
from medclipsam.engine.types import ItemRef, Prompts, Segment


@dataclass(frozen=True)
class Sample:
    """One labelled frame.

    Attributes:
        frame: uint8 (H, W, 3).
        truth: label → bool (H, W); labels without a true mask are not scored.
    """

    frame: np.ndarray
    truth: dict[str, np.ndarray]


@dataclass(frozen=True)
class Candidate:
    """Settings laid over the bundle's defaults, and prompts, under a name."""

    axis: str
    name: str
    settings: dict[str, Any]
    prompts: Prompts


@dataclass(frozen=True)
class Trial:
    """A candidate and its DSC on every labelled mask.

    Attributes:
        gain: mean and 95 % interval of the paired difference to what was in use.
        verdict: ``in use``, ``taken``, or empty.
    """

    candidate: Candidate
    scores: np.ndarray
    gain: tuple[float, float, float]
    verdict: str


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
    return [s for image in sorted(found) for s in _read_frames(images, image, found[image])]


def _masks_of(truth: Path, label: str, alone: bool) -> Files:
    folders = files_by_label(truth)
    for name in (label, safe_label(label)):
        if name in folders:
            return folders[name]
    return dict(walk_files(truth)) if alone else {}


def _read_frames(root: Path, path: Path, masks: Mapping[str, Path]) -> Iterator[Sample]:
    frames = read_image(root, ItemRef(path.relative_to(root).as_posix())).frames
    truths = {label: read_mask(mask)[0] for label, mask in masks.items()}
    for label, mask in truths.items():
        truths[label] = mask = mask if mask.ndim == 3 else mask[None]
        if mask.shape != frames.shape[:3]:
            raise ConfigError(
                f"{masks[label]} has the shape {mask.shape} (frames, rows, columns), but its "
                f"image {path} has {frames.shape[:3]}; masks must lie on the image's own grid"
            )
    for n, frame in enumerate(frames):
        yield Sample(frame, {label: mask[n] for label, mask in truths.items()})


@dataclass
class Tuner:
    """The search over one engine and its samples.

    Attributes:
        engine: open, with the settings in use.
        samples: labelled frames.
        settings: what the user already set over the bundle's defaults.
        nulls: further null prompts to try.
        observer: called with each trial.
    """

    engine: Engine
    samples: Sequence[Sample]
    settings: dict[str, Any]
    nulls: tuple[str, ...] = ()
    observer: Callable[[Trial], None] = lambda trial: None
    _answers: dict[Any, list[tuple[np.ndarray, np.ndarray]]] = field(default_factory=dict)

    def search(self, prompts: Prompts) -> tuple[Candidate, list[Trial]]:
        """The best settings found and every trial on the way."""
        best = Candidate("start", "in use", self.settings, prompts)
        scores = self.score(best)
        trials = [self._report(Trial(best, scores, mean_interval([0.0, 0.0]), "in use"))]
        for axis in AXES:
            rivals = [
                (rival, self.score(rival))
                for rival in axis(self, best)
                if (self.config(rival), rival.prompts) != (self.config(best), best.prompts)
            ]
            gains = [mean_interval(found - scores) for _, found in rivals]
            winner = max(range(len(rivals)), key=lambda n: gains[n][0], default=None)
            for n, (rival, found) in enumerate(rivals):
                taken = n == winner and gains[n][1] > 0
                trials.append(self._report(Trial(rival, found, gains[n], "taken" if taken else "")))
            if winner is not None and gains[winner][1] > 0:
                best, scores = rivals[winner]
        return best, trials

    def _report(self, trial: Trial) -> Trial:
        self.observer(trial)
        return trial

    def config(self, candidate: Candidate) -> EngineConfig:
        """All settings of a candidate."""
        return make_config(self.engine.bundle.defaults, candidate.settings)

    def score(self, candidate: Candidate) -> np.ndarray:
        """DSC of every labelled mask, in the order of samples and labels."""
        return np.array(
            [
                dice(found[label].mask, mask)
                for sample, found in zip(self.samples, self.segment(candidate), strict=True)
                for label, mask in sample.truth.items()
            ]
        )

    def segment(self, candidate: Candidate) -> list[dict[str, Segment]]:
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


def _over(best: Candidate, axis: str, name: str, layer: dict[str, Any]) -> Candidate:
    settings = copy.deepcopy(best.settings)
    merge(settings, layer)
    return Candidate(axis, name, settings, best.prompts)


def null_prompts(tuner: Tuner, best: Candidate) -> Iterator[Candidate]:
    """The user's null prompts, each alone, all together, and beside those in use."""
    used, new = tuner.config(best).null_prompts, tuner.nulls
    sets = [*((null,) for null in new), new, (*used, *new)]
    for nulls in dict.fromkeys(tuple(dict.fromkeys(s)) for s in sets):
        if nulls and nulls != used:
            yield _over(best, "null prompts", " | ".join(nulls), {"null_prompts": list(nulls)})


def methods(tuner: Tuner, best: Candidate) -> Iterator[Candidate]:
    """Every saliency method; contrastcam where there are null prompts, of the user's if need be."""
    from medclipsam.engine.saliency import METHODS

    nulls = tuner.config(best).null_prompts or tuner.nulls
    for method in METHODS:
        if method == tuner.config(best).saliency.method:
            continue
        layer: dict[str, Any] = {"saliency": {"method": method}}
        if method == "contrastcam":
            if not nulls:
                continue
            layer["null_prompts"] = list(nulls)
        yield _over(best, "saliency", method, layer)


def layers(tuner: Tuner, best: Candidate) -> Iterator[Candidate]:
    """Where the channels, or the bottleneck, of the chosen method lie; for contrastcam its fill."""
    method = tuner.config(best).saliency.method
    settings: list[dict[str, Any]]
    if method == "contrastcam":
        settings = [{"blur": blur} for blur in (0.06, 0.09, 0.18, 0.25)]
    elif method == "m2ib":
        settings = [{"depth": depth} for depth in (0.5, 0.75, 0.9)]
    else:
        settings = [
            {"block": block, "target": target}
            for block in (-1, -2, -3)
            for target in ("norm1", "norm2")
        ]
    for layer in settings:
        name = " ".join(f"{key}={value}" for key, value in layer.items())
        yield _over(best, "layer", name, {"saliency": layer})


def wordings(tuner: Tuner, best: Candidate) -> Iterator[Candidate]:
    """Each wording of an ensemble alone."""
    for label, texts in best.prompts.texts.items():
        for text in texts if len(texts) > 1 else ():
            chosen = Prompts({**best.prompts.texts, label: (text,)})
            yield Candidate("wording", f"{label}={text}", best.settings, chosen)


def presences(tuner: Tuner, best: Candidate) -> Iterator[Candidate]:
    """No threshold, and the one that serves the samples best if some lack a target."""
    if not tuner.config(best).null_prompts:
        return
    free = _over(best, "presence", "none", {"presence": None})
    yield free
    pairs = [
        (found[label].contrast, dice(found[label].mask, mask), float(not mask.any()))
        for sample, found in zip(tuner.samples, tuner.segment(free), strict=True)
        for label, mask in sample.truth.items()
    ]
    contrast, kept, dropped = np.array(pairs).T
    if not dropped.any():
        return
    edges = np.unique(contrast)
    cuts = (edges[1:] + edges[:-1]) / 2
    means = [np.where(contrast < cut, dropped, kept).mean() for cut in cuts]
    if means:
        cut = round(float(cuts[int(np.argmax(means))]), 4)
        yield _over(best, "presence", f"{cut:g}", {"presence": cut})


CRFS: dict[str, dict[str, Any]] = {
    "MedCLIP-SAMv2's 5 / 5 / 3": {"gaussian_compat": 5, "bilateral_srgb": 3},
    "5 iterations": {"iterations": 5},
    "none (saliency above one half)": {"iterations": 0},
    "bilateral_sxy=30": {"bilateral_sxy": 30},
    "threshold=0.3": {"threshold": 0.3},
    "threshold=0.7": {"threshold": 0.7},
}


def crfs(tuner: Tuner, best: Candidate) -> Iterator[Candidate]:
    """Settings of the dense CRF."""
    for name, layer in CRFS.items():
        yield _over(best, "crf", name, {"crf": layer})


def selections(tuner: Tuner, best: Candidate) -> Iterator[Candidate]:
    """Which components become boxes."""
    for select in ("largest", "top-k", "all"):
        yield _over(best, "boxes", select, {"boxes": {"select": select}})


def pads(tuner: Tuner, best: Candidate) -> Iterator[Candidate]:
    """How far boxes are widened."""
    for pad in (0.0, 0.1, 0.2, 0.3):
        yield _over(best, "boxes", f"pad={pad}", {"boxes": {"pad": pad}})


AXES = (null_prompts, methods, layers, wordings, presences, crfs, selections, pads)
