"""Recipes of images with captions: a fine-tuned bundle, and a table of retrieval."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medclipsam.engine.archive import Decoders
from medclipsam.engine.errors import ConfigError
from medclipsam.train.pairs.pairs import Pair, PairList, load_image, read_pairs
from medclipsam.train.patients import join_groups
from medclipsam.train.problems import Problems
from medclipsam.train.recipes.job import Job, Result, write_table
from medclipsam.train.recipes.layout import Problem
from medclipsam.train.recipes.recipe import PairTable, Recipe
from medclipsam.train.recipes.record import build
from medclipsam.train.recipes.view import claim, drawn

MODEL, TUNED = "model", "tuned"


def read_captions(recipe: Recipe, data: Path) -> tuple[PairList, list[Problem]]:
    """All usable pairs, and what is wrong with the others; no image is opened.

    Raises:
        ConfigError: the recipe is one of another task, or no pair is usable.
    """
    table = _table(recipe)
    path, images = data / table.table, data / table.images
    pages = ", ".join(recipe.source.pages)
    for place, kind in ((path, "table of captions"), (images, "folder of images")):
        if not place.exists():
            name = place.relative_to(data).as_posix()
            remedy = f"there is no {kind} {name}: unpack the download there, from {pages}"
            return PairList((), Counter()), [Problem(name, 0, table.least, remedy)]
    lines: list[str] = []
    pairs = read_pairs(
        os.fspath(path), table.image_column, table.caption_column,
        images if table.images else None, "skip", lines.append,
    )  # fmt: skip
    return pairs, _problems(table, pairs, lines)


def _table(recipe: Recipe) -> PairTable:
    if recipe.pairs is None:
        raise ConfigError(f"the recipe {recipe.name!r} has no table of pairs")
    return recipe.pairs


def _problems(table: PairTable, pairs: PairList, lines: Sequence[str]) -> list[Problem]:
    usable, problems = len(pairs.pairs), []
    if usable < table.least:
        remedy = "too few usable pairs: unpack or download the data again"
        problems.append(Problem(table.table, usable, table.least, remedy, few=True))
    for kind, count in sorted(pairs.problems.items()):
        if kind != "short caption":  # always left out, as the paper does
            example = next((line for line in lines if line.startswith(f"left out, {kind}")), kind)
            remedy = f"{count} rows cannot be used, {example}: restore them"
            problems.append(Problem(table.table, usable, usable + count, remedy, few=True))
    return problems


def tune(job: Job, pairs: PairList) -> Result:
    """Fine-tune the job's bundle, then compare retrieval on the pairs kept apart.

    Raises:
        ConfigError, BundleError, BackendError, OutputError: see ``train_clip``.
        KeyboardInterrupt: it was asked to stop; the same job goes on.
    """
    chosen = _limited(job, pairs)
    learn, judge = _split(chosen, _table(job.recipe).validation)
    claim(job.out, {**_facts(job, chosen), "bundles": job.bundles})
    if "train" in job.stages and not (job.out / MODEL / "bundle" / "bundle.json").is_file():
        _train(job, learn, judge)
    if "retrieval" not in job.stages:
        return Result(job.out / MODEL / "bundle")
    named = {**job.bundles, TUNED: os.fspath(job.out / MODEL / "bundle")}
    note = f"the {len(judge.pairs)} pairs also chose the epoch of {TUNED!r}, which favours it"
    return _rank(job, judge, named, (note,))


def rank(job: Job, pairs: PairList) -> Result:
    """Compare retrieval of the job's bundles.

    Raises:
        ConfigError, BundleError, BackendError, OutputError: see ``retrieve``.
    """
    chosen = _limited(job, pairs)
    claim(job.out, _facts(job, chosen))
    return _rank(job, chosen, job.bundles, ())


def _limited(job: Job, pairs: PairList) -> PairList:
    kept = drawn(len(pairs.pairs), job.limit, 0)
    return replace(pairs, pairs=tuple(pairs.pairs[n] for n in kept))


def _facts(job: Job, pairs: PairList) -> dict[str, Any]:
    return {
        "recipe": job.recipe.name,
        "pairs": pairs.digest,
        "table": asdict(_table(job.recipe)),
        "training": job.recipe.training,
    }


def _split(pairs: PairList, share: float) -> tuple[PairList, PairList]:
    """Pairs to learn from and to judge by; equal captions and equal images stay together."""
    groups = join_groups((pair.entry.ref.id, pair.caption) for pair in pairs.pairs)
    names = sorted(set(groups))
    count = max(1, round(share * len(names)))
    order = np.random.default_rng([19, 0]).permutation(len(names))
    apart = {names[n] for n in order[:count]}
    sides: dict[bool, list[Pair]] = {True: [], False: []}
    for group, pair in zip(groups, pairs.pairs, strict=True):
        sides[group in apart].append(pair)
    learn, judge = tuple(sides[False]), tuple(sides[True])
    return PairList(learn, pairs.problems), PairList(judge, Counter())


def _train(job: Job, learn: PairList, judge: PairList) -> None:
    import torch

    from medclipsam.engine.cli.stopping import stop_on_signals
    from medclipsam.engine.weights.bundle import open_bundle
    from medclipsam.train.clip.fit import ClipTraining
    from medclipsam.train.clip.run import train_clip
    from medclipsam.train.ranks import open_ranks

    training = build(ClipTraining, job.recipe.training, f"{job.recipe.name}: training")
    count = job.threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(count)
    (place,) = job.bundles.values()
    with open_ranks(job.device) as ranks, stop_on_signals(job.log) as stop:
        made = train_clip(
            open_bundle(place), learn, job.out / MODEL, training, ranks,
            Problems(False, job.log), judge, count, stop, job.log,
        )  # fmt: skip
    if made is None:
        raise KeyboardInterrupt


def _rank(job: Job, pairs: PairList, named: dict[str, str], notes: tuple[str, ...]) -> Result:
    from medclipsam.train.retrieval import table as retrieval_table
    from medclipsam.train.retrieval.cli import open_models
    from medclipsam.train.retrieval.retrieval import retrieve

    options = {
        "device": job.device,
        "backend": job.backend,
        "precision": None,
        "threads": job.threads,
        "batch": 64,
    }
    with Decoders(job.threads or len(os.sched_getaffinity(0))) as decoders:
        load = partial(load_image, decoders)
        found = retrieve(pairs.pairs, open_models(named, options), load, "skip", job.log)
    found.problems.update(pairs.problems)
    pools = [None, _table(job.recipe).pool or None]
    pools = pools[: 1 + bool(pools[1] and pools[1] <= min(found.images, found.texts))]
    text = "\n".join(retrieval_table.to_markdown(found, pool) for pool in pools)
    text += "".join(f"\n{note[0].upper()}{note[1:]}.\n" for note in notes)
    tables = [retrieval_table.to_json(found, pool) for pool in pools]
    path = write_table(job, text, {"bundles": named, "notes": notes, "tables": tables})
    return Result(path, 0, notes)
