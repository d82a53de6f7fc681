"""Plans are built as asked, checked, kept, and rebuilt when anything they depend on changes."""

import dataclasses
import json
import logging
import multiprocessing
import os
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from fake_tensorrt import GARBAGE, install
from tensorrt_graphs import GRAPHS, write_exports

from medclipsam.engine.backends import plans
from medclipsam.engine.backends.shapes import OUTPUTS, graph_ranges
from medclipsam.engine.config import make_config
from medclipsam.engine.durable import write_durable
from medclipsam.engine.errors import BackendError, BundleError
from medclipsam.export.graphs import make_spec
from medclipsam.export.tensorrt import batch_sizes, build_plan, export_tensorrt
from medclipsam.export.tensorrt_builder import WORKSPACE
from medclipsam.export.tensorrt_layers import Layer, check_layers, read_graph

CPU = torch.device("cpu")
VERSIONS = ["10.0.1.6", "11.4.0.106"]


@pytest.fixture(params=VERSIONS)
def trt(request, monkeypatch, tmp_path):
    return install(monkeypatch, tmp_path / "home", request.param)


@pytest.fixture
def trt11(monkeypatch, tmp_path):
    return install(monkeypatch, tmp_path / "home")


@pytest.fixture
def bundle(tiny_bundle, tmp_path):
    return write_exports(tiny_bundle, tmp_path)


def build(bundle, name="score", rows=4, precision="fp32", **settings):
    return build_plan(bundle, name, precision, rows, CPU, **settings)


def sole_plan(plan):
    (path,) = plan.key.folder.glob("*.plan")
    return path


def test_a_plan_is_built_as_asked(trt, bundle):
    steps = []
    plan = build(bundle, report=lambda *step: steps.append(step))
    assert plan.built
    (config,) = trt.configs
    assert config._flags <= {getattr(trt.BuilderFlag, "DISTRIBUTIVE_INDEPENDENCE", None)}
    assert not hasattr(trt.BuilderFlag, "FP16") or trt.__version__.startswith("10")
    assert config._pools == {"WORKSPACE": WORKSPACE}
    assert config.profiling_verbosity is trt.ProfilingVerbosity.DETAILED
    side = bundle.clip.image_size
    assert trt.built == [{"pixels": [[4, 3, side, side]] * 3}]
    assert steps[0] == ("score", "Building Engine", 0, 3)
    assert steps[-1] == ("score", "Building Engine", 3, 3)
    record = json.loads((plan.key.folder / plans.RECORD).read_text())
    assert record["key"]["tensorrt"] == trt.__version__ and record["digest"] == plan.key.digest
    assert record["built"]["layers"] == {"fp32": 1, "unseen": 0}
    assert {oct(p.stat().st_mode)[-3:] for p in plan.key.folder.iterdir()} == {"600"}
    assert {oct(p.stat().st_mode)[-3:] for p in plans.root().rglob("*") if p.is_dir()} == {"700"}


def test_every_graph_has_its_profile(trt, bundle):
    sizes = batch_sizes(make_config({"saliency": {"rows": 8}, "segment": {"batch": 2}}))
    for name, rows in sizes.items():
        build(bundle, name, rows)
    sam, side = bundle.sam_config, bundle.clip.image_size
    cells = sam.image_size // sam.patch_size
    assert trt.built == [
        {"tokens": [[1, 1], [1, 32], [1, bundle.clip.tokenizer.context_length]]},
        {"pixels": [[1, 3, side, side]] * 3, "texts": [[1, 5], [1, 5], [8, 5]]},
        {"pixels": [[8, 3, side, side]] * 3},
        {"pixels": [[2, 3, sam.image_size, sam.image_size]] * 3},
        {"embeddings": [[16, sam.channels, cells, cells]] * 3, "boxes": [[16, 4]] * 3},
    ]


@pytest.mark.parametrize("name", GRAPHS)
def test_tensors_are_named_as_the_exporter_names_them(tiny_bundle, name):
    spec = make_spec(tiny_bundle, name)
    assert tuple(graph_ranges(tiny_bundle, name, 2)) == spec.inputs
    assert OUTPUTS[name] == spec.outputs
    for wanted, example in zip(
        graph_ranges(tiny_bundle, name, len(spec.examples[0])).values(), spec.examples, strict=True
    ):
        assert name == "text" or wanted.fits(tuple(example.shape))


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


def test_every_node_that_is_refused_is_named(trt11, bundle):
    trt11.unsupported = {"MatMul": "no kernel", "ReduceMean": "axis is dynamic"}
    with pytest.raises(BackendError) as caught:
        build(bundle)
    assert "ReduceMean 'mean': axis is dynamic; MatMul 'product': no kernel" in str(caught.value)
    assert not trt11.built


def test_a_failed_build_says_why(trt11, bundle):
    trt11.fails = {"build"}
    with pytest.raises(BackendError, match=r"does not build 'score' .no optimization profile"):
        build(bundle)
    assert not list(plans.root().rglob("*.plan"))


def test_an_interrupt_stops_the_build(trt11, bundle):
    def interrupt(*step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(bundle, report=interrupt)
    assert not trt11.built and build(bundle).built


def test_graphs_of_another_image_size_are_refused(trt11, tiny_bundle, tmp_path):
    other = write_exports(tiny_bundle, tmp_path, side=tiny_bundle.clip.image_size + 8)
    with pytest.raises(BackendError, match=r"takes pixels of .-1, 3, 104, 104. .* take 4x3x96x96"):
        build(other)
    assert not trt11.built


def test_graphs_of_other_weights_are_refused(trt11, bundle):
    facts = {**bundle.description, "files": {**bundle.description["files"], "x": "y"}}
    other = dataclasses.replace(bundle, description=facts)
    other.__dict__["clip"] = bundle.clip
    with pytest.raises(BackendError, match="is one of another bundle"):
        build(other)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_low_graphs_give_low_layers(trt, tiny_bundle, tmp_path, precision):
    low = write_exports(tiny_bundle, tmp_path, precision)
    plan = build(low, precision=precision)
    record = json.loads((plan.key.folder / plans.RECORD).read_text())
    assert record["built"]["layers"] == {precision: 1, "unseen": 0}


@pytest.mark.parametrize(
    ("precision", "lie", "message"),
    [
        ("fp16", "Float", "'product_myl0' computes product in fp32 instead of fp16"),
        ("bf16", "Half", "'product_myl0' has fp16, which nothing in the graph is"),
        ("fp32", "Row major linear FP16 format", "has fp16, which nothing in the graph is"),
        ("fp16", "N/A", "does not show that any layer computes in fp16"),
    ],
)
def test_layers_of_another_type_are_named(trt, tiny_bundle, tmp_path, precision, lie, message):
    low = write_exports(tiny_bundle, tmp_path, precision)
    trt.computes = {"product": lie}
    with pytest.raises(BackendError, match=message):
        build(low, precision=precision)
    assert not list(plans.root().rglob("*.plan"))


def test_weak_typing_would_be_noticed(trt, tiny_bundle, tmp_path, monkeypatch):
    flags = trt.NetworkDefinitionCreationFlag
    if not hasattr(flags, "EXPLICIT_BATCH"):
        pytest.skip("11 has no weak typing")
    weak = SimpleNamespace(STRONGLY_TYPED=flags.EXPLICIT_BATCH)
    monkeypatch.setattr(trt, "NetworkDefinitionCreationFlag", weak)
    with pytest.raises(BackendError, match="in fp32 instead of fp16"):
        build(write_exports(tiny_bundle, tmp_path, "fp16"), precision="fp16")


def layer(nodes, types):
    return Layer("fused", frozenset(nodes), frozenset(types))


def test_islands_stay_in_float32():
    wanted = {"a": "fp16", "norm": "fp32"}
    assert check_layers(
        [layer("a", ["fp16", "fp32"]), layer(["norm"], ["fp32"])], wanted, "g", "fp16"
    )
    with pytest.raises(BackendError, match="computes norm in fp16 instead of fp32"):
        check_layers([layer(["a", "norm"], ["fp16"])], wanted, "g", "fp16")


def test_nodes_that_no_layer_names_are_counted(caplog):
    found = check_layers([layer("a", ["fp16"])], {"a": "fp16", "b": "fp16"}, "g", "fp16")
    assert found == {"fp16": 1, "unseen": 1} and "no layer of the engine names b" in caplog.text


def test_an_engine_without_details_is_refused(trt11, bundle):
    trt11.fails = {"details"}
    with pytest.raises(BackendError, match="cannot be checked"):
        build(bundle)


@pytest.fixture
def published(bundle, tiny_bundle_folder):
    """The bundle as a folder with a description that can be written."""
    facts = {**bundle.description, "exports": bundle.exports}
    (bundle.folder / "bundle.json").write_text(json.dumps(facts))
    return bundle


def test_what_agrees_with_torch_is_named_in_the_bundle(trt11, published):
    judged = []

    def judge(staged):
        judged.append(staged.exports["tensorrt"]["fp32"]["machines"])
        return {"mean_iou": 1.0}

    plans = export_tensorrt(published, make_config({}), CPU, judge)
    facts = json.loads((published.folder / "bundle.json").read_text())
    assert facts["exports"]["onnx"] == published.exports["onnx"]
    (machine,) = facts["exports"]["tensorrt"]["fp32"]["machines"].values()
    assert machine["plans"] == {plan.sha256: plan.key.graph for plan in plans}
    assert machine["parity"] == {"mean_iou": 1.0} and machine["gpu"] == "Fake GPU"
    assert [next(iter(m.values()))["plans"] for m in judged] == [machine["plans"]]


def test_what_differs_from_torch_is_not(trt11, published):
    before = (published.folder / "bundle.json").read_bytes()

    def judge(staged):
        raise BackendError("worst mask IoU is 0.1")

    with pytest.raises(BackendError, match="worst mask"):
        export_tensorrt(published, make_config({}), CPU, judge)
    assert (published.folder / "bundle.json").read_bytes() == before


def test_missing_onnx_is_told(bundle, trt11, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    with pytest.raises(BackendError, match="pip install --upgrade onnx onnxscript"):
        read_graph(bundle.folder / "onnx/fp32/score.onnx")
