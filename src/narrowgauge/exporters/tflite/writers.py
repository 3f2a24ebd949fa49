"""The table of ONNX operators: how each is written in TFLite's.

To add one: a function of a `Call` (see `call.py`) and a row here. Which options and versions TFLite's operators have is
said in one place for reading and writing, `importers.tflite.operators`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from narrowgauge.exporters.tflite import (
    convolutions,
    elementwise,
    normalization,
    pooling,
    products,
    recurrent,
    reductions,
    reshaping,
    resizing,
    shaping,
)
from narrowgauge.exporters.tflite.call import Call

_EIGHT, _ALL = ("INT8", "UINT8"), ("INT8", "UINT8", "INT16")


@dataclass(frozen=True, slots=True)
class Writer:
    """How an ONNX operator is written.

    Attributes:
        write: adds the operators.
        integer: types of activations that TFLite's integer kernels take, measured on LiteRT 2.3; without one the node
            runs on real numbers, between DEQUANTIZE and QUANTIZE where the plan rounds them.
    """

    write: Callable[[Call], None]
    integer: tuple[str, ...] = ()


_SINGLES: dict[str, tuple[str, ...]] = {
    "Abs": ("INT8", "INT16"), "Exp": ("INT8", "INT16"), "Log": ("INT8", "INT16"), "Elu": ("INT8",), "HardSwish": _EIGHT,
    "Sigmoid": _ALL, "Tanh": _ALL,
}  # fmt: skip

_PAIRS = dict.fromkeys(("Add", "Sub", "Mul"), _ALL)

_REDUCTIONS = dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"), _ALL)

WRITERS: dict[str, Writer] = {
    # layers with weights, and pools
    "Conv": Writer(convolutions.convolution, _ALL),
    "ConvTranspose": Writer(convolutions.transposed_convolution, _ALL),
    "Gemm": Writer(products.gemm, _ALL),
    "MatMul": Writer(products.matmul, _ALL),
    recurrent.SEQUENCE_LSTM: Writer(recurrent.sequence_lstm, ("INT8",)),
    "MaxPool": Writer(pooling.max_pool, _ALL),
    "AveragePool": Writer(pooling.average_pool, _ALL),
    "GlobalAveragePool": Writer(pooling.global_pool, _ALL),
    "GlobalMaxPool": Writer(pooling.global_pool, _ALL),
    # numbers one by one
    **{name: Writer(elementwise.single, _SINGLES.get(name, ())) for name in elementwise.SAME_NAMES},
    **{name: Writer(elementwise.pair, _PAIRS.get(name, ())) for name in elementwise.SAME_PAIRS},
    "Max": Writer(elementwise.extreme, _ALL),
    "Min": Writer(elementwise.extreme, _ALL),
    "Sum": Writer(elementwise.total),
    "Mean": Writer(elementwise.total),
    "Mod": Writer(elementwise.modulo),
    "Xor": Writer(elementwise.exclusive_or),
    "Relu": Writer(elementwise.clip, _ALL),
    "Clip": Writer(elementwise.clip, _ALL),
    "LeakyRelu": Writer(elementwise.leaky_relu, _ALL),
    "PRelu": Writer(elementwise.parametric_relu, _EIGHT),
    "Gelu": Writer(elementwise.gelu, _ALL),
    "Swish": Writer(elementwise.swish),
    "Mish": Writer(elementwise.mish),
    "Softplus": Writer(elementwise.softplus),
    "Softsign": Writer(elementwise.softsign),
    "HardSigmoid": Writer(elementwise.hard_sigmoid),
    "Selu": Writer(elementwise.selu),
    "Celu": Writer(elementwise.selu),
    "ThresholdedRelu": Writer(elementwise.thresholded_relu),
    "Reciprocal": Writer(elementwise.reciprocal),
    "Cast": Writer(elementwise.cast),
    "Identity": Writer(elementwise.alias, _ALL),
    "Dropout": Writer(elementwise.alias, _ALL),
    "Transpose": Writer(elementwise.alias, _ALL),
    # along axes
    **{name: Writer(reductions.reduction, _REDUCTIONS.get(name, ())) for name in reductions.REDUCTIONS},
    "ReduceL1": Writer(reductions.norm),
    "ReduceL2": Writer(reductions.norm),
    "ReduceSumSquare": Writer(reductions.norm),
    "Softmax": Writer(reductions.softmax, _ALL),
    "LogSoftmax": Writer(reductions.softmax, _EIGHT),
    "LpNormalization": Writer(reductions.lp_normalization, _EIGHT),
    "ArgMax": Writer(reductions.place_of_extreme),
    "ArgMin": Writer(reductions.place_of_extreme),
    "TopK": Writer(reductions.largest, _ALL),
    "CumSum": Writer(reductions.running_sum),
    "LayerNormalization": Writer(normalization.layer_normalization),
    "InstanceNormalization": Writer(normalization.instance_normalization),
    "BatchNormalization": Writer(normalization.batch_normalization),
    "LRN": Writer(normalization.local_response),
    # shapes and places
    "Reshape": Writer(reshaping.reshape, _ALL),
    "Flatten": Writer(reshaping.reshape, _ALL),
    "Squeeze": Writer(reshaping.reshape, _ALL),
    "Unsqueeze": Writer(reshaping.reshape, _ALL),
    "Concat": Writer(shaping.concat, _ALL),
    "Split": Writer(shaping.split, _ALL),
    "Slice": Writer(shaping.slice_range, _ALL),
    "Gather": Writer(shaping.gather, _ALL),
    "GatherND": Writer(shaping.gather_elements),
    "Pad": Writer(shaping.pad, _ALL),
    "Expand": Writer(shaping.expand, _ALL),
    "Tile": Writer(shaping.tile, _ALL),
    "DepthToSpace": Writer(shaping.depth_to_space, _EIGHT),
    "SpaceToDepth": Writer(shaping.space_to_depth, _EIGHT),
    "Resize": Writer(resizing.resize, _ALL),
    "Shape": Writer(shaping.shape_of),
    "ConstantOfShape": Writer(shaping.fill),
    "Range": Writer(shaping.counting),
    "OneHot": Writer(shaping.one_hot),
}
"""ONNX operator -> how it is written."""


def integer_types(operator: str) -> tuple[str, ...]:
    """Return the types of activations that an ONNX operator's integer kernels take."""
    row = WRITERS.get(operator)
    return () if row is None else row.integer


CHANNELS_LAST = frozenset({
    "Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "BatchNormalization",
    "InstanceNormalization", "LRN", "DepthToSpace", "SpaceToDepth", "Resize",
})  # fmt: skip
"""Operators that read tensors with the channels at the end."""

ANY_LAYOUT = frozenset({
    *elementwise.SAME_NAMES, *elementwise.SAME_PAIRS, "Max", "Min", "Sum", "Mean", "Relu", "Clip", "LeakyRelu", "PRelu",
    "Gelu", "Cast", "Identity", "Dropout", "Pad", "Concat", "Slice", "Split", "ReduceMean", "Softplus", "Mish", "Swish",
    "HardSigmoid",
})  # fmt: skip
"""Operators that read tensors in any order of axes and write them in the same."""
