"""Write the graph of a Paddle model to an ONNX file, with paddle2onnx."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import paddle

from tomecore.errors import TomeError
from tomecore.exporting._quiet import hidden_output
from tomecore.loading import first_line

__all__ = ["write_onnx"]

#: the opset if none is chosen
_OPSET = 17


def write_onnx(
    model: Any,
    shape: tuple[int, int, int],
    path: Path,
    *,
    names: tuple[str, str],
    opset: int | None,
) -> None:
    """Write the graph to ``path``, for any batch size.

    Paddle and paddle2onnx print more than a hundred lines, which are shown only if they fail. paddle2onnx may
    end the process if it does not know an operation.

    Raises:
        TomeError: paddle2onnx cannot export the model.
    """
    spec = [paddle.static.InputSpec([None, *shape], "float32", names[0])]
    try:
        with hidden_output():
            paddle.onnx.export(
                model, str(path.with_suffix("")), input_spec=spec, opset_version=opset or _OPSET
            )
        graph = onnx.load(str(path))
    except Exception as error:
        raise TomeError(
            f"paddle.onnx.export cannot export {type(model).__name__}: {first_line(error)}. "
            "Check that the unpatched model can be exported (r=0)."
        ) from error
    _rename(graph.graph, graph.graph.output[0].name, names[1])
    _drop_unused(graph.graph)
    onnx.save(graph, str(path))


def _drop_unused(graph: Any) -> None:
    """Remove constants that no node reads: ONNX Runtime warns of each when it loads the file."""
    used = {name for node in graph.node for name in _read(node)}
    used |= {output.name for output in graph.output}
    for constant in list(graph.initializer):
        if constant.name not in used:
            graph.initializer.remove(constant)
    for node in list(graph.node):
        if node.op_type == "Constant" and node.output[0] not in used:
            graph.node.remove(node)


def _read(node: Any) -> Iterator[str]:
    """Yield the names of the values that a node reads, also in the graphs of a loop or a condition."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _read(inner)


def _rename(graph: Any, before: str, after: str) -> None:
    """Rename a value of the graph in the nodes that write and read it."""
    graph.output[0].name = after
    for node in graph.node:
        for values in (node.input, node.output):
            for index, value in enumerate(values):
                if value == before:
                    values[index] = after
