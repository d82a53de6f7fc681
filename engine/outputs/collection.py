"""Collections: all usable masks of a run in the form that a training or a tool reads."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

from medclipsam.engine.config import COLLECTIONS
from medclipsam.engine.errors import InputError
from medclipsam.engine.outputs.cases import Case, read_masks, reason_against
from medclipsam.engine.outputs.coco import NAME, CocoFile, open_coco
from medclipsam.engine.outputs.nnunet import FOLDER, NnunetFolder, open_nnunet


@dataclass(frozen=True)
class Collected:
    """What became of a run's cases.

    Attributes:
        paths: collection → where it lies.
        taken: collection → cases in it.
        left_out: reason → cases in no collection, or not in the one that the reason names.
        doubtful: volumes in ``nnunet`` whose geometry is made up.
    """

    paths: dict[str, Path]
    taken: Counter[str]
    left_out: Counter[str]
    doubtful: int = 0


def collect(
    folder: Path,
    formats: Sequence[str],
    cases: Iterable[Case],
    labels: Sequence[str],
    decisions: Mapping[tuple[str, str], str] | None = None,
    name: str = "",
) -> Collected:
    """Build collections of a run folder: ``coco.json``, ``nnunet/``.

    They appear at the end, each whole, or, when stopped before, not at all; those of an
    earlier call are replaced. A case is left out whole when a label of it is quarantined,
    rejected or unsure; see ``cases.reason_against``.

    Args:
        folder: the run folder, which no other process may be collecting in.
        formats: names of :data:`COLLECTIONS`.
        cases: the items, read as they are needed.
        labels: all labels of the run, in the order of their prompts.
        decisions: (item, label) → accept, reject or unsure; see ``review.read_review``.
        name: of the nnU-Net datasets; the folder's own by default.

    Raises:
        ConfigError: a mask file is missing or damaged, or labels do not suit a format.
        OutputError: the disk is full.
    """
    taken: Counter[str] = Counter(dict.fromkeys(formats, 0))
    left_out: Counter[str] = Counter()
    doubtful = 0
    with ExitStack() as stack:
        collections = {
            kind: stack.enter_context(_open(kind, folder, labels, name))
            for kind in dict.fromkeys(formats)
        }
        for case in cases:
            reason = reason_against(case, decisions or {})
            if reason:
                left_out[reason] += 1
                continue
            masks = read_masks(folder, case)
            for kind, collection in collections.items():
                try:
                    collection.add(case, masks)
                    taken[kind] += 1
                except InputError as exc:
                    left_out[f"{kind}, {exc.stage}: {exc.reason}"] += 1
                else:
                    doubtful += kind == "nnunet" and _is_doubtful(case)
    places = {"coco": NAME, "nnunet": FOLDER}
    return Collected({kind: folder / places[kind] for kind in taken}, taken, left_out, doubtful)


def _is_doubtful(case: Case) -> bool:
    return any(row.geometry and row.frames > 1 for row in case.outcomes.values())


def _open(
    kind: str, folder: Path, labels: Sequence[str], name: str
) -> AbstractContextManager[CocoFile | NnunetFolder]:
    if kind == "coco":
        return open_coco(folder, labels)
    if kind == "nnunet":
        return open_nnunet(folder, labels, name or folder.resolve().name)
    raise ValueError(f"expected collections out of {COLLECTIONS}, got {kind!r}")
