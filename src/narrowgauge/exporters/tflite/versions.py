"""Which version of an operator a file must ask for, so that runtimes as old as possible take it.

Source: tensorflow/lite/tools/versioning/op_version.cc. Most operators have version 1 for real numbers, 2 for int8 and 3
for int16; the others are here. The greatest number is that of the reader's table (`importers.tflite.operators`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from narrowgauge.importers.tflite.network import Operator, Tensor

_LEVELS = {"INT8": 2, "INT16": 3}

Version = Callable[[Operator, Sequence[Tensor]], int]
"""From an operator and its inputs (those left out are missing) to its version."""


def operator_version(operator: Operator, tensors: Sequence[Tensor]) -> int:
    """Return the version that an operator needs.

    Args:
        operator: what it is, its options.
        tensors: of the graph.
    """
    inputs = [tensors[number] for number in operator.inputs if number is not None]
    special = _SPECIAL.get(operator.name)
    return _by_type(operator, inputs) if special is None else special(operator, inputs)


def _by_type(operator: Operator, inputs: Sequence[Tensor]) -> int:
    return _LEVELS.get(inputs[0].type, 1) if inputs else 1


def _convolution(operator: Operator, inputs: Sequence[Tensor]) -> int:
    value, weights = inputs[0], inputs[1]
    if value.type == "FLOAT32" and weights.type in ("INT8", "INT4"):
        return 5 if weights.quantization is not None and weights.quantization.per_channel else 2
    if weights.type == "INT4":
        return 7
    if value.shape[3] != weights.shape[3]:
        return 6  # groups
    return {"INT8": 3, "INT16": 4}.get(value.type, 1)


def _depthwise(operator: Operator, inputs: Sequence[Tensor]) -> int:
    value, weights = inputs[0], inputs[1]
    if value.type == "FLOAT32" and weights.type in ("INT8", "INT4"):
        return 6
    if weights.type == "INT4":
        return 7
    dilated = operator.options["dilation_h_factor"] > 1 or operator.options["dilation_w_factor"] > 1
    return {"INT8": 3, "INT16": 5}.get(value.type, 2 if dilated else 1)


def _fully_connected(operator: Operator, inputs: Sequence[Tensor]) -> int:
    value, weights = inputs[0], inputs[1]
    if weights.type == "INT4":
        return 10
    if weights.type == "INT8" and weights.quantization is not None and weights.quantization.per_channel:
        return 12
    if value.type == "INT16":
        return 11
    if value.type == "FLOAT32" and weights.type == "INT8":
        return 9
    if len(inputs) == 2:
        return 6
    if operator.options["keep_num_dims"]:
        return 5
    return 4 if value.type == "INT8" else 1


def _transposed_convolution(operator: Operator, inputs: Sequence[Tensor]) -> int:
    if operator.options["fused_activation_function"] != "NONE":
        return 4
    return 3 if len(inputs) == 4 else _by_type(operator, inputs[1:])


def _batch_matmul(operator: Operator, inputs: Sequence[Tensor]) -> int:
    return 4 if inputs[0].type == "FLOAT32" and inputs[1].type == "INT8" else _by_type(operator, inputs)


def _sum(operator: Operator, inputs: Sequence[Tensor]) -> int:
    if inputs[0].type == "INT64":
        return 4
    if inputs[0].type == "INT16":
        return 3 if operator.name == "ADD" else 5
    return _by_type(operator, inputs)


def _product(operator: Operator, inputs: Sequence[Tensor]) -> int:
    return {"INT8": 3, "INT16": 4, "INT64": 5}.get(inputs[0].type, 1)


def _by_rank(operator: Operator, inputs: Sequence[Tensor]) -> int:
    """Moves: of booleans 3, of more than 4 axes 4 to 6."""
    if len(inputs[0].shape) > 4:
        return {"SLICE": 5, "TRANSPOSE": 6 if len(inputs[0].shape) > 5 else 5}.get(operator.name, 4)
    if inputs[0].type == "BOOL" and operator.name in ("STRIDED_SLICE", "TRANSPOSE"):
        return 3
    return {"TRANSPOSE": {"INT16": 5}, "SLICE": {"INT16": 4}}.get(operator.name, {}).get(
        inputs[0].type, _by_type(operator, inputs)
    )


def _resize(operator: Operator, inputs: Sequence[Tensor]) -> int:
    if inputs[0].type == "INT16":
        return 4
    corners = operator.name == "RESIZE_NEAREST_NEIGHBOR" and operator.options["align_corners"]
    return 3 if operator.options["half_pixel_centers"] or corners else _by_type(operator, inputs)


def _dequantize(operator: Operator, inputs: Sequence[Tensor]) -> int:
    tensor = inputs[0]
    if tensor.quantization is not None and tensor.quantization.per_channel:
        return 6 if tensor.type == "INT4" else 5
    return {"INT4": 6, "INT8": 2, "INT16": 3, "FLOAT16": 3}.get(tensor.type, 1)


def _quantize(operator: Operator, inputs: Sequence[Tensor]) -> int:
    return 2 if inputs[0].type in ("INT8", "INT16", "UINT8") else 1


def _gather(operator: Operator, inputs: Sequence[Tensor]) -> int:
    if operator.options["batch_dims"]:
        return 5
    return {"INT8": 2, "BOOL": 3, "INT16": 4}.get(inputs[0].type, 1)


def _lstm(operator: Operator, inputs: Sequence[Tensor]) -> int:
    if inputs[0].type == "FLOAT32" and inputs[1].type == "INT8":
        return 3 if operator.options["asymmetric_quantize_inputs"] else 2
    return 1


def _cast(operator: Operator, inputs: Sequence[Tensor]) -> int:
    types = {operator.options["in_data_type"], operator.options["out_data_type"]}
    if types & {"FLOAT64", "FLOAT16"}:
        return 5
    return 4 if "UINT16" in types else 3 if types & {"INT8", "INT16"} else 2 if "UINT32" in types else 1


_SPECIAL: dict[str, Version] = {
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _depthwise,
    "FULLY_CONNECTED": _fully_connected,
    "TRANSPOSE_CONV": _transposed_convolution,
    "BATCH_MATMUL": _batch_matmul,
    "ADD": _sum,
    "SUB": _sum,
    "MUL": _product,
    "PAD": _by_rank,
    "PADV2": _by_rank,
    "SLICE": _by_rank,
    "STRIDED_SLICE": _by_rank,
    "TRANSPOSE": _by_rank,
    "RESIZE_BILINEAR": _resize,
    "RESIZE_NEAREST_NEIGHBOR": _resize,
    "DEQUANTIZE": _dequantize,
    "QUANTIZE": _quantize,
    "GATHER": _gather,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _lstm,
    "REVERSE_V2": lambda operator, inputs: {"INT8": 3, "BOOL": 2}.get(inputs[0].type, 1),
    "SPLIT": lambda operator, inputs: {"INT8": 2, "INT32": 3, "INT16": 4}.get(inputs[1].type, 1),
    "BROADCAST_TO": lambda operator, inputs: 3 if inputs[0].type in ("INT8", "INT16") else 2,
    "TILE": lambda operator, inputs: 1,  # LiteRT registers its reference kernels, which take the same types, as 1
    "DEPTH_TO_SPACE": lambda operator, inputs: 1,  # likewise
    "FILL": lambda operator, inputs: {"BOOL": 2, "INT8": 3, "INT16": 3, "FLOAT16": 4}.get(inputs[1].type, 1),
    "CAST": _cast,
    "EQUAL": lambda operator, inputs: {"INT8": 2, "INT16": 4}.get(inputs[0].type, 1),
}
"""The operators that do not count as most do."""
