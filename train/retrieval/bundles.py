"""Bundles by name, opened one after the other and compared on the same pairs."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from medclipsam.engine.archive import Decoders
from medclipsam.engine.backends import open_device
from medclipsam.engine.backends.defaults import settle
from medclipsam.engine.config import make_config
from medclipsam.engine.encoder import ClipEncoder
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.weights.bundle import open_bundle
from medclipsam.train.pairs.pairs import PairList, load_image
from medclipsam.train.problems import OnError
from medclipsam.train.retrieval.embedding import Embedder
from medclipsam.train.retrieval.retrieval import Retrievals, retrieve
from medclipsam.train.threads import use_threads


def parse_bundles(texts: Sequence[str]) -> dict[str, str]:
    """Name → bundle, of ``BUNDLE`` and ``NAME=BUNDLE``.

    Raises:
        ConfigError: two of one name, or an empty one.
    """
    named: dict[str, str] = {}
    for text in texts:
        name, equals, place = text.partition("=")
        name, place = (name, place) if equals else (Path(text).name, text)
        if not name or not place:
            raise ConfigError(f"expected BUNDLE or NAME=BUNDLE, got {text!r}")
        if name in named:
            raise ConfigError(f"two bundles are called {name!r}; name them with NAME=BUNDLE")
        named[name] = place
    return named


def compare_bundles(
    pairs: PairList,
    named: dict[str, str],
    on_error: OnError,
    log: Callable[[str], None],
    device: str,
    backend: str,
    threads: int | None,
    precision: str | None = None,
    batch: int = 64,
) -> Retrievals:
    """Retrieval by each bundle; two at most are held at a time.

    Args:
        named: name → bundle.
        precision: of the image tower, the bundle's own by default.
        batch: images per call.

    Raises:
        ConfigError, InputError: see ``retrieve``.
        BundleError, BackendError: a bundle cannot be opened.
    """
    where, count = open_device(device), use_threads(threads)

    def open_models() -> Iterator[tuple[str, Embedder]]:
        for name, place in named.items():
            opened = open_bundle(place)
            config = settle(make_config(opened.defaults, {}), opened, where, backend)
            chosen = precision or config.precision
            encoder = ClipEncoder.open(opened, where, backend, batch, precision=chosen)
            yield name, Embedder(encoder, config.fit, count)

    with Decoders(count) as decoders:
        load = partial(load_image, decoders)
        found = retrieve(pairs.pairs, open_models(), load, on_error, log)
    found.problems.update(pairs.problems)
    return found
