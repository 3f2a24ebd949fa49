"""The table of TFLite's operators: what each is in ONNX.

To add one: one row, and, where no single ONNX operator does the same, a function that makes the nodes.

The newest versions are those of LiteRT 2 (tflite/core/kernels/register.cc). A newer version may mean something that is
not known here, and is refused.
"""

from __future__ import annotations

from narrowgauge.importers.tflite import arithmetic, layers, recurrent, reductions, shaping
from narrowgauge.importers.tflite.emitter import Row

OPERATORS: dict[str, Row] = {
    # layers with weights, and pools
    "CONV_2D": Row(emit=layers.convolution, options="Conv2DOptions", fuses=True, newest=8),
    "DEPTHWISE_CONV_2D": Row(emit=layers.depthwise_convolution, options="DepthwiseConv2DOptions", fuses=True, newest=7),
    "TRANSPOSE_CONV": Row(emit=layers.transposed_convolution, options="TransposeConvOptions", fuses=True, newest=5),
    "FULLY_CONNECTED": Row(emit=layers.fully_connected, options="FullyConnectedOptions", fuses=True, newest=14),
    "BATCH_MATMUL": Row(emit=layers.batch_matmul, options="BatchMatMulOptions", newest=4),
    "AVERAGE_POOL_2D": Row(emit=layers.average_pool, options="Pool2DOptions", fuses=True, newest=3),
    "MAX_POOL_2D": Row(emit=layers.max_pool, options="Pool2DOptions", fuses=True, newest=3),
    "EMBEDDING_LOOKUP": Row(emit=layers.embedding_lookup, newest=5),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": Row(emit=recurrent.lstm, options="UnidirectionalSequenceLSTMOptions", newest=4),
    # arithmetic
    "ADD": Row(onnx="Add", options="AddOptions", any_layout=True, fuses=True, newest=5),
    "SUB": Row(onnx="Sub", options="SubOptions", any_layout=True, fuses=True, newest=5),
    "MUL": Row(onnx="Mul", options="MulOptions", any_layout=True, fuses=True, newest=7),
    "DIV": Row(onnx="Div", options="DivOptions", any_layout=True, fuses=True, newest=2),
    "ADD_N": Row(onnx="Sum", any_layout=True),
    "MAXIMUM": Row(onnx="Max", any_layout=True, newest=4),
    "MINIMUM": Row(onnx="Min", any_layout=True, newest=4),
    "POW": Row(onnx="Pow", any_layout=True),
    "FLOOR_DIV": Row(emit=arithmetic.floor_division, newest=3),
    "FLOOR_MOD": Row(emit=arithmetic.floor_remainder, newest=2),
    "SQUARED_DIFFERENCE": Row(emit=arithmetic.squared_difference, newest=2),
    "SQUARE": Row(emit=arithmetic.square),
    "ABS": Row(onnx="Abs", any_layout=True, newest=5),
    "NEG": Row(onnx="Neg", any_layout=True),
    "SIGN": Row(onnx="Sign", any_layout=True, newest=2),
    "EXP": Row(onnx="Exp", any_layout=True, newest=2),
    "LOG": Row(onnx="Log", any_layout=True, newest=2),
    "SQRT": Row(onnx="Sqrt", any_layout=True, newest=2),
    "RSQRT": Row(emit=arithmetic.reciprocal_root, newest=3),
    "SIN": Row(onnx="Sin", any_layout=True),
    "COS": Row(onnx="Cos", any_layout=True),
    "FLOOR": Row(onnx="Floor", any_layout=True),
    "CEIL": Row(onnx="Ceil", any_layout=True),
    "ROUND": Row(onnx="Round", any_layout=True),
    "CAST": Row(emit=arithmetic.cast, options="CastOptions", newest=8),
    "QUANTIZE": Row(emit=arithmetic.rounding, options="QuantizeOptions", newest=5),
    "DEQUANTIZE": Row(emit=arithmetic.rounding, options="DequantizeOptions", newest=8),
    # activation functions
    "RELU": Row(onnx="Relu", any_layout=True, newest=3),
    "RELU6": Row(emit=arithmetic.clip, newest=3),
    "RELU_N1_TO_1": Row(emit=arithmetic.clip),
    "RELU_0_TO_1": Row(emit=arithmetic.clip),
    "LEAKY_RELU": Row(
        onnx="LeakyRelu", options="LeakyReluOptions", attributes={"alpha": "alpha"}, any_layout=True, newest=2
    ),
    "PRELU": Row(emit=arithmetic.parametric_relu),
    "ELU": Row(onnx="Elu", any_layout=True),
    "GELU": Row(emit=arithmetic.gelu, options="GeluOptions", newest=2),
    "HARD_SWISH": Row(onnx="HardSwish", any_layout=True),
    "LOGISTIC": Row(onnx="Sigmoid", any_layout=True, newest=3),
    "TANH": Row(onnx="Tanh", any_layout=True, newest=3),
    "SOFTMAX": Row(emit=arithmetic.softmax, options="SoftmaxOptions", newest=3),
    "LOG_SOFTMAX": Row(onnx="LogSoftmax", fixed={"axis": -1}, newest=2),
    # comparisons and choices
    "EQUAL": Row(onnx="Equal", newest=5),
    "NOT_EQUAL": Row(emit=arithmetic.not_equal, newest=4),
    "GREATER": Row(onnx="Greater", newest=2),
    "GREATER_EQUAL": Row(onnx="GreaterOrEqual", newest=3),
    "LESS": Row(onnx="Less", newest=3),
    "LESS_EQUAL": Row(onnx="LessOrEqual", newest=2),
    "LOGICAL_AND": Row(onnx="And"),
    "LOGICAL_OR": Row(onnx="Or"),
    "LOGICAL_NOT": Row(onnx="Not"),
    "SELECT": Row(emit=arithmetic.select, newest=4),
    "SELECT_V2": Row(onnx="Where", newest=2),
    # shapes and places
    "RESHAPE": Row(emit=shaping.reshape, options="ReshapeOptions"),
    "TRANSPOSE": Row(emit=shaping.transpose, newest=7),
    "SQUEEZE": Row(emit=shaping.squeeze, options="SqueezeOptions", newest=2),
    "EXPAND_DIMS": Row(emit=shaping.expand_dims),
    "CONCATENATION": Row(emit=shaping.concatenation, options="ConcatenationOptions", fuses=True, newest=5),
    "SPLIT": Row(emit=shaping.split, options="SplitOptions", newest=4),
    "SPLIT_V": Row(emit=shaping.split_v, options="SplitVOptions", newest=2),
    "PACK": Row(emit=shaping.pack, options="PackOptions", newest=4),
    "UNPACK": Row(emit=shaping.unpack, options="UnpackOptions", newest=4),
    "SLICE": Row(emit=shaping.slice_by_size, newest=7),
    "STRIDED_SLICE": Row(emit=shaping.strided_slice, options="StridedSliceOptions", newest=8),
    "GATHER": Row(emit=shaping.gather, options="GatherOptions", newest=7),
    "GATHER_ND": Row(emit=shaping.gather_nd, newest=5),
    "SCATTER_ND": Row(emit=shaping.scatter_nd),
    "WHERE": Row(emit=shaping.places_of_true, newest=2),
    "PAD": Row(emit=shaping.pad, newest=5),
    "PADV2": Row(emit=shaping.pad, newest=5),
    "MIRROR_PAD": Row(emit=shaping.mirror_pad, options="MirrorPadOptions", newest=3),
    "REVERSE_V2": Row(emit=shaping.reverse, newest=3),
    "TILE": Row(emit=shaping.tile, newest=3),
    "BROADCAST_TO": Row(emit=shaping.broadcast_to, newest=3),
    "FILL": Row(emit=shaping.fill, newest=4),
    "ZEROS_LIKE": Row(emit=shaping.zeros_like),
    "SHAPE": Row(emit=shaping.shape_of, options="ShapeOptions"),
    "RANK": Row(emit=shaping.rank_of),
    "RANGE": Row(onnx="Range", newest=2),
    "ONE_HOT": Row(emit=shaping.one_hot, options="OneHotOptions"),
    "DEPTH_TO_SPACE": Row(emit=shaping.depth_to_space, options="DepthToSpaceOptions", newest=2),
    "SPACE_TO_DEPTH": Row(emit=shaping.space_to_depth, options="SpaceToDepthOptions", newest=2),
    "SPACE_TO_BATCH_ND": Row(emit=shaping.space_to_batch, newest=4),
    "BATCH_TO_SPACE_ND": Row(emit=shaping.batch_to_space, newest=4),
    "RESIZE_BILINEAR": Row(emit=shaping.resize, options="ResizeBilinearOptions", newest=4),
    "RESIZE_NEAREST_NEIGHBOR": Row(emit=shaping.resize, options="ResizeNearestNeighborOptions", newest=4),
    # along axes
    "MEAN": Row(emit=reductions.reduction, options="ReducerOptions", newest=3),
    "SUM": Row(emit=reductions.reduction, options="ReducerOptions", newest=2),
    "REDUCE_MAX": Row(emit=reductions.reduction, options="ReducerOptions", newest=3),
    "REDUCE_MIN": Row(emit=reductions.reduction, options="ReducerOptions", newest=3),
    "REDUCE_PROD": Row(emit=reductions.reduction, options="ReducerOptions", newest=2),
    "REDUCE_ANY": Row(emit=reductions.reduction, options="ReducerOptions"),
    "REDUCE_ALL": Row(emit=reductions.reduction, options="ReducerOptions"),
    "ARG_MAX": Row(emit=reductions.extreme_place, options="ArgMaxOptions", newest=3),
    "ARG_MIN": Row(emit=reductions.extreme_place, options="ArgMinOptions", newest=3),
    "TOPK_V2": Row(emit=reductions.largest, newest=3),
    "CUMSUM": Row(emit=reductions.running_sum, options="CumsumOptions"),
    "L2_NORMALIZATION": Row(
        onnx="LpNormalization", options="L2NormOptions", fixed={"axis": -1, "p": 2}, fuses=True, newest=2
    ),
    "LOCAL_RESPONSE_NORMALIZATION": Row(
        emit=arithmetic.local_response_normalization, options="LocalResponseNormalizationOptions"
    ),
}
"""TFLite operator -> how it is read. L2_NORMALIZATION's kernel keeps its divisor at 1e-6 or more; ONNX's operator has
no such bound, and gives 0 for zeros, as the kernel does."""
