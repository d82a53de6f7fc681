"""All that is generated: pages of results, the plot, the blocks of README.md and docs/.

Refuses to know how any of it is made.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from medclipsam.benchmarks.crf import plot
from medclipsam.benchmarks.figures import accuracy, speed, training
from medclipsam.benchmarks.figures.documents import compare_blocks, fill_documents
from medclipsam.benchmarks.figures.pages import make_page, read_results
from medclipsam.benchmarks.figures.picture import draw_picture, hash_values, read_hash
from medclipsam.benchmarks.measuring.result import PAGES

RESULTS = "benchmarks/results"
SHOWN = f"{RESULTS}/{PAGES}"
PLOT = f"{SHOWN}/crf.png"
MAKERS = {**accuracy.MAKERS, **training.MAKERS, **speed.MAKERS}


def list_documents(root: Path) -> list[str]:
    """Documents that may have blocks, below ``root``."""
    pages = sorted((root / "docs").glob("*.md"))
    return ["README.md", *(page.relative_to(root).as_posix() for page in pages)]


def generate(root: Path) -> dict[str, bytes]:
    """Path below ``root`` → what is to stand there.

    Raises:
        ConfigError: a result, a page or a block is wrong.
    """
    results = read_results(root / RESULTS)
    texts = {name: (root / name).read_text("utf-8") for name in list_documents(root)}
    files = {f"{SHOWN}/{name}.md": make_page(name, facts) for name, facts in results.items()}
    files |= fill_documents(texts, MAKERS, results)
    rows, old = results["crf"]["crf"], read_there(root / PLOT)
    current = old and read_hash(old) == hash_values(rows)
    picture = old if current else draw_picture(rows, plot)
    return {**{name: text.encode() for name, text in files.items()}, PLOT: picture}


def list_differences(root: Path, files: Mapping[str, bytes]) -> Iterator[str]:
    """What differs from ``files``: a page or a plot by its path, a block by path and name."""
    for name, data in files.items():
        old = read_there(root / name)
        if old == data:
            continue
        if name.startswith(SHOWN):
            yield name
        else:
            blocks = compare_blocks(old.decode(), data.decode(), name)
            yield from (f"{name}, figures: {block}" for block in blocks)


def read_there(path: Path) -> bytes:
    """A file's bytes; none where there is no file."""
    return path.read_bytes() if path.exists() else b""
