"""What a run labels images with: prompts and a bundle (``Engine``), or a task model
(``Predictor``). The runner knows no more of either than this."""

from __future__ import annotations

from typing import Any, Protocol

from medclipsam.engine.prompts import PromptTable
from medclipsam.engine.run.executor import Executor, Surroundings
from medclipsam.engine.types import Prompts


class Labeller(Protocol):
    """A method with its weights, ready on one device."""

    @property
    def threads(self) -> int:
        """CPU threads for each of the stages that run there."""

    def identity(self) -> dict[str, Any]:
        """What of it decides a run's bytes, as plain JSON values for ``run.json``."""

    def facts(self) -> dict[str, object]:
        """What the report's head says of it."""

    def check_prompts(self, prompts: Prompts | PromptTable) -> None:
        """Refuse prompts before any image is read.

        Raises:
            ConfigError: it cannot look for them.
        """

    def open_executor(self, around: Surroundings) -> Executor:
        """The executor of one run."""
