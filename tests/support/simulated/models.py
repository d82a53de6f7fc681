"""Full-size models for a simulated device: real modules, whose weights hold no numbers."""

import copy
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from medclipsam.benchmarks.inputs import biomedclip
from medclipsam.engine.config import make_config
from medclipsam.engine.pipeline import Pipeline
from medclipsam.engine.weights.bundle import Bundle
from medclipsam.engine.weights.models import SAM_PRESETS, build_sam
from simulated.record import CUDA, FAKE

NULLS = ("breast ultrasound", "brain mri")
LARGE = 1000  # numbers of a weight that is not filled


class _Unfilled(TorchDispatchMode):
    """Weights are not initialised: that takes ten times as long as all else."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        changed = func.overloadpacket.__name__.endswith("_")
        if changed and isinstance(args[0], torch.Tensor) and args[0].numel() > LARGE:
            return args[0]
        return func(*args, **kwargs or {})


def _fake(tensor):
    return FAKE.from_tensor(tensor) if tensor.dim() else tensor


@cache
def _clip():
    with _disable_current_modes(), _Unfilled(), patch.object(biomedclip, "_spread"):
        clip = biomedclip.random_biomedclip().clip
    for module in clip.model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = torch.nn.Parameter(_fake(weight.detach()), False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _fake(buffer)
    return clip


@cache
def _sam(preset):
    with _disable_current_modes(), FAKE:
        return build_sam(SAM_PRESETS[preset])


def build_models():
    """Once, before torch is patched."""
    _clip()
    for preset in ("vit_b", "vit_h"):
        _sam(preset)


def simulated_bundle(preset="vit_b"):
    """BiomedCLIP and a SAM of its real size on the CPU; nobody else has these modules."""
    bundle = Bundle(Path("simulated"), {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a copy asks whether there is memory
        clip = replace(_clip(), model=copy.deepcopy(_clip().model))
        sam = copy.deepcopy(_sam(preset))
    # stand in for the cached properties
    bundle.__dict__.update(clip=clip, sam=sam, sam_config=SAM_PRESETS[preset])
    return bundle


@cache
def shared_bundle(preset="vit_b", precision="fp32"):
    """One bundle for all that open it in one precision; its models stay on the device."""
    return simulated_bundle(preset)


def simulated_pipeline(method="gscorecam", precision="fp32", bundle=None, **saliency):
    """A ``Pipeline`` on a simulated device; ``saliency`` are the other settings of the method.

    Without a bundle of its own it is opened once, over a bundle that others use too.
    """
    settings = (method, precision, tuple(saliency.items()))
    pipeline = _open(bundle, *settings) if bundle else _shared_pipeline(*settings)
    return Pipeline(pipeline.encoder, pipeline.segmenter, pipeline.config)


@cache
def _shared_pipeline(method, precision, saliency):
    return _open(shared_bundle(precision=precision), method, precision, saliency)


def _open(bundle, method, precision, saliency):
    layer = {"saliency": {"method": method, **dict(saliency)}, "precision": precision}
    pipeline = Pipeline.open(bundle, make_config(layer, {"null_prompts": NULLS}), CUDA)
    # what the device would have said of the weight
    pipeline.encoder = replace(pipeline.encoder, logit_scale=biomedclip.LOGIT_SCALE)
    return pipeline


def weight_bytes(*modules):
    """What parameters and buffers of modules take."""
    tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
