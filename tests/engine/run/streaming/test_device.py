"""A device that answers later, whose answers fail, or that has no memory: on the CPU, with its
answers held back until somebody waits for them."""

import random

import pytest
import torch
from running.streamed import PROMPTS, rows, same

from medclipsam.engine.backends.handover import Handover
from medclipsam.engine.config import FORMATS
from medclipsam.engine.errors import BackendError
from medclipsam.engine.run.device import flights
from medclipsam.engine.run.runner import RunOptions
from medclipsam.engine.saliency.rows import RowQueue
from medclipsam.engine.segment import Segmenter

BROKEN = "CUDA error: device-side assert triggered"


class Late(Handover):
    """Answers that come when they are waited for, or earlier by chance."""

    chance, random, taken, fails = 0.0, random.Random(0), 0, {}

    @property
    def ready(self):
        return self.random.random() < self.chance

    def take(self):
        Late.taken += 1
        error = self.fails.get(Late.taken)
        if error is not None:
            raise error
        return super().take()


@pytest.fixture
def late(monkeypatch):
    """Every launched step is still on its way when the next one is chosen."""
    monkeypatch.setattr(Late, "taken", 0)
    monkeypatch.setattr(Late, "fails", {})
    monkeypatch.setattr(Late, "random", random.Random(0))
    monkeypatch.setattr(flights, "Handover", Late)
    real = RowQueue.__init__

    def asynchronous(self, model):
        real(self, model)
        self._at_once = False

    monkeypatch.setattr(RowQueue, "__init__", asynchronous)
    return Late


def steps(engine, archive, out):
    """How many answers a run takes."""
    engine.run(archive, PROMPTS, out)
    return Late.taken


@pytest.mark.parametrize("chance", [0.0, 0.5])
def test_when_answers_come_does_not_change_a_byte(
    engine, archive, whole, tmp_path, late, monkeypatch, chance
):
    monkeypatch.setattr(late, "chance", chance)
    engine.run(archive, PROMPTS, tmp_path / "run", RunOptions(outputs=FORMATS))
    assert late.taken > 16
    same(tmp_path / "run", whole)


@pytest.mark.parametrize("method", ["contrastcam", "gradcam", "m2ib", "scorecam"])
def test_every_method_waits_for_its_answers(
    engine, archive, tmp_path, late, monkeypatch, method, tiny_bundle_folder
):
    settings = {"saliency": {"method": method, "rows": 16}, "null_prompts": ("a scan",)}
    other = type(engine).open(str(tiny_bundle_folder), "cpu", settings=settings, threads=2)
    other.run(archive / "volume.nii.gz", PROMPTS, tmp_path / "late")
    monkeypatch.undo()
    other.run(archive / "volume.nii.gz", PROMPTS, tmp_path / "run")
    assert rows(tmp_path / "late") == rows(tmp_path / "run")


def test_at_most_two_steps_are_on_the_device(engine, archive, tmp_path, late, monkeypatch):
    seen, real = [], flights.Flights.launch

    def launch(self, stage, *args, **more):
        seen.append((stage, len(self)))
        return real(self, stage, *args, **more)

    monkeypatch.setattr(flights.Flights, "launch", launch)
    engine.run(archive, PROMPTS, tmp_path / "run")
    assert {depth for _, depth in seen} == {0, 1}


@pytest.mark.parametrize("place", [0.2, 0.6, 0.95])
def test_a_device_that_breaks_in_mid_run_stops_it(engine, archive, whole, tmp_path, late, place):
    """The error comes with the answer, long after the launch; the same command goes on."""
    count = steps(engine, archive, tmp_path / "count")
    first = late.taken + max(1, round(place * count))
    late.fails = dict.fromkeys(range(first, first + 10**4), RuntimeError(BROKEN))
    with pytest.raises(BackendError, match=r"the device broke .*device-side assert"):
        engine.run(archive, PROMPTS, tmp_path / "run", RunOptions(outputs=FORMATS))
    assert not [row for row in rows(tmp_path / "run") if row.reason == "failed"]
    late.fails = {}
    engine.run(archive, PROMPTS, tmp_path / "run", RunOptions(outputs=FORMATS))
    same(tmp_path / "run", whole)


@pytest.mark.parametrize("seed", range(3))
def test_answers_that_fail_for_once_cost_nothing(engine, archive, whole, tmp_path, late, seed):
    """What shared the batch is done alone, once, whatever else of it is still on its way."""
    count = steps(engine, archive, tmp_path / "count")
    chosen = random.Random(seed).sample(range(1, count), 4)
    late.fails = {late.taken + n: ValueError("for once") for n in chosen}
    engine.run(archive, PROMPTS, tmp_path / "run", RunOptions(outputs=FORMATS))
    same(tmp_path / "run", whole)


def exhausted(*args, **more):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


def test_advice_against_a_full_device_names_what_can_be_lowered(
    engine, archive, tmp_path, monkeypatch, tiny_bundle_folder
):
    monkeypatch.setattr(Segmenter, "encode_resized", exhausted)
    with pytest.raises(BackendError, match=r"lower it with --set segment\.batch=1$"):
        engine.run(archive, PROMPTS, tmp_path / "run")
    settings = {**FEW, "segment": {"batch": 1, "boxes": 1}}
    least = type(engine).open(str(tiny_bundle_folder), "cpu", settings=settings, threads=1)
    with pytest.raises(BackendError, match="no smaller batch cures it"):
        least.run(archive, PROMPTS, tmp_path / "least")


FEW = {"saliency": {"method": "gscorecam", "k": 4, "rows": 16}}


def test_a_mask_too_large_for_the_device_is_said_to_be(engine, archive, tmp_path, monkeypatch):
    monkeypatch.setattr(Segmenter, "to_source", exhausted)
    with pytest.raises(BackendError, match=r"one mask of \d+ × \d+ pixels .*--max-pixels \d+"):
        engine.run(archive, PROMPTS, tmp_path / "run")
