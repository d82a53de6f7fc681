"""A training of CLIP in a folder of its own, from pairs to a bundle.

OUT/data/          decoded images, for as long as you like to train on them again
OUT/checkpoints/   what a killed training goes on from
OUT/tensorboard/   loss, learning rate, retrieval
OUT/history.json   retrieval on the validation pairs after each epoch
OUT/best.safetensors   weights of the best epoch
OUT/bundle/        the bundle with these weights; written last
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from medclipsam.engine.durable import growing_folder, write_durable
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.weights.bundle import (
    CLIP_FOLDER,
    WEIGHTS,
    Bundle,
    open_bundle,
    write_description,
)
from medclipsam.engine.weights.models import Clip, build_clip
from medclipsam.train.checkpoint import Checkpoints, hold
from medclipsam.train.clip.fit import ClipTrainer, Watcher
from medclipsam.train.clip.lora import merge_low_rank
from medclipsam.train.clip.settings import ClipTraining
from medclipsam.train.pairs.pairs import PairList
from medclipsam.train.pairs.prepared import Prepared, prepare
from medclipsam.train.problems import Problems
from medclipsam.train.ranking import rank_partners
from medclipsam.train.ranks import Ranks

BEST, HISTORY, BUNDLE = "best.safetensors", "history.json", "bundle"
SAY_EVERY = 50  # steps
Log = Callable[[str], None]


@dataclass
class Record(Watcher):
    """What is written while a training goes on; only the first rank does.

    Attributes:
        validation: pairs to judge on, or None to keep the last weights.
        history: one entry an epoch.
    """

    out: Path
    checkpoints: Checkpoints
    validation: Prepared | None
    log: Log
    history: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._board: Any = None
        self._recent: list[float] = []
        self._started = time.monotonic()

    def step(self, step: int, loss: float, rate: float) -> None:
        self._recent.append(loss)
        self._write(step, {"loss": loss, "learning_rate": rate})
        if step % SAY_EVERY == SAY_EVERY - 1:
            took = time.monotonic() - self._started
            self.log(f"step {step + 1}: loss {np.mean(self._recent):.4f}, {took:.0f} s")
            self._recent = []

    def epoch(self, step: int, epoch: int, trainer: ClipTrainer) -> None:
        best = max((entry.get("top-1", -1.0) for entry in self.history), default=-1.0)
        figures = {} if self.validation is None else judge(trainer, self.validation)
        self.history.append({"epoch": epoch, "step": step, **figures})
        self._write(step, figures)
        write_durable(self.out / HISTORY, json.dumps(self.history, indent=2).encode())
        if figures:
            told = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
            self.log(f"epoch {epoch}: {told}")
        if not figures or figures["top-1"] > best:
            write_durable(self.out / BEST, save(plain_weights(trainer)))

    def save(self, step: int, trainer: ClipTrainer) -> None:
        self.checkpoints.save(step, {**trainer.state(), "history": self.history})
        super().save(step, trainer)

    def _write(self, step: int, figures: dict[str, float]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if self._board is None:
            folder = os.fspath(self.out / "tensorboard")
            self._board = SummaryWriter(folder, purge_step=step)
        for name, value in figures.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


def judge(trainer: ClipTrainer, validation: Prepared) -> dict[str, float]:
    """Retrieval among the validation pairs: shares of queries, mean of both directions.

    Captions of the same words are one caption.
    """
    images, texts = trainer.embed(validation)
    captions = {text: n for n, text in enumerate(dict.fromkeys(validation.captions))}
    first = [validation.captions.index(text) for text in captions]
    partners = np.array([[n, captions[text]] for n, text in enumerate(validation.captions)])
    both = (
        rank_partners(images, texts[first], partners),
        rank_partners(texts[first], images, partners[:, ::-1]),
    )
    return {
        f"top-{top}": float(np.mean([ranking.hits(top).mean() for ranking in both]))
        for top in (1, 5)
    }


def plain_weights(trainer: ClipTrainer) -> dict[str, torch.Tensor]:
    """The weights to keep, under the names of the plain model."""
    model = trainer.validated
    if trainer.training.lora:
        import copy

        model = copy.deepcopy(model)
        merge_low_rank(model)
    return {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}


def train_clip(
    base: Bundle,
    pairs: PairList,
    out: Path,
    training: ClipTraining,
    ranks: Ranks,
    problems: Problems,
    validation: PairList | float = 0.1,
    threads: int = 1,
    stop: Event | None = None,
    log: Log = print,
) -> Path | None:
    """Train in ``out``, going on from what is there, and write ``out/bundle``.

    Only the first rank writes.

    Args:
        base: the weights to start from, or with ``from_scratch`` their architecture; its SAM
            goes into the new bundle.
        problems: told of images that cannot be read.
        validation: pairs of their own, or the share of ``pairs`` that is kept apart; 0 for none.
        stop: once set, the training ends after the current step.

    Returns:
        The bundle's folder; None if the training was stopped.

    Raises:
        ConfigError: ``out`` holds another training, or the data do not suffice.
        OutputError: something cannot be written.
    """
    with hold(out) if ranks.first else nullcontext():
        clip = _start_weights(base, training)
        side, fit = clip.image_size, base.defaults.get("fit", "squash")
        if not ranks.first:
            ranks.wait()  # for the first one to decode them
        known = prepare(pairs, out / "data" / "pairs", side, fit, problems, threads)
        own, apart = _split(known, validation, training.seed)
        if isinstance(validation, PairList):
            apart = prepare(validation, out / "data" / "validation", side, fit, problems, threads)
        if ranks.first:
            ranks.wait()
        identity = {
            "bundle": base.digest,
            "pairs": pairs.digest,
            "validation": validation.digest if isinstance(validation, PairList) else validation,
            "ranks": ranks.count,
            **asdict(training),
        }
        checkpoints = Checkpoints(out / "checkpoints", identity, log)
        trainer = ClipTrainer(clip, own, training, ranks, stop or Event())
        record = Record(out, checkpoints, apart, log)
        begin, state = checkpoints.load() or (0, {})
        if state:
            record.history = state.pop("history")
            trainer.restore(state)
        log(
            f"{len(own)} pairs to train on, {len(apart) if apart else 0} to judge by, "
            f"{trainer.steps} steps" + (f", going on from step {begin}" if begin else "")
        )
        try:
            if not trainer.run(record if ranks.first else Watcher(), begin):
                return None
        finally:
            record.close()
        return _write_bundle(base, out, record, training) if ranks.first else out / BUNDLE


def _start_weights(base: Bundle, training: ClipTraining) -> Clip:
    if not training.from_scratch:
        return base.clip
    torch.manual_seed(training.seed)
    clip = build_clip(base.folder / CLIP_FOLDER)
    with torch.no_grad():
        scale: Any = clip.model.logit_scale
        scale.fill_(math.log(1 / training.temperature))
    return clip


def _split(
    known: Prepared, validation: PairList | float, seed: int
) -> tuple[Prepared, Prepared | None]:
    """What is trained on, and what is kept apart."""
    if isinstance(validation, PairList) or validation == 0:
        return known, None
    order = np.random.default_rng(seed).permutation(len(known))
    count = max(1, round(validation * len(known)))
    return known.take(np.sort(order[count:])), known.take(np.sort(order[:count]))


def _write_bundle(base: Bundle, out: Path, record: Record, training: ClipTraining) -> Path:
    """The base bundle with the new weights; what was calibrated on the old ones is dropped."""
    about = base.description
    defaults = {k: v for k, v in base.defaults.items() if k not in ("presence", "confidence")}
    made = {"training": asdict(training), "from": base.digest, "history": record.history}
    with growing_folder(out / BUNDLE) as growing:
        for relative in about["files"]:
            path = growing.path / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(base.folder / relative, path)
        shutil.copyfile(out / BEST, growing.path / CLIP_FOLDER / WEIGHTS)
        write_description(
            growing.path,
            out.resolve().name,
            {**about["clip"], "identity": f"{base.name}, trained by medclipsam"},
            about["sam"]["identity"],
            base.sam_config,
            defaults,
            {**about.get("notes", {}), "clip": made},
        )
    open_bundle(str(out / BUNDLE))
    return out / BUNDLE


def refuse_foreign(out: Path) -> None:
    """Refuse a folder that holds files, but no training.

    Raises:
        ConfigError: names it.
    """
    if out.is_dir() and any(out.iterdir()) and not (out / "data").is_dir():
        raise ConfigError(f"{out} holds other files; choose a new folder with -o")
