"""Two-label dense CRF: saliency in, marginal of the foreground or its mask out.

The public side: settings, checks, reduced sizes, and the choice between our solver
(``meanfield``) and the published one (``reference``).
"""

import logging
from dataclasses import replace
from typing import Protocol

import cv2
import numpy as np

from medclipsam.engine.config import CrfConfig

logger = logging.getLogger(__name__)


class Solver(Protocol):
    """The CRF of one image, for any number of saliency maps."""

    kind: str

    def marginal(self, probability: np.ndarray) -> np.ndarray:
        """float32 (H, W) in [0, 1] → float32 (H, W) foreground marginal."""

    def mask(self, probability: np.ndarray) -> np.ndarray:
        """float32 (H, W) in [0, 1] → bool (H, W), marginal above the threshold."""


def dense_crf(
    rgb: np.ndarray, probability: np.ndarray, config: CrfConfig | None = None
) -> np.ndarray:
    """Refine a saliency map to the edges of its image.

    Args:
        rgb: uint8 (H, W, 3).
        probability: (H, W) saliency in [0, 1].
        config: see ``CrfConfig``.

    Returns:
        float32 (H, W) foreground marginal in [0, 1]; never NaN.

    Raises:
        ValueError: shapes or types do not fit, or the saliency leaves [0, 1].
        BackendError: pydensecrf is asked for and not installed.
        ConfigError: the deviations are too small for this image.
    """
    return DenseCrf(rgb, config).marginal(probability)


def warm_up(config: CrfConfig) -> None:
    """Compile or load every kernel that ``config`` may need, before worker threads start.

    Raises:
        BackendError: pydensecrf is asked for and not installed.
    """
    colour = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    for rgb in (colour, colour[..., :1].repeat(3, 2)):
        solver = DenseCrf(rgb, config)
        solver.mask(np.full((2, 3), 0.5, np.float32))
        solver.marginal(np.full((2, 3), 0.5, np.float32))


class DenseCrf:
    """The CRF of one image; filters and norms serve any number of saliency maps.

    Args:
        rgb: uint8 (H, W, 3).
        config: see ``CrfConfig``.

    Attributes:
        kind: the appearance filter in use: ``bilateral-grid``, ``permutohedral-lattice``,
            ``none`` or ``pydensecrf``.

    Raises:
        ValueError: not such an image.
        BackendError: pydensecrf is asked for and not installed.
        ConfigError: the deviations are too small for this image.
    """

    def __init__(self, rgb: np.ndarray, config: CrfConfig | None = None):
        config = config or CrfConfig()
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or rgb.size == 0:
            raise ValueError(f"expected uint8 (H, W, 3), got {rgb.dtype} {rgb.shape}")
        self._shape = rgb.shape[:2]
        self._threshold = config.threshold
        self._small = _reduced(self._shape, config.max_side)
        if self._small != self._shape:
            rgb = _resize(rgb, self._small, cv2.INTER_AREA)
            factor = max(self._small) / max(self._shape)
            config = replace(
                config,
                gaussian_sxy=config.gaussian_sxy * factor,
                bilateral_sxy=config.bilateral_sxy * factor,
            )
        self._solver = _open_solver(np.ascontiguousarray(rgb), config)
        self.kind = self._solver.kind
        logger.debug("dense CRF of %d×%d pixels: %s", *self._small, self.kind)

    def marginal(self, probability: np.ndarray) -> np.ndarray:
        """(H, W) saliency in [0, 1] → float32 (H, W) foreground marginal.

        Raises:
            ValueError: the saliency does not lie on the image, or leaves [0, 1].
        """
        q = self._solver.marginal(self._prepare(probability))
        return q if self._small == self._shape else _resize(q, self._shape, cv2.INTER_LINEAR)

    def mask(self, probability: np.ndarray) -> np.ndarray:
        """(H, W) saliency in [0, 1] → bool (H, W): marginal above the threshold.

        Raises:
            ValueError: the saliency does not lie on the image, or leaves [0, 1].
        """
        if self._small != self._shape:
            return self.marginal(probability) > self._threshold
        return self._solver.mask(self._prepare(probability))

    def _prepare(self, probability: np.ndarray) -> np.ndarray:
        if probability.shape != self._shape:
            raise ValueError(f"saliency {probability.shape} does not lie on image {self._shape}")
        p = np.ascontiguousarray(probability, np.float32)
        if not (p.min() >= 0 and p.max() <= 1):
            raise ValueError("saliency must be finite and in [0, 1]")
        return p if self._small == self._shape else _resize(p, self._small, cv2.INTER_AREA)


def _reduced(shape: tuple[int, ...], max_side: int) -> tuple[int, ...]:
    scale = max_side / max(shape) if max_side else 1
    return shape if scale >= 1 else tuple(max(1, round(side * scale)) for side in shape)


def _resize(values: np.ndarray, shape: tuple[int, ...], how: int) -> np.ndarray:
    return cv2.resize(values, (shape[1], shape[0]), interpolation=how)


def _open_solver(rgb: np.ndarray, config: CrfConfig) -> Solver:
    if config.solver == "pydensecrf":
        from medclipsam.engine.crf.reference import Pydensecrf

        return Pydensecrf(rgb, config)
    from medclipsam.engine.crf.meanfield import MeanField

    return MeanField(rgb, config)
