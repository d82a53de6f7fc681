"""The published CRF: pydensecrf, for comparison with ours. Slower, and it holds the GIL."""

import numpy as np

from medclipsam.engine.config import CrfConfig
from medclipsam.engine.errors import BackendError


class Pydensecrf:
    """``pydensecrf`` over one image; see ``medclipsam.engine.crf.Solver``.

    Args:
        rgb: uint8 (H, W, 3), C-contiguous.
        config: see ``CrfConfig``.

    Raises:
        BackendError: pydensecrf is not installed.
    """

    kind = "pydensecrf"

    def __init__(self, rgb: np.ndarray, config: CrfConfig):
        require_pydensecrf()
        self._rgb = rgb
        self._config = config

    def marginal(self, probability: np.ndarray) -> np.ndarray:
        from pydensecrf.densecrf import DenseCRF2D

        config = self._config
        height, width = probability.shape
        model = DenseCRF2D(width, height, 2)
        model.setUnaryEnergy(_energies(probability, config))
        if config.gaussian_compat:
            model.addPairwiseGaussian(sxy=config.gaussian_sxy, compat=config.gaussian_compat)
        if config.bilateral_compat:
            model.addPairwiseBilateral(
                sxy=config.bilateral_sxy,
                srgb=config.bilateral_srgb,
                rgbim=self._rgb,
                compat=config.bilateral_compat,
            )
        return np.array(model.inference(config.iterations))[1].reshape(height, width)

    def mask(self, probability: np.ndarray) -> np.ndarray:
        return self.marginal(probability) > self._config.threshold


def require_pydensecrf() -> None:
    """
    Raises:
        BackendError: pydensecrf is not installed.
    """
    try:
        import pydensecrf.densecrf  # noqa: F401
    except ImportError as exc:
        raise BackendError(
            "crf.solver=pydensecrf, but pydensecrf is not installed here; "
            "pip install 'medclipsam[reference]', or use crf.solver=numba"
        ) from exc


def _energies(probability: np.ndarray, config: CrfConfig) -> np.ndarray:
    """Unary energies of background and foreground, float32 (2, N); see ``pointwise.unary``."""
    p = probability.astype(np.float64).ravel()
    return np.stack(
        [-np.log(q + config.epsilon) * (1 + np.exp(-q)) / config.tau for q in (1 - p, p)]
    ).astype(np.float32)
