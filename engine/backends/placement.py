"""Models as a device and a precision need them. What was loaded stays where it is.

A placed model is the same modules over other tensors. Placements share what they have in
common: every weight lies on a device once a type.
"""

import copy
from collections.abc import Iterable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_Placed = dict[tuple[torch.device, torch.dtype], tuple[int, Tensor]]
_placed: WeakKeyDictionary[nn.Module, dict[str, _Placed]] = WeakKeyDictionary()


def place(
    model: nn.Module,
    device: torch.device,
    lowered: Iterable[nn.Module] = (),
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """``model`` on ``device`` for inference: not trained further, no gradients for weights.

    Args:
        lowered: parts of ``model`` that only ever compute in ``dtype``, under autocast: weights
            that it would cast in every call are cast once, here.
    """
    model = model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    casts = {id(tensor) for part in lowered for tensor in _cast_by_autocast(part)}
    if device.type == "cpu" and dtype == torch.float32:
        return model
    known = _placed.setdefault(model, {})
    memo: dict[int, object] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        wanted = dtype if id(tensor) in casts else tensor.dtype
        made = _move(tensor, device, wanted, known.setdefault(name, {}))
        same = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(made, requires_grad=False) if same else made
    return copy.deepcopy(model, memo)


@torch.inference_mode(False)  # of use in any mode
def _move(tensor: Tensor, device: torch.device, dtype: torch.dtype, known: _Placed) -> Tensor:
    version = 0 if tensor.is_inference() else tensor._version  # weights may be loaded anew
    if (device, dtype) not in known or known[device, dtype][0] != version:
        known[device, dtype] = version, tensor.detach().to(device, dtype)
    return known[device, dtype][1]


def _cast_by_autocast(part: nn.Module) -> list[Tensor]:
    """Weights of layers that autocast runs in the lower type; norms are not among them."""
    layers = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
    return [
        parameter
        for layer in part.modules()
        if isinstance(layer, layers)
        for parameter in layer.parameters(recurse=False)
    ]
