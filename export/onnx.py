"""A graph of a bundle as an ONNX model, and that model as verified files."""

import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from medclipsam.engine.errors import BackendError
from medclipsam.engine.weights.bundle import Bundle, sha256_file
from medclipsam.export.graphs import Spec, make_spec
from medclipsam.export.origin import keep_only_origin
from medclipsam.export.precision import lower_precision

OPSET = 20  # the newest with Gelu and LayerNormalization that TensorRT ≥ 10.0 reads
LARGE = (
    1 << 30
)  # bytes of weights from which on they go to a file of their own; protobuf ends at 2 GiB
PACKAGES = ("torch", "onnx", "onnxscript")


def versions() -> dict[str, str]:
    """Of the packages that an exported graph depends on."""
    return {name: version(name) for name in PACKAGES}


def build_model(bundle: Bundle, name: str, precision: str = "fp32") -> Any:
    """One graph of ``bundle`` as an ``onnx_ir.Model``.

    Args:
        precision: ``fp32``, ``bf16`` or ``fp16``; see ``lower_precision`` for what it reaches.

    Raises:
        BackendError: onnx or onnxscript is missing, or the model cannot be exported.
    """
    spec = make_spec(bundle, name)
    return finish(trace(spec), spec, bundle.digest, precision)


def finish(model: Any, spec: Spec, digest: str, precision: str) -> Any:
    """A traced ``model`` in its precision, cleaned, with what it is written into it."""
    if spec.island and precision != "fp32":
        lower_precision(model, precision, spec.island)
    _clean(model)
    model.metadata_props.update(
        {
            "medclipsam.bundle": digest,
            "medclipsam.graph": spec.name,
            "medclipsam.precision": precision,
            "medclipsam.opset": str(OPSET),
            **{f"medclipsam.{package}": number for package, number in versions().items()},
        }
    )
    return model


def trace(spec: Spec) -> Any:
    """``spec`` in float32, all that depends on weights alone computed."""
    try:
        import onnxscript.optimizer
    except ImportError as exc:
        raise BackendError(
            f"export needs onnx and onnxscript ({exc}); pip install --upgrade onnx onnxscript"
        ) from exc
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of libraries about themselves
        program = torch.onnx.export(
            spec.module,
            spec.examples,
            dynamo=True,
            dynamic_shapes=(spec.free,),
            input_names=spec.inputs,
            output_names=spec.outputs,
            opset_version=OPSET,
            verbose=False,
        )
    if program is None:
        raise BackendError(f"torch exported no graph {spec.name!r}")
    model: Any = program.model
    no_limit = 1 << 40
    onnxscript.optimizer.fold_constants(
        model, input_size_limit=no_limit, output_size_limit=no_limit
    )
    return model


def _clean(model: Any) -> None:
    """Drop unused weights and the exporter's notes."""
    import onnxscript.optimizer

    onnxscript.optimizer.remove_unused_nodes(model)
    for node in model.graph:
        keep_only_origin(node)
    for value in [*model.graph.inputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()


def write_model(model: Any, path: Path) -> list[Path]:
    """The model's files: ``path`` and, where its weights are large, ``path.data``."""
    import onnx_ir

    path.parent.mkdir(parents=True, exist_ok=True)
    weights = sum(v.const_value.nbytes for v in model.graph.initializers.values())
    data = path.with_name(f"{path.name}.data")
    onnx_ir.save(model, path, external_data=data.name if weights >= LARGE else None)
    return [path, data] if weights >= LARGE else [path]


def hash_files(paths: list[Path], root: Path) -> dict[str, str]:
    """Path below ``root`` → sha256."""
    return {path.relative_to(root).as_posix(): sha256_file(path) for path in paths}
