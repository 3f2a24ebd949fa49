"""From a network of integer operators to a module of TVM: our kernels for levels, TVM's own importer for the rest."""

from __future__ import annotations

import contextlib
from typing import Any

import onnx_ir as ir

from narrowgauge.errors import TargetError
from narrowgauge.exporters.tvm.builder import Builder
from narrowgauge.exporters.tvm.operators import OPERATORS
from narrowgauge.exporters.tvm.processor import Processor
from narrowgauge.exporters.tvm.silence import silence
from narrowgauge.graph.edits import all_nodes
from narrowgauge.graph.shapes import static_shape

_DOMAINS = ("", "ai.onnx", "com.microsoft")


def network_module(model: ir.Model, processor: Processor) -> Any:
    """Build the module of a network.

    Args:
        model: integer operators, fixed shapes; see `preparing.in_integers`.
        processor: that it is compiled for.

    Returns:
        The module; its function `main` takes the inputs and gives a tuple of the outputs, in the network's order.

    Raises:
        TargetError: naming operators that neither these kernels nor TVM's importer knows.
    """
    from tvm.relax.frontend.onnx import onnx_frontend

    known = set(onnx_frontend._get_convert_map()) | {"If"} | set(OPERATORS)
    unknown = [node for node in all_nodes(model) if node.op_type not in known or node.domain not in _DOMAINS]
    if unknown:
        names = sorted({f"{node.domain}.{node.op_type}".lstrip(".") for node in unknown})
        raise TargetError(
            f"TVM does not know {', '.join(names)} (the first is node {unknown[0].name!r}); export the network without "
            "these, or take another target"
        )
    with silence():
        importer = onnx_frontend.ONNXGraphImporter({}, "float32", sanitize=False)
        importer.opset = model.opset_imports.get("", 21)
        try:
            return _walked(model, Builder(processor=processor, importer=importer))
        except TargetError as error:
            refusal = str(error)
        # The unfinished module complains when it goes: now, with all that the exception held, while nobody listens.
        del importer
    raise TargetError(refusal)


def _walked(model: ir.Model, builder: Builder) -> Any:
    """Add every node of a network to a module."""
    from tvm import relax

    block, graph = builder.importer.bb, model.graph
    inputs = []
    for number, value in enumerate(one for one in graph.inputs if one.name not in graph.initializers):
        assert value.dtype is not None
        inputs.append(relax.Var(f"input_{number}", relax.TensorType(static_shape(value), str(value.dtype.numpy()))))
        builder.importer._nodes[str(value.name)] = inputs[-1]
    branches = any(node.op_type == "If" for node in all_nodes(model))
    with block.function("main", inputs):
        with contextlib.nullcontext() if branches else block.dataflow():
            for node in graph:
                operator = OPERATORS.get(node.op_type)
                if node.name not in builder.done and (operator is None or not operator(builder, node)):
                    builder.import_node(node)
            outputs = relax.Tuple([builder.plain(value) for value in graph.outputs])
            result = block.emit(outputs) if branches else block.emit_output(outputs)
        block.emit_func_output(result)
    return block.get()
