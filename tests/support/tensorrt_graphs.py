"""Small ONNX graphs with the names and shapes of a bundle's, and a bundle that has them."""

import hashlib

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional as F

WIDTH = 5  # of the embeddings
LOW = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


def weights(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def write_exports(bundle, folder, precision="fp32", side=None):
    """``bundle`` with hand-made graphs in ``folder``, for images of ``side`` if given."""
    side = side or bundle.clip.image_size
    files = {}
    for name, make in GRAPHS.items():
        model = make(bundle, side, precision)
        facts = {"bundle": bundle.digest, "graph": name, "precision": precision}
        for key, value in facts.items():
            model.metadata_props.add(key=f"medclipsam.{key}", value=value)
        path = folder / "onnx" / precision / f"{name}.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(model.SerializeToString())
        relative = path.relative_to(folder).as_posix()
        files[relative] = hashlib.sha256(path.read_bytes()).hexdigest()
    return bundle.with_exports(folder, {"onnx": {precision: {"files": files}}})


def score(bundle, side, precision):
    """The mean colour times a matrix; in low precision between two casts."""
    pixels = value("pixels", "R", 3, side, side)
    nodes = [helper.make_node("ReduceMean", ["pixels", "axes"], ["mean"], "mean", keepdims=0)]
    types = [value("mean", "R", 3)]
    initial = [constant("axes", np.array([2, 3])), constant("weight", weights(3, WIDTH))]
    if precision == "fp32":
        nodes.append(helper.make_node("MatMul", ["mean", "weight"], ["embeddings"], "product"))
    else:
        low = LOW[precision]
        for name in ("mean", "weight"):
            nodes.append(helper.make_node("Cast", [name], [f"{name}_low"], f"cast_{name}", to=low))
        nodes.append(helper.make_node("MatMul", ["mean_low", "weight_low"], ["low"], "product"))
        nodes.append(
            helper.make_node("Cast", ["low"], ["embeddings"], "back", to=TensorProto.FLOAT)
        )
        types += [value("mean_low", "R", 3, kind=low), value("weight_low", 3, WIDTH, kind=low)]
        types.append(value("low", "R", WIDTH, kind=low))
    return model(nodes, [pixels], [value("embeddings", "R", WIDTH)], initial, types)


def score_reference(pixels):
    return pixels.mean((2, 3)) @ torch.from_numpy(weights(3, WIDTH))


def text(bundle, side, precision):
    """The sum of the tokens' rows of a table."""
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["rows"], "look up"),
        helper.make_node("ReduceSum", ["rows", "axis"], ["sum"], "sum", keepdims=0),
        helper.make_node("MatMul", ["sum", "weight"], ["embeddings"], "product"),
    ]
    tokens = value("tokens", "T", "L", kind=TensorProto.INT64)
    initial = [constant("table", weights(99, 4, seed=1)), constant("axis", np.array([1]))]
    initial.append(constant("weight", weights(4, WIDTH, seed=2)))
    return model(
        nodes, [tokens], [value("embeddings", "T", WIDTH)], initial, [value("sum", "T", 4)]
    )


def text_reference(tokens):
    table, weight = weights(99, 4, seed=1), weights(4, WIDTH, seed=2)
    return torch.from_numpy(table)[tokens].sum(1) @ torch.from_numpy(weight)


def features(bundle, side, precision):
    """``score``, the pixels in a grid of one cell each, and a product for each text."""
    made = score(bundle, side, "fp32")
    for node in made.graph.node:
        node.output[:] = ["embedding" if name == "embeddings" else name for name in node.output]
    nodes = [
        helper.make_node("Relu", ["pixels"], ["activation"], "relu"),
        helper.make_node("Unsqueeze", ["texts", "first"], ["few"], "unsqueeze"),
        helper.make_node("Unsqueeze", ["embedding", "second"], ["wide"], "unsqueeze 2"),
        helper.make_node("Mul", ["few", "wide"], ["importance"], "mul"),
    ]
    initial = [constant("first", np.array([0])), constant("second", np.array([1]))]
    outputs = [
        value("embedding", "R", WIDTH),
        value("activation", "R", 3, side, side),
        value("importance", "R", "P", WIDTH),
    ]
    inputs = [*made.graph.input, value("texts", "P", WIDTH)]
    initial += made.graph.initializer
    return model([*made.graph.node, *nodes], inputs, outputs, initial, made.graph.value_info)


def features_reference(pixels, texts):
    embedding = score_reference(pixels)
    return embedding, F.relu(pixels), texts[None] * embedding[:, None]


def sam_encoder(bundle, side, precision):
    """A convolution from patches to channels."""
    sam = bundle.sam_config
    cells, size = sam.image_size // sam.patch_size, sam.patch_size
    kernel = constant("kernel", weights(sam.channels, 3, size, size, seed=3))
    nodes = [
        helper.make_node("Conv", ["pixels", "kernel"], ["embedding"], "conv", strides=[size, size])
    ]
    pixels = value("pixels", "B", 3, sam.image_size, sam.image_size)
    return model(nodes, [pixels], [value("embedding", "B", sam.channels, cells, cells)], [kernel])


def sam_encoder_reference(pixels, channels=64, size=8):
    return F.conv2d(pixels, torch.from_numpy(weights(channels, 3, size, size, seed=3)), stride=size)


def sam_decoder(bundle, side, precision):
    """A transposed convolution of the embeddings, and the boxes' means."""
    sam = bundle.sam_config
    cells = sam.image_size // sam.patch_size
    kernel = constant("kernel", weights(sam.channels, 1, 4, 4, seed=4))
    nodes = [
        helper.make_node(
            "ConvTranspose", ["embeddings", "kernel"], ["large"], "deconv", strides=[4, 4]
        ),
        helper.make_node("Squeeze", ["large", "axis"], ["logits"], "squeeze"),
        helper.make_node("ReduceMean", ["boxes", "axis"], ["iou"], "mean", keepdims=0),
    ]
    inputs = [value("embeddings", "K", sam.channels, cells, cells), value("boxes", "K", 4)]
    outputs = [value("logits", "K", 4 * cells, 4 * cells), value("iou", "K")]
    return model(nodes, inputs, outputs, [kernel, constant("axis", np.array([1]))])


def sam_decoder_reference(embeddings, boxes):
    kernel = torch.from_numpy(weights(embeddings.shape[1], 1, 4, 4, seed=4))
    return F.conv_transpose2d(embeddings, kernel, stride=4)[:, 0], boxes.mean(1)


GRAPHS = {
    "text": text,
    "features": features,
    "score": score,
    "sam_encoder": sam_encoder,
    "sam_decoder": sam_decoder,
}


def value(name, *shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def constant(name, array):
    return numpy_helper.from_array(array, name)


def model(nodes, inputs, outputs, initial, types=()):
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initial, value_info=types)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(made)
    return made
