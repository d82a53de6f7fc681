"""The graphs of full-size models on a simulated device: results, waits, casts and memory."""

import pytest
import torch
from simulated.cuda import CUDA
from simulated.models import shared_bundle, simulated_bundle, weight_bytes
from simulated.record import allowed

from medclipsam.engine.backends import open_graph
from medclipsam.engine.weights.models import SAM_PRESETS

GIB = 1 << 30
MOST = 10 * GIB  # of a device, for 64 rows, 4 images or 16 boxes and the largest SAM
WIDTH, DIM, CHANNELS = 768, 512, 256  # of BiomedCLIP's tokens and embeddings, of SAM's embedding
CELLS = 64 * 64  # of SAM's grid
FEATURES = [(1, DIM), (1, WIDTH, 14, 14), (1, 2, WIDTH)]
GRAPHS = {
    "text": ("text", {}, [(1, 9)], [(1, DIM)]),
    "features": ("features", {}, [(1, 3, 224, 224), (2, DIM)], FEATURES),
    "norm2": (
        "features", {"target": "norm2", "block": -2}, [(1, 3, 224, 224), (2, DIM)], FEATURES,
    ),
    "score": ("score", {"batch": 64}, [(64, 3, 224, 224)], [(64, DIM)]),
    "few rows": ("score", {"batch": 64}, [(5, 3, 224, 224)], [(5, DIM)]),
    "lower": ("lower", {"blocks": 8}, [(1, 3, 224, 224)], [(1, 197, WIDTH)]),
    "upper": ("upper", {"blocks": 8}, [(10, 197, WIDTH)], [(10, DIM)]),
    "sam_encoder": (
        "sam_encoder", {"batch": 4}, [(4, 3, 1024, 1024)], [(4, CHANNELS, 64, 64)],
    ),
    "sam_decoder": (
        "sam_decoder", {"batch": 16}, [(16, CHANNELS, 64, 64), (16, 4)], [(16, 256, 256), (16,)],
    ),
}  # fmt: skip
every = pytest.mark.parametrize("name", GRAPHS)
precisions = pytest.mark.parametrize("precision", ["fp32", "bf16"])


def make(shape, name):
    if name == "text":
        return torch.ones(shape, dtype=torch.int64, device=CUDA)
    return torch.ones(shape, device=CUDA)


def run(graph, name):
    found = graph(*(make(shape, name) for shape in GRAPHS[name][2]))
    return found if isinstance(found, tuple) else (found,)


def open_one(name, precision="fp32", bundle=None):
    graph, settings, *_ = GRAPHS[name]
    bundle = bundle or shared_bundle(precision=precision)
    return open_graph(bundle, graph, CUDA, precision=precision, **settings)


@every
@precisions
def test_a_graph_gives_float32_and_waits_for_nothing(sim, name, precision):
    graph = open_one(name, precision, simulated_bundle())  # also not when it is run first
    with sim.recording() as record:
        found = run(graph, name)
    assert [tuple(part.shape) for part in found] == GRAPHS[name][3]
    assert {part.dtype for part in found} == {torch.float32}
    assert {part.device for part in found} == {CUDA}
    allowed(record)


@every
@precisions
def test_weights_are_cast_once(sim, name, precision):
    graph = open_one(name, precision)
    run(graph, name)
    with sim.recording() as record:
        run(graph, name)
    assert not record.weight_casts


@pytest.mark.parametrize("name", ["features", "score", "lower", "sam_encoder"])
def test_the_precision_reaches_the_arithmetic(sim, name):
    reached = set()
    for precision in ("fp32", "bf16"):
        graph = open_one(name, precision)
        run(graph, name)
        with sim.recording() as record:
            run(graph, name)
        if torch.bfloat16 in {target for _, target in record.casts}:
            reached.add(precision)
    assert reached == {"bf16"}


@pytest.mark.parametrize("preset", ["vit_b", "vit_h"])
@precisions
def test_no_scores_of_all_cells_are_kept(sim, preset, precision):
    graph = open_one("sam_encoder", precision, shared_bundle(preset, precision))
    with sim.recording() as record:
        run(graph, "sam_encoder")
    size, shape, dtype, where = record.largest
    scores = SAM_PRESETS[preset].encoder_heads * CELLS**2
    assert size < scores * dtype.itemsize, f"a tensor {shape} at {' < '.join(where)}"


def test_usual_batches_fit_beside_the_largest_sam(sim):
    bundle, peaks = simulated_bundle("vit_h"), {}
    for name in ("score", "sam_encoder", "sam_decoder"):
        graph = open_one(name, "fp32", bundle)
        with sim.recording() as record:
            run(graph, name)
        peaks[name] = record.peak
    weights = weight_bytes(bundle.clip.model, bundle.sam)
    assert 3 * GIB < weights < 3.5 * GIB  # BiomedCLIP has 196 million, ViT-H 641
    assert weights + max(peaks.values()) < MOST, peaks
