"""Items that failed one after another in the same way: is it them, or the machine?"""

from collections.abc import Callable
from threading import Lock

from medclipsam.engine.errors import BackendError
from medclipsam.engine.run.work import Work

LIMIT = 5  # items in a row
PARTS = {"extract_boxes": "refine_mask"}  # stages that are passed together with another
REMEDIES = {
    "read_image": "leave them out with --exclude",
    "refine_mask": "try --crf pydensecrf or --set crf.max_side=512",
    "extract_boxes": "try --boxes largest",
    "write_mask": "leave out the --output that cannot be made of them",
}
OTHERWISE = "try --device cpu, --backend torch or --precision fp32"


class Streak:
    """Failed items, held back until it is known what their failure means.

    A fault that one image wakes costs that image: it is quarantined. A machine that is broken
    in a way that nobody has a name for fails on every image: then none is to blame. So the
    rows of failed items wait until another item has come through the stage that failed, or
    everything else is done; ``LIMIT`` of them in a row stop the run, and none gets a row.

    Any thread may call.

    Args:
        release: takes an item that is to blame itself.
    """

    def __init__(self, release: Callable[[Work], None]):
        self._release = release
        self._lock = Lock()
        self._held: list[Work] = []
        self._kind: tuple[str, type[BaseException]] | None = None

    def add(self, work: Work, exc: Exception) -> None:
        """Hold back an item that ``exc`` ended; its ``error`` names the stage.

        Raises:
            BackendError: it is the last of too many.
        """
        assert work.error is not None
        kind = (work.error.stage, type(exc))
        with self._lock:
            if kind != self._kind:
                self._let_go()
            self._kind = kind
            self._held.append(work)
            if len(self._held) < LIMIT:
                return
            stage, items = work.error.stage, ", ".join(w.ref.id for w in self._held[:3])
            self._held.clear()
        raise BackendError(
            f"{LIMIT} items in a row failed in {stage} with {type(exc).__name__}: {exc} "
            f"({items}, …). That looks like the machine or the settings, so no row was written "
            f"for them. Run the same command again, or, in another run folder, "
            f"{REMEDIES.get(stage, OTHERWISE)}"
        ) from exc

    def passed(self, stage: str) -> None:
        """An item has just come through ``stage``: whoever failed there is to blame."""
        with self._lock:
            if self._kind and PARTS.get(self._kind[0], self._kind[0]) == stage:
                self._let_go()

    def end(self) -> None:
        """Nothing more will come: what is held is let go."""
        with self._lock:
            self._let_go()

    def _let_go(self) -> None:
        held, self._held, self._kind = self._held, [], None
        for work in held:
            self._release(work)
