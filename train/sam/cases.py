"""Images and their masks, paired by path, as what SAM is trained on. Opens none of them.

IMAGES/a/b.dcm              ─┐
                             ├─ case a/b.dcm, label LABEL
MASKS/LABEL/a/b_mask.png    ─┘
"""

from dataclasses import dataclass
from pathlib import Path

from medclipsam.engine.errors import ConfigError
from medclipsam.engine.evaluation.pairing import Files, files_by_label, match_files, walk_files
from medclipsam.engine.types import ItemRef
from medclipsam.train.problems import Problems


@dataclass(frozen=True)
class Case:
    """One image file and its masks.

    Attributes:
        item: path below the folder of images.
        image: the file.
        masks: label → file; at least one.
    """

    item: ItemRef
    image: Path
    masks: dict[str, Path]


def list_cases(images: Path, masks: Path, problems: Problems) -> list[Case]:
    """Pair files as ``evaluate`` and ``tune`` do, in the order of the images' paths.

    Args:
        masks: LABEL/… with the paths of the images; without sub-folders, masks of one label.
        problems: told of masks without an image; images without a mask are named and counted,
            but never fatal.

    Raises:
        ConfigError: nothing fits, or a mask without an image, if that is fatal.
    """
    for role, folder in (("images", images), ("masks", masks)):
        if not folder.is_dir():
            raise ConfigError(f"there is no folder of {role} at {folder}; check the path")
    files = dict(walk_files(images))
    found: dict[Path, dict[str, Path]] = {}
    lonely: list[Path] = []
    for label, truths in _labels(masks).items():
        for _, image, mask in match_files(label, files, truths)[0]:
            if image is None:
                lonely.append(mask)
            else:
                found.setdefault(image, {})[label] = mask
    if not found:
        raise ConfigError(
            f"no mask of {masks} fits an image of {images}: expected {masks}/LABEL/… with the "
            f"paths of the images; found {len(files)} images and {len(lonely)} masks"
        )
    for mask in lonely:
        problems.add("mask without image", _name(mask), f"no image of {images} has its path")
    for path, image in files.items():
        if image not in found:
            problems.note(
                "image without mask", ItemRef(path).id, f"no mask of {masks} has its path"
            )
    paths = sorted((path, image) for path, image in files.items() if image in found)
    return [Case(ItemRef(path), image, found[image]) for path, image in paths]


def _labels(masks: Path) -> dict[str, Files]:
    labels = files_by_label(masks)
    if "" in labels and len(labels) > 1:
        raise ConfigError(
            f"{masks} holds both label folders and masks outside of them, such as "
            f"{_name(next(iter(labels[''].values())))}; move each mask into the folder of its label"
        )
    return labels


def _name(path: Path) -> str:
    return ItemRef(path.as_posix()).id
