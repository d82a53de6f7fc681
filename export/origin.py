"""Which modules of the model a node of an exported graph comes from, as the exporter notes it."""

import ast
from typing import Any

KEY = "pkg.torch.onnx.name_scopes"


def modules_of(node: Any) -> list[str]:
    """Dotted names, outermost first; the last is the node's own."""
    return ast.literal_eval(node.metadata_props.get(KEY, "[]"))


def keep_only_origin(node: Any) -> None:
    """Drop what else the exporter noted: it holds paths of the machine."""
    note = node.metadata_props.get(KEY)
    node.metadata_props.clear()
    if note:
        node.metadata_props[KEY] = note
