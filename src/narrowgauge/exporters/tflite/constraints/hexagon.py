"""Qualcomm's Hexagon DSP by TensorFlow Lite's delegate: what it takes, row by row.

Source: tensorflow/lite/delegates/hexagon/utils.cc, CheckOpVersion and IsNodeSupportedByHexagon, as of TensorFlow 2.11
and later; hexagon_delegate.cc; builders/conv_2d_builder.cc (weights are constant). The delegate's README.md is older:
it still asks for a filter width of 3 and for resized images of at most 65 rows and columns.
"""

from __future__ import annotations

from narrowgauge.exporters.tflite.constraints.checking import Chip, Condition, Limits
from narrowgauge.exporters.tflite.constraints.conditions import (
    CLIPS,
    LEVELS,
    all_inputs,
    chosen,
    constant,
    dilations,
    fused,
    inputs,
    no_dilation,
    numbers,
    one_scale,
    option,
    rank_up_to,
    strides_up_to,
    tensor,
)
from narrowgauge.importers.tflite.network import Graph, Operator

_INT32 = ("INT32",)
_INDEX = ("INT32", "INT64")

LARGEST_MAX_POOL = 12
"""Rows and columns of a max pool with padding SAME (utils.cc: "Disable max pool ... when filter is > 12")."""

MOST_PARTS = 4
FEWEST_OPERATORS = 2
"""Of the parts of a graph that the delegate could run it takes the four largest, of two operators or more
(hexagon_delegate.cc, kMaxHexagonGraphs and kMinNodesPerHexagonGraph)."""


def _depthwise(graph: Graph, operator: Operator) -> str:
    found = dilations(operator)
    strides = (option(operator, "stride_h", 1), option(operator, "stride_w", 1))
    if found != (1, 1) and strides != (1, 1):
        return f"dilations {list(found)} with strides {list(strides)}; expected one of both to be 1"
    multiplier, one = option(operator, "depth_multiplier", 1), tensor(graph, operator, 0)
    single = one is not None and len(one.shape) == 4 and one.shape[3] == 1
    if multiplier != 1 and not (found == (1, 1) and single):
        return f"a depth multiplier of {multiplier}; expected 1, or one input channel and no dilation"
    weights = tensor(graph, operator, 1)
    if weights is not None and len(weights.shape) >= 2 and weights.shape[1] < 2:
        return f"a filter of {weights.shape[1]} rows; expected 2 or more"
    return ""


def _small_max_pool(graph: Graph, operator: Operator) -> str:
    size = (option(operator, "filter_height", 1), option(operator, "filter_width", 1))
    if option(operator, "padding", "SAME") != "SAME" or max(size) <= LARGEST_MAX_POOL:
        return ""
    return f"padding SAME with a window of {list(size)}; expected at most {LARGEST_MAX_POOL} rows and columns"


def _two_sizes(graph: Graph, operator: Operator) -> str:
    found = numbers(graph, operator, 1)
    return "" if found is None or found.size == 2 else f"{found.size} sizes; expected 2"


def _limits(newest: int, *conditions: Condition, oldest: int = 1) -> Limits:
    return Limits(newest=newest, conditions=conditions, oldest=oldest)


_LAYER = (inputs(LEVELS, LEVELS, _INT32), constant(1), fused(*CLIPS), strides_up_to(3))
_PAIR = inputs(LEVELS, LEVELS)
_ONE = inputs(LEVELS)

OPERATORS: dict[str, Limits] = {
    "ADD": _limits(2, _PAIR, fused(*CLIPS)),
    "SUB": _limits(2, _PAIR, fused(*CLIPS)),
    "MUL": _limits(2, _PAIR, fused(*CLIPS)),
    "MAXIMUM": _limits(2, _PAIR),
    "MINIMUM": _limits(2, _PAIR),
    "SQUARED_DIFFERENCE": _limits(2, inputs(("INT8",), ("INT8",)), oldest=2),
    "CONV_2D": _limits(3, *_LAYER, no_dilation),
    "DEPTHWISE_CONV_2D": _limits(3, *_LAYER, _depthwise),
    "TRANSPOSE_CONV": _limits(3, inputs(_INT32, LEVELS, LEVELS, _INT32, optional=1), strides_up_to(3)),
    "FULLY_CONNECTED": _limits(
        4, inputs(LEVELS, LEVELS, _INT32), one_scale(1), constant(2), fused(*CLIPS),
        chosen("keep_num_dims", False, False), chosen("weights_format", "DEFAULT", "DEFAULT"),
    ),
    "AVERAGE_POOL_2D": _limits(2, _ONE, fused("NONE")),
    "MAX_POOL_2D": _limits(2, _ONE, fused("NONE"), _small_max_pool),
    "MEAN": _limits(2, inputs(LEVELS, _INT32), constant(1)),
    "PAD": _limits(2, inputs(LEVELS, _INT32), constant(1)),
    "MIRROR_PAD": _limits(2, inputs(LEVELS, _INT32), constant(1)),
    "CONCATENATION": _limits(2, all_inputs(*LEVELS)),
    "PACK": _limits(2, all_inputs(*LEVELS)),
    "RESHAPE": _limits(1, inputs(LEVELS, _INT32, optional=1)),
    "SOFTMAX": _limits(2, _ONE),
    "HARD_SWISH": _limits(1, _ONE),
    "RELU": _limits(2, _ONE, oldest=2),
    "RELU6": _limits(2, _ONE),
    "TANH": _limits(2, _ONE),
    "LOGISTIC": _limits(2, _ONE),
    "NEG": _limits(1, _ONE),
    "RSQRT": _limits(2, inputs(("INT8",)), oldest=2),
    "L2_NORMALIZATION": _limits(2, _ONE, fused("NONE")),
    "QUANTIZE": _limits(2, _ONE),
    "ARG_MAX": _limits(2, inputs(LEVELS, _INT32)),
    "ARG_MIN": _limits(2, inputs(LEVELS, _INT32)),
    "RESIZE_BILINEAR": _limits(3, inputs(LEVELS, _INT32), constant(1), _two_sizes),
    "RESIZE_NEAREST_NEIGHBOR": _limits(3, inputs(LEVELS, _INT32), constant(1)),
    "SPLIT": _limits(2, inputs(_INT32, LEVELS), constant(0)),
    "SLICE": _limits(2, inputs(LEVELS, _INDEX, _INDEX), constant(1, 2)),
    "STRIDED_SLICE": _limits(
        2, inputs(LEVELS, _INT32, _INT32, _INT32), constant(1, 2, 3),
        chosen("ellipsis_mask", 0, 0), chosen("new_axis_mask", 0, 0),
    ),
    "TRANSPOSE": _limits(2, inputs(LEVELS, _INT32)),
    "SPACE_TO_DEPTH": _limits(2, _ONE),
    "DEPTH_TO_SPACE": _limits(2, _ONE),
}  # fmt: skip


def parts(graph: Graph, refused: frozenset[int]) -> list[list[int]]:
    """Cut a graph into parts that run by turns on the delegate and on the CPU, as TensorFlow Lite does it.

    A part takes every operator of its kind whose inputs are ready when its turn comes (tensorflow/lite/graph_info.cc,
    PartitionGraphIntoIndependentNodeSubsets); its first operator says which kind it is.
    """
    ready = {number for operator in graph.operators for number in operator.inputs if number is not None}
    ready -= {number for operator in graph.operators for number in operator.outputs}
    found, waiting = [], list(graph.operators)
    while waiting:
        part: list[int] = []
        kind: bool | None = None
        rest: list[Operator] = []
        for operator in waiting:  # in an order in which they can run, so that one pass finds all
            here = operator.index in refused
            if ready.issuperset(n for n in operator.inputs if n is not None) and kind in (None, here):
                kind = here
                part.append(operator.index)
                ready.update(operator.outputs)
            else:
                rest.append(operator)
        if not part:  # a damaged file: operators that wait for each other
            break
        found.append(part)
        waiting = rest
    return found


def _part(graph: Graph, refused: frozenset[int]) -> frozenset[int]:
    able = [part for part in parts(graph, refused) if part[0] not in refused and len(part) >= FEWEST_OPERATORS]
    largest = sorted(able, key=len, reverse=True)[:MOST_PARTS]
    return frozenset(number for part in largest for number in part)


HEXAGON = Chip(
    title="the Hexagon delegate",
    operators=OPERATORS,
    every=(rank_up_to(4),),
    graph=lambda graph: [],
    part=_part,
    rest=f"it takes at most {MOST_PARTS} parts of the network, of {FEWEST_OPERATORS} operators or more",
    advice=lambda graph: [],
)
