"""The contract of a backend, kept by ONNX Runtime; and every way in which it says no."""

import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from exporting import model_of
from models import CPU, pictures
from torch.nn import functional as F

from medclipsam.engine.backends import open_graph, session
from medclipsam.engine.backends.onnxruntime import PROMPTS
from medclipsam.engine.backends.session import open_session, prove_provider
from medclipsam.engine.engine import Engine
from medclipsam.engine.errors import BackendError, BundleError
from medclipsam.engine.evaluation.metrics import iou
from medclipsam.engine.prompts import make_prompts
from medclipsam.engine.weights.bundle import open_bundle, sha256_file
from medclipsam.export.onnx import write_model
from medclipsam.train.phantoms.phantoms import PROMPTS as TEXTS
from medclipsam.train.phantoms.phantoms import TARGETS, make_phantom

SAME = 1e-4  # float32 sums in another order, after the whole tower
MEAN_IOU, WORST_IOU = 0.999, 0.98


@pytest.fixture
def damaged(exported_phantom, tmp_path):
    """A copy that a test may damage."""
    shutil.copytree(exported_phantom.folder, tmp_path / "phantom")
    return tmp_path / "phantom"


def edit(folder, change):
    facts = json.loads((folder / "bundle.json").read_text())
    change(facts)
    (folder / "bundle.json").write_text(json.dumps(facts))
    return open_bundle(str(folder))


def pair(bundle, name, batch=None, **settings):
    ours = open_graph(bundle, name, CPU, "onnx", batch=batch, **settings)
    return ours, open_graph(bundle, name, CPU, **settings)


def assert_same(found, expected):
    found, expected = ((x,) if isinstance(x, torch.Tensor) else x for x in (found, expected))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32 and ours.shape == theirs.shape
        size = theirs.abs().max() if theirs.numel() else 1
        torch.testing.assert_close(ours, theirs, atol=float(SAME * size), rtol=0)


def graph_inputs(name, rows):
    torch.manual_seed(rows)
    if name == "text":
        return (torch.randint(5, 90, (rows, 9)),)
    if name == "sam_decoder":
        boxes = torch.rand(rows, 4).sort(1).values * 120
        return torch.randn(rows, 64, 16, 16), boxes
    pixels = pictures(128 if name == "sam_encoder" else 96, rows) * 2 - 1
    return (pixels, F.normalize(torch.randn(3, 128), dim=1)) if name == "features" else (pixels,)


@pytest.mark.parametrize("batch", [None, 1, 3])
@pytest.mark.parametrize("name", ["text", "features", "score", "sam_encoder", "sam_decoder"])
def test_names_shapes_and_numbers_are_those_of_torch(exported_phantom, name, batch):
    ours, theirs = pair(exported_phantom, name, batch)
    inputs = graph_inputs(name, batch or 2)
    first = ours(*inputs)
    assert_same(first, theirs(*inputs))
    kept = first[0].clone()
    ours(*(torch.flip(t, [0]) for t in inputs))
    assert torch.equal(first[0], kept)  # an output is the caller's own


@pytest.mark.parametrize("prompts", [0, 1, PROMPTS, PROMPTS + 1])
def test_features_take_any_number_of_prompts(exported_phantom, prompts):
    ours, theirs = pair(exported_phantom, "features", 1)
    texts = F.normalize(torch.randn(prompts, 128), dim=1)
    assert_same(ours(pictures(96, 1), texts), theirs(pictures(96, 1), texts))


@pytest.mark.parametrize("length", [3, 17, 32])
def test_texts_of_any_length(exported_phantom, length):
    ours, theirs = pair(exported_phantom, "text", 1)
    tokens = torch.randint(5, 90, (1, length))
    assert_same(ours(tokens), theirs(tokens))


def test_inputs_of_another_kind_are_refused(exported_phantom):
    graph = open_graph(exported_phantom, "score", CPU, "onnx", batch=2)
    pixels = pictures(96, 2)
    graph(pixels.transpose(2, 3))  # strides are no matter
    for wrong in (pixels.repeat(2, 1, 1, 1), pixels.double(), pixels[:, :, :48], pixels[0]):
        with pytest.raises(BackendError, match=r"takes .*got"):
            graph(wrong)
    with pytest.raises(BackendError, match=r"takes .*got"):
        graph(pixels, pixels)


def test_a_row_does_not_depend_on_its_neighbours(exported_phantom):
    for name, batch in (("score", 8), ("sam_encoder", 3), ("sam_decoder", 5)):
        graph = open_graph(exported_phantom, name, CPU, "onnx", batch=batch)
        inputs = graph_inputs(name, batch)
        order = torch.randperm(batch)
        outputs, moved = graph(*inputs), graph(*(t[order] for t in inputs))
        alone = graph(*(t[:1].expand_as(t).contiguous() for t in inputs))
        if isinstance(outputs, torch.Tensor):
            outputs, moved, alone = (outputs,), (moved,), (alone,)
        for whole, other, single in zip(outputs, moved, alone, strict=True):
            assert torch.equal(whole[order], other) and torch.equal(whole[0], single[-1])


@pytest.fixture(scope="module")
def engines(exported_phantom):
    folder = str(exported_phantom.folder)
    return [Engine.open(folder, "cpu", backend, threads=1) for backend in ("torch", "onnx")]


def scans(count):
    for n in range(count):
        modality = [*TARGETS][n % len(TARGETS)]
        phantom = make_phantom(8_000_000 + n, modality, [TARGETS[modality][n % 2]])
        rgb = np.repeat((phantom.pixels * 255).astype(np.uint8)[..., None], 3, 2)
        yield rgb, {target: TEXTS[target] for target in TARGETS[modality]}


@pytest.mark.long
def test_masks_are_those_of_torch_through_the_whole_pipeline(engines):
    found = []
    for rgb, wanted in scans(24):
        theirs, ours = (engine.segment(rgb, wanted) for engine in engines)
        assert {t: s.status for t, s in ours.items()} == {t: s.status for t, s in theirs.items()}
        found += [iou(ours[t].mask, theirs[t].mask) for t in wanted if theirs[t].mask.any()]
    assert len(found) >= 24
    assert np.mean(found) >= MEAN_IOU and min(found) >= WORST_IOU


def test_grouping_changes_no_byte(engines):
    frames, prompts = zip(*((rgb, make_prompts(wanted)) for rgb, wanted in scans(3)), strict=True)
    pipeline = engines[1].pipeline
    together = pipeline.segment(frames, prompts)
    for rgb, wanted, expected in zip(frames, prompts, together, strict=True):
        (alone,) = pipeline.segment([rgb], [wanted])
        for label, segment in alone.items():
            assert np.array_equal(segment.mask, expected[label].mask)
            assert np.array_equal(segment.saliency, expected[label].saliency)
            assert segment.confidence == expected[label].confidence


@pytest.mark.parametrize("method", ["gscorecam", "gradcam"])
def test_other_methods(exported_phantom, method):
    settings = {"saliency": {"method": method, "k": 10}}
    rgb, wanted = next(scans(1))
    folder = str(exported_phantom.folder)
    ours, theirs = (
        Engine.open(folder, "cpu", backend, settings, threads=1).segment(rgb, wanted)
        for backend in ("onnx", "torch")
    )
    for target in wanted:
        np.testing.assert_allclose(ours[target].saliency, theirs[target].saliency, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "what"),
    [({"method": "m2ib"}, "saliency method m2ib"), ({"target": "norm2"}, "saliency at norm2"),
     ({"block": 1}, "of block 1")],
)  # fmt: skip
def test_what_needs_gradients_is_refused_at_once(exported_phantom, settings, what):
    with pytest.raises(BackendError, match=what) as caught:
        Engine.open(str(exported_phantom.folder), "cpu", "onnx", {"saliency": settings})
    assert "--backend torch" in str(caught.value)


def test_what_was_not_exported_is_said_with_the_command(tiny_bundle, exported_phantom):
    with pytest.raises(BackendError, match="no onnx export in fp32; make it with 'medclipsam exp"):
        open_graph(tiny_bundle, "score", CPU, "onnx")
    with pytest.raises(BackendError, match=r"in fp16 \(there is fp32\).*--precision fp16'"):
        open_graph(exported_phantom, "score", CPU, "onnx", precision="fp16")
    with pytest.raises(BackendError, match="unknown graph 'sam'"):
        open_graph(exported_phantom, "sam", CPU, "onnx")
    with pytest.raises(BackendError, match="unknown backend 'oxnn'; choose from torch, onnx"):
        open_graph(exported_phantom, "score", CPU, "oxnn")
    with pytest.raises(BackendError, match="'onnx-tensorrt' needs a CUDA device, got 'cpu'"):
        open_graph(exported_phantom, "score", CPU, "onnx-tensorrt")


def test_a_file_cut_short_or_swapped_is_not_loaded(damaged):
    bundle = open_bundle(str(damaged))
    path = damaged / "onnx/fp32/score.onnx"
    content = path.read_bytes()
    for wrong in (content[:-100], content[:-1] + b"\0", b""):
        path.write_bytes(wrong)
        with pytest.raises(BundleError, match=r"score.onnx has sha256 .*export it again"):
            open_graph(bundle, "score", CPU, "onnx")
    path.unlink()
    with pytest.raises(BundleError, match=r"score.onnx cannot be read.*export it again"):
        open_graph(bundle, "score", CPU, "onnx")
    shutil.copy(damaged / "onnx/fp32/features.onnx", path)

    def swap(facts):
        facts["exports"]["onnx"]["fp32"]["files"]["onnx/fp32/score.onnx"] = sha256_file(path)

    with pytest.raises(BackendError, match=r"'score' in fp32 .* another graph \(features, exp"):
        open_graph(edit(damaged, swap), "score", CPU, "onnx")


def test_external_data_is_verified(damaged, monkeypatch):
    import onnx

    path = damaged / "onnx/fp32/score.onnx"
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="score.onnx.data")
    data = path.with_name("score.onnx.data")

    def describe(facts):
        for file in (path, data):
            files = facts["exports"]["onnx"]["fp32"]["files"]
            files[f"onnx/fp32/{file.name}"] = sha256_file(file)

    bundle = edit(damaged, describe)
    assert_same(*(g(pictures(96, 2)) for g in pair(bundle, "score")))
    content = bytearray(data.read_bytes())
    content[1000] ^= 1
    data.write_bytes(content)
    with pytest.raises(BundleError, match=r"score.onnx.data has sha256"):
        open_graph(bundle, "score", CPU, "onnx")
    data.unlink()
    with pytest.raises(BundleError, match=r"score.onnx.data cannot be read"):
        open_graph(bundle, "score", CPU, "onnx")


def test_graphs_of_other_weights_or_sizes_are_refused(damaged, tiny_bundle):
    exports = open_bundle(str(damaged)).exports
    other = tiny_bundle.with_exports(damaged, exports)
    with pytest.raises(BackendError, match=r"another bundle .*medclipsam export phantom --to onnx"):
        open_graph(other, "score", CPU, "onnx")
    bundle = open_bundle(str(damaged))
    bundle.description["sam"]["image_size"] = 256
    for name in ("sam_encoder", "sam_decoder"):
        with pytest.raises(BackendError, match=rf"'{name}' .* takes inputs of .*these weights"):
            open_graph(bundle, name, CPU, "onnx")


@pytest.mark.parametrize(
    "change",
    [lambda e: e.update(fp32=3), lambda e: e["fp32"].pop("files"),
     lambda e: e["fp32"].update(files={})],
)  # fmt: skip
def test_an_entry_that_is_not_readable(damaged, change):
    bundle = edit(damaged, lambda facts: change(facts["exports"]["onnx"]))
    with pytest.raises(BundleError, match="export it again"):
        open_graph(bundle, "score", CPU, "onnx")


def test_a_file_outside_the_bundle_is_refused(damaged):
    outside = damaged.parent / "score.onnx"
    shutil.move(damaged / "onnx/fp32/score.onnx", outside)
    (damaged / "onnx/fp32/score.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match="outside itself"):
        open_graph(open_bundle(str(damaged)), "score", CPU, "onnx")


def test_a_missing_or_old_runtime(exported_phantom, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(__version__="1.19.2"))
    with pytest.raises(BackendError, match=r"1\.24 or newer, here is 1\.19\.2"):
        open_graph(exported_phantom, "score", CPU, "onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match=r"needs ONNX Runtime.*pip install"):
        open_graph(exported_phantom, "score", CPU, "onnx")


@pytest.mark.skipif(torch.cuda.is_available(), reason="here the providers may start")
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_is_listed_but_does_not_start(provider, monkeypatch, capfd):
    monkeypatch.setattr(session, "compute_stream", lambda device: SimpleNamespace(cuda_stream=1))
    with pytest.raises(BackendError, match=r"cannot start \w+ExecutionProvider here"):
        prove_provider(provider, torch.device("cuda:0"))
    assert "EP Error" not in capfd.readouterr().out  # the runtime does not print past us


def test_the_probe_proves_the_cpu():
    assert prove_provider("cpu", CPU).count(".") == 2


def is_strict(options):
    try:
        return options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
    except RuntimeError:  # not set
        return False


class FakeSession:
    """A provider that leaves two nodes to the CPU."""

    def __init__(self, model, options, providers, enable_fallback):
        self.probe = model == session.PROBE
        if not self.probe and is_strict(options):
            raise RuntimeError("nodes that are assigned to the default CPU EP")
        assert enable_fallback == 0 and providers[0][1]["use_tf32"] == "0"

    def get_providers(self):
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def get_provider_graph_assignment_info(self):
        def part(provider, *names):
            nodes = [SimpleNamespace(op_type="NonZero", name=name) for name in names]
            return SimpleNamespace(ep_name=provider, get_nodes=lambda: nodes)

        foreign = () if self.probe else ("first", "second")
        return [part("CUDAExecutionProvider", "x"), part("CPUExecutionProvider", *foreign)]

    def run_with_ort_values(self, names, values):
        return [SimpleNamespace(numpy=lambda: np.array([-1.0]))]


def test_nodes_that_a_provider_leaves_are_named(exported_phantom, monkeypatch):
    import onnxruntime

    monkeypatch.setattr(session, "compute_stream", lambda device: SimpleNamespace(cuda_stream=1))
    monkeypatch.setattr(onnxruntime, "InferenceSession", FakeSession)
    path = exported_phantom.folder / "onnx/fp32/score.onnx"
    with pytest.raises(BackendError, match=r"does not take all of .*NonZero 'first' on CPUExec"):
        open_session(path, "cuda", torch.device("cuda:0"), {"R": 2})


def test_a_precision_without_arithmetic_is_refused(tmp_path):
    (path,) = write_model(model_of("score", "bf16"), tmp_path / "score.onnx")
    with pytest.raises(BackendError, match="CPUExecutionProvider has no arithmetic for it: use -"):
        open_session(path, "cpu", CPU, {"R": 2})
