"""Settings that may make a run faster, each tried beside those in use; what helps is kept.

A candidate is kept if it was faster in every turn; it is left after one in which it was not. At
the end all that was kept is measured once more against the start, by new turns: only what is seen
there is promised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from medclipsam.benchmarks.bench.measure import FEW, START, TURNS, Bench, Pilot
from medclipsam.benchmarks.measuring.machine import count_cores
from medclipsam.benchmarks.measuring.spread import Ratio, Turns, take_turns
from medclipsam.engine.archive import Limits
from medclipsam.engine.backends.defaults import is_close
from medclipsam.engine.config import EngineConfig
from medclipsam.engine.engine import Engine
from medclipsam.engine.errors import MedclipsamError
from medclipsam.engine.pipeline import Pipeline
from medclipsam.engine.run.trial import compare, take_samples

WORTH = 1.02  # a gain of less is not worth a flag
CONFIRM = 2.0  # times the seconds of a candidate that the last measurement gets
RUNS = 5  # of a candidate, about: one that does not count, and many are left after a turn
LEAST_ROWS = 16
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")


@dataclass(frozen=True)
class Candidate:
    """Settings to try.

    Attributes:
        flags: as a user writes them; of a setting once.
        config, threads, backend: what they mean.
    """

    flags: dict[str, str]
    config: EngineConfig
    threads: int
    backend: str

    @property
    def words(self) -> str:
        """The flags as one text."""
        return " ".join(self.flags.values())

    def open(self, engine: Engine) -> Engine:
        """The same weights with these settings.

        Raises:
            MedclipsamError: the device or the backend cannot run so.
        """
        torch.set_num_threads(self.threads)
        device = engine.pipeline.encoder.device
        pipeline = Pipeline.open(engine.bundle, self.config, device, self.backend)
        return replace(
            engine, config=pipeline.config, pipeline=pipeline, threads=self.threads,
            backend=self.backend, undecided=False,
        )  # fmt: skip


def propose(now: Candidate, engine: Engine) -> Iterator[Candidate]:
    """Neighbours of the settings in use; asked for anew after each that was kept."""
    saliency, segment = now.config.saliency, now.config.segment
    for rows in (2 * saliency.rows, saliency.rows // 2):
        if rows >= LEAST_ROWS:
            config = replace(now.config, saliency=replace(saliency, rows=rows))
            yield _with(now, f"--set saliency.rows={rows}", config=config)
    for name in ("batch", "boxes"):
        size = getattr(segment, name)
        for other in (2 * size, size // 2):
            if other:
                config = replace(now.config, segment=replace(segment, **{name: other}))
                yield _with(now, f"--set segment.{name}={other}", config=config)
    cores = count_cores()
    for threads in sorted({cores, max(1, cores // 2), max(1, now.threads // 2)} - {now.threads}):
        yield _with(now, f"--threads {threads}", threads=threads)
    for precision in PRECISIONS:
        if precision != now.config.precision:
            config = replace(now.config, precision=precision)  # type: ignore[arg-type]
            yield _with(now, f"--precision {precision}", config=config)
    for backend in ("torch", *engine.bundle.exports):
        if backend != now.backend:
            yield _with(now, f"--backend {backend}", backend=backend)
    if "onnx" in engine.bundle.exports and now.backend != "onnx-tensorrt":
        yield _with(now, "--backend onnx-tensorrt", backend="onnx-tensorrt")


def name_settings(candidate: Candidate) -> set[str]:
    """Its settings as flags."""
    saliency, segment = candidate.config.saliency, candidate.config.segment
    return {
        f"--set saliency.rows={saliency.rows}",
        f"--set segment.batch={segment.batch}",
        f"--set segment.boxes={segment.boxes}",
        f"--threads {candidate.threads}",
        f"--precision {candidate.config.precision}",
        f"--backend {candidate.backend}",
    }


def _with(now: Candidate, flag: str, **changes: Any) -> Candidate:
    name = flag.partition("=")[0] if "=" in flag else flag.partition(" ")[0]
    return replace(now, flags={**now.flags, name: flag}, **changes)


class Sweep:
    """The search.

    Args:
        seconds: that it may take, about.
    """

    def __init__(self, bench: Bench, pilot: Pilot, seconds: float):
        self._bench, engine = bench, bench.engine
        self._best = Candidate({}, engine.config, engine.threads, engine.backend)
        self._engine = engine
        count = sum(1 for _ in propose(self._best, engine))  # others follow what is kept
        self._slot = seconds / (count + CONFIRM)
        self._images = max(1, int((self._slot / RUNS - START) / pilot.seconds))
        self._archive = bench.source.take(max(1, round(self._images / pilot.images)))

    def run(self) -> dict[str, Any]:
        """Try all; returns a row for each that was tried, and what is promised."""
        rows: list[dict[str, Any]] = []
        done = name_settings(self._best)
        proposals = list(propose(self._best, self._bench.engine))
        while proposals:
            candidate = proposals.pop(0)
            flag = next(f for n, f in candidate.flags.items() if self._best.flags.get(n) != f)
            if flag in done:
                continue
            done.add(flag)
            rows.append({"flag": flag})
            self._bench.tell(f"trying {flag}")
            try:
                if self._try(candidate, rows[-1]):  # its own neighbours are new
                    proposals = list(propose(self._best, self._bench.engine))
            except MedclipsamError as exc:
                rows[-1]["refused"] = str(exc)
        return {"images": self._images, "tried": rows, **self._promise()}

    def _try(self, candidate: Candidate, row: dict[str, Any]) -> bool:
        """Whether it is kept; ``row`` says why."""
        other = candidate.open(self._bench.engine)
        self._bench.label(other, self._archive)
        ratio = self._compare(self._engine, other, FEW, self._slot, is_lost)
        row["times_faster"] = ratio.to_json()
        if not (ratio.sure and ratio.median > WORTH):
            return False
        if _changes_numbers(candidate, self._bench.engine):
            row["masks"] = self._compare_masks(other)
            if not is_close(row["masks"]):
                return False
        row["kept"] = True
        self._best, self._engine = candidate, other
        return True

    def _compare(
        self,
        now: Engine,
        other: Engine,
        turns: int,
        limit: float,
        enough: Callable[[Turns], bool] = lambda turns: False,
    ) -> Ratio:
        calls = {
            "now": lambda: self._bench.label(now, self._archive),
            "other": lambda: self._bench.label(other, self._archive),
        }
        found = take_turns(calls, turns, 0, limit=limit, enough=enough, short=0)
        return found.times("other", "now")

    def _compare_masks(self, other: Engine) -> dict[str, float]:
        """IoU of masks with those of what was in use at the start."""
        samples = take_samples(self._archive, self._bench.prompts, Limits())
        return compare(self._bench.engine.pipeline, other.pipeline, samples)

    def _promise(self) -> dict[str, Any]:
        """What was kept, measured once more."""
        words = self._best.words
        if not words:
            return {"advice": "", "said": "Nothing that was tried was surely faster."}
        self._bench.tell("the advice once more")
        limit = CONFIRM * self._slot
        ratio = self._compare(self._bench.engine, self._engine, TURNS, limit)
        if ratio.sure and ratio.median > WORTH:
            said = f"With {words} a run is {ratio.show()} as fast."
            return {"advice": words, "times_faster": ratio.to_json(), "said": said}
        said = (
            f"{words} seemed faster, but not when it was measured once more "
            f"({ratio.show()}): nothing is advised."
        )
        return {"advice": "", "times_faster": ratio.to_json(), "said": said}


def is_lost(turns: Turns) -> bool:
    """Whether the other was not faster in a turn, so that it cannot be kept any more."""
    return turns.times("other", "now").low <= 1


def _changes_numbers(candidate: Candidate, engine: Engine) -> bool:
    same = candidate.config.precision == engine.config.precision
    return not (same and candidate.backend == engine.backend)
