"""Plans over a fake API that computes on the CPU give what their graphs give."""

import threading

import numpy as np
import pytest
import torch
from plans.published import CASES, CPU, SETTINGS, assert_close, inputs, noise, open_graph, publish
from tensorrt_graphs import features_reference, score_reference

from medclipsam.engine.config import make_config
from medclipsam.engine.errors import BackendError
from medclipsam.engine.pipeline import Pipeline
from medclipsam.engine.types import Prompts
from medclipsam.export.onnx import build_model, hash_files, write_model
from medclipsam.train.phantoms.phantoms import PROMPTS, make_phantom


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


FLIPPED = 0.005  # part of a mask's pixels


@pytest.mark.long
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
