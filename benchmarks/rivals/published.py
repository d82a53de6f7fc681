"""The published pipeline written plainly, as its authors' scripts go about it.

One image after another, one prompt after another: gScoreCAM with the text encoded anew,
pydensecrf, the largest component's box, ``SamPredictor``. Every image pays for everything.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from segment_anything import SamPredictor

from medclipsam.benchmarks.rivals.published_saliency import straightforward
from medclipsam.engine.config import CrfConfig
from medclipsam.engine.crf.reference import Pydensecrf
from medclipsam.engine.weights.bundle import Bundle

CHANNELS = 300


@dataclass
class PublishedPipeline:
    """Zero-shot masks of PNG files.

    Args:
        clip: see ``Bundle.clip``.
        predictor: SAM.
    """

    clip: Any
    predictor: SamPredictor

    @classmethod
    def open(cls, bundle: Bundle, device: torch.device) -> "PublishedPipeline":
        """With the weights of ``bundle``."""
        bundle.clip.model.to(device).eval()
        return cls(bundle.clip, SamPredictor(bundle.sam.to(device).eval()))

    def run(self, archive: Path, prompts: Mapping[str, str], out: Path) -> int:
        """Label every PNG of a folder into ``out/masks/LABEL``; returns how many there were."""
        paths = sorted(archive.glob("*.png"))
        for path in paths:
            rgb = np.array(Image.open(path).convert("RGB"))
            self.predictor.set_image(rgb)
            for label, text in prompts.items():
                mask = self.segment(rgb, text)
                target = out / "masks" / label / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(target), mask.astype(np.uint8) * 255)
        return len(paths)

    def segment(self, rgb: np.ndarray, text: str) -> np.ndarray:
        """bool (H, W) of one prompt in the image that the predictor holds."""
        height, width = rgb.shape[:2]
        side = self.clip.image_size
        square = cv2.resize(rgb, (side, side), interpolation=cv2.INTER_AREA)
        image = torch.from_numpy(square).permute(2, 0, 1).float() / 255
        device = next(self.clip.model.parameters()).device
        cells = straightforward(self.clip, image.to(device), text, CHANNELS).cpu().numpy()
        saliency = cv2.resize(cells, (width, height), interpolation=cv2.INTER_LINEAR)
        found = Pydensecrf(rgb, CrfConfig()).mask(np.clip(saliency, 0, 1))
        count, _, stats, _ = cv2.connectedComponentsWithStats(found.astype(np.uint8))
        if count < 2:
            return np.zeros((height, width), bool)
        left, top, wide, high, _ = stats[1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())]
        box = np.array([left, top, left + wide, top + high])
        masks, _, _ = self.predictor.predict(box=box, multimask_output=False)
        return np.asarray(masks[0], bool)
