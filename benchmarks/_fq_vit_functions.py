"""FQ-ViT's integer LayerNorm and Log-Int-Softmax, operation by operation, as functions of an ONNX network.

Lin et al., "FQ-ViT: Post-Training Quantization for Fully Quantized Vision Transformer", 2022, as its code has them:
github.com/megvii-research/FQ-ViT at 5daf591, models/ptq/layers.py. That code computes these integers in float32, and so
do these functions, rounding errors included.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx.parser
import onnx_ir as ir

from narrowgauge.core.encoding import Encoding
from narrowgauge.graph.constants import add_constant

_DOMAIN = "fq-vit"

# i-exp (Kim et al., "I-BERT", 2021) with n = 30, then `2^-q`, q the integer logarithm of sum / exponential with the
# threshold 1.5. q from 16 on means 0, a seventeenth number that 4 bits have no level for.
# Their floor(log2 x) and comparison with 1.5 are floor(log2(4 x / 3)) of integers; the guard is that of
# narrowgauge.lowering.probabilities.
_LOG_INT_SOFTMAX = """
<opset_import: ["" : 21], domain: "fq-vit">
LogIntSoftmax (x, scale) => (shares)
{
    last = Constant <value = int64[1] {-1}> ()
    zero = Constant <value = float {0.0}> ()
    two = Constant <value = float {2.0}> ()
    n = Constant <value = float {30.0}> ()
    b = Constant <value = float {2.7073248645}> ()
    c = Constant <value = float {2.7921147441}> ()
    minus_ln2 = Constant <value = float {-0.6931}> ()
    levels = Div (x, scale)
    greatest = ReduceMax (levels, last)
    below = Sub (levels, greatest)
    step_real = Div (minus_ln2, scale)
    step = Floor (step_real)
    lowest = Mul (n, step)
    clipped = Max (below, lowest)
    ratio = Div (clipped, step)
    halvings = Floor (ratio)
    whole = Mul (step, halvings)
    rest = Sub (clipped, whole)
    b_real = Div (b, scale)
    b_levels = Floor (b_real)
    square = Mul (scale, scale)
    c_real = Div (c, square)
    c_levels = Floor (c_real)
    sum_b = Add (rest, b_levels)
    product = Mul (rest, sum_b)
    polynomial = Add (product, c_levels)
    exponent = Sub (n, halvings)
    power = Pow (two, exponent)
    shifted = Mul (polynomial, power)
    floored = Floor (shifted)
    exponentials = Max (floored, zero)
    total = ReduceSum (exponentials, last)
    inverse = Div (total, exponentials)
    rounded = Round (inverse)
    four_thirds = Constant <value = float {1.3333334}> ()
    octaves = Constant <value = float {1.442695}> ()
    guard = Constant <value = float {0.00001}> ()
    scaled = Mul (rounded, four_thirds)
    logarithm = Log (scaled)
    logarithm2 = Mul (logarithm, octaves)
    guarded = Add (logarithm2, guard)
    codes = Floor (guarded)
    minus = Neg (codes)
    share = Pow (two, minus)
    beyond = Constant <value = float {16.0}> ()
    vanishes = GreaterOrEqual (codes, beyond)
    shares = Where (vanishes, zero, share)
}
"""

# Levels of all channels in the smallest step; a mantissa of 8 bits (M) and a shift (N) for each number in place of
# gain / deviation. There is no epsilon: a row of equal numbers gives NaN.
_INTEGER_LAYER_NORM = """
<opset_import: ["" : 21], domain: "fq-vit">
IntegerLayerNorm (x, gain, bias, step, output_scale) => (normalized)
{
    last = Constant <value = int64[1] {-1}> ()
    zero = Constant <value = float {0.0}> ()
    two = Constant <value = float {2.0}> ()
    seven = Constant <value = float {7.0}> ()
    most_shift = Constant <value = float {31.0}> ()
    most_mantissa = Constant <value = float {255.0}> ()
    octaves = Constant <value = float {1.442695}> ()
    real_levels = Div (x, step)
    levels = Round (real_levels)
    shape = Shape <start = -1> (x)
    channels_axis = Cast <to = 1> (shape)
    channels = Squeeze (channels_axis)
    mean_levels = ReduceMean (levels, last)
    mean = Mul (mean_levels, step)
    squared = Mul (levels, levels)
    squares = ReduceSum (squared, last)
    weighted = Mul (channels, squares)
    sums = ReduceSum (levels, last)
    square_of_sums = Mul (sums, sums)
    variance = Sub (weighted, square_of_sums)
    root = Sqrt (variance)
    step_over_channels = Div (step, channels)
    deviation = Mul (step_over_channels, root)
    step_over_deviation = Div (step, deviation)
    gained = Mul (step_over_deviation, gain)
    factor = Div (gained, output_scale)
    sign = Sign (factor)
    size = Abs (factor)
    logarithm = Log (size)
    logarithm2 = Mul (logarithm, octaves)
    octave = Floor (logarithm2)
    shift_real = Sub (seven, octave)
    shift = Clip (shift_real, zero, most_shift)
    power = Pow (two, shift)
    mantissa_real = Mul (size, power)
    mantissa_floor = Floor (mantissa_real)
    mantissa = Clip (mantissa_floor, zero, most_mantissa)
    mean_over_deviation = Div (mean, deviation)
    mean_gained = Mul (mean_over_deviation, gain)
    offset_real = Sub (bias, mean_gained)
    offset_levels = Div (offset_real, output_scale)
    offset_shifted = Mul (offset_levels, power)
    offset = Round (offset_shifted)
    signed = Mul (sign, mantissa)
    product = Mul (signed, levels)
    accumulated = Add (product, offset)
    result_real = Div (accumulated, power)
    result = Round (result_real)
    normalized = Mul (result, output_scale)
}
"""


def use_log_int_softmax(lowered: ir.Model, logits: Mapping[str, Encoding]) -> None:
    """Let every Softmax along the last axis compute as Log-Int-Softmax.

    Args:
        lowered: the network with rounded logits, changed in place.
        logits: name of a Softmax's output -> encoding of what it reads.
    """
    for node in lowered.graph:
        if node.op_type == "Softmax":
            name = str(node.outputs[0].name)
            scale = add_constant(lowered.graph, f"{name}_logit_scale", logits[name].scale)
            _become(node, "LogIntSoftmax", [node.inputs[0], scale])
    _define(lowered, _LOG_INT_SOFTMAX)


def use_integer_layer_norm(lowered: ir.Model, streams: Mapping[str, tuple[Encoding, Encoding]]) -> None:
    """Let every LayerNormalization of the last axis compute as FQ-ViT's.

    Args:
        lowered: the network with rounded inputs of them, changed in place.
        streams: name of a LayerNormalization's output -> encodings of its input and of what is made of its output.
    """
    graph = lowered.graph
    for node in graph:
        if node.op_type == "LayerNormalization":
            name = str(node.outputs[0].name)
            read, written = streams[name]
            step = add_constant(graph, f"{name}_step", np.asarray(read.scale.min()))
            scale = add_constant(graph, f"{name}_output_scale", written.scale)
            bias = node.inputs[2] if len(node.inputs) > 2 else None
            if bias is None:
                bias = add_constant(graph, f"{name}_bias", np.zeros((), dtype=np.float32))
            _become(node, "IntegerLayerNorm", [node.inputs[0], node.inputs[1], bias, step, scale])
    _define(lowered, _INTEGER_LAYER_NORM)


def _become(node: ir.Node, function: str, inputs: list[ir.Value | None]) -> None:
    """Make a call of a function of a node, with the name and the output that it has."""
    node.domain, node.op_type = _DOMAIN, function
    node.attributes.clear()
    node.resize_inputs(len(inputs))
    for number, value in enumerate(inputs):
        node.replace_input_with(number, value)


def _define(model: ir.Model, text: str) -> None:
    function = ir.from_proto(onnx.parser.parse_function(text))
    assert isinstance(function, ir.Function)
    model.functions[function.identifier()] = function
    model.opset_imports[_DOMAIN] = 1
