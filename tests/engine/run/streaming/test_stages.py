"""Stages are timed and counted, their batches are full, and the most downstream goes first."""

import json
from collections import Counter

from running.streamed import PROMPTS

from medclipsam.engine.segment import Segmenter


def test_where_the_time_went(whole):
    stages = {stage.stage: stage for stage in whole.stages}
    frames = 9 + 1 + 5 + 1
    assert stages["encode_image"].items == stages["refine_mask"].items == frames
    assert stages["read_image"].items == stages["commit"].items == 13
    # Padding apart, the score rows of all frames: two prompts share up to 2 × 4 channels.
    assert frames * 4 <= stages["compute_saliency"].items <= frames * 8
    assert all(stage.busy > 0 for stage in whole.stages)
    events = json.loads((whole.folder / "trace.json").read_text())
    spans = Counter(event["name"] for event in events if event["ph"] == "X")
    assert spans["refine_mask"] == frames
    logged = [json.loads(line) for line in (whole.folder / "log.jsonl").open()]
    assert next(e for e in logged if e["event"] == "stages")["stages"][0]["stage"] == "read_image"


def test_batches_are_full_while_more_is_to_come(engine, archive, tmp_path, monkeypatch):
    """Rows are only padded in the last batch; SAM's encoder sees three frames at a time."""
    seen = []
    real = Segmenter.encode_resized

    def encode(self, resized):
        seen.append(len(resized))
        return real(self, resized)

    monkeypatch.setattr(Segmenter, "encode_resized", encode)
    summary = engine.run(archive, PROMPTS, tmp_path / "run")
    scored = {s.stage: s for s in summary.stages}["compute_saliency"]
    assert sum(seen) <= 16 and max(seen) <= 3
    assert seen.count(3) >= len(seen) - 3
    assert scored.items > 16


def test_the_most_downstream_full_batch_goes_first(whole, engine):
    """At the start of no device step did a full batch wait further down."""
    events = json.loads((whole.folder / "trace.json").read_text())
    timed = sorted((e for e in events if "ts" in e), key=lambda e: (e["ts"], e["ph"] == "X"))
    order = ("encode_image", "compute_saliency", "segment_encode", "segment_decode")
    full = {"compute_saliency": 16, "segment_encode": 3}  # rows and frames, as in FAST
    waiting, steps = Counter(), 0
    for event in timed:
        if event["ph"] == "C":
            waiting[event["name"].removeprefix("waiting for ")] = event["args"]["waiting"]
        elif event["name"] in order:
            steps += 1
            for later in order[order.index(event["name"]) + 1 :]:
                # Work that is taken out of its queue before the clock starts cannot count.
                assert waiting[later] < full.get(later, 10**9), (event, dict(waiting))
    assert steps > 20
