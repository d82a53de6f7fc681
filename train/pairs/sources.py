"""Where pairs of image and caption come from, as they stand there."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from medclipsam.engine.archive import Entry, open_archive
from medclipsam.engine.archive.containers.blob import LocalBlob
from medclipsam.engine.archive.containers.members import safe_name
from medclipsam.engine.archive.containers.tars import tar_members
from medclipsam.engine.archive.kinds import SUFFIXES
from medclipsam.engine.archive.shards import expand_braces, is_pattern
from medclipsam.engine.errors import ConfigError, InputError
from medclipsam.engine.tables import read_table
from medclipsam.engine.types import ItemRef

CAPTION_ENDINGS = ("txt", "caption")
Refuse = Callable[[str, str, str], None]  # kind, where, what


@dataclass(frozen=True)
class Raw:
    """One pair as its source has it; ``caption`` None where there is none."""

    entry: Entry
    caption: str | None
    row: str
    mask: Entry | None = None


def open_source(
    source: str,
    image_column: str,
    caption_column: str,
    images: Path | None,
    mask_column: str | None,
    refuse: Refuse,
) -> Iterator[Raw]:
    """The pairs of ``source``, see ``medclipsam.train.pairs.pairs.read_pairs``.

    Args:
        refuse: told of what is no pair at all, such as a row with too few cells.

    Raises:
        ConfigError: there is no such source, or it lacks a column.
    """
    path = Path(source)
    if path.is_dir():
        return _folder(path)
    if source.endswith((".tar.gz", ".tgz")):
        raise ConfigError(f"{source} is compressed, and training reads at random: unpack the .gz")
    if source.endswith(".tar") or is_pattern(source):
        return _shards(source, refuse)
    if not path.is_file():
        raise ConfigError(f"there are no image–caption pairs at {source}; check the path")
    folder = images or path.parent
    if path.suffix.lower() == ".txt":
        return _lines(path, folder, refuse)
    return _table(path, folder, (image_column, caption_column), mask_column, refuse)


def _table(
    path: Path, folder: Path, columns: tuple[str, str], mask_column: str | None, refuse: Refuse
) -> Iterator[Raw]:
    def bad_row(number: int, what: str) -> None:
        refuse("malformed row", f"{path}, row {number}", what)

    wanted = (*columns, *([mask_column] if mask_column else []))
    table = read_table(path, bad_row, wanted, "name yours with --image-column and --caption-column")
    masks = table[mask_column] if mask_column else [None] * len(table[columns[0]])
    rows = zip(*(table[name] for name in columns), masks, strict=True)
    for number, (image, caption, mask) in enumerate(rows, start=1):
        row = f"{path}, row {number}"
        text = None if caption is None else str(caption)
        yield Raw(_find(folder, image), text, row, _find(folder, mask) if mask else None)


def _lines(path: Path, folder: Path, refuse: Refuse) -> Iterator[Raw]:
    """ROCO: ``ROCO_00002<tab>caption``, images beside it or in ``images/``."""
    if (folder / "images").is_dir():
        folder = folder / "images"
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"cannot read the captions in {path}: {exc}") from exc
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, tab, caption = line.partition("\t")
        if not tab:
            refuse("malformed row", f"{path}, line {number}", "expected a name, a tab, a caption")
            continue
        yield Raw(_find(folder, name.strip()), caption, f"{path}, line {number}")


def _find(folder: Path, name: object) -> Entry:
    """The file that a row names, which may lack its suffix."""
    if name is None or not str(name).strip():
        return Entry(ItemRef(""), error=_missing("no image is named"))
    text = str(name).strip()
    file = folder / text
    for candidate in (file, *(file.with_name(file.name + ending) for ending in SUFFIXES)):
        if candidate.is_file():
            return Entry(ItemRef(text), files=(candidate,))
    return Entry(ItemRef(text), error=_missing(f"there is no file {file}"))


def _missing(what: str) -> InputError:
    return InputError("read_image", "vanished", what)


def _folder(path: Path) -> Iterator[Raw]:
    """Images below a folder; the caption of ``a/b.png`` stands in ``a/b.txt``."""
    for entry in open_archive(path):
        stem = entry.files[0] if entry.files else path / entry.ref.path
        caption = stem.with_suffix(".txt")
        try:
            text = caption.read_text("utf-8-sig") if caption.is_file() else None
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigError(f"cannot read the caption {caption}: {exc}") from exc
        yield Raw(entry, text, os.fspath(stem))


def _shards(pattern: str, refuse: Refuse) -> Iterator[Raw]:
    """WebDataset: members of one name up to its first dot are a sample."""
    import glob

    names = [n for part in expand_braces(pattern) for n in sorted(glob.glob(part)) or [part]]
    for name in names:
        if not Path(name).is_file():
            raise ConfigError(f"there is no shard {name}; check the path")
        yield from _shard(LocalBlob(name, Path(name)), refuse)


def _shard(blob: LocalBlob, refuse: Refuse) -> Iterator[Raw]:
    key, image, caption = "", None, None
    try:
        with blob.open() as file:
            for member in tar_members(file, blob, zipped=False):
                name = safe_name(member.name)
                folder, _, base = name.rpartition("/")
                stem, _, ending = base.partition(".")
                if (own := f"{folder}/{stem}") != key:
                    if image or caption is not None:
                        yield _sample(blob, key, image, caption)
                    key, image, caption = own, None, None
                if member.error or not name:
                    refuse("unreadable", f"{blob.path}/{member.name}", str(member.error or "name"))
                elif ending in CAPTION_ENDINGS:
                    caption = member.fetch().decode("utf-8", "replace")
                elif f".{ending.lower()}" in SUFFIXES:
                    ref = ItemRef(f"{blob.path}/{name}")
                    image = Entry(ref, size=member.size, fetch=member.fetch)
    except InputError as exc:
        refuse("unreadable", blob.path, str(exc))
    if image or caption is not None:
        yield _sample(blob, key, image, caption)


def _sample(blob: LocalBlob, key: str, image: Entry | None, caption: str | None) -> Raw:
    nothing = Entry(ItemRef(f"{blob.path}/{key}"), error=_missing("the sample has no image"))
    return Raw(image or nothing, caption, f"{blob.path}, sample {key.lstrip('/')}")
