"""Plans are built as asked, and a build that fails, is refused or interrupted says why."""

import dataclasses
import json

import pytest
from plans.built import build
from tensorrt_graphs import GRAPHS, write_exports

from medclipsam.engine.backends import plans
from medclipsam.engine.backends.shapes import OUTPUTS, graph_ranges
from medclipsam.engine.config import make_config
from medclipsam.engine.errors import BackendError
from medclipsam.export.graphs import make_spec
from medclipsam.export.tensorrt import batch_sizes
from medclipsam.export.tensorrt_builder import WORKSPACE


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
