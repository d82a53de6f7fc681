"""Where a training stands, on disk: whole or not there at all, and only for the same training.

Refuses to know what is trained. A state is numbers, texts, tensors, and lists and
dictionaries of them, so that reading one runs no code.

    FOLDER/step-00000200.pt    identity, step and state; the last two are kept
    FOLDER/lock                held while a training runs, see ``hold``
"""

import json
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from medclipsam.engine.durable import durable_file, make_folder, remove_unfinished, take_lock
from medclipsam.engine.errors import ConfigError, OutputError, differences

KEPT = 2
NAMED = 4  # differences that a refusal lists
LOCK = "lock"
DAMAGED = (OSError, EOFError, RuntimeError, KeyError, TypeError, ValueError, pickle.UnpicklingError)


class Checkpoints:
    """The checkpoints of one training in a folder.

    Args:
        folder: made with the first checkpoint.
        identity: what decides the result, as plain JSON values; nested dictionaries may be.
        log: told of a damaged checkpoint that the one before it replaces.
    """

    def __init__(
        self, folder: Path, identity: dict[str, Any], log: Callable[[str], None] = print
    ) -> None:
        self.folder = folder
        self._identity = json.loads(json.dumps(identity))
        self._log = log

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Store ``state`` after ``step`` steps, then remove all but the last two.

        Raises:
            OutputError: it cannot be written; what was there stays.
        """
        make_folder(self.folder)
        remove_unfinished(self.folder)
        path = self.folder / f"step-{step:08d}.pt"
        content = {"identity": json.dumps(self._identity), "step": step, "state": state}
        try:
            with durable_file(path) as file:
                torch.save(content, file)
        except RuntimeError as exc:  # torch's writer does not let the OSError through
            raise OutputError(
                f"cannot write {path}: {exc}. Free space, then run the same command again."
            ) from exc
        for old in self._paths()[KEPT:]:
            old.unlink(missing_ok=True)

    def load(self) -> tuple[int, dict[str, Any]] | None:
        """(steps, state) of the newest checkpoint, tensors on the CPU; None where there is none.

        A damaged one is named and the one before it taken: the training only gets longer.

        Raises:
            ConfigError: it belongs to another training, or none of them can be read.
        """
        paths = self._paths()
        for path in paths:
            try:
                content = torch.load(path, map_location="cpu", weights_only=True)
                identity = json.loads(content["identity"])
                step, state = int(content["step"]), dict(content["state"])
            except DAMAGED as exc:
                self._log(f"{path} is damaged ({type(exc).__name__}) and not used")
                continue
            self._compare(identity)
            return step, state
        if paths:
            raise ConfigError(
                f"no checkpoint in {self.folder} can be read; remove the folder to begin anew"
            )
        return None

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.pt"), reverse=True)

    def _compare(self, before: dict[str, Any]) -> None:
        changed = list(differences(before, self._identity))
        if changed:
            more = len(changed) - NAMED
            named = "; ".join(changed[:NAMED]) + (f"; and {more} more" if more > 0 else "")
            raise ConfigError(
                f"{self.folder} holds another training, with different {named}. Repeat its "
                "settings to resume it, choose another folder with -o, or remove this one"
            )


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep other trainings out of ``folder`` meanwhile; it is made if need be.

    Raises:
        ConfigError: one is running there.
        OutputError: the folder cannot be written.
    """
    make_folder(folder)
    with take_lock(folder / LOCK, f"a training is going on in {folder}; wait or stop it"):
        yield
