"""Where medclipsam keeps a user's own files."""

import os
from pathlib import Path


def home() -> Path:
    """``$MEDCLIPSAM_HOME``, by default ``medclipsam`` in the user's cache folder."""
    if base := os.environ.get("MEDCLIPSAM_HOME"):
        return Path(base)
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "medclipsam"
