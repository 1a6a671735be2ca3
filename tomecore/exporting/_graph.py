"""Make the graph of an exported model shorter: remove what computes nothing.

A runtime spends microseconds on each node, which counts at batch 1. Each function takes an ``onnx_ir.Model``
and changes it. The file is compared with the model afterwards, like any other.
"""

from __future__ import annotations

from typing import Any

import onnx_ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

__all__ = ["cancel_squeezes", "drop_full_masks", "shorten", "transpose_at_once"]


def shorten(model: Any) -> None:
    """Remove the nodes that compute nothing."""
    drop_full_masks(model)
    transpose_at_once(model)
    cancel_squeezes(model)


def drop_full_masks(model: Any) -> None:
    """Remove masks of attention that are True everywhere, which transformers adds while a graph is traced.

    Each costs three passes over all scores: the mask, and twice the NaN of a row that is masked entirely.
    """
    for node in list(model.graph):
        if node.op_type != "Where" or not _is_full(node.inputs[0]):
            continue
        for add in _readers(node.outputs[0], "Add"):
            (scores,) = (value for value in add.inputs if value is not node.outputs[0])
            onnx_ir.convenience.replace_all_uses_with(add.outputs[0], scores)
            for softmax in _readers(scores, "Softmax"):
                weights = softmax.outputs[0]
                for nan in _readers(weights, "IsNaN"):
                    for where in _readers(nan.outputs[0], "Where"):
                        onnx_ir.convenience.replace_all_uses_with(where.outputs[0], weights)
    RemoveUnusedNodesPass()(model)


def transpose_at_once(model: Any) -> None:
    """Transpose the keys of attention (B, heads, N, D) by one node.

    The exporter writes nine: it reshapes them to three axes and back, and computes both shapes.
    """
    for last in list(model.graph):
        middle = _producer(last, "Reshape", "Transpose")
        if middle is None:
            continue
        first = _producer(middle, "Transpose", "Reshape")
        if first is None or list(middle.attributes["perm"].as_ints()) != [0, 2, 1]:
            continue
        keys, found = first.inputs[0], last.outputs[0]
        three, four = _parts(first.inputs[1]), _parts(last.inputs[1])
        if keys.shape is None or len(keys.shape) != 4 or (len(three), len(four)) != (3, 3):
            continue
        # (-1, N, D), and (B, heads, D, N)
        if three[1:] != four[:0:-1] or any(
            _measured(one) is not keys for one in (*three[1:], four[0])
        ):
            continue
        perm = onnx_ir.AttrInt64s("perm", [0, 1, 3, 2])
        node = onnx_ir.Node("", "Transpose", [keys], [perm])
        node.outputs[0].shape, node.outputs[0].type = found.shape, found.type
        node.outputs[0].name = f"{found.name}_at_once"
        model.graph.insert_before(last, node)
        onnx_ir.convenience.replace_all_uses_with(found, node.outputs[0])
    RemoveUnusedNodesPass()(model)


def cancel_squeezes(model: Any) -> None:
    """Remove an axis of length 1 that is dropped and added again."""
    for node in list(model.graph):
        before = _producer(node, "Unsqueeze", "Squeeze")
        if before is not None and _axes(node) == _axes(before) is not None:
            onnx_ir.convenience.replace_all_uses_with(node.outputs[0], before.inputs[0])
    RemoveUnusedNodesPass()(model)


def _producer(node: Any, kind: str, before: str) -> Any | None:
    """Return the node that writes the first input of ``node``, if they are of these kinds."""
    if node.op_type != kind or node.inputs[0] is None:
        return None
    found = node.inputs[0].producer()
    return found if found is not None and found.op_type == before else None


def _parts(shape: Any) -> list[Any]:
    """Return the values that are concatenated to a shape; empty: it has another origin."""
    node = shape.producer()
    return list(node.inputs) if node is not None and node.op_type == "Concat" else []


def _measured(part: Any) -> Any | None:
    """Return the value of whose shape ``part`` is a slice."""
    node = part.producer()
    shape = None if node is None else _producer(node, "Slice", "Shape")
    return None if shape is None else shape.inputs[0]


def _axes(node: Any) -> list[int] | None:
    """Return the constant axes of a Squeeze or an Unsqueeze; None: they are not constant."""
    constant = (
        None if len(node.inputs) < 2 else onnx_ir.convenience.get_const_tensor(node.inputs[1])
    )
    return None if constant is None else constant.numpy().reshape(-1).tolist()


def _readers(value: Any, kind: str) -> list[Any]:
    """Return the nodes of a kind that read a value."""
    return [use.node for use in value.uses() if use.node.op_type == kind]


def _is_full(mask: Any) -> bool:
    """Whether a value is a constant True, or such a constant expanded."""
    producer = mask.producer()
    if producer is not None and producer.op_type == "Expand":
        mask = producer.inputs[0]
    constant = mask.const_value
    return constant is not None and bool(constant.numpy().all())
