"""Masks as one COCO file: a picture for each frame, an annotation for each label on it."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from medclipsam.engine.durable import durable_file
from medclipsam.engine.outputs.cases import Case

NAME = "coco.json"


class CocoFile:
    """A COCO file that grows case by case; only one case is held in memory.

    - ``file_name`` is the item's id and ``frame`` the frame's number from 0 on, in the
      order and orientation in which the item was looked at: a NIfTI volume is sliced.
    - ``segmentation`` is a compressed run-length code, which holds a mask exactly;
      ``bbox`` is [x, y, width, height] in pixels, ``score`` the label's confidence.
    - Masks without a pixel give no annotation. Masks may overlap.
    """

    def __init__(self, file: IO[bytes], rest: IO[bytes], labels: Sequence[str]):
        self._pictures = _List(file)
        self._annotations = _List(rest)
        self._numbers = {label: k for k, label in enumerate(labels, start=1)}
        head = {
            "info": {"description": "medclipsam"},
            "licenses": [],
            "categories": [{"id": k, "name": label} for label, k in self._numbers.items()],
        }
        file.write(json.dumps(head)[:-1].encode() + b', "images": [')

    def add(self, case: Case, masks: Mapping[str, np.ndarray]) -> None:
        """Append a case: label → bool (F, H, W)."""
        count, height, width = next(iter(masks.values())).shape
        for frame in range(count):
            size = {"width": width, "height": height}
            picture = self._pictures.add({"file_name": case.item, "frame": frame, **size})
            for label, mask in masks.items():
                if mask[frame].any():
                    score = case.outcomes[label].figures.get("confidence")
                    owner = {"image_id": picture, "category_id": self._numbers[label]}
                    self._annotations.add(owner | _annotate(mask[frame]) | {"score": score})


class _List:
    """A growing JSON list of objects, each with an id from 1 on."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._count = 0

    def add(self, value: dict[str, Any]) -> int:
        comma = b",\n" if self._count else b"\n"
        self._count += 1
        self._file.write(comma + json.dumps({"id": self._count, **value}).encode())
        return self._count


def _annotate(mask: np.ndarray) -> dict[str, Any]:
    from pycocotools import mask as codes

    code = codes.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {
        "segmentation": {"size": code["size"], "counts": code["counts"].decode("ascii")},
        "bbox": [int(side) for side in codes.toBbox(code)],
        "area": int(codes.area(code)),
        "iscrowd": 0,
    }


@contextmanager
def open_coco(folder: Path, labels: Sequence[str]) -> Iterator[CocoFile]:
    """``coco.json`` in ``folder``, which appears at the end, whole, or not at all.

    Raises:
        OutputError: the disk is full.
    """
    with durable_file(folder / NAME) as file, tempfile.TemporaryFile(dir=folder) as rest:
        yield CocoFile(file, rest, labels)
        file.write(b'\n], "annotations": [')
        rest.seek(0)
        shutil.copyfileobj(rest, file)
        file.write(b"\n]}\n")
