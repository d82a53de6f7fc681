"""Fetching released weights: pinned, resumable, friendly to proxies and caches.

Proxies come from the environment (``HTTPS_PROXY``), the Hugging Face cache and mirror
from ``HF_HOME`` and ``HF_ENDPOINT``. What arrives is checked by ``importing``.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

from medclipsam.engine.errors import BundleError
from medclipsam.engine.importing import (
    BIOMEDCLIP,
    BIOMEDCLIP_REVISION,
    CLIP_WEIGHTS,
    TOKENIZER_FILES,
)
from medclipsam.engine.models import CLIP_CONFIG

SAM_URL = "https://dl.fbaipublicfiles.com/segment_anything/"
SAM_FILES = {
    "vit_b": "sam_vit_b_01ec64.pth",
    "vit_l": "sam_vit_l_0b3195.pth",
    "vit_h": "sam_vit_h_4b8939.pth",
}
BLOCK = 1 << 20


def download_biomedclip(repository: str = BIOMEDCLIP, revision: str = BIOMEDCLIP_REVISION) -> Path:
    """The folder of a BiomedCLIP snapshot in the Hugging Face cache.

    Raises:
        BundleError: it can neither be downloaded nor found in the cache.
    """
    from huggingface_hub import snapshot_download

    wanted = [CLIP_CONFIG, *TOKENIZER_FILES, *CLIP_WEIGHTS]
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
    except Exception as exc:  # the library raises many kinds; all mean: not to be had now
        raise BundleError(
            f"cannot download {repository} at {revision[:12]} ({type(exc).__name__}: {exc}). "
            "Behind a proxy set HTTPS_PROXY; offline, copy the folder from another machine and "
            "use 'medclipsam models import'"
        ) from exc


def download_file(url: str, path: Path) -> Path:
    """Download ``url`` to ``path``, continuing a partial download.

    Raises:
        BundleError: the server cannot be reached or breaks off.
    """
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            mode = "ab" if reply.status == 206 else "wb"
            expected = reply.headers.get("Content-Length")
            with partial.open(mode) as file:
                got = 0
                while block := reply.read(BLOCK):
                    file.write(block)
                    got += len(block)
            if expected and got < int(expected):
                raise urllib.error.URLError(f"connection closed after {got} of {expected} bytes")
    except (urllib.error.URLError, OSError) as exc:
        raise BundleError(
            f"cannot download {url} ({exc}); run the same command again to continue, or download "
            "it elsewhere and use 'medclipsam models import'"
        ) from exc
    partial.rename(path)
    return path
