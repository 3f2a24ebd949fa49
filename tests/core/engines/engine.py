"""ONNX Runtime's own QuantizeLinear and DequantizeLinear: the reference of the core's arithmetic."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import PerBlock, PerTensor

ELEMENT_TYPES = {
    "int4": TensorProto.INT4,
    "uint4": TensorProto.UINT4,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "int16": TensorProto.INT16,
    "uint16": TensorProto.UINT16,
    "int32": TensorProto.INT32,
}


def ort_round_trip(
    values: npt.NDArray[np.float32], encoding: Encoding
) -> tuple[npt.NDArray[Any] | None, npt.NDArray[np.float32]]:
    """Levels (None for types that numpy has not) and what DequantizeLinear makes of them."""
    kind = ELEMENT_TYPES[encoding.type.name]
    attributes: dict[str, int] = {}
    if not isinstance(encoding.granularity, PerTensor):
        attributes["axis"] = encoding.granularity.axis
    if isinstance(encoding.granularity, PerBlock):
        attributes["block_size"] = encoding.granularity.size
    nodes = [
        helper.make_node("QuantizeLinear", ["values", "scale", "zero_point"], ["levels"], **attributes),
        helper.make_node("DequantizeLinear", ["levels", "scale", "zero_point"], ["real"], **attributes),
    ]
    outputs = [helper.make_tensor_value_info("real", TensorProto.FLOAT, values.shape)]
    has_levels = encoding.type.bits in (8, 16)
    if has_levels:
        outputs.append(helper.make_tensor_value_info("levels", kind, values.shape))
    shape = encoding.scale.shape
    graph = helper.make_graph(
        nodes,
        "round_trip",
        [helper.make_tensor_value_info("values", TensorProto.FLOAT, values.shape)],
        outputs,
        [
            helper.make_tensor("scale", TensorProto.FLOAT, shape, encoding.scale.reshape(-1)),
            helper.make_tensor("zero_point", kind, shape, encoding.zero_point.reshape(-1)),
        ],
    )
    found = _run(graph, values)
    return (found[1] if has_levels else None), found[0]


def ort_dequantize(levels: npt.NDArray[Any], encoding: Encoding) -> npt.NDArray[np.float32]:
    """DequantizeLinear of levels that are given."""
    kind = ELEMENT_TYPES[encoding.type.name]
    graph = helper.make_graph(
        [helper.make_node("DequantizeLinear", ["levels", "scale"], ["real"])],
        "dequantize",
        [helper.make_tensor_value_info("levels", kind, levels.shape)],
        [helper.make_tensor_value_info("real", TensorProto.FLOAT, levels.shape)],
        [helper.make_tensor("scale", TensorProto.FLOAT, (), encoding.scale.reshape(-1))],
    )
    return _run(graph, levels)[0]


def _run(graph: onnx.GraphProto, value: npt.NDArray[Any]) -> list[Any]:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    # Unoptimized: a rewritten pair of Q and DQ would be no reference.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {graph.input[0].name: value}))
