"""Recipes of images with captions: a fine-tuned bundle, and a table of retrieval.

OUT/model/          the training; its new bundle is OUT/model/bundle
"""

import os
from collections import Counter
from dataclasses import asdict, replace

import numpy as np

from medclipsam.engine.cli.stopping import stop_on_signals
from medclipsam.engine.weights.bundle import open_bundle
from medclipsam.train.clip.run import train_clip
from medclipsam.train.clip.settings import ClipTraining
from medclipsam.train.pairs.pairs import PairList
from medclipsam.train.patients import join_groups
from medclipsam.train.problems import Problems
from medclipsam.train.ranks import open_ranks
from medclipsam.train.recipes.job import Job, Result
from medclipsam.train.recipes.layout import choose
from medclipsam.train.recipes.recipe import record
from medclipsam.train.retrieval.bundles import compare_bundles
from medclipsam.train.retrieval.table import to_json, to_markdown
from medclipsam.train.threads import use_threads

MODEL, TUNED = "model", "tuned"


def compare_captions(job: Job, pairs: PairList) -> Result:
    """Retrieval of the job's bundles; where they are to be fine-tuned, of the new one, too.

    A fine-tuning learns from a part of the pairs, and bundles are compared on the others.

    Raises:
        ConfigError, BundleError, BackendError, OutputError: see ``train_clip``, ``retrieve``.
        KeyboardInterrupt: it was asked to stop; the same job goes on.
    """
    table, named, notes = job.recipe.pairs, dict(job.bundles), []
    assert table  # as the recipe was checked for
    kept = choose(len(pairs.pairs), job.limit, 0)
    pairs = replace(pairs, pairs=tuple(pairs.pairs[n] for n in kept))
    facts = {"pairs": pairs.digest, "table": asdict(table), "training": job.recipe.training}
    if job.recipe.task == "retrieval":
        job.claim(**facts)
    else:
        job.claim(**facts, bundles=job.bundles)
        learn, pairs = _split(pairs, table.validation)
        bundle = job.out / MODEL / "bundle"
        if "train" in job.stages and not (bundle / "bundle.json").is_file():
            _train(job, learn, pairs)
        if "retrieval" not in job.stages:
            return Result(bundle)
        named[TUNED], count = os.fspath(bundle), len(pairs.pairs)
        notes = [f"the {count} pairs also chose the epoch of {TUNED!r}, which favours it"]
    found = compare_bundles(pairs, named, "skip", job.log, job.device, job.backend, job.threads)
    pools = [None, table.pool] if 0 < table.pool <= min(found.images, found.texts) else [None]
    text = "\n".join(to_markdown(found, pool) for pool in pools)
    tables = [to_json(found, pool) for pool in pools]
    return Result(job.write_table(text, bundles=named, notes=notes, tables=tables))


def _split(pairs: PairList, share: float) -> tuple[PairList, PairList]:
    """Pairs to learn from and to judge by; equal captions and equal images stay together."""
    groups = join_groups((pair.entry.ref.id, pair.caption) for pair in pairs.pairs)
    names = sorted(set(groups))
    count = max(1, round(share * len(names)))
    order = np.random.default_rng([19, 0]).permutation(len(names))
    apart = {names[n] for n in order[:count]}
    both = list(zip(groups, pairs.pairs, strict=True))
    judge = tuple(pair for group, pair in both if group in apart)
    learn = tuple(pair for group, pair in both if group not in apart)
    return PairList(learn, pairs.problems), PairList(judge, Counter())


def _train(job: Job, learn: PairList, judge: PairList) -> None:
    training = record(ClipTraining, job.recipe.training, f"{job.recipe.name}, training")
    threads, problems = use_threads(job.threads), Problems(False, job.log)
    (place,) = job.bundles.values()
    with open_ranks(job.device) as ranks, stop_on_signals(job.log) as stop:
        made = train_clip(
            open_bundle(place), learn, job.out / MODEL, training, ranks, problems, judge, threads,
            stop, job.log,
        )  # fmt: skip
    if made is None:
        raise KeyboardInterrupt
