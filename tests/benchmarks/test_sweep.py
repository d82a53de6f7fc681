"""Advice is what was faster, and was so once more; with made-up engines whose speed is known."""

from types import SimpleNamespace

import pytest

from medclipsam.benchmarks.bench import sweep
from medclipsam.benchmarks.bench.measure import Pilot
from medclipsam.benchmarks.bench.sweep import Candidate, Sweep, propose
from medclipsam.benchmarks.measuring import spread
from medclipsam.engine.config import make_config
from medclipsam.engine.errors import BackendError

BASE = make_config(
    {"saliency": {"rows": 64}, "segment": {"batch": 4, "boxes": 16}, "precision": "fp32"}
)


class Machine:
    """An engine, a bench and a clock in one: a run takes what ``cost`` says of its settings."""

    def __init__(self, cost, refused=()):
        self.cost, self.refused, self.now, self.runs = cost, refused, 0.0, 0
        self.source = SimpleNamespace(take=lambda items: items)
        self.prompts = None
        self.bundle = SimpleNamespace(exports={})
        self.config, self.threads, self.backend, self.pipeline = BASE, 2, "torch", "start"
        self.engine, self.said = self, []

    def perf_counter(self):
        return self.now

    def tell(self, text):
        self.said.append(text)

    def label(self, engine, archive):
        self.runs += 1
        self.now += self.cost(engine, self.runs)

    def open(self, candidate):
        for name in self.refused:
            if name in candidate.words:
                raise BackendError(f"there is no {name} here")
        return SimpleNamespace(
            config=candidate.config, threads=candidate.threads, backend=candidate.backend,
            pipeline=candidate.words,
        )  # fmt: skip


@pytest.fixture
def search(monkeypatch):
    def run(cost, refused=(), close=True):
        machine = Machine(cost, refused)
        monkeypatch.setattr(spread, "time", machine)
        monkeypatch.setattr(sweep, "count_cores", lambda: 2)
        monkeypatch.setattr(Candidate, "open", lambda self, engine: machine.open(self))
        masks = {"masks": 9, "mean_iou": 0.99 if close else 0.5, "worst_iou": 0.9}
        monkeypatch.setattr(Sweep, "_compare_masks", lambda self, other: masks)
        return Sweep(machine, Pilot(0.1, 1, 1), 3600.0).run()

    return run


def test_neighbours_of_what_is_in_use(monkeypatch):
    monkeypatch.setattr(sweep, "count_cores", lambda: 8)
    bundle = SimpleNamespace(exports={"onnx": {}, "tensorrt": {}})
    start = Candidate({}, BASE, 8, "torch")
    words = [candidate.words for candidate in propose(start, SimpleNamespace(bundle=bundle))]
    assert words == [
        "--set saliency.rows=128", "--set saliency.rows=32", "--set segment.batch=8",
        "--set segment.batch=2", "--set segment.boxes=32", "--set segment.boxes=8", "--threads 4",
        "--precision tf32", "--precision bf16", "--precision fp16", "--backend onnx",
        "--backend tensorrt", "--backend onnx-tensorrt",
    ]  # fmt: skip


def test_what_helps_is_found_and_followed(search):
    """Rows help up to 256, a batch of 8 costs; nothing else matters."""

    def cost(engine, run):
        rows = min(engine.config.saliency.rows, 256)
        return 10 + 640 / rows + (2 if engine.config.segment.batch > 4 else 0)

    found = search(cost)
    assert found["advice"] == "--set saliency.rows=256"
    assert found["times_faster"]["median"] == pytest.approx(20 / 12.5, rel=1e-3)
    assert found["said"] == "With --set saliency.rows=256 a run is 1.60× [1.60, 1.60] as fast."
    tried = {row["flag"]: row for row in found["tried"]}
    assert tried["--set saliency.rows=128"]["kept"] and "kept" not in tried["--set segment.batch=8"]
    assert "--set saliency.rows=64" not in tried  # where it began
    assert not tried["--set saliency.rows=512"].get("kept")


def test_nothing_helps(search):
    found = search(lambda engine, run: 10.0)
    assert found["advice"] == "" and found["said"] == "Nothing that was tried was surely faster."


def test_what_is_not_there_the_second_time_is_not_promised(search):
    seen = []

    def cost(engine, run):
        seen.append(engine.config.saliency.rows == 128)
        return 5.0 if seen[-1] and sum(seen) <= 4 else 10.0  # as long as it is tried, not later

    found = search(cost)
    assert found["advice"] == "" and "not when it was measured once more" in found["said"]
    assert found["times_faster"]["median"] == 1


def test_a_refusal_is_told_and_costs_nothing_else(search):
    found = search(lambda engine, run: 10 if engine.threads == 2 else 8, refused=("tf32", "fp16"))
    tried = {row["flag"]: row for row in found["tried"]}
    assert tried["--precision tf32"]["refused"] == "there is no tf32 here"
    assert found["advice"] == "--threads 1"


@pytest.mark.parametrize("close", [True, False])
def test_a_precision_is_advised_only_if_masks_stay(search, close):
    found = search(lambda engine, run: 6 if engine.config.precision == "bf16" else 9, close=close)
    assert found["advice"] == ("--precision bf16" if close else "")
    tried = {row["flag"]: row for row in found["tried"]}
    assert tried["--precision bf16"]["masks"]["mean_iou"] == (0.99 if close else 0.5)


def test_a_candidate_is_left_after_a_turn_in_which_it_lost(search):
    runs = []

    def cost(engine, run):
        runs.append(run)
        return 10.0

    found = search(cost)
    assert len(runs) == 3 * len(found["tried"])  # one turn, and one run that does not count
    assert sweep.is_lost(spread.Turns({"now": [1.0, 1.0], "other": [0.5, 1.0]}))
    assert not sweep.is_lost(spread.Turns({"now": [1.0, 1.0], "other": [0.5, 0.9]}))
