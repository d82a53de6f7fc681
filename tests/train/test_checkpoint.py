"""Checkpoints: whole or absent, the last two kept, another training's refused."""

import os
import pickle

import pytest
import torch

from medclipsam.engine.errors import ConfigError, OutputError
from medclipsam.train.checkpoint import Checkpoints, hold

IDENTITY = {"training": {"steps": 10, "rate": 0.1}, "data": "abc"}


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_state_comes_back_as_it_was(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {"weights": model.state_dict(), "optimizer": optimizer.state_dict(), "best": 0.5}
    Checkpoints(tmp_path / "a/b", IDENTITY).save(3, state)
    step, found = Checkpoints(tmp_path / "a/b", IDENTITY).load()
    assert step == 3 and found["best"] == 0.5
    assert torch.equal(found["weights"]["weight"], model.weight)
    moments = found["optimizer"]["state"][0]["exp_avg_sq"]
    assert torch.equal(moments, optimizer.state_dict()["state"][0]["exp_avg_sq"])


def test_none_where_there_is_none(tmp_path):
    assert Checkpoints(tmp_path / "nothing", IDENTITY).load() is None
    assert not (tmp_path / "nothing").exists()


def test_the_last_two_are_kept_and_leftovers_go(tmp_path):
    (tmp_path / ".writing-torn").write_bytes(b"half")
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    for step in (1, 5, 20, 100):
        checkpoints.save(step, {"n": step})
    assert files(tmp_path) == ["step-00000020.pt", "step-00000100.pt"]
    assert checkpoints.load() == (100, {"n": 100})


def test_another_training_is_refused_by_name(tmp_path):
    Checkpoints(tmp_path, IDENTITY).save(1, {})
    other = {"training": {"steps": 20, "rate": 0.1}, "data": "abd", "device": "cpu"}
    with pytest.raises(ConfigError) as refused:
        Checkpoints(tmp_path, other).load()
    message = str(refused.value)
    assert 'data ("abc" there, "abd" now)' in message
    assert "training.steps (10 there, 20 now)" in message
    assert 'device (null there, "cpu" now)' in message and "rate" not in message


def test_many_differences_are_counted(tmp_path):
    Checkpoints(tmp_path, {str(n): 0 for n in range(9)}).save(1, {})
    with pytest.raises(ConfigError, match="and 5 more"):
        Checkpoints(tmp_path, {str(n): 1 for n in range(9)}).load()


def test_equal_identities_may_be_written_differently(tmp_path):
    Checkpoints(tmp_path, {"blocks": (1, 3)}).save(1, {})
    assert Checkpoints(tmp_path, {"blocks": [1, 3]}).load() == (1, {})


@pytest.mark.parametrize("left", [0, 10, 400])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(tmp_path, left):
    lines = []
    checkpoints = Checkpoints(tmp_path, IDENTITY, lines.append)
    for step in (1, 2):
        checkpoints.save(step, {"rows": torch.arange(100)})
    newest = tmp_path / "step-00000002.pt"
    newest.write_bytes(newest.read_bytes()[:left])
    assert checkpoints.load()[0] == 1
    assert len(lines) == 1 and str(newest) in lines[0]
    (tmp_path / "step-00000001.pt").write_bytes(b"")
    with pytest.raises(ConfigError, match="can be read; remove the folder"):
        checkpoints.load()


def test_a_checkpoint_cannot_run_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    content = {"identity": "{}", "step": 1, "state": {"trap": Trap()}}
    torch.save(content, tmp_path / "step-00000001.pt", pickle_module=pickle)
    with pytest.raises(ConfigError):
        Checkpoints(tmp_path, {}, lambda line: None).load()
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, call):
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    checkpoints.save(1, {"n": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(OutputError, match="No space left"):
            checkpoints.save(2, {"n": 2})
    assert files(tmp_path) == ["step-00000001.pt"]
    assert checkpoints.load() == (1, {"n": 1})


def test_a_failure_inside_torch_is_an_output_error(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("PytorchStreamWriter failed writing file")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OutputError, match="cannot write"):
        Checkpoints(tmp_path, IDENTITY).save(1, {})
    assert files(tmp_path) == []


def test_two_trainings_do_not_share_a_folder(tmp_path):
    with (
        hold(tmp_path / "x"),
        pytest.raises(ConfigError, match="going on"),
        hold(tmp_path / "x"),
    ):
        pass
    with hold(tmp_path / "x"):
        pass
