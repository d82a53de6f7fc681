"""Every stage of a run alone, over all images of a sample: what each costs, with nothing beside it.

A stage gets what the run would give it: the device's stages full batches, the others all threads.
What one stage makes is what the next one works on, so a pass goes through all of them in order.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from medclipsam.benchmarks.bench.watch import processor_seconds
from medclipsam.benchmarks.measuring.machine import count_cores
from medclipsam.engine.archive import Archive, Decoded, Decoders, Entry, Limits
from medclipsam.engine.engine import Engine
from medclipsam.engine.errors import InputError
from medclipsam.engine.pipeline import Localization, to_numpy
from medclipsam.engine.report.report import write_report
from medclipsam.engine.run import meter
from medclipsam.engine.run.folder import LEDGER, RunFolder, write_duplicates, write_manifest
from medclipsam.engine.run.ledger import Ledger
from medclipsam.engine.run.work import Delivery, Work, finish_work
from medclipsam.engine.saliency import Answer, Round, run_probes
from medclipsam.engine.segment import BoxMasks
from medclipsam.engine.types import Image, Outcome, Prompts, Segmentation

STAGES = ("start", *meter.STAGES, "report")
ONCE = ("start",)  # of a run, however many images it has
SHOWN = ("compute_saliency", "refine_mask", "segment_encode", "segment_decode")
"""Stages of images that may show what is asked; all other images end before them."""


@dataclass
class Part:
    """One stage in one pass.

    Attributes:
        seconds: on the clock.
        working: of these times the cores that the process may use, the share that they worked.
        images: frames that it worked on.
    """

    seconds: float
    working: float
    images: int


@dataclass
class Frame:
    """One frame on its way through the stages."""

    rgb: np.ndarray
    square: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8))
    embedding: Tensor = field(default_factory=lambda: torch.empty(0))
    answer: Answer | None = None
    found: list[Localization] = field(default_factory=list)
    resized: np.ndarray | None = None
    sam: Tensor | None = None
    masks: list[BoxMasks | None] = field(default_factory=list)
    segments: dict[str, Segmentation] = field(default_factory=dict)


class Pass:
    """One way of a sample through all stages.

    Args:
        archive: the items of the sample.
        out: folder to make; it is removed at the end.

    Attributes:
        parts: stage → what it took, filled by ``run``.
        unreadable: items that cannot be read; they are left out.
    """

    def __init__(self, engine: Engine, archive: Archive, prompts: Prompts, out: Path):
        self._engine, self._archive, self._prompts, self._out = engine, archive, prompts, out
        self._pipeline, self._threads = engine.pipeline, engine.threads
        self._frames: list[Frame] = []
        self._works: list[tuple[Work, list[Frame]]] = []
        self.parts: dict[str, Part] = {}
        self.unreadable = 0

    @property
    def images(self) -> int:
        """Frames of all items that can be read."""
        return len(self._frames)

    @property
    def shown(self) -> int:
        """Frames that may show what is asked."""
        return sum(bool(f.answer and len(f.answer.wanted)) for f in self._frames)

    @property
    def pixels(self) -> int:
        """Of all frames."""
        return sum(frame.rgb.shape[0] * frame.rgb.shape[1] for frame in self._frames)

    def run(self) -> dict[str, Part]:
        """All stages, one after the other."""
        cv2.setNumThreads(1)  # as in a run: images go side by side
        torch.set_num_threads(self._threads)
        with ThreadPoolExecutor(self._threads, "stage", torch.set_num_threads, (1,)) as pool:
            self._pool = pool
            with self._starting() as (decoders, folder, ledger):
                self._read(decoders)
                self._locate()
                self._segment()
                self._write(folder, ledger)
        shutil.rmtree(self._out, ignore_errors=True)
        return {stage: self.parts[stage] for stage in STAGES}

    @contextmanager
    def _at(self, stage: str, images: int) -> Iterator[None]:
        device = self._pipeline.encoder.device
        used, begun = processor_seconds(), time.perf_counter()
        yield
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - begun
        used = processor_seconds() - used
        share = used / seconds / count_cores() if seconds else 0.0
        self.parts[stage] = Part(seconds, min(1.0, share), images)

    @contextmanager
    def _starting(self) -> Iterator[tuple[Decoders, RunFolder, Ledger]]:
        """What a run does before its first image: its folder, and processes that decode."""
        with self._at("start", 0):
            first = [entry for entry, _ in zip(self._archive, range(self._threads), strict=False)]
            folder = RunFolder(self._out, {})
            ledger = Ledger(self._out / LEDGER)
            decoders = Decoders(self._threads, Limits())
            list(self._pool.map(partial(_decode, decoders), map(Entry.held, first)))
        with folder, ledger, decoders:
            yield decoders, folder, ledger

    def _read(self, decoders: Decoders) -> None:
        with self._at("read_image", 0):
            entries = map(Entry.held, self._archive)
            found = list(self._pool.map(partial(self._read_one, decoders), entries))
        self._works = [work for work in found if work is not None]
        self.unreadable = len(found) - len(self._works)
        self._frames = [frame for _, frames in self._works for frame in frames]
        self.parts["read_image"].images = self.images

    def _read_one(self, decoders: Decoders, entry: Entry) -> tuple[Work, list[Frame]] | None:
        decoded = _decode(decoders, entry)
        if decoded is None:
            return None
        image = Image(entry.ref, decoded.frames, decoded.grid)
        work = Work(entry.ref, self._prompts, image, digest=decoded.digest)
        return work, [Frame(frame) for frame in decoded.frames]

    def _locate(self) -> None:
        """fit_image to refine_mask."""
        pipeline, frames, every = self._pipeline, self._frames, self.images
        with self._at("fit_image", every):
            squares = list(self._pool.map(pipeline.fit, (f.rgb for f in frames)))
        with self._at("encode_image", every):
            for group in _groups(range(every), pipeline.encoder.rows):
                embeddings = pipeline.encode_image([squares[n] for n in group])
                for n, embedding in zip(group, embeddings, strict=True):
                    frames[n].square, frames[n].embedding = squares[n], embedding
        with self._at("compute_saliency", 0):
            answers = run_probes(pipeline.encoder, map(self._open_probe, frames))
            for frame, answer in zip(frames, answers, strict=True):
                frame.answer = answer
        self.parts["compute_saliency"].images = self.shown
        with self._at("refine_mask", self.shown):
            list(self._pool.map(self._refine, frames))

    def _open_probe(self, frame: Frame) -> Round:
        return self._pipeline.open_probe(frame.square, frame.embedding, self._prompts, False)

    def _refine(self, frame: Frame) -> None:
        assert frame.answer is not None
        frame.found = list(self._pipeline.refine(frame.rgb, self._prompts, to_numpy(frame.answer)))
        if any(len(found.boxes) for found in frame.found):
            frame.resized = self._pipeline.segmenter.resize(frame.rgb)

    def _segment(self) -> None:
        """segment_encode to conclude."""
        segmenter, boxed = self._pipeline.segmenter, [f for f in self._frames if _boxes(f)]
        with self._at("segment_encode", len(boxed)):
            for group in _groups(boxed, segmenter.batch):
                resized = [f.resized for f in group if f.resized is not None]
                for frame, embedding in zip(group, segmenter.encode_resized(resized), strict=True):
                    frame.sam = embedding
        with self._at("segment_decode", len(boxed)):
            pairs = [(f, found) for f in boxed for found in f.found]
            for some in _groups(pairs, segmenter.boxes):
                masks = segmenter.segment(
                    [f.sam for f, _ in some if f.sam is not None],
                    [f.rgb.shape[:2] for f, _ in some],
                    [found.boxes for _, found in some],
                )
                for (frame, _), mask in zip(some, masks, strict=True):
                    frame.masks.append(mask)
        with self._at("conclude", self.images):
            list(self._pool.map(self._conclude, self._frames))

    def _conclude(self, frame: Frame) -> None:
        masks: Sequence[BoxMasks | None] = frame.masks or [None] * len(frame.found)
        frame.segments = {
            found.label: self._pipeline.to_segmentation(found, mask)
            for found, mask in zip(frame.found, masks, strict=True)
        }

    def _write(self, folder: RunFolder, ledger: Ledger) -> None:
        """write_mask to report."""
        for work, frames in self._works:
            work.segments = [frame.segments for frame in frames]

        def write(work: Work) -> list[Outcome]:
            files, rows = finish_work(work, Delivery())
            folder.write_all(files)
            return rows

        with self._at("write_mask", self.images):
            rows = list(self._pool.map(write, (work for work, _ in self._works)))
        with self._at("commit", self.images):
            for group in _groups(rows, self._threads):
                ledger.commit(row for each in group for row in each)
        with self._at("report", self.images):
            write_manifest(folder, ledger.outcomes())
            write_duplicates(folder, ledger.duplicates())
            write_report(self._out, ledger.outcomes(), {}, identity="")


def _decode(decoders: Decoders, entry: Entry) -> Decoded | None:
    try:
        return decoders.decode(entry)
    except InputError:
        return None


def _boxes(frame: Frame) -> int:
    return sum(len(found.boxes) for found in frame.found)


def _groups(items: Sequence, count: int) -> Iterator[Sequence]:
    return (items[start : start + count] for start in range(0, len(items), count))
