"""Layers compute in the types that the graph asks for, or the plan is refused."""

import json
from types import SimpleNamespace

import pytest
from plans.built import build
from tensorrt_graphs import write_exports

from medclipsam.engine.backends import plans
from medclipsam.engine.errors import BackendError
from medclipsam.export.tensorrt_layers import Layer, check_layers


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
