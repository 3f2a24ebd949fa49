"""Google's Coral Edge TPU: what its compiler maps to the chip, row by row.

Source: coral.ai, "TensorFlow models on the Edge TPU", "Model requirements" and "Supported operations", the rows of
compiler 16 and runtime 14 (repeated by Axis, "ARTPEC-7: supported ops" and "optimization tips"). The compiler is a
binary; it may leave an operator to the CPU for a reason that is not published ("otherwise supported, but not mapped
due to some unspecified limitation").

The compiler was made in July 2021 and refuses a file with a newer version of an operator than TensorFlow had then.
Known from what it refused: CONV_2D 6 (google-coral/edgetpu issue 631), TRANSPOSE_CONV 4 (845), EXP 2 (libedgetpu 71).
The other rows name the newest version of tensorflow/lite/kernels/register.cc of TensorFlow 2.9, which had CONV_2D 6:
the compiler may know less. Matrix weights with a scale per channel came later (FULLY_CONNECTED 12).
"""

from __future__ import annotations

from math import prod

from narrowgauge.exporters.tflite.constraints.checking import Chip, Condition, Limits
from narrowgauge.exporters.tflite.constraints.conditions import (
    CLIPS,
    axes,
    chosen,
    constant,
    eight_bits,
    equal_dilations,
    fused,
    innermost_extents,
    is_constant,
    not_along_batch,
    numbers,
    one_scale,
    option,
    tensor,
)
from narrowgauge.importers.tflite.network import Graph, Operator

LONGEST_SOFTMAX = 16_000
DEPTH_STEP = 4
"""A mean along the channels needs a multiple of so many ("Supported operations", Mean)."""

PARAMETER_BYTES = 8 << 20
"""What the chip keeps of a network's constants, roughly ("Edge TPU Compiler", "Parameter data caching")."""


def _zero_padding(graph: Graph, operator: Operator) -> str:
    constants = [one for n in range(len(operator.inputs)) if (one := tensor(graph, operator, n)) and is_constant(one)]
    if not constants:
        return ""
    if len(operator.inputs) != 2:
        return f"a constant among {len(operator.inputs)} inputs; expected none, or 2 inputs"
    zero = 0 if constants[0].quantization is None else constants[0].quantization.zero_point[0]
    if (constants[0].array() != zero).any():
        return f"constant {constants[0].name!r} is not all zeros; expected none, or zeros"
    return ""


def _mean(graph: Graph, operator: Operator) -> str:
    found, one = axes(graph, operator, 1), tensor(graph, operator, 0)
    if found is None or one is None or len(one.shape) - 1 not in found or one.shape[-1] % DEPTH_STEP == 0:
        return ""
    return f"a mean along {one.shape[-1]} channels; expected a multiple of {DEPTH_STEP}"


def _no_packed_batch(graph: Graph, operator: Operator) -> str:
    one = graph.tensors[operator.outputs[0]]
    axis = option(operator, "axis", 0) % max(len(one.shape), 1)
    return (
        ""
        if axis or one.shape[:1] == (1,)
        else f"it packs along axis 0 of shape {list(one.shape)}; expected none along the batch"
    )


def _no_padded_batch(graph: Graph, operator: Operator) -> str:
    found = numbers(graph, operator, 1)
    if found is None or not found[:2].any():
        return ""
    return f"pads {found[:2].tolist()} along the batch; expected none"


def _no_split_batch(graph: Graph, operator: Operator) -> str:
    found, one = numbers(graph, operator, 0), tensor(graph, operator, 1)
    if found is None or one is None or not one.shape or (found % len(one.shape)).any() or one.shape[0] == 1:
        return ""
    return f"it splits axis 0 of shape {list(one.shape)}; expected none along the batch"


def _steps_of_one(graph: Graph, operator: Operator) -> str:
    found = numbers(graph, operator, 3)
    return "" if found is None or (found == 1).all() else f"steps {found.tolist()}; expected 1"


def _slope_per_channel(graph: Graph, operator: Operator) -> str:
    one = tensor(graph, operator, 1)
    if one is None or prod(one.shape[:-1]) == 1:
        return ""
    return f"slopes of shape {list(one.shape)}; expected only the last dimension to be larger than 1"


def _one_row(number: int, longest: int = 0) -> Condition:
    """An output or the first input (number 0) is one row, of at most so many elements."""

    def condition(graph: Graph, operator: Operator) -> str:
        one = tensor(graph, operator, 0) if number == 0 else graph.tensors[operator.outputs[0]]
        if one is None:
            return ""
        if prod(one.shape[:-1]) > 1:
            return f"tensor {one.name!r} has shape {list(one.shape)}; expected one row"
        if longest and one.shape and one.shape[-1] > longest:
            return f"a row of {one.shape[-1]} elements; expected at most {longest:,}"
        return ""

    return condition


_of_input = _one_row(0, LONGEST_SOFTMAX)
_of_output = _one_row(1)


def _limits(newest: int, *conditions: Condition) -> Limits:
    return Limits(newest=newest, conditions=conditions)


OPERATORS: dict[str, Limits] = {
    "ADD": _limits(4, fused(*CLIPS)),
    "AVERAGE_POOL_2D": _limits(3, fused("NONE")),
    "CONCATENATION": _limits(3, fused("NONE"), _zero_padding),
    "CONV_2D": _limits(5, constant(1, 2), fused(*CLIPS), equal_dilations),
    "DEPTHWISE_CONV_2D": _limits(6, constant(1, 2), fused(*CLIPS), equal_dilations),
    "EXPAND_DIMS": _limits(1, constant(1)),
    "FULLY_CONNECTED": _limits(
        9, constant(1, 2), one_scale(1), fused(*CLIPS), chosen("weights_format", "DEFAULT", "DEFAULT"), _of_output
    ),
    "L2_NORMALIZATION": _limits(2),
    "LOGISTIC": _limits(3),
    "MAXIMUM": _limits(4),
    "MAX_POOL_2D": _limits(3, fused("NONE")),
    "MEAN": _limits(3, constant(1), not_along_batch(1), _mean),
    "MINIMUM": _limits(4),
    "MUL": _limits(5, fused(*CLIPS)),
    "PACK": _limits(3, _no_packed_batch),
    "PAD": _limits(4, constant(1), _no_padded_batch),
    "PRELU": _limits(1, constant(1), _slope_per_channel),
    "QUANTIZE": _limits(3),
    "REDUCE_MAX": _limits(3, constant(1), not_along_batch(1)),
    "REDUCE_MIN": _limits(3, constant(1), not_along_batch(1)),
    "RELU": _limits(3),
    "RELU6": _limits(3),
    "RELU_N1_TO_1": _limits(1),
    "RESHAPE": _limits(1, constant(1)),
    "RESIZE_BILINEAR": _limits(4, constant(1)),
    "RESIZE_NEAREST_NEIGHBOR": _limits(4, constant(1)),
    "RSQRT": _limits(2),
    "SLICE": _limits(5, constant(1, 2)),
    "SOFTMAX": _limits(3, _of_input),
    "SPACE_TO_DEPTH": _limits(2),
    "SPLIT": _limits(4, constant(0), _no_split_batch),
    "SQUARED_DIFFERENCE": _limits(2),
    "SQUEEZE": _limits(2),
    "STRIDED_SLICE": _limits(
        6, constant(1, 2, 3), _steps_of_one, chosen("ellipsis_mask", 0, 0), chosen("new_axis_mask", 0, 0)
    ),
    "SUB": _limits(5, fused(*CLIPS)),
    "SUM": _limits(2, constant(1), not_along_batch(1)),
    "TANH": _limits(3),
    "TRANSPOSE": _limits(5, constant(1)),
    "TRANSPOSE_CONV": _limits(3, constant(0, 1, 3)),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _limits(3),
}  # fmt: skip


def _constant_sizes(graph: Graph) -> list[str]:
    """Sizes are constant when the compiler runs; a batch that may change is the usual case."""
    return [
        f"input {graph.tensors[number].name!r} has shape {list(graph.tensors[number].extents)}, in which None may "
        "change; expected constant sizes: write the network for one sample"
        for number in graph.inputs
        if graph.tensors[number].dynamic
    ]


def _part(graph: Graph, refused: frozenset[int]) -> frozenset[int]:
    """Return what comes before the first operator that is not mapped: the compiler makes one part, the first.

    The CPU rounds float inputs before it; what follows such a QUANTIZE can still be the chip's.
    """
    behind: set[int] = set()
    run = []
    for operator in graph.operators:
        read = [number for number in operator.inputs if number is not None]
        if operator.index not in refused and not behind.intersection(read):
            run.append(operator.index)
        elif not (operator.name == "QUANTIZE" and set(read) <= set(graph.inputs)):
            behind.update(operator.outputs)
    return frozenset(run)


def _parameters(graph: Graph) -> list[str]:
    size = sum(one.data.size for one in graph.tensors if one.data is not None)
    if size <= PARAMETER_BYTES:
        return []
    return [
        f"the constants take {size / 2**20:.1f} MiB; the Edge TPU keeps about {PARAMETER_BYTES >> 20} MiB, the rest is "
        "sent to it with every run"
    ]


EDGETPU = Chip(
    title="the Edge TPU",
    operators=OPERATORS,
    every=(eight_bits, innermost_extents(3)),
    graph=_constant_sizes,
    part=_part,
    rest="its compiler maps one part, and what reads from the CPU runs there, too",
    advice=_parameters,
)
