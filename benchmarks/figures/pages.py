"""Results and the page of each: NAME.json, pages/NAME.md. Refuses to know what a page says."""

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from medclipsam.benchmarks.measuring.result import HEAD, PAGES, to_page
from medclipsam.engine.errors import ConfigError


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Name → facts of every result in ``folder``.

    Raises:
        ConfigError: a result does not say how it was measured, or a page has no result.
    """
    results = {path.stem: json.loads(path.read_text("utf-8")) for path in folder.glob("*.json")}
    for name, facts in sorted(results.items()):
        if missing := [key for key in HEAD if not facts.get(key)]:
            raise ConfigError(f"{name}.json does not say its {', '.join(missing)}")
    pages = (folder / PAGES).glob("*.md")
    if orphans := sorted({path.stem for path in pages} - results.keys()):
        raise ConfigError(f"{orphans[0]}.md has no {orphans[0]}.json; measure it, or remove it")
    return dict(sorted(results.items()))


def make_page(name: str, facts: Mapping[str, Any]) -> str:
    """The page of a result, by its benchmark: the word before the first ``-`` of its name.

    Raises:
        ConfigError: the benchmark makes no page.
    """
    module = import_module(f"medclipsam.benchmarks.{name.partition('-')[0]}")
    if not hasattr(module, "to_markdown"):
        raise ConfigError(f"{module.__name__} has no to_markdown for {name}.json")
    return to_page(facts, module.to_markdown)
