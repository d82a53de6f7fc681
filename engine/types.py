"""What flows through the engine: small frozen records, keyed by item.

Letters in shapes: F frames or slices of one item, H and W source pixels,
P prompts (labels), K boxes, B batch, C channels, h and w saliency cells.
Boxes are XYXY in pixels of the source frame, with exclusive end.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Status = Literal["done", "absent", "quarantined"]

# Figures of a mask that a run keeps: attributes of ``Segmentation``.
FIGURES = (
    *("confidence", "predicted_iou", "stability", "agreement"),
    *("contrast", "area_share", "border"),
)


@dataclass(frozen=True, order=True)
class ItemRef:
    """Where an item lives; holds no pixels.

    ``path`` is relative to the archive's root, with ``/`` between its parts.
    """

    path: str

    @property
    def id(self) -> str:
        """Stable printable id: the path, with a backslash doubled and bytes that are not
        UTF-8 written as ``\\xNN``, so that different paths have different ids."""
        doubled = self.path.replace("\\", "\\\\")
        return doubled.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class Grid:
    """How an item's frames lie in its source file: what it takes to write masks back.

    Attributes:
        kind: the family of the source file.
        spacing: (row, column) distance of pixel centres in mm, where the file tells.
        affine: (4, 4) voxel-to-world matrix in RAS+ mm: of a NIfTI source in its stored voxel
            order; of a DICOM source by (column, row, frame), None where its geometry is unknown.
        shape: stored shape of a NIfTI source, of 2 or 3 axes; (W, H, F) of a DICOM source
            with an affine.
        axis: anatomical axis along which a NIfTI source is sliced:
            0 sagittal, 1 coronal, 2 axial.
        aspect: row distance divided by column distance, where there is no ``spacing``.
        doubt: in words, why spacing or position of the frames must be made up where a file of
            another kind needs them; empty where they need not, and for plain pictures, which
            have none.
    """

    kind: Literal["raster", "dicom", "nifti"]
    spacing: tuple[float, float] | None = None
    affine: np.ndarray | None = None
    shape: tuple[int, ...] = ()
    axis: int = 2
    aspect: float = 1.0
    doubt: str = ""


@dataclass(frozen=True)
class Image:
    """One decoded item: ``frames`` uint8 (F, H, W, 3) as displayed, F ≥ 1."""

    ref: ItemRef
    frames: np.ndarray
    grid: Grid


@dataclass(frozen=True)
class Prompts:
    """What to look for: label → one text or an ensemble of texts, in a fixed order."""

    texts: dict[str, tuple[str, ...]]

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.texts)


@dataclass(frozen=True)
class Segmentation:
    """What one frame yields for one prompt.

    Attributes:
        status: ``done`` or ``absent``.
        mask: bool (H, W); all False where absent.
        boxes: int32 (K, 4) boxes that prompted the mask.
        saliency: float32 (H, W) in [0, 1].
        crf_mask: bool (H, W), the refined saliency.
        crf: the filter that refined it, see ``DenseCrf.kind``; ``none`` if none ran.
        reason: why it is absent, or empty.
        contrast: cosine similarity with the prompt minus that with the nearest null prompt
            or other prompt; NaN for one prompt without null prompts.
        predicted_iou: SAM's own estimate in [0, 1], mean over boxes; NaN where absent.
        stability: IoU of the masks at logits ±1, mean over boxes; NaN where absent.
        agreement: DSC of ``crf_mask`` and ``mask``; NaN where absent.
        area_share: share of the picture that the mask covers; NaN where absent.
        border: share of the picture's outermost pixels that it covers; NaN where absent.
        confidence: see ``medclipsam.engine.quality.ConfidenceConfig``; 0 where absent.
    """

    status: Status
    mask: np.ndarray
    boxes: np.ndarray
    saliency: np.ndarray
    crf_mask: np.ndarray
    crf: str = "none"
    reason: str = ""
    contrast: float = float("nan")
    predicted_iou: float = float("nan")
    stability: float = float("nan")
    agreement: float = float("nan")
    area_share: float = float("nan")
    border: float = float("nan")
    confidence: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """The fate of one item and prompt, as the ledger stores it.

    ``figures`` are means over the frames that hold the target, ``boxes`` is one
    list of boxes a frame, ``mask`` the mask file relative to the run folder, ``digest`` the
    sha256 of the item's encoded bytes, empty where they could not be read. ``geometry`` is
    its grid's ``doubt``.
    """

    item: str
    label: str
    status: Status
    prompt: str = ""
    stage: str = ""
    reason: str = ""
    message: str = ""
    mask: str = ""
    frames: int = 0
    area: int = 0
    figures: dict[str, float | None] = field(default_factory=dict)
    boxes: list[list[list[int]]] = field(default_factory=list)
    seconds: float = 0.0
    digest: str = ""
    geometry: str = ""
