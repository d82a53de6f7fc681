"""What TensorRT plans are built for: the names of a graph's tensors and the shapes they may take.

Letters as in ``medclipsam.engine.backends``. Rows are fixed; a text's length L and the number of
texts P of ``features`` are free within a range.
"""

from __future__ import annotations

from dataclasses import dataclass

from medclipsam.engine.errors import BackendError
from medclipsam.engine.weights.bundle import Bundle

TEXTS = 8  # the most texts of one ``features`` call; more take several calls
OUTPUTS = {
    "text": ("embeddings",),
    "features": ("embedding", "activation", "importance"),
    "score": ("embeddings",),
    "sam_encoder": ("embedding",),
    "sam_decoder": ("logits", "iou"),
}

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Range:
    """Smallest, usual and largest shape of an input; None is a size that stands in the graph."""

    least: Shape
    usual: Shape
    most: Shape

    @classmethod
    def only(cls, *shape: int) -> Range:
        return cls(shape, shape, shape)

    @property
    def fixed(self) -> bool:
        return self.least == self.most

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether ``shape`` lies within; sizes of None are not asked."""
        return len(shape) == len(self.least) and all(
            low is None or high is None or low <= size <= high
            for low, size, high in zip(self.least, shape, self.most, strict=True)
        )

    def filled(self, sizes: tuple[int, ...]) -> Range:
        """The same with each None taken from ``sizes``."""

        def fill(shape: Shape) -> Shape:
            return tuple(b if a is None else a for a, b in zip(shape, sizes, strict=True))

        return Range(fill(self.least), fill(self.usual), fill(self.most))

    def __str__(self) -> str:
        shapes = [self.most] if self.fixed else [self.least, self.usual, self.most]
        return "…".join("x".join("?" if n is None else str(n) for n in shape) for shape in shapes)


def graph_ranges(bundle: Bundle, name: str, rows: int | None) -> dict[str, Range]:
    """Input name → range, in the order of the graph's arguments.

    Args:
        rows: how many rows the first input always has; of ``features`` one, if not given, of
            ``text`` always one.

    Raises:
        BackendError: the number of rows is missing.
    """
    if rows is None and name not in ("text", "features"):
        raise BackendError(f"a TensorRT plan of {name!r} is for one number of rows, none was given")
    count = rows or 1
    if name == "text":
        context = bundle.clip.tokenizer.context_length
        return {"tokens": Range((1, 1), (1, min(32, context)), (1, context))}
    if name in ("features", "score"):
        side = bundle.clip.image_size
        pixels = {"pixels": Range.only(count, 3, side, side)}
        texts = {"texts": Range((1, None), (1, None), (TEXTS, None))}
        return pixels | texts if name == "features" else pixels
    sam = bundle.sam_config
    if name == "sam_encoder":
        return {"pixels": Range.only(count, 3, sam.image_size, sam.image_size)}
    cells = sam.image_size // sam.patch_size
    return {
        "embeddings": Range.only(count, sam.channels, cells, cells),
        "boxes": Range.only(count, 4),
    }
