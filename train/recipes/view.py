"""The data of a recipe as runs and evaluation take them, without copying an image.

OUT/data               a link to the data folder
OUT/train.csv          the images to learn from, and those to be judged on: a list that
OUT/test.csv           'medclipsam run' takes, too
OUT/truth/LABEL/…      one mask per image to be judged on, several of the data united
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medclipsam.engine.durable import make_folder, write_durable
from medclipsam.engine.errors import ConfigError, InputError, OutputError
from medclipsam.engine.outputs import encode_mask, output_path, read_mask, safe_label
from medclipsam.engine.types import Grid, ItemRef
from medclipsam.train.recipes.layout import Layout

LINK, TRUTH = "data", "truth"


def listed(item: str) -> str:
    """An image of the data as the lists name it."""
    return f"{LINK}/{item}"


def write_view(layout: Layout, data: Path, out: Path) -> None:
    """Lists and truth of what was found; what is there already stays.

    Raises:
        ConfigError: a side has no image, a mask cannot be read, or masks to be united differ in
            size.
        OutputError: something cannot be written.
    """
    make_folder(out)
    _link(out / LINK, data)
    for split in ("train", "test"):
        if not (rows := [(listed(case.item),) for case in layout.of(split)]):
            raise ConfigError(f"no images are left for the split {split!r}; give more data")
        table = io.StringIO()
        csv.writer(table, lineterminator="\n").writerows([("item",), *rows])
        write_durable(out / f"{split}.csv", table.getvalue().encode())
    for case in layout.of("test"):
        for label, masks in case.masks.items():
            place = output_path((TRUTH, safe_label(label)), ItemRef(listed(case.item)), ".png")
            if not (out / place).is_file():
                write_durable(out / place, encode_mask(_unite(data, masks), Grid("raster"))[1])


def _link(link: Path, data: Path) -> None:
    """Point to the data, which may have been moved since."""
    target = data.resolve()
    try:
        if link.is_symlink() and link.readlink() != target:
            link.unlink()
        if not link.is_symlink():
            link.symlink_to(target, target_is_directory=True)
    except OSError as exc:
        raise OutputError(
            f"cannot link {link} to {target}: {exc.strerror}; choose an output folder on a file "
            "system with symbolic links"
        ) from exc


def _unite(data: Path, names: Sequence[str]) -> np.ndarray:
    """bool (F, H, W)."""
    masks = []
    for name in names:
        try:
            masks.append(read_mask(data / name)[0])
        except InputError as exc:
            raise ConfigError(f"cannot read the mask {name} of {data}: {exc}; restore it") from exc
        if masks[-1].shape != masks[0].shape:
            raise ConfigError(
                f"masks of one image differ in size: {names[0]} is {masks[0].shape}, {name} "
                f"{masks[-1].shape} of {data}; restore them"
            )
    return np.any(masks, axis=0)
