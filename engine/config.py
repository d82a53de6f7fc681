"""Every setting of the engine, owned by one frozen record per concern.

Precedence, strongest first: command-line flags, ``MEDCLIPSAM_*`` environment, a TOML
file, the bundle's defaults, the defaults written here. Imports no stage: the command line
reads its choices and defaults from here.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from medclipsam.engine.errors import ConfigError
from medclipsam.engine.settings import (
    Count,
    MaybeReal,
    Natural,
    NotNegative,
    Positive,
    Real,
    Share,
    Switch,
    Texts,
    Whole,
    build,
    settings,
)

Backend = Literal["torch", "onnx", "onnx-tensorrt", "tensorrt"]
Precision = Literal["fp32", "bf16", "fp16"]  # of exports and of training
Arithmetic = Literal["fp32", "tf32", "bf16", "fp16"]  # of a model that runs
FitMode = Literal["squash", "pad"]
Geometry = Literal["warn", "strict"]
SaliencyMethod = Literal["gscorecam", "scorecam", "contrastcam", "gradcam", "m2ib"]

FORMATS = ("labelmap", "nifti", "dicom-seg", "saliency", "crf", "overlay")
COLLECTIONS = ("coco", "nnunet")
MEMORY = 1 << 30  # bytes that items in flight may hold

CHOICES = {"saliency": "method", "crf": "solver", "boxes": "select"}


@settings
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
        rows: masked images per forward batch; 0 leaves it to the device: 64, or 256 on a CUDA
            device of 24 GB or more.
        blur: deviation of contrastcam's neutral fill, as a share of the input's side.
        spot: deviation of contrastcam's spots in cells.
        ridge: contrastcam's regularisation, relative to the mean row energy.
        depth: share of the blocks below m2ib's bottleneck (published: 8 of 12).
        beta: weight of m2ib's compression.
        seed: of m2ib's noise.
    """

    method: SaliencyMethod = "gscorecam"
    k: Count = 300
    target: Literal["norm1", "norm2"] = "norm1"
    block: Whole = -1
    rows: Natural = 0
    blur: Positive = 0.125
    spot: Positive = 1.0
    ridge: Positive = 1.0
    depth: Annotated[NotNegative, Field(lt=1)] = 2 / 3
    beta: Positive = 0.1
    seed: Natural = 0


@settings
class CrfConfig:
    """Parameters of the dense CRF; the defaults are the published ones.

    Attributes:
        solver: ``numba`` (ours) or ``pydensecrf`` (the published one, for comparison).
        gaussian_sxy: deviation of the smoothness kernel in pixels.
        gaussian_compat: its weight; 0 leaves it out.
        bilateral_sxy: spatial deviation of the appearance kernel in pixels.
        bilateral_srgb: its colour deviation in levels of 0…255.
        bilateral_compat: its weight; 0 leaves it out.
        tau: temperature of the unary.
        epsilon: added to probabilities before their logarithm.
        iterations: mean-field iterations; 0 gives the unary's own marginal.
        threshold: marginal above which a pixel is foreground.
        max_side: larger images are worked on at this longest side, deviations scaled with
            them, and the marginal is brought back; 0 never shrinks.
    """

    solver: Literal["numba", "pydensecrf"] = "numba"
    gaussian_sxy: Positive = 3.0
    gaussian_compat: NotNegative = 3.0
    bilateral_sxy: Positive = 60.0
    bilateral_srgb: Positive = 5.0
    bilateral_compat: NotNegative = 5.0
    tau: Positive = 1.05
    epsilon: Annotated[Real, Field(ge=1e-30, lt=1)] = 1e-8
    iterations: Natural = 1
    threshold: Annotated[Positive, Field(lt=1)] = 0.5
    max_side: Natural = 0


@settings
class BoxConfig:
    """Which components become boxes.

    Attributes:
        select: ``largest``, ``top-k`` or ``all`` components.
        k: how many ``top-k`` keeps.
        min_area: components smaller than this share of the image are noise.
        pad: how far each side moves outwards, as a share of the box's own side.
    """

    select: Literal["largest", "top-k", "all"] = "largest"
    k: Count = 3
    min_area: Annotated[NotNegative, Field(lt=1)] = 0.0005
    pad: Share = 0.0


@settings
class SegmentConfig:
    """How SAM is fed.

    Attributes:
        batch: images per encoder call.
        boxes: boxes per decoder call.
    """

    batch: Count = 4
    boxes: Count = 16


@settings
class ConfidenceConfig:
    """How figures of a mask become its confidence.

    Calibrated (``scale`` above 0), it is a logistic model: the probability that the mask
    reaches a DSC of 0.7 with the target, among images like those of the calibration,

        σ(bias + Σ weight · x),

    with x the logits of predicted IoU, stability and agreement and the contrast over
    ``scale``. Uncalibrated, it is the geometric mean of predicted IoU, stability and
    agreement: an order, not a probability.

    Attributes:
        bias, predicted_iou, stability, agreement, contrast: of the logistic model.
        scale: the contrast that counts as one; 0 says that nothing was calibrated.
    """

    bias: Real = 0.0
    predicted_iou: Real = 0.0
    stability: Real = 0.0
    agreement: Real = 0.0
    contrast: Real = 0.0
    scale: NotNegative = 0.0


@settings
class EngineConfig:
    """All settings that decide what masks look like.

    Attributes:
        saliency, crf, boxes, segment: the stages' own settings.
        fit: how an image enters CLIP's square input: ``squash`` or ``pad``.
        null_prompts: texts that describe images without any target.
        presence: contrast (cosine to the prompt minus cosine to the nearest null prompt or
            other prompt) below which a target is absent; None asks nothing.
        confidence: how figures of a mask become its confidence.
        precision: of the image towers: ``fp32``, ``tf32`` on CUDA, or ``bf16`` or ``fp16`` where
            the device has it. ``auto`` is ``bf16`` on CUDA if it has been measured that the
            bundle's masks stay the same, else ``fp32``.
        cuda_graphs: launch the models on CUDA as graphs, which changes no byte.
    """

    saliency: SaliencyConfig = field(default_factory=SaliencyConfig)
    crf: CrfConfig = field(default_factory=CrfConfig)
    boxes: BoxConfig = field(default_factory=BoxConfig)
    segment: SegmentConfig = field(default_factory=SegmentConfig)
    fit: FitMode = "squash"
    null_prompts: Texts = ()
    presence: MaybeReal = None
    confidence: ConfidenceConfig = field(default_factory=ConfidenceConfig)
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    cuda_graphs: Switch = True

    def __post_init__(self) -> None:
        if self.presence is not None and not self.null_prompts:
            raise ConfigError("presence compares with null prompts; give null_prompts too")
        if self.saliency.method == "contrastcam" and not self.null_prompts:
            raise ConfigError(
                "contrastcam scores a prompt against null prompts and this bundle names none; "
                "set null_prompts in a --config file, or use --saliency gscorecam"
            )


def make_config(*layers: Mapping[str, Any]) -> EngineConfig:
    """Merge nested settings, later layers winning, and check them.

    Raises:
        ConfigError: an unknown setting or a value of the wrong type.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merge(merged, layer)
    return build(EngineConfig, merged)


def merge(base: dict[str, Any], layer: Mapping[str, Any]) -> None:
    """Lay settings over others; a text for a group, as in ``crf = "pydensecrf"``, is its choice."""
    spelt = {
        key: {CHOICES[key]: value} if key in CHOICES and isinstance(value, str) else value
        for key, value in layer.items()
    }
    _merge(base, spelt)


def _merge(base: dict[str, Any], layer: Mapping[str, Any]) -> None:
    for key, value in layer.items():
        if isinstance(value, Mapping):
            below = base.setdefault(key, {})
            if not isinstance(below, dict):
                raise ConfigError(f"{key} is a single setting, not a group")
            _merge(below, value)
        else:
            base[key] = value


def read_toml(path: Path) -> dict[str, Any]:
    """Settings from a TOML file, shaped like ``EngineConfig``.

    Raises:
        ConfigError: the file cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigError(f"cannot read settings from {path}: {exc}") from exc


def parse_settings(pairs: tuple[str, ...]) -> dict[str, Any]:
    """``("crf.tau=1.2", "crf=pydensecrf", …)`` → nested settings.

    Raises:
        ConfigError: a pair without ``=``.
    """
    nested: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set takes NAME=VALUE such as crf.tau=1.2, got {pair!r}")
        *groups, last = name.strip().split(".")
        layer: dict[str, Any] = {last: value.strip()}
        for group in reversed(groups):
            layer = {group: layer}
        merge(nested, layer)
    return nested
