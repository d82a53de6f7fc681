"""Backward passes over tensors of a simulated device.

torch's own engine asks the driver for streams as soon as a node's gradients lie on a device. So
the nodes are called from here, one after the other, under the modes of the calling thread.
Hooks are not run, and nothing is differentiated twice.
"""

from collections import Counter, defaultdict

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.graph import get_gradient_edge


def simulated(run):
    """Stands in for ``torch.autograd.grad``."""

    def grad(outputs, inputs, grad_outputs=None, retain_graph=None, create_graph=False, **settings):
        roots = _as_tuple(outputs)
        if not any(isinstance(root, FakeTensor) for root in roots):
            return run(outputs, inputs, grad_outputs, retain_graph, create_graph, **settings)
        assert not create_graph, "the simulation differentiates once"
        edges = [get_gradient_edge(wanted)[:2] for wanted in _as_tuple(inputs)]
        found = _differentiate(roots, _as_tuple(grad_outputs), edges)
        given = tuple(found.get(edge) for edge in edges)
        if not settings.get("allow_unused") and any(each is None for each in given):
            raise RuntimeError("One of the differentiated Tensors appears to not have been used")
        return given

    return grad


def simulated_backward(run):
    """Stands in for ``torch.autograd.backward``, which ``Tensor.backward`` calls."""

    def backward(tensors, grad_tensors=None, *args, **settings):
        roots = _as_tuple(tensors)
        if not any(isinstance(root, FakeTensor) for root in roots):
            return run(tensors, grad_tensors, *args, **settings)
        return _differentiate(roots, _as_tuple(grad_tensors), None)

    return backward


def _as_tuple(given):
    if given is None:
        return ()
    return (given,) if isinstance(given, torch.Tensor) else tuple(given)


@torch.no_grad()
def _differentiate(roots, seeds, edges):
    """Gradients at ``edges`` (node, number of its input); without edges leaves keep them."""
    buffers = defaultdict(dict)  # node → number of its input → gradient
    for number, root in enumerate(roots):
        seed = seeds[number] if seeds and seeds[number] is not None else torch.ones_like(root)
        node, at = get_gradient_edge(root)[:2]
        _add(buffers[node], at, seed)
    order, waiting = _order(list(buffers))
    needed = set(order) if edges is None else _needed(order, {node for node, _ in edges})
    found = {}
    ready = [node for node in buffers if not waiting[node]]
    while ready:
        node = ready.pop()
        given = buffers.pop(node, {})
        found |= {(node, at): given[at] for at in given if edges and (node, at) in edges}
        runs = node in needed and given and not (edges and _is_leaf(node))
        made = _call(node, given) if runs else [None] * len(node.next_functions)
        del given
        for (following, at), gradient in zip(node.next_functions, made, strict=True):
            if following is None:
                continue
            if gradient is not None and following in needed:
                _add(buffers[following], at, _fitting(gradient, following._input_metadata[at]))
            waiting[following] -= 1
            if not waiting[following]:
                ready.append(following)
    return found


def _add(buffer, at, gradient):
    buffer[at] = buffer[at] + gradient if at in buffer else gradient


def _is_leaf(node):
    return hasattr(node, "variable")


def _call(node, given):
    count = len(node._input_metadata)
    gradients = [given.get(at) for at in range(count)]
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        made = node.apply(*gradients)
    else:
        made = node(*gradients)
    made = made if isinstance(made, tuple) else (made,)
    return made if len(made) == len(node.next_functions) else [None] * len(node.next_functions)


def _fitting(gradient, metadata):
    if gradient.shape != metadata.shape:
        gradient = gradient.sum_to_size(metadata.shape)
    return gradient.to(metadata.dtype)


def _order(roots):
    """Nodes after those that they get gradients from, and from how many edges each does."""
    waiting, seen, order, stack = Counter(), set(roots), [], list(roots)
    while stack:
        node = stack.pop()
        order.append(node)
        for following, _ in node.next_functions:
            if following is not None:
                waiting[following] += 1
                if following not in seen:
                    seen.add(following)
                    stack.append(following)
    return order, waiting


def _needed(order, wanted):
    """The nodes from which a wanted one is reached."""
    before = defaultdict(set)
    for node in order:
        for following, _ in node.next_functions:
            before[following].add(node)
    needed, stack = set(wanted), list(wanted)
    while stack:
        for node in before[stack.pop()] - needed:
            needed.add(node)
            stack.append(node)
    return needed
