"""Fetching released weights: pinned, resumable, friendly to proxies and caches.

Proxies come from the environment (``HTTPS_PROXY``), the Hugging Face cache and mirror
from ``HF_HOME`` and ``HF_ENDPOINT``. What arrives is checked by ``importing``.
"""

import os
import re
import urllib.error
import urllib.request
from email.message import Message
from http.client import HTTPException
from pathlib import Path

from medclipsam.engine.errors import BundleError
from medclipsam.engine.weights.bundle import sha256_file
from medclipsam.engine.weights.importing import (
    BIOMEDCLIP,
    BIOMEDCLIP_REVISION,
    BIOMEDCLIP_WEIGHTS,
    CLIP_WEIGHTS,
    SAM_VIT_B,
    SAM_VIT_H,
    SAM_VIT_L,
    TOKENIZER_FILES,
)
from medclipsam.engine.weights.models import CLIP_CONFIG

SAM_URL = "https://dl.fbaipublicfiles.com/segment_anything/"
SAM_FILES = {
    "vit_b": ("sam_vit_b_01ec64.pth", SAM_VIT_B),
    "vit_l": ("sam_vit_l_0b3195.pth", SAM_VIT_L),
    "vit_h": ("sam_vit_h_4b8939.pth", SAM_VIT_H),
}
BIOMEDCLIP_FILE = "open_clip_pytorch_model.bin"
BLOCK = 1 << 20


def download_biomedclip(repository: str = BIOMEDCLIP, revision: str = BIOMEDCLIP_REVISION) -> Path:
    """The folder of a BiomedCLIP snapshot in the Hugging Face cache.

    The weights of the pinned revision are checked by their hash; spoilt ones, which the cache
    would keep for ever, are fetched once more.

    Raises:
        BundleError: it can neither be downloaded nor found in the cache, or is spoilt.
    """
    for again in (False, True):
        folder = _snapshot(repository, revision, again)
        weights = folder / BIOMEDCLIP_FILE
        if revision != BIOMEDCLIP_REVISION or not weights.exists():
            return folder
        if (found := sha256_file(weights)) == BIOMEDCLIP_WEIGHTS:
            return folder
    raise BundleError(
        f"{weights} has sha256 {found}, expected {BIOMEDCLIP_WEIGHTS}, also after another "
        "download; a proxy or mirror changes it on the way: copy it from elsewhere and use "
        "'medclipsam models import'"
    )


def _snapshot(repository: str, revision: str, again: bool) -> Path:
    from huggingface_hub import snapshot_download

    wanted = [CLIP_CONFIG, *TOKENIZER_FILES, *CLIP_WEIGHTS]
    try:
        found = snapshot_download(
            repository, revision=revision, allow_patterns=wanted, force_download=again
        )
    except Exception as exc:  # the library raises many kinds; all mean: not to be had now
        raise BundleError(
            f"cannot download {repository} at {revision[:12]} ({type(exc).__name__}: {exc}). "
            "Behind a proxy set HTTPS_PROXY; offline, copy the folder from another machine and "
            "use 'medclipsam models import'"
        ) from exc
    return Path(found)


def download_file(url: str, path: Path, sha256: str | None = None) -> Path:
    """Download ``url`` to ``path``, continuing a partial download.

    Args:
        sha256: what its bytes must hash to, where that is known. Nothing else ever gets the
            name ``path``, and a file that has it already is checked as well.

    Raises:
        BundleError: the server cannot be reached or breaks off, or sent other bytes.
    """
    if path.exists():
        if sha256 is None or sha256_file(path) == sha256:
            return path
        path.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        _fetch(url, partial)
    except (OSError, HTTPException) as exc:  # URLError is an OSError
        raise BundleError(
            f"cannot download {url} ({exc}); run the same command again to continue, or download "
            "it elsewhere and use 'medclipsam models import'"
        ) from exc
    if sha256 is not None and (found := sha256_file(partial)) != sha256:
        partial.unlink()
        raise BundleError(
            f"{url} gave a file with sha256 {found}, expected {sha256}; it was removed. Run the "
            "same command again; if that does not help, a proxy changes it on the way"
        )
    partial.rename(path)
    return path


def _fetch(url: str, partial: Path) -> None:
    """Append to ``partial`` what is missing of ``url``; all of it where that cannot be told."""
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            continued = reply.status == 206 and _starts_at(reply.headers, have)
            if reply.status == 206 and not continued:
                raise urllib.error.URLError("the server sent another part than asked for")
            expected = reply.headers.get("Content-Length")
            with partial.open("ab" if continued else "wb") as file:
                got = 0
                while block := reply.read(BLOCK):
                    file.write(block)
                    got += len(block)
                file.flush()
                os.fsync(file.fileno())
            if expected and got < int(expected):
                raise urllib.error.URLError(f"connection closed after {got} of {expected} bytes")
    except urllib.error.HTTPError as exc:
        if exc.code != 416 or not have:
            raise
        # Nothing lies beyond ``have``: it was all there when the process was killed, or it is
        # not of this file.
        if _whole_size(exc.headers) != have:
            partial.unlink()
            _fetch(url, partial)


def _starts_at(headers: Message, have: int) -> bool:
    found = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
    return found is None or int(found[1]) == have


def _whole_size(headers: Message) -> int | None:
    found = re.fullmatch(r"bytes \*/(\d+)", headers.get("Content-Range", ""))
    return int(found[1]) if found else None
