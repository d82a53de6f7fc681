"""What was loaded stays on the CPU in float32; placements share and lower its weights."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from models import CPU, pictures

from medclipsam.engine.backends import open_graph, pytorch
from medclipsam.engine.backends.arithmetic import make_autocast
from medclipsam.engine.backends.lanes import PARTS
from medclipsam.engine.backends.placement import place
from medclipsam.engine.unet.graph import open_unet
from medclipsam.engine.weights.exports import GRAPHS
from medclipsam.export.graphs import make_spec

ELSEWHERE = torch.device("meta")  # a device that is not the CPU, on every machine
HALF = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no bf16 arithmetic"
)


def storages(module):
    return {name: each.untyped_storage()._cdata for name, each in module.named_parameters()}


@pytest.mark.parametrize("name", [*GRAPHS, "lower", "upper"])
def test_an_opened_graph_leaves_the_model_where_it_is(name, tiny_bundle):
    """An export is explained, layer by layer, on the CPU, after it was compared on a device."""
    settings = {"blocks": 2} if name in ("lower", "upper") else {}
    open_graph(tiny_bundle, name, ELSEWHERE, **settings)
    for model in (tiny_bundle.clip.model, tiny_bundle.sam):
        assert {tensor.device.type for tensor in [*model.parameters(), *model.buffers()]} == {"cpu"}
    if name in GRAPHS:
        spec = make_spec(tiny_bundle, name)
        spec.module(*spec.examples)


def test_every_tensor_of_a_placed_model_is_on_the_device(tiny_bundle):
    for model in (tiny_bundle.clip.model, tiny_bundle.sam):
        placed = place(model, ELSEWHERE)
        assert placed is not model and type(placed) is type(model)
        tensors = [*placed.parameters(), *placed.buffers()]
        assert {tensor.device.type for tensor in tensors} == {"meta"}
        assert not any(parameter.requires_grad for parameter in placed.parameters())
        loose = [
            name
            for part in placed.modules()
            for name, each in vars(part).items()
            if isinstance(each, torch.Tensor) and each.device != ELSEWHERE
        ]
        assert not loose


def test_placements_share_their_weights(tiny_bundle):
    model = tiny_bundle.clip.model
    trunk = model.visual.trunk
    whole = storages(place(model, ELSEWHERE))
    lower = storages(place(model, ELSEWHERE, trunk.blocks[:2], torch.bfloat16))
    upper = storages(place(model, ELSEWHERE, trunk.blocks, torch.bfloat16))
    lowered = {name for name in whole if lower[name] != whole[name]}
    assert lowered and all(".blocks." in name and "norm" not in name for name in lowered)
    assert all(lower[name] == upper[name] for name in lowered)
    assert storages(place(model, ELSEWHERE)) == whole


def test_weights_that_change_are_placed_anew(tiny_bundle):
    layer = torch.nn.Linear(3, 2)
    first = place(layer, CPU, [layer], torch.bfloat16)
    layer.load_state_dict({"weight": torch.ones(2, 3), "bias": torch.zeros(2)})
    again = place(layer, CPU, [layer], torch.bfloat16)
    assert again.weight.eq(1).all() and not first.weight.eq(1).all()


@HALF
@pytest.mark.parametrize("name", ["score", "features", "lower", "sam_encoder"])
def test_weights_cast_once_compute_what_autocast_does(name, tiny_bundle):
    settings = {"blocks": 2} if name == "lower" else {}
    sam = name.startswith("sam_")
    model = tiny_bundle.sam if sam else tiny_bundle.clip.model
    side = tiny_bundle.sam_config.image_size if sam else tiny_bundle.clip.image_size
    given = [pictures(side, PARTS.get(name, 1))]  # a part that nothing fills up
    given += [torch.nn.functional.normalize(torch.randn(2, 128))] if name == "features" else []
    graph = open_graph(tiny_bundle, name, CPU, precision="bf16", **settings)
    plain = partial(pytorch._GRAPHS[name], model, autocast=make_autocast(CPU, "bf16"), **settings)
    with torch.no_grad():
        found, expected = graph(*given), plain(*given)
    pairs = zip(found, expected, strict=True) if name == "features" else [(found, expected)]
    assert all(one.equal(two) for one, two in pairs)


def test_a_task_model_stays_where_it_is():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1))
    open_unet(SimpleNamespace(net=net), ELSEWHERE)
    assert net[0].weight.device.type == "cpu"
