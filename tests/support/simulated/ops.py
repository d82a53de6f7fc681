"""Operations that a simulated device treats in its own way: copies, and those that wait."""

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves

from simulated.record import PIECES, PINNED, WEIGHTS, DeviceMismatch, plain, where

aten = torch.ops.aten


def _on_device(tensor):
    return tensor.device.type == "cuda"


def _describe(tensor):
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _usual(sim, func, args, kwargs):
    sim.check_devices(
        func, [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)], args
    )
    return sim.account(func, func(*args, **kwargs))


def _to_copy(sim, func, args, kwargs):
    source = args[0]
    found = func(*args, **kwargs)
    if _on_device(source) and _on_device(found):
        sim.cast(source, found)
    elif _on_device(source):
        return _download(sim, source, found, kwargs)
    elif _on_device(found):
        _upload(sim, source, found, kwargs.get("non_blocking"))
    return sim.account(func, found)


def _download(sim, source, found, kwargs):
    """``source`` → a real tensor like ``found``; torch pins it if nobody shall wait."""
    with plain():
        host = torch.empty_strided(found.shape, found.stride(), dtype=found.dtype)
    if kwargs.get("non_blocking"):
        PINNED.put(host)
    _fetch(sim, host, source, kwargs.get("non_blocking"))
    return host


def _fetch(sim, host, source, non_blocking):
    """Nobody waits if the copy needs no other memory of the host."""
    direct = host.dtype == source.dtype and _lies_as(host, source)
    if non_blocking and direct and PINNED.get(host):
        sim.land(host, source)
        return
    sim.note("download", _describe(source))
    sim.reach(sim.now)
    value = sim.bring(source)
    with plain():
        host.copy_(value)


def _lies_as(host, other):
    """Whether the numbers of ``host`` can be copied as they lie."""
    return host.is_contiguous() or (host.shape == other.shape and host.stride() == other.stride())


def _upload(sim, source, found, non_blocking):
    """A copy with a change of type or layout goes through pageable memory."""
    if isinstance(source, torch.nn.Parameter):
        WEIGHTS.put(found)
    direct = source.dtype == found.dtype and _lies_as(source, found)
    if non_blocking and direct and not isinstance(source, FakeTensor) and PINNED.get(source):
        sim.leave(source)
    else:
        sim.note("upload", _describe(source))


def _copy(sim, func, args, kwargs):
    target, source, *rest = args
    non_blocking = rest[0] if rest else kwargs.get("non_blocking", False)
    if _on_device(source) and not _on_device(target):
        if isinstance(target, FakeTensor):
            sim.note("download", _describe(source))
            return func(*args, **kwargs)
        _fetch(sim, target, source, non_blocking)
        return target
    if _on_device(target) and not _on_device(source):
        _upload(sim, source, target, non_blocking)
    elif source.dtype != target.dtype:
        sim.cast(source, target)
    pieces = PIECES.get(target)
    if pieces is not None:
        at = target.storage_offset() * target.element_size()
        others = tuple(piece for piece in pieces if piece[0] != at)
        PIECES.put(target, (*others, (at, target.dtype, tuple(target.shape))))
    return sim.account(func, func(*args, **kwargs))


def _scalar(sim, func, args, kwargs):
    if _on_device(args[0]):
        sim.note("scalar", _describe(args[0]))
        sim.reach(sim.now)
    value = sim.bring(args[0])
    with plain():
        return value.item()


def _sized(make):
    """An operation whose result has a size that only the device knows; ``make`` gives one."""

    def run(sim, func, args, kwargs):
        sim.note("size", str(func))
        sim.reach(sim.now)
        return sim.account(func, make(*args, **kwargs))

    return run


def _integers(tensor, *shape):
    return torch.empty(shape, dtype=torch.int64, device=tensor.device)


def _unique(tensor, *args, **kwargs):
    size = tensor.numel()
    return tensor.new_empty(size), _integers(tensor, size), _integers(tensor, size)


def _unique_dim(tensor, dim, *args, **kwargs):
    size = tensor.shape[dim]
    return torch.empty_like(tensor), _integers(tensor, size), _integers(tensor, size)


def _repeat(sim, func, args, kwargs):
    if func is not aten.repeat_interleave.Tensor or kwargs.get("output_size") is not None:
        return _usual(sim, func, args, kwargs)
    return _sized(lambda repeats, **_: _integers(repeats, 2 * repeats.numel()))(
        sim, func, args, kwargs
    )


def _equal(sim, func, args, kwargs):
    sim.check_devices(func, list(args[:2]), args)
    sim.note("scalar", str(func))
    sim.reach(sim.now)
    return False


def _check(sim, func, args, kwargs):
    sim.note("check", str(func))
    sim.reach(sim.now)


def _index(sim, func, args, kwargs):
    """Indices of the CPU are copied first; masks need the number of their elements."""
    target, indices = args[:2]
    given = [index for index in indices if index is not None]
    if not _on_device(target):
        raise DeviceMismatch(
            f"{func}: indices of the device into a tensor of the CPU at {' < '.join(where())}"
        )
    value = args[2] if len(args) > 2 else None
    if value is not None and not _on_device(value):
        if value.dim():
            raise DeviceMismatch(f"{func}: values of the CPU at {' < '.join(where())}")
        fills = all(index.dtype == torch.bool and _on_device(index) for index in given)
        if fills and len(given) == 1 and not (len(args) > 3 and args[3]):
            return sim.account(func, _written(func, target))  # masked_fill
        sim.note("index", f"a value of the CPU, {func}")
    for index in given:
        if not _on_device(index):
            sim.note("index", f"{_describe(index)} of the CPU, {func}")
    chosen = []
    for index in indices:
        if index is None:
            chosen.append(None)
        elif index.dtype in (torch.bool, torch.uint8):
            if _on_device(index):
                sim.note("size", f"a mask {tuple(index.shape)}, {func}")
            count = index.numel() if isinstance(index, FakeTensor) else int(_count(index))
            chosen += [_integers(target, count) for _ in range(index.dim())]
        else:
            place = index
            if not _on_device(index):
                place = torch.empty(index.shape, dtype=index.dtype, device=target.device)
            chosen.append(place)
    if value is not None:
        return sim.account(func, _written(func, target))
    return sim.account(func, func(target, chosen, **kwargs))


def _count(mask):
    with plain():
        return mask.count_nonzero().item()


def _written(func, target):
    return target if func.overloadpacket.__name__.endswith("_") else torch.empty_like(target)


def _attention(sim, func, args, kwargs):
    """Fused: nothing of the size of its scores is written."""
    query, key, value = args[:3]
    mask = args[3] if len(args) > 3 else kwargs.get("attn_mask")
    tensors = [part for part in (query, key, value, mask) if part is not None]
    if any(not _on_device(part) for part in tensors):
        sim.check_devices(func, tensors, args)
    types = {part.dtype for part in tensors if part.dtype != torch.bool}
    if len(types) > 1:
        raise RuntimeError(f"attention of several types: {types}")
    scores = (*query.shape[:-1], key.shape[-2])
    if key.shape[:-1] != value.shape[:-1] or query.shape[-1] != key.shape[-1]:
        raise RuntimeError(f"attention of shapes {[tuple(part.shape) for part in tensors]}")
    torch.broadcast_shapes(query.shape[:-2], key.shape[:-2])
    if mask is not None and torch.broadcast_shapes(mask.shape, scores) != torch.Size(scores):
        raise RuntimeError(f"a mask {tuple(mask.shape)} of scores {scores}")
    batch, heads, length = query.shape[:-1]
    # laid out as the fused kernels do, heads inside
    made = query.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)
    return sim.account(func, made)


TREATMENTS = {
    aten._to_copy: _to_copy,
    aten.copy_: _copy,
    aten._local_scalar_dense: _scalar,
    aten._unique2: _sized(_unique),
    aten._unique: _sized(lambda *args, **kwargs: _unique(*args)[:2]),
    aten.unique_consecutive: _sized(_unique),
    aten.unique_dim: _sized(_unique_dim),
    aten.nonzero: _sized(lambda tensor: _integers(tensor, tensor.numel(), tensor.dim())),
    aten.masked_select: _sized(lambda tensor, mask: tensor.new_empty(mask.numel())),
    aten.bincount: _sized(lambda tensor, *args, **kwargs: _integers(tensor, 16)),
    aten.repeat_interleave: _repeat,
    aten.equal: _equal,
    aten.allclose: _equal,
    aten._linalg_check_errors: _check,
    aten.index: _index,
    aten.index_put: _index,
    aten.index_put_: _index,
    aten._index_put_impl_: _index,
    aten.scaled_dot_product_attention: _attention,
}
