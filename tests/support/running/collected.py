"""A run folder whose masks and pictures are known, to be collected."""

import contextlib
import io
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO

from medclipsam.engine.archive.readers.nifti import make_grid, voxels_to_frames
from medclipsam.engine.outputs import Case, collect, encode_mask, mask_path
from medclipsam.engine.types import Grid, ItemRef, Outcome

LABELS = ("tumour", "cyst")
RNG = np.random.default_rng(2)
HEIGHT, WIDTH = 11, 7
SHEARED = np.array([[0, -0.8, 0.3, 3], [0.7, 0, 0, -5], [0, 0, 2.5, 9], [0, 0, 0, 1.0]])
RASTER = Grid("raster")


def volume_grid(shape=(WIDTH, HEIGHT, 4)) -> Grid:
    affine = SHEARED
    return make_grid(shape, affine, voxels_to_frames(np.zeros(shape, bool), affine)[1])


class Run:
    """A run folder with masks, the outcomes and the pictures that belong to it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.cases: list[Case] = []
        self.masks: dict[str, dict[str, np.ndarray]] = {}
        self.pictures: dict[str, tuple[np.ndarray, Grid]] = {}

    def add(self, item, frames=1, grid=RASTER, colour=False, labels=LABELS, **changes) -> Case:
        shape = (frames, HEIGHT, WIDTH)
        if grid.kind == "nifti":
            shape = voxels_to_frames(np.zeros(grid.shape, bool), grid.affine)[0].shape
        rgb = RNG.integers(0, 256, (*shape, 3 if colour else 1), np.uint8)
        self.pictures[item] = (np.broadcast_to(rgb, (*shape, 3)), grid)
        self.masks[item] = {label: RNG.random(shape) > 0.5 for label in labels}
        outcomes = {}
        for label, mask in self.masks[item].items():
            change = changes.get(label, {})
            if change.get("status") == "absent":
                mask[:] = False
            suffix, data = encode_mask(mask, grid)
            path = self.folder / str(mask_path(label, ItemRef(item), suffix))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            values = {
                "status": "done",
                "mask": str(path.relative_to(self.folder)),
                "figures": {"confidence": 0.75},
            }
            outcomes[label] = Outcome(item=item, label=label, **values | change)
        self.cases.append(Case(item, outcomes, lambda: self.pictures[item]))
        return self.cases[-1]

    def collect(self, *formats, labels=LABELS, **options):
        return collect(self.folder, formats, iter(self.cases), labels, **options)

    def coco(self) -> COCO:
        with contextlib.redirect_stdout(io.StringIO()):
            return COCO(str(self.folder / "coco.json"))

    def dataset(self, number: int) -> Path:
        (found,) = (self.folder / "nnunet").glob(f"Dataset{number}_*")
        return found


def left_behind(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"masks"}
