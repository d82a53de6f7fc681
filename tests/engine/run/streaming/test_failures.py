"""A failing stage costs one item, and what is no item's fault stops the run."""

import json
import threading
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from running.streamed import PROMPTS, contents, rows

from medclipsam.engine.errors import BackendError, OutputError
from medclipsam.engine.pipeline import Pipeline
from medclipsam.engine.run.ledger import Ledger
from medclipsam.engine.saliency.rows import Fetch
from medclipsam.engine.segment import Segmenter

STAGES = {
    "fit": "fit_image",
    "encode_image": "encode_image",
    "score": "compute_saliency",
    "refine": "refine_mask",
    "encode_resized": "segment_encode",
    "segment": "segment_decode",
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_failing_stage_costs_one_item(engine, archive, whole, tmp_path, monkeypatch, stage):
    """Whatever breaks on one picture: it is named, and its neighbours' bytes do not change."""
    culprit = read_pixels(archive / "scan 5.png")

    def fails_on(real, pictures_of):
        def call(self, *args):
            if any(np.array_equal(p, culprit) for p in pictures_of(self, *args)):
                raise ZeroDivisionError("boom")
            return real(self, *args)

        return call

    if stage == "fit":
        patch = fails_on(Pipeline.fit, lambda self, rgb: [rgb])
        monkeypatch.setattr(Pipeline, "fit", patch)
    elif stage == "encode_image":
        culprit = engine.pipeline.fit(culprit)
        patch = fails_on(Pipeline.embed_squares, lambda self, squares: squares)
        monkeypatch.setattr(Pipeline, "embed_squares", patch)
    elif stage == "refine":
        patch = fails_on(Pipeline.refine, lambda self, rgb, prompts, answer: [rgb])
        monkeypatch.setattr(Pipeline, "refine", patch)
    elif stage == "encode_resized":
        culprit = engine.pipeline.segmenter.resize(culprit)
        patch = fails_on(Segmenter.encode_resized, lambda self, resized: resized)
        monkeypatch.setattr(Segmenter, "encode_resized", patch)
    elif stage == "segment":
        embedding = engine.pipeline.segmenter.encode_image([culprit])[0]
        real = Segmenter.draw

        def segment(self, embeddings, shapes, boxes):
            if any(torch.equal(e, embedding) for e in embeddings):
                raise ZeroDivisionError("boom")
            return real(self, embeddings, shapes, boxes)

        monkeypatch.setattr(Segmenter, "draw", segment)
    else:
        break_one_question(engine, culprit, monkeypatch)
    engine.run(archive, PROMPTS, tmp_path / "run")
    before = {(o.item, o.label): o for o in rows(whole.folder)}
    for outcome in rows(tmp_path / "run"):
        if outcome.item == "scan 5.png":
            assert (outcome.status, outcome.reason) == ("quarantined", "failed")
            assert outcome.stage == STAGES[stage]
            assert "ZeroDivisionError: boom" in outcome.message
        else:
            assert outcome == before[outcome.item, outcome.label]
    masks = contents(tmp_path / "run", "masks")
    assert masks == {k: v for k, v in contents(whole.folder, "masks").items() if "scan 5" not in k}
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").open()]
    assert [e["item"] for e in log if e["event"] == "failed"] == ["scan 5.png"]


def break_one_question(engine, culprit, monkeypatch):
    """Rows of one picture fail in the batch that they share with others."""
    from medclipsam.engine import pipeline

    target = engine.pipeline.to_pixels([engine.pipeline.fit(culprit)])[0]
    real = pipeline.open_probe

    def open_probe(model, question, config):
        probe = real(model, question, config)
        return breaking(probe) if torch.equal(question.image, target) else probe

    def breaking(probe):
        if isinstance(probe, Fetch):
            return Fetch(probe.tensors, lambda *answer: breaking(probe.finish(*answer)))
        return replace(probe, make=make)

    def make(start, stop):
        raise ZeroDivisionError("boom")

    monkeypatch.setattr(pipeline, "open_probe", open_probe)


def read_pixels(path):
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def test_a_device_without_memory_stops_and_says_what_to_lower(
    engine, archive, tmp_path, monkeypatch
):
    def encode(self, images):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Segmenter, "encode_resized", encode)
    with pytest.raises(BackendError, match=r"segment\.batch=1"):
        engine.run(archive, PROMPTS, tmp_path / "run")
    monkeypatch.undo()
    assert engine.run(archive, PROMPTS, tmp_path / "run").items == 13


def test_rows_that_cannot_be_committed_stop_the_run(engine, archive, whole, tmp_path, monkeypatch):
    def commit(self, outcomes):
        raise OutputError("the ledger is gone")

    monkeypatch.setattr(Ledger, "commit", commit)
    before = set(threading.enumerate())
    with pytest.raises(OutputError, match="ledger is gone"):
        engine.run(archive, PROMPTS, tmp_path / "run")
    assert not (tmp_path / "run" / "_SUCCESS").exists()
    assert set(threading.enumerate()) <= before  # the engine's own had been started by ``whole``
