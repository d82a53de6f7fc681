"""Failures in a row cost their items only while they may be to blame themselves."""

import cv2
import numpy as np
from running.attempts import COUNT, attempt, rows

from medclipsam.engine.pipeline import Pipeline
from medclipsam.engine.run.runner import RunOptions
from medclipsam.engine.run.streak import LIMIT


def test_a_few_failures_in_a_row_cost_these_items_only(
    engine, archive, whole, tmp_path, monkeypatch
):
    """One less than too many, then the stage works again: they are to blame themselves."""
    bad = {f"{n:02}.png" for n in range(6, 6 + LIMIT - 1)}
    pictures = [cv2.cvtColor(cv2.imread(str(archive / b)), cv2.COLOR_BGR2RGB) for b in sorted(bad)]
    real = Pipeline.refine

    def refine(self, rgb, prompts, answer):
        if any(np.array_equal(rgb, picture) for picture in pictures):
            raise ValueError("odd")
        return real(self, rgb, prompts, answer)

    monkeypatch.setattr(Pipeline, "refine", refine)
    summary = attempt(engine, archive, tmp_path / "run")
    found = rows(tmp_path / "run")
    assert {r.item for r in found if r.status == "quarantined"} == bad
    assert summary.items == COUNT and summary.listing["committed"] == COUNT


def test_failures_at_the_very_end_are_rows_too(engine, archive, tmp_path, monkeypatch):
    """All of an archive smaller than the limit fails: nothing comes after it that could tell."""
    few = tmp_path / "few"
    few.mkdir()
    for n in range(LIMIT - 1):
        (few / f"{n}.png").write_bytes((archive / f"{n:02}.png").read_bytes())

    def refine(self, rgb, prompts, answer):
        raise ValueError("odd")

    monkeypatch.setattr(Pipeline, "refine", refine)
    summary = attempt(engine, few, tmp_path / "run")
    assert summary.counts == {"quarantined": 2 * (LIMIT - 1)}
    assert summary.exit_code == 3 and (tmp_path / "run" / "_SUCCESS").exists()


def test_items_that_wait_for_their_verdict_hold_no_memory(engine, archive, tmp_path, monkeypatch):
    """With a budget for one item, a held item must not keep the next one out."""
    calls, real = [], Pipeline.refine

    def refine(self, rgb, prompts, answer):
        calls.append(None)
        if 3 < len(calls) < 3 + LIMIT:
            raise ValueError("odd")
        return real(self, rgb, prompts, answer)

    monkeypatch.setattr(Pipeline, "refine", refine)
    options = RunOptions(memory=1)
    summary = attempt(engine, archive, tmp_path / "run", options=options)
    assert summary.items == COUNT and summary.counts["quarantined"] == 2 * (LIMIT - 1)
