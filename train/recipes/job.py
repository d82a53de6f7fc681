"""What a person asks of a recipe, and the folder that it is done in.

OUT/recipe.json            what is worked on; another recipe or other data are refused
OUT/table.md, table.json   what comes of it
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medclipsam.engine.durable import make_folder, write_durable
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.outputs import label_folders
from medclipsam.train.recipes.recipe import Recipe

FACTS, TABLE = "recipe.json", "table"


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

    def claim(self, **facts: Any) -> None:
        """Take a new or empty folder for the work that ``facts`` describe, or go on in it.

        Raises:
            ConfigError: it holds something else.
            OutputError: it cannot be written.
        """
        out, file = self.out, self.out / FACTS
        text = json.dumps({"recipe": self.recipe.name, **facts}, indent=2)
        if not file.exists():
            if out.exists() and (not out.is_dir() or any(out.iterdir())):
                raise ConfigError(f"{out} holds other files; choose a new folder with -o")
            make_folder(out)
            write_durable(file, text.encode())
            return
        try:
            before = json.loads(file.read_text("utf-8"))
        except (OSError, ValueError) as exc:
            raise ConfigError(f"cannot read {file}: {exc}; choose another folder with -o") from exc
        if changed := [k for k, value in json.loads(text).items() if before.get(k) != value]:
            raise ConfigError(
                f"{out} holds the work of another command, with different {', '.join(changed)}; "
                "choose another folder with -o, or repeat that command to go on"
            )

    def write_table(self, text: str, **facts: Any) -> Path:
        """``table.md``, ``facts["notes"]`` below it, and ``table.json``; returns the former.

        Raises:
            OutputError: they cannot be written.
        """
        title, path = self.recipe.title, self.out / f"{TABLE}.md"
        about = {"recipe": self.recipe.name, "title": title, "limit": self.limit, **facts}
        write_durable(path.with_suffix(".json"), f"{json.dumps(about, indent=2)}\n".encode())
        text += "".join(f"\n{note[0].upper()}{note[1:]}.\n" for note in facts["notes"])
        write_durable(path, f"# {title}\n\n{text}".encode())
        return path


@dataclass(frozen=True)
class Result:
    """What was made.

    Attributes:
        table: Markdown, beside it the same as JSON; or the bundle, where no table was asked for.
        quarantined: items and labels of all runs that could not be processed.
    """

    table: Path
    quarantined: int = 0
