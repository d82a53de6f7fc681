"""Traces of the phantom bundle's graphs, made once: they take most of an export's time."""

from functools import lru_cache

import onnxruntime
import torch

from medclipsam.engine.weights.bundle import open_bundle
from medclipsam.engine.weights.models import build_sam
from medclipsam.export.graphs import make_spec
from medclipsam.export.onnx import finish, trace


@lru_cache
def phantom():
    return open_bundle("phantom")


@lru_cache
def spec_of(name):
    return make_spec(phantom(), name)


@lru_cache
def _traced(name):
    return trace(spec_of(name))


def model_of(name, precision="fp32"):
    """As ``build_model``, of the phantom bundle."""
    return finish(_traced(name).clone(), spec_of(name), phantom().digest, precision)


def inputs_of(spec, rows, seed=0):
    """Random inputs with ``rows`` rows; prompts of ``features`` one more."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for name, example in zip(spec.inputs, spec.examples, strict=True):
        shape = (rows + (name == "texts"), *example.shape[1:])
        if name == "tokens":
            found.append(torch.randint(4, 90, (rows, 3 + 2 * rows), generator=generator))
        elif name == "boxes":
            found.append(torch.rand(shape, generator=generator).sort(1).values * 120)
        else:
            found.append(torch.randn(shape, generator=generator))
    return found


def run_plain(path, spec, inputs):
    """Outputs of ONNX Runtime's CPU, as it is, without this project's backend."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {n: t.numpy() for n, t in zip(spec.inputs, inputs, strict=True)})


def torch_outputs(spec, inputs):
    """Outputs of the graph's own module in float32 torch."""
    with torch.no_grad():
        outputs = spec.module(*inputs)
    return [t.numpy() for t in (outputs if isinstance(outputs, tuple) else (outputs,))]


def with_sam(config):
    """The phantom bundle with a SAM of other sizes and random weights."""
    torch.manual_seed(0)
    bundle = phantom().with_exports(phantom().folder, {})
    bundle.__dict__.update(sam=build_sam(config), sam_config=config)
    return bundle
