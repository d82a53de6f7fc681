"""What a person asks of a recipe, and what becomes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medclipsam.engine.durable import write_durable
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.outputs import label_folders
from medclipsam.train.recipes.recipe import Recipe

TABLE = "table"


@dataclass(frozen=True)
class Job:
    """One recipe on one folder of data.

    Attributes:
        bundles: name → bundle; those of the recipe by default.
        stages: which of the recipe's; all by default.
        limit: images of each side of the split, or pairs; 0 for all.
        incomplete: whether fewer images than the data set has are accepted.
        log: takes lines of progress.
    """

    recipe: Recipe
    data: Path
    out: Path
    bundles: dict[str, str] = field(default_factory=dict)
    stages: tuple[str, ...] = ()
    limit: int = 0
    incomplete: bool = False
    device: str = "auto"
    backend: str = "torch"
    threads: int | None = None
    log: Callable[[str], None] = print

    def __post_init__(self) -> None:
        recipe = self.recipe
        object.__setattr__(self, "bundles", self.bundles or dict(recipe.bundles))
        object.__setattr__(self, "stages", self.stages or recipe.stages)
        if unknown := [stage for stage in self.stages if stage not in recipe.stages]:
            raise ConfigError(
                f"the recipe {recipe.name!r} has no stage {unknown[0]!r}; it has "
                f"{', '.join(recipe.stages)}"
            )
        if recipe.task == "fine-tuning" and len(self.bundles) != 1:
            raise ConfigError(
                f"fine-tuning starts from one bundle, got {', '.join(self.bundles)}; name one with "
                "--bundle"
            )
        label_folders(self.bundles)  # each gets a folder of its own


@dataclass(frozen=True)
class Result:
    """What was made.

    Attributes:
        table: Markdown; beside it the same as JSON.
        quarantined: items and labels of all runs that could not be processed.
        notes: what is missing from the table, and why.
    """

    table: Path
    quarantined: int = 0
    notes: tuple[str, ...] = ()


def write_table(job: Job, text: str, facts: dict[str, Any]) -> Path:
    """``table.md`` and ``table.json`` in the job's folder; returns the former.

    Raises:
        OutputError: they cannot be written.
    """
    about = {"recipe": job.recipe.name, "title": job.recipe.title, "limit": job.limit}
    path = job.out / f"{TABLE}.md"
    heading = f"# {job.recipe.title}\n\n"
    write_durable(
        path.with_suffix(".json"), f"{json.dumps({**about, **facts}, indent=2)}\n".encode()
    )
    write_durable(path, (heading + text).encode())
    return path
