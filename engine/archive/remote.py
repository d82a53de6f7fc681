"""Archives behind a URL: folders, images and containers, listed one folder at a time."""

import re
from collections.abc import Iterator
from functools import partial

from medclipsam.engine.archive.archive import Archive
from medclipsam.engine.archive.containers.items import list_members
from medclipsam.engine.archive.entry import Entry
from medclipsam.engine.archive.kinds import is_container, is_list, known_suffix
from medclipsam.engine.archive.limits import Limits
from medclipsam.engine.archive.patterns import Patterns
from medclipsam.engine.archive.shards import expand_braces
from medclipsam.engine.archive.sieve import Sieve
from medclipsam.engine.archive.store import Object, RemoteBlob, Store, connect
from medclipsam.engine.errors import ConfigError, InputError
from medclipsam.engine.types import ItemRef


def open_remote(url: str, patterns: Patterns, limits: Limits) -> Archive:
    """A folder, an image, a container, or several of these named with braces.

    Raises:
        ConfigError: the package for the protocol is missing, the URL cannot be reached,
            or nothing is there.
    """
    identity, urls = public_name(url), expand_braces(url)
    folder = not is_container(public_name(urls[0])) and not known_suffix(public_name(urls[0]))
    if is_list(identity) or (folder and len(urls) > 1):
        raise ConfigError(
            f"{identity} is neither a folder, an image nor a container; download a list "
            "before use, and name several containers as shards-{000..099}.tar"
        )
    store, paths = connect(urls)
    try:
        store.list(paths[0]) if folder else store.size(paths[0])
    except InputError as exc:
        if exc.reason == "vanished":
            raise ConfigError(f"there is no archive at {identity}; check the URL") from exc
        raise ConfigError(f"cannot open {identity}: {exc}") from exc
    if folder:
        walk = partial(_walk_folder, store, paths[0], limits)
    else:
        root = public_name(url.partition("{")[0]).rpartition("/")[0]
        names = [public_name(each)[len(root) + 1 :] for each in urls]
        walk = partial(_walk_files, store, dict(zip(names, paths, strict=True)), limits)
    name = identity.rstrip("/").rpartition("/")[2]
    return Archive(identity, name, walk, patterns, countable=False)


def public_name(url: str) -> str:
    """The URL without what may be secret: user, password, and the query of a web address."""
    bare = re.sub(r"(?<=://)[^/@]*@", "", url)
    return re.split(r"[?#]", bare)[0] if bare.startswith("http") else bare


def _walk_files(
    store: Store, files: dict[str, str], limits: Limits, sieve: Sieve
) -> Iterator[Entry]:
    for name, path in files.items():
        yield from _list_file(store, Object(name, path, 0, False), name, limits, sieve)


def _walk_folder(store: Store, root: str, limits: Limits, sieve: Sieve) -> Iterator[Entry]:
    pending = [("", iter(store.list(root)))]
    while pending:
        prefix, objects = pending[-1]
        found = next(objects, None)
        if found is None:
            pending.pop()
        elif found.name.startswith("."):
            continue
        elif not found.is_folder:
            yield from _list_file(store, found, prefix + found.name, limits, sieve)
        elif not sieve.patterns.leave_out(f"{prefix}{found.name}/"):
            try:
                pending.append((f"{prefix}{found.name}/", iter(store.list(found.path))))
            except InputError as exc:
                yield Entry(ItemRef(prefix + found.name), error=exc)


def _list_file(
    store: Store, found: Object, path: str, limits: Limits, sieve: Sieve
) -> Iterator[Entry]:
    if is_container(found.name):
        if not sieve.patterns.leave_out(path):
            yield from list_members(RemoteBlob(path, store, found.path), sieve, limits)
    elif sieve.keep(path, partial(store.has_magic, found.path)):
        fetch = partial(store.fetch, found.path, found.size, limits)
        yield Entry(ItemRef(path), found.size, fetch=fetch)
