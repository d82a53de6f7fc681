"""A bundle is one deployable model in one folder, verified by hash before it is loaded.

    bundle.json                 identities, sizes, defaults, sha256 of every other file, exports
    clip/                       open_clip_config.json, text_config/, tokenizer, model.safetensors
    sam/model.safetensors       sizes stand in bundle.json
    onnx/PRECISION/…            see ``exports``

Only files named in ``bundle.json`` are read, and only safetensors hold weights: nothing
in a bundle can run code.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from medclipsam.engine.durable import write_durable
from medclipsam.engine.errors import BundleError
from medclipsam.engine.home import home
from medclipsam.engine.weights.models import (
    CLIP_CONFIG,
    Clip,
    SamConfig,
    build_clip,
    build_sam,
    load_weights,
)

SCHEMA = 1
DESCRIPTION = "bundle.json"
CLIP_FOLDER, SAM_FOLDER, WEIGHTS = "clip", "sam", "model.safetensors"
LOADED = (f"{CLIP_FOLDER}/{CLIP_CONFIG}", f"{CLIP_FOLDER}/{WEIGHTS}", f"{SAM_FOLDER}/{WEIGHTS}")
SHIPPED = Path(__file__).parents[1] / "bundles"


@dataclass(frozen=True)
class Bundle:
    """A verified bundle; the models are built when first asked for.

    Attributes:
        folder: where it lies.
        description: the content of ``bundle.json``.
    """

    folder: Path
    description: dict[str, Any]

    @property
    def name(self) -> str:
        return self.description["name"]

    @property
    def defaults(self) -> dict[str, Any]:
        """Settings found best for these weights, as ``EngineConfig`` takes them."""
        return self.description.get("defaults", {})

    @property
    def exports(self) -> dict[str, Any]:
        """Backend → precision → entry, see ``medclipsam.engine.weights.exports``."""
        return self.description.get("exports", {})

    def with_exports(self, folder: Path, exports: dict[str, Any]) -> Bundle:
        """The same weights with exports that lie in ``folder``; built models are shared."""
        other = Bundle(folder, {**self.description, "exports": exports})
        other.__dict__.update({k: v for k, v in self.__dict__.items() if k in ("clip", "sam")})
        return other

    @cached_property
    def digest(self) -> str:
        """sha256 over the file hashes: the identity of the weights."""
        return hashlib.sha256(
            json.dumps(self.description["files"], sort_keys=True).encode()
        ).hexdigest()

    @cached_property
    def sam_config(self) -> SamConfig:
        sizes: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in self.description["sam"].items()
        }
        sizes.pop("identity", None)
        try:
            return SamConfig(**sizes)
        except TypeError as exc:
            raise BundleError(
                f"{self.folder / DESCRIPTION} describes a SAM with unknown sizes ({exc}); "
                "make the bundle again with 'medclipsam models import'"
            ) from exc

    @cached_property
    def clip(self) -> Clip:
        clip = build_clip(self.folder / CLIP_FOLDER)
        load_weights(clip.model, self.folder / CLIP_FOLDER / WEIGHTS)
        return clip

    @cached_property
    def sam(self) -> nn.Module:
        sam = build_sam(self.sam_config)
        load_weights(sam, self.folder / SAM_FOLDER / WEIGHTS)
        return sam


def bundle_folders() -> list[Path]:
    """Where names are looked up: the user's own folder first, then those shipped."""
    return [user_folder(), SHIPPED]


def user_folder() -> Path:
    """``bundles`` in ``medclipsam.engine.home.home``."""
    return home() / "bundles"


def list_bundles() -> list[Path]:
    """Folders of every bundle that can be opened by name, first match of a name first."""
    found: dict[str, Path] = {}
    for base in bundle_folders():
        for description in sorted(base.glob(f"*/{DESCRIPTION}")):
            found.setdefault(description.parent.name, description.parent)
    return list(found.values())


def find_bundle(name: str) -> Path:
    """The folder of a bundle given by path or by name.

    Raises:
        BundleError: there is none.
    """
    candidates = [Path(name), *(base / name for base in bundle_folders())]
    for folder in candidates:
        if (folder / DESCRIPTION).is_file():
            return folder
    known = ", ".join(folder.name for folder in list_bundles()) or "none"
    raise BundleError(
        f"no bundle {name!r}: it is neither a folder with a {DESCRIPTION} nor one of the "
        f"installed bundles ({known}); see 'medclipsam models --help'"
    )


def open_bundle(name: str) -> Bundle:
    """Find a bundle by folder or name and verify every file it names.

    Raises:
        BundleError: it is missing, incomplete, altered, or of another schema.
    """
    folder = find_bundle(name)
    path = folder / DESCRIPTION
    try:
        description = json.loads(path.read_text("utf-8"))
        schema, files = description["schema"], dict(description["files"])
        complete = {"name", "clip", "sam"} <= description.keys()
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise BundleError(f"{path} is not a readable bundle description: {exc!r}") from exc
    if schema != SCHEMA or not complete:
        raise BundleError(
            f"{path} has schema {schema!r}, this version reads {SCHEMA}; "
            "make the bundle again with 'medclipsam models import'"
        )
    if unnamed := sorted(set(LOADED) - files.keys()):
        raise BundleError(
            f"{path} gives no sha256 of {', '.join(unnamed)}, which would be loaded unverified; "
            "copy or import the bundle again"
        )
    for relative, expected in files.items():
        verify_file(folder, relative, expected, "copy or import it again")
    for present in (p for part in (CLIP_FOLDER, SAM_FOLDER) for p in (folder / part).rglob("*")):
        if present.is_file() and present.relative_to(folder).as_posix() not in files:
            raise BundleError(
                f"{present} is not named in {path} and might be loaded unverified; remove it"
            )
    return Bundle(folder, description)


def verify_file(folder: Path, relative: str, expected: str, remedy: str) -> None:
    """Hash a file of a bundle.

    Raises:
        BundleError: it is missing, altered or outside the bundle; ends with ``remedy``.
    """
    path = folder / relative
    if not path.resolve().is_relative_to(folder.resolve()):
        raise BundleError(f"bundle {folder} names a file outside itself: {relative}")
    try:
        actual = sha256_file(path)
    except OSError as exc:
        raise BundleError(f"bundle file {path} cannot be read ({exc.strerror}); {remedy}") from exc
    if actual != expected:
        raise BundleError(
            f"bundle file {path} has sha256 {actual[:16]}…, expected {expected[:16]}…: it was "
            f"altered or cut short and is not loaded; {remedy}"
        )


def sha256_file(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_description(
    folder: Path,
    name: str,
    clip: dict[str, Any],
    sam_identity: str,
    sam: SamConfig,
    defaults: dict[str, Any],
    notes: dict[str, Any] | None = None,
) -> Bundle:
    """Hash every file in ``folder`` and write its ``bundle.json`` last.

    Args:
        clip: identity, revision and licence of the CLIP weights, for people to read.
        sam_identity: the same for SAM.
        defaults: settings for ``EngineConfig``, by evidence.
        notes: figures or anything else worth keeping.
    """
    files = {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != DESCRIPTION
    }
    description = {
        "schema": SCHEMA,
        "name": name,
        "clip": clip,
        "sam": {"identity": sam_identity, **asdict(sam)},
        "defaults": defaults,
        "notes": notes or {},
        "files": files,
    }
    text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
    write_durable(folder / DESCRIPTION, text.encode())
    return Bundle(folder, description)
