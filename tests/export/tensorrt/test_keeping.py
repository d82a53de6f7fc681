"""Plans are kept, and built again when anything they depend on changes or may have been altered."""

import json
import logging
import multiprocessing
import os
import threading

import pytest
from fake_tensorrt import GARBAGE, install
from plans.built import CPU, build

from medclipsam.engine.backends import plans
from medclipsam.engine.durable import write_durable
from medclipsam.engine.errors import BackendError, BundleError


def sole_plan(plan):
    (path,) = plan.key.folder.glob("*.plan")
    return path


def test_what_is_there_is_not_built_again(trt, bundle):
    first, second = build(bundle), build(bundle)
    assert (first.built, second.built) == (True, False) and len(trt.built) == 1
    assert first.sha256 == second.sha256


def test_timings_are_kept_and_added_to(trt11, bundle):
    build(bundle)
    build(bundle, "text", 1)
    (path,) = (plans.root() / "timing").glob("*.cache")
    assert len(json.loads(path.read_text())) == 2 and oct(path.stat().st_mode)[-3:] == "600"


@pytest.mark.parametrize("harm", [lambda p: p.write_bytes(b"{"), lambda p: p.chmod(0o666)])
def test_a_damaged_timing_cache_is_begun_anew(trt11, bundle, caplog, harm):
    build(bundle)
    (path,) = (plans.root() / "timing").glob("*.cache")
    harm(path)
    build(bundle, "text", 1)
    assert len(json.loads(path.read_text())) == 1 and "timing cache" in caplog.text


@pytest.mark.parametrize("part", ["driver", "cuda", "gpu", "capability"])
def test_another_machine_needs_another_plan(trt11, bundle, part):
    build(bundle)
    trt11.machine[part] = "other"
    assert build(bundle).built and len(trt11.built) == 2


def test_another_version_needs_another_plan(trt11, bundle, monkeypatch, tmp_path, caplog):
    old = build(bundle)
    new = install(monkeypatch, tmp_path / "home", "11.5.0.1")
    assert build(bundle).built and len(new.built) == 1
    assert "built for tensorrt 11.4.0.106 (here 11.5.0.1)" in caplog.text
    assert old.sha256 not in new.loaded and len(list(old.key.folder.glob("*.plan"))) == 1


def test_another_graph_or_shape_needs_another_plan(trt11, bundle, tmp_path):
    build(bundle)
    assert build(bundle, rows=5).built
    graph = tmp_path / "onnx/fp32/score.onnx"
    graph.write_bytes(graph.read_bytes() + b"\x12\x00")  # an empty producer name: harmless
    with pytest.raises(BundleError, match="altered or cut short"):
        build(bundle, rows=6)
    files = bundle.exports["onnx"]["fp32"]["files"]
    files["onnx/fp32/score.onnx"] = plans.hashlib.sha256(graph.read_bytes()).hexdigest()
    assert build(bundle).built and not build(bundle).built
    assert len(trt11.built) == 3


def test_external_data_belongs_to_the_key(bundle):
    files = bundle.exports["onnx"]["fp32"]["files"]

    def source():
        return plans.make_key(bundle, "score", "fp32", {}, CPU, "11").source

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, "find_machine", lambda device: dict.fromkeys(
            ("gpu", "capability", "driver", "cuda"), "x"))  # fmt: skip
        before = source()
        files["onnx/fp32/score.onnx.data"] = "1" * 64
        with_data = source()
        files["onnx/fp32/text.onnx.data"] = "2" * 64
        assert before != with_data == source()


def test_an_altered_plan_is_never_loaded(trt11, bundle, caplog):
    path = sole_plan(build(bundle))
    path.write_bytes(GARBAGE)
    again = build(bundle)
    assert again.built and sole_plan(again).read_bytes() != GARBAGE
    assert plans.hashlib.sha256(GARBAGE).hexdigest() not in trt11.loaded
    assert "its sha256 is not the recorded one" in caplog.text


def drop_record(folder):
    (folder / plans.RECORD).unlink()


def break_record(folder):
    (folder / plans.RECORD).write_text("{")


def point_outside(folder):
    path = folder / plans.RECORD
    path.write_text(json.dumps({**json.loads(path.read_text()), "sha256": "../x"}))


def link_plan(folder):
    (path,) = folder.glob("*.plan")
    path.rename(folder / "elsewhere")
    path.symlink_to(folder / "elsewhere")


def open_plan(folder):
    next(folder.glob("*.plan")).chmod(0o620)


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (drop_record, "it has no record of its sha256"),
        (break_record, "its record is not readable"),
        (point_outside, "its record is not readable"),
        (link_plan, "cannot be opened"),
        (open_plan, "others may write to"),
    ],
)
def test_a_plan_of_unknown_origin_is_never_loaded(trt11, bundle, caplog, harm, why):
    plan = build(bundle)
    harm(plan.key.folder)
    trt11.loaded.clear()
    with pytest.raises(plans.Unusable, match=why):
        plans.read_plan(plan.key)
    assert not trt11.loaded and f"in {plan.key.folder} is not loaded" in caplog.text
    assert build(bundle).built and not build(bundle).built


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_folders_that_others_may_write_to_are_refused(trt11, bundle, depth, mode):
    folder = build(bundle).key.folder
    [folder, folder.parent, folder.parent.parent][depth].chmod(mode)
    with pytest.raises(BackendError, match="give it mode 700"):
        build(bundle)


def test_folders_of_others_are_refused(trt11, bundle, monkeypatch):
    build(bundle)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(BackendError, match="belongs to somebody else"):
        build(bundle)


def test_a_builder_killed_while_writing_is_followed_by_another(trt11, bundle, monkeypatch):
    def die(path, data, mode):
        if path.name == plans.RECORD:
            (path.parent / ".writing-x").write_bytes(b"half")
            raise KeyboardInterrupt
        write_durable(path, data, mode)

    with monkeypatch.context() as patch:
        patch.setattr("medclipsam.engine.backends.private.write_durable", die)
        with pytest.raises(KeyboardInterrupt):
            build(bundle)
    plan = build(bundle)
    assert plan.built and not build(bundle).built
    assert len(list(plan.key.folder.iterdir())) == 3  # plan, record, lock


def test_two_builders_build_once(trt11, bundle):
    done = []
    threads = [threading.Thread(target=lambda: done.append(build(bundle).built)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == [False, False, False, True] and len(trt11.built) == 1


def hold(folder, held, release):
    from medclipsam.engine.backends.private import locked

    with locked(folder / plans.LOCK):
        held.set()
        release.wait(240)


def test_another_process_is_waited_for(trt11, bundle, caplog):
    key = build(bundle).key
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    other = context.Process(target=hold, args=(key.folder, held, release))
    other.start()
    assert held.wait(240)
    with caplog.at_level(logging.INFO):
        here = threading.Thread(target=build, args=(bundle,))
        here.start()
        here.join(0.3)
        assert here.is_alive()
        release.set()
        here.join(240)
    other.join(240)
    assert not here.is_alive() and "waiting for another process" in caplog.text
