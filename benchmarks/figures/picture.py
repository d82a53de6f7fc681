"""A plot that names what it was drawn from: a hash of the values, among the texts of the PNG.

So one can tell whether plot and result belong together, while pixels depend on matplotlib's
version. Refuses to know what is drawn.
"""

import hashlib
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

KEY = "drawn from sha256"


def hash_values(values: Any) -> str:
    """Of plain JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read_hash(png: bytes) -> str:
    """What a picture was drawn from; empty where it does not say so."""
    with Image.open(io.BytesIO(png)) as image:
        return str(image.info.get(KEY, ""))


def draw_picture(values: Any, plot: Callable[[Any, Path], None]) -> bytes:
    """A PNG of ``values``, drawn by ``plot(values, path)``."""
    texts, out = PngInfo(), io.BytesIO()
    texts.add_text(KEY, hash_values(values))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plot.png"
        plot(values, path)
        with Image.open(path) as image:
            image.save(out, "PNG", pnginfo=texts, dpi=image.info["dpi"])
    return out.getvalue()
