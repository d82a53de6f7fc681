"""The TensorRT backend over a fake API that computes on the CPU, and over the real one on a GPU."""

import sys
import threading

import numpy as np
import pytest
import torch
from fake_tensorrt import GARBAGE, install
from tensorrt_graphs import (
    WIDTH,
    features_reference,
    sam_decoder_reference,
    sam_encoder_reference,
    score_reference,
    text_reference,
    write_exports,
)

from medclipsam.engine.backends import plans, tensorrt, tensorrt_runtime
from medclipsam.engine.backends.shapes import Range, graph_ranges
from medclipsam.engine.config import make_config
from medclipsam.engine.errors import BackendError
from medclipsam.engine.pipeline import Pipeline
from medclipsam.engine.types import Prompts
from medclipsam.export.onnx import build_model, hash_files, write_model
from medclipsam.export.tensorrt import export_tensorrt
from medclipsam.train.phantoms.phantoms import PROMPTS, make_phantom

CPU = torch.device("cpu")
SETTINGS = {"saliency": {"rows": 3}, "segment": {"batch": 2, "boxes": 5}}
ROUNDING = 1e-4  # of float32 sums in another order
VERSIONS = ["10.0.1.6", "11.4.0.106"]


@pytest.fixture(params=VERSIONS)
def trt(request, monkeypatch, tmp_path):
    return install(monkeypatch, tmp_path / "home", request.param)


@pytest.fixture
def trt11(monkeypatch, tmp_path):
    return install(monkeypatch, tmp_path / "home")


def publish(bundle, precision="fp32", device=CPU):
    """``bundle`` with plans in the cache that it names."""
    judged = []
    (bundle.folder / "bundle.json").write_text("{}")
    config = make_config(SETTINGS, {"precision": precision})
    export_tensorrt(bundle, config, device, lambda staged: judged.append(staged) or {})
    return judged[0]


@pytest.fixture
def bundle(tiny_bundle, tmp_path, request):
    request.getfixturevalue("trt" if "trt" in request.fixturenames else "trt11")
    return publish(write_exports(tiny_bundle, tmp_path))


def open_graph(bundle, name="score", batch=3, **settings):
    return tensorrt.open_graph(bundle, name, CPU, batch, **settings)


def noise(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, np.float32))


def assert_close(found, expected):
    for one, other in zip(
        *(x if isinstance(x, tuple) else (x,) for x in (found, expected)), strict=True
    ):
        assert one.shape == other.shape and one.dtype == other.dtype
        assert not other.numel() or (one - other).abs().max() <= ROUNDING * other.abs().max()


def inputs(bundle, name, texts=3):
    side, sam = bundle.clip.image_size, bundle.sam_config
    cells = sam.image_size // sam.patch_size
    return {
        "text": (torch.arange(8).reshape(2, 4),),
        "features": (noise(1, 3, side, side), noise(texts, WIDTH, seed=1)),
        "score": (noise(3, 3, side, side),),
        "sam_encoder": (noise(2, 3, sam.image_size, sam.image_size),),
        "sam_decoder": (noise(5, sam.channels, cells, cells), noise(5, 4, seed=1)),
    }[name]


CASES = {
    "text": (1, text_reference),
    "features": (1, features_reference),
    "score": (3, score_reference),
    "sam_encoder": (2, sam_encoder_reference),
    "sam_decoder": (5, sam_decoder_reference),
}


@pytest.mark.parametrize("name", CASES)
def test_a_plan_computes_its_graph(trt, bundle, name):
    batch, reference = CASES[name]
    graph = open_graph(bundle, name, batch)
    given = inputs(bundle, name)
    assert_close(graph(*given), reference(*given))
    changed = tuple(tensor + 1 for tensor in given)
    first = graph(*given)
    kept = [t.clone() for t in first] if isinstance(first, tuple) else first.clone()
    assert_close(graph(*changed), reference(*changed))
    assert_close(first, tuple(kept) if isinstance(kept, list) else kept)  # not overwritten


@pytest.mark.parametrize("texts", [0, 1, 8, 9, 17])
def test_any_number_of_texts(trt11, bundle, texts):
    given = inputs(bundle, "features", texts)
    assert_close(open_graph(bundle, "features", 1)(*given), features_reference(*given))


def test_fixed_shapes_replay_a_captured_graph(trt11, bundle):
    graph = open_graph(bundle)
    assert trt11.executed == [(7, True)]  # once, before it is captured
    for _ in range(3):
        graph(*inputs(bundle, "score"))
    assert len(trt11.executed) == 1 and trt11.SideStream.replayed == 3


def test_free_shapes_execute_on_the_side_stream(trt11, bundle):
    graph = open_graph(bundle, "text", 1)
    graph(torch.arange(6).reshape(2, 3))
    assert trt11.executed == [(7, True)] * 2 and trt11.SideStream.replayed == 0


def test_what_cannot_be_captured_runs_all_the_same(trt11, bundle, caplog):
    trt11.fails = {"capture"}
    given = inputs(bundle, "score")
    assert_close(open_graph(bundle)(*given), score_reference(*given))
    assert len(trt11.executed) == 2 and "runs without a CUDA graph" in caplog.text


@pytest.mark.parametrize("name", ["text", "score"])
def test_views_and_other_modes(trt11, bundle, name):
    batch, reference = CASES[name]
    graph = open_graph(bundle, name, batch)
    (given,) = inputs(bundle, name)
    shifted = torch.cat([given.flatten()[:1], given.flatten()])[1:].view(given.shape)  # unaligned
    strided = given.repeat_interleave(2, -1)[..., ::2]
    with torch.inference_mode():
        assert_close(graph(shifted), reference(given))
    assert_close(graph(strided), reference(given))
    if name == "score":
        assert not graph(given.clone().requires_grad_()).requires_grad


def test_threads_take_turns(trt11, bundle):
    graph = open_graph(bundle)
    wrong = []

    def work(seed):
        given = noise(3, 3, bundle.clip.image_size, bundle.clip.image_size, seed=seed)
        for _ in range(5):
            if not torch.allclose(graph(given), score_reference(given), atol=1e-5):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    "change",
    [
        lambda pixels: (pixels.double(),),
        lambda pixels: (pixels[:2],),
        lambda pixels: (pixels[..., :-1],),
        lambda pixels: (pixels[0],),
        lambda pixels: (pixels, pixels),
        lambda pixels: (pixels.to("meta"),),
    ],
)
def test_other_inputs_are_refused(trt11, bundle, change):
    graph = open_graph(bundle)
    with pytest.raises(BackendError, match=r"takes pixels 3x3x96x96 torch.float32 on cpu, got"):
        graph(*change(*inputs(bundle, "score")))
    with pytest.raises(BackendError, match="takes tokens 1x1…1x32…1x32"):
        open_graph(bundle, "text", 1)(torch.zeros(1, 33, dtype=torch.int64))


def test_a_failing_execution_says_why(trt11, bundle):
    graph = open_graph(bundle, "text", 1)
    trt11.fails = {"execute"}
    with pytest.raises(BackendError, match="fails in 'text', execution: an illegal memory access"):
        graph(torch.ones(1, 3, dtype=torch.int64))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "lower"}, "graph 'lower' needs gradients"),
        ({"name": "upper", "blocks": 2}, "use --backend torch, or contrastcam"),
        ({"name": "features", "target": "norm2"}, "saliency at norm2 of block -1 needs gradients"),
        ({"name": "features", "block": 0}, "saliency at norm1 of block 0 needs gradients"),
        ({"name": "other"}, "unknown graph 'other'"),
        ({"batch": None}, "is for one number of rows, none was given"),
        ({"precision": "fp16"}, "no tensorrt export in fp16.*--to tensorrt --precision fp16"),
        (
            {"batch": 4},
            "none was built; the nearest was built for shapes pixels 3x3x96x96 .here pixels 4x",
        ),
    ],
)
def test_what_there_is_no_plan_for(trt11, bundle, settings, message):
    with pytest.raises(BackendError, match=message):
        open_graph(bundle, **settings)


def test_a_missing_package_is_told(trt11, bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendError, match=r"pip install 'medclipsam\[tensorrt\]'"):
        open_graph(bundle)


@pytest.mark.parametrize("version", ["8.6.1", "9.3.0.post12"])
def test_an_old_version_is_told(bundle, monkeypatch, tmp_path, version):
    install(monkeypatch, tmp_path / "home", version)
    with pytest.raises(BackendError, match=f"needs TensorRT 10.0 or newer, here is {version}"):
        open_graph(bundle)


def test_a_runtime_that_does_not_start_is_told(trt11, bundle):
    trt11.fails = {"runtime"}
    for call in (tensorrt_runtime.prove_runtime, lambda: open_graph(bundle)):
        with pytest.raises(BackendError, match=r"does not start here .CUDA initialization failure"):
            call()


def test_the_runtime_tells_its_version(trt):
    assert tensorrt_runtime.prove_runtime() == trt.__version__


def test_a_gpu_is_needed(bundle, monkeypatch):
    monkeypatch.setattr(tensorrt, "require_gpu", tensorrt_runtime.require_gpu)
    with pytest.raises(BackendError, match="needs an NVIDIA GPU, but the device is 'cpu'"):
        open_graph(bundle)


def test_too_little_memory_is_told(trt11, bundle):
    trt11.fails = {"context"}
    with pytest.raises(BackendError, match=r"has no context for 'score' .out of memory"):
        open_graph(bundle)


@pytest.mark.parametrize("part", ["gpu", "driver"])
def test_a_plan_for_another_machine_is_not_loaded(trt11, bundle, part):
    trt11.machine[part] = "other"
    trt11.loaded.clear()
    with pytest.raises(BackendError, match=f"was built for {part} .* .here other.; build it with"):
        open_graph(bundle)
    assert not trt11.loaded


def test_a_tampered_plan_is_not_loaded(trt11, bundle, caplog):
    for path in plans.root().rglob("*.plan"):
        path.write_bytes(GARBAGE)
    trt11.loaded.clear()
    with pytest.raises(BackendError, match="not the recorded one: it was altered or cut short"):
        open_graph(bundle)
    assert not trt11.loaded and "is not loaded" in caplog.text


def test_a_plan_that_was_not_judged_is_not_loaded(trt11, bundle):
    machines = bundle.exports["tensorrt"]["fp32"]["machines"]
    next(iter(machines.values()))["plans"].clear()
    trt11.loaded.clear()
    with pytest.raises(BackendError, match="has not passed the comparison with torch"):
        open_graph(bundle)
    assert not trt11.loaded


def test_a_plan_that_tensorrt_does_not_take_is_told(trt11):
    with pytest.raises(BackendError, match=r"does not load its plan of 'score' .Magic tag"):
        tensorrt_runtime.load_engine(trt11, GARBAGE, "score")


def test_an_engine_of_other_shapes_is_refused(trt11, bundle):
    key = plans.make_key(
        bundle, "score", "fp32", graph_ranges(bundle, "score", 3), CPU, trt11.__version__
    )
    engine = tensorrt_runtime.load_engine(trt11, plans.read_plan(key)[0], "score")
    logger = tensorrt_runtime.open_logger(trt11)
    for name, ranges, message in (
        ("score", {"pixels": Range.only(3, 3, 224, 224)}, "need 3x3x224x224"),
        ("sam_encoder", {"pixels": Range.only(3, 3, 96, 96)}, "has tensors"),
    ):
        with pytest.raises(BackendError, match=message):
            tensorrt.Graph(engine, name, ranges, CPU, trt11.SideStream(CPU), logger)


FLIPPED = 0.005  # part of a mask's pixels


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32"])
def test_the_pipeline_on_plans_of_a_real_bundle(trt11, tiny_bundle, tmp_path, precision):
    written = [
        path
        for name in CASES
        for path in write_model(
            build_model(tiny_bundle, name, precision), tmp_path / f"onnx/{precision}/{name}.onnx"
        )
    ]
    exports = {"onnx": {precision: {"files": hash_files(written, tmp_path)}}}
    bundle = publish(tiny_bundle.with_exports(tmp_path, exports), precision)
    config = make_config(tiny_bundle.defaults, SETTINGS, {"precision": precision})
    phantom = make_phantom(5, "mri", ("tumor",))
    rgb = np.repeat((phantom.pixels * 255).astype(np.uint8)[..., None], 3, 2)
    prompts = Prompts({"tumor": (PROMPTS["tumor"],)})
    both = [
        Pipeline.open(one, config, CPU, backend).segment([rgb], [prompts])[0]["tumor"]
        for one, backend in ((tiny_bundle, "torch"), (bundle, "tensorrt"))
    ]
    # Two runtimes round differently; on a model of random weights that may flip a few pixels.
    flipped = int((both[0].mask ^ both[1].mask).sum())
    assert flipped <= FLIPPED * both[0].mask.sum(), flipped
    assert both[0].mask.any() and not both[0].mask.all()
    assert np.abs(both[0].saliency - both[1].saliency).max() < 1e-3


def real_tensorrt():
    try:
        return torch.cuda.is_available() and bool(tensorrt_runtime.prove_runtime())
    except BackendError:
        return False


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    if not real_tensorrt():
        pytest.skip("needs TensorRT and a CUDA device")
    monkeypatch.setenv("MEDCLIPSAM_HOME", str(tmp_path / "home"))
    return torch.device("cuda", 0)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_real_plans_compute_their_graphs(gpu, tiny_bundle, tmp_path, name):
    batch, reference = CASES[name]
    bundle = publish(write_exports(tiny_bundle, tmp_path), device=gpu)
    graph = tensorrt.open_graph(bundle, name, gpu, batch)
    for seed in range(3):
        given = [t + seed for t in inputs(tiny_bundle, name)]
        found = graph(*(t.to(gpu) for t in given))
        found = tuple(t.cpu() for t in found) if isinstance(found, tuple) else found.cpu()
        assert_close(found, reference(*given))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_real_low_plans_are_low(gpu, tiny_bundle, tmp_path, precision):
    bundle = publish(write_exports(tiny_bundle, tmp_path, precision), precision, gpu)
    graph = tensorrt.open_graph(bundle, "score", gpu, 3, precision=precision)
    (given,) = inputs(tiny_bundle, "score")
    found, expected = graph(given.to(gpu)).cpu(), score_reference(given)
    assert (found - expected).abs().max() <= 2e-2 * expected.abs().max()
