"""A plan that is missing, foreign, altered or not judged is not loaded, and it is told why."""

import sys

import pytest
from fake_tensorrt import GARBAGE, install
from plans.published import CPU, open_graph

from medclipsam.engine.backends import plans, tensorrt, tensorrt_runtime
from medclipsam.engine.backends.shapes import Range, graph_ranges
from medclipsam.engine.errors import BackendError


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
