"""QONNX's quantizers, rewritten as QuantizeLinear and DequantizeLinear.

Source: Pappalardo et al., "QONNX: Representing Arbitrary-Precision Quantized Neural Networks", 2022, section 3, and the
operators' pages of the qonnx package 1.0 (docs/qonnx-custom-ops). Real numbers go in and come out:

    Quant         (round(clip(x / scale + zero_point, lowest, highest)) - zero_point) * scale
    BipolarQuant  scale where x >= 0, else -scale
    Trunc         round(x / scale + zero_point) / 2^(bits dropped), rounded as the node says, then as Quant ends

What has a counterpart in Q/DQ becomes one: constants of up to 32 bits, however they are rounded, and values on the way
of 2 to 16 bits with one scale or one along an axis, rounded to the nearest. Widths that ONNX has no type for lie in the
next wider one behind a Clip to their levels. Everything else (other roundings, one bit, more than 16 bits, zero points
that are no integers, scales computed on the way or along several axes, Trunc) is spelled out in ordinary operators,
which compute the same. The one difference: a value half way between two levels goes to the even one, counted from the
zero point by QuantizeLinear, from level 0 by Quant, so that a tie can differ by a step where a zero point is odd.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import PerTensor
from narrowgauge.core.numbers import IntegerType
from narrowgauge.errors import ModelError
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.edits import all_nodes, graph_of, remove_unused, take_place
from narrowgauge.graph.quantized import is_qonnx_operator
from narrowgauge.graph.shapes import infer_shapes, rank
from narrowgauge.importers.rewriting import Parameters, Rewriter
from narrowgauge.passes.fold_constants import fold_constants

Array = npt.NDArray[Any]


def to_qdq(model: ir.Model) -> ir.Model:
    """Rewrite QONNX's quantizers; see the module.

    Args:
        model: its constants are initializers; it is not changed.

    Returns:
        A network of the same inputs, outputs and value names, in standard operators.

    Raises:
        ModelError: a quantizer is none of these, or lacks an input.
    """
    network = model.clone()
    fold_constants(network)
    rewriter = Rewriter(network)
    nodes = [node for node in all_nodes(network) if is_qonnx_operator(node)]
    for node in nodes:
        if node.op_type not in _RULES:
            raise ModelError(
                f"node {node.name!r}: the operator {node.op_type} of {node.domain} is not supported; expected one of "
                f"{', '.join(_RULES)}; remove it or export the network without it"
            )
        result = _RULES[node.op_type](rewriter, node)
        take_place(result, node.outputs[0])
    for domain in {node.domain for node in nodes} - {node.domain for node in all_nodes(network)}:
        network.opset_imports.pop(domain, None)
    remove_unused(network)
    return network


# --- roundings ---


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rounding:
    """How numbers become integers.

    Attributes:
        function: of ONNX: Round (halves to even), Floor or Ceil.
        sized: it is applied to the number without its sign, which it gets back.
        shift: added before.
    """

    function: str = "Round"
    sized: bool = False
    shift: float = 0.0


_NEAREST = _Rounding()
_ROUNDINGS = {
    "ROUND": _NEAREST,
    "HALF_EVEN": _NEAREST,
    "CEIL": _Rounding(function="Ceil"),
    "FLOOR": _Rounding(function="Floor"),
    "UP": _Rounding(function="Ceil", sized=True),
    "DOWN": _Rounding(function="Floor", sized=True),
    "HALF_UP": _Rounding(function="Floor", sized=True, shift=0.5),
    "HALF_DOWN": _Rounding(function="Ceil", sized=True, shift=-0.5),
}
_FUNCTIONS: Mapping[str, Callable[[Array], Array]] = {"Round": np.rint, "Floor": np.floor, "Ceil": np.ceil}


def _rounding(node: ir.Node, default: str) -> _Rounding:
    name = node.attributes.get_string("rounding_mode", default).upper()
    if name not in _ROUNDINGS:
        raise ModelError(
            f"node {node.name!r} ({node.op_type}): expected a rounding_mode of {', '.join(_ROUNDINGS)}, got {name!r}"
        )
    return _ROUNDINGS[name]


def _round_constant(rounding: _Rounding, array: Array) -> Array:
    function = _FUNCTIONS[rounding.function]
    if rounding.sized:
        return np.sign(array) * function(np.abs(array) + np.float32(rounding.shift))
    return function(array)


# --- one quantizer ---


@dataclass(frozen=True, kw_only=True, slots=True)
class _Quantizer:
    """A Quant node.

    Attributes:
        node: the node.
        bits: width; None where it is computed on the way.
        signed: whether there are negative levels.
        narrow: the level that has no counterpart of the other sign is left out; of an unsigned type the highest.
        rounding: to integers.
        scale: numbers, None where they are computed on the way.
        zero_point: likewise.
    """

    node: ir.Node
    bits: int | None
    signed: bool
    narrow: bool
    rounding: _Rounding
    scale: Array | None
    zero_point: Array | None

    @property
    def lowest(self) -> int:
        """Lowest level."""
        return -(1 << (self.some_bits - 1)) + int(self.narrow) if self.signed else 0

    @property
    def highest(self) -> int:
        """Highest level."""
        if self.signed:
            return (1 << (self.some_bits - 1)) - 1
        return (1 << self.some_bits) - 1 - int(self.narrow)

    @property
    def some_bits(self) -> int:
        """Width that is known."""
        assert self.bits is not None
        return self.bits

    @property
    def is_bipolar(self) -> bool:
        """Whether the levels are -1 and 1."""
        return self.bits == 1 and self.signed

    def levels(self, array: Array) -> Array:
        """Return the levels of real numbers, computed in float32 as QONNX does, as float64."""
        assert self.scale is not None
        assert self.zero_point is not None
        with np.errstate(over="ignore"):  # what overflows is cut to the levels
            steps = (array / self.scale + self.zero_point).astype(np.float32)
        if self.is_bipolar:
            return np.where(steps >= 0, 1.0, -1.0)
        rounded = _round_constant(self.rounding, np.clip(steps, np.float32(self.lowest), np.float32(self.highest)))
        return np.clip(rounded.astype(np.float64), self.lowest, self.highest)  # the highest of 32 bits is no float32


def _read(node: ir.Node) -> _Quantizer:
    if len([value for value in node.inputs if value is not None]) < 4:
        raise ModelError(
            f"node {node.name!r} ({node.op_type}): expected the inputs x, scale, zero point and bit width, got "
            f"{len(node.inputs)}; the network is damaged"
        )
    scale, zero_point, width = (constant_array(value) for value in node.inputs[1:4])
    bits = None
    if width is not None:
        bits = int(width.reshape(-1)[0]) if width.size == 1 and np.isfinite(width).all() else 0
        if not 1 <= bits <= 64 or width.reshape(-1)[0] != bits:
            raise ModelError(f"node {node.name!r} ({node.op_type}): expected one whole bit width, got {width.tolist()}")
    return _Quantizer(
        node=node,
        bits=bits,
        signed=bool(node.attributes.get_int("signed", 1)),
        narrow=bool(node.attributes.get_int("narrow", 0)),
        rounding=_rounding(node, "ROUND"),
        scale=scale,
        zero_point=zero_point,
    )


def _quant(rewriter: Rewriter, node: ir.Node) -> ir.Value:
    quantizer = _read(node)
    array = constant_array(node.inputs[0])
    axes = array.ndim if array is not None else _rank(rewriter, quantizer)
    parameters = _parameters(quantizer, axes)
    if parameters is not None and array is not None and array.size and _fits_constant(quantizer, parameters):
        return _constant_pair(rewriter, quantizer, array, parameters)
    if parameters is not None and array is None and _fits_pair(quantizer, parameters):
        return _pair(rewriter, quantizer, parameters)
    return _spelled_quant(rewriter, quantizer)


def _rank(rewriter: Rewriter, quantizer: _Quantizer) -> int | None:
    """Return the number of axes of a value that is quantized along one; QONNX's nodes hide it from shape inference."""
    value = quantizer.node.inputs[0]
    several = [one for one in (quantizer.scale, quantizer.zero_point) if one is not None and one.size > 1]
    if several and rank(value) is None:
        infer_shapes(rewriter.model)
    return rank(value)


@dataclass(frozen=True, slots=True)
class _Parameters:
    """Scale and zero point, one number or one for each index of `axis`."""

    scale: Array
    zero_point: Array
    axis: int


def _parameters(quantizer: _Quantizer, axes: int | None) -> _Parameters | None:
    """Return scale and zero point as Q/DQ takes them; None where it cannot."""
    scale, zero_point = quantizer.scale, quantizer.zero_point
    if scale is None or zero_point is None or quantizer.bits is None:
        return None
    if not (np.isfinite(scale).all() and (scale > 0).all() and (zero_point == np.rint(zero_point)).all()):
        return None
    scale, zero_point = np.broadcast_arrays(scale.astype(np.float32), zero_point)
    if scale.size <= 1:
        return _Parameters(scale.reshape(()), zero_point.reshape(()), 0) if scale.size else None
    spread = [place for place, size in enumerate(scale.shape) if size > 1]
    if axes is None or scale.ndim > axes or len(spread) > 1:
        return None
    return _Parameters(scale.reshape(-1), zero_point.reshape(-1), axes - scale.ndim + spread[0])


def _fits_constant(quantizer: _Quantizer, parameters: _Parameters) -> bool:
    """Whether ONNX has a type for the levels; levels of 32 bits must count from zero."""
    if quantizer.highest > np.iinfo(np.int32).max:
        return False
    kind = _constant_type(quantizer)
    return not parameters.zero_point.any() or (kind != np.int32 and _holds(kind, parameters.zero_point))


def _fits_pair(quantizer: _Quantizer, parameters: _Parameters) -> bool:
    return (
        2 <= quantizer.some_bits <= 16
        and quantizer.rounding == _NEAREST
        and _holds(_container(quantizer), parameters.zero_point)
    )


def _holds(kind: np.dtype[Any], zero_point: Array) -> bool:
    return bool(np.array_equal(zero_point.astype(kind).astype(np.float64), zero_point.astype(np.float64)))


def _container(quantizer: _Quantizer) -> np.dtype[Any]:
    """Return the type for levels of a value on the way; of 4 bits 8, because ONNX Runtime loads no Clip before 4."""
    width = 8 if quantizer.some_bits <= 8 else 16
    return np.dtype(f"{'int' if quantizer.signed else 'uint'}{width}")


def _constant_type(quantizer: _Quantizer) -> np.dtype[Any]:
    if quantizer.some_bits == 4:
        four_bits: type[np.generic] = ml_dtypes.int4 if quantizer.signed else ml_dtypes.uint4
        return np.dtype(four_bits)
    if quantizer.some_bits > 16:
        return np.dtype(np.int32)
    return _container(quantizer)


def _constant_pair(rewriter: Rewriter, quantizer: _Quantizer, array: Array, parameters: _Parameters) -> ir.Value:
    """Write a constant as levels behind a DequantizeLinear."""
    node, source = quantizer.node, quantizer.node.inputs[0]
    assert source is not None
    kind = _constant_type(quantizer)
    levels = quantizer.levels(array).astype(kind)
    value = rewriter.constant(graph_of(node), f"{source.name}_quantized", levels)
    return rewriter.dequantize(node, value, _constants(rewriter, node, parameters, kind))


def _constants(rewriter: Rewriter, node: ir.Node, parameters: _Parameters, kind: np.dtype[Any]) -> Parameters:
    graph, name = graph_of(node), node.outputs[0].name
    return Parameters(
        scale=rewriter.constant(graph, f"{name}_scale", np.array(parameters.scale)),
        zero_point=rewriter.constant(graph, f"{name}_zero_point", parameters.zero_point.astype(kind)),
        axis=parameters.axis,
    )


def _pair(rewriter: Rewriter, quantizer: _Quantizer, parameters: _Parameters) -> ir.Value:
    """Write a value on the way as a QuantizeLinear and a DequantizeLinear, behind a Clip of a narrower type."""
    node, source = quantizer.node, quantizer.node.inputs[0]
    assert source is not None
    kind = _container(quantizer)
    limits = np.iinfo(kind)
    if (quantizer.lowest, quantizer.highest) != (limits.min, limits.max):
        source = _cut(rewriter, quantizer, parameters, source)
    constants = _constants(rewriter, node, parameters, kind)
    levels = rewriter.quantize(node, source, constants, ir.DataType.from_numpy(kind))
    return rewriter.dequantize(node, levels, constants)


def _cut(rewriter: Rewriter, quantizer: _Quantizer, parameters: _Parameters, source: ir.Value) -> ir.Value:
    """Cut a value to the real numbers at the ends of its levels."""
    node, graph = quantizer.node, graph_of(quantizer.node)
    low, high = _ends(quantizer, parameters)
    if low.ndim == 0:
        bounds = [
            rewriter.constant(graph, f"{node.name}_{which}", one) for which, one in (("low", low), ("high", high))
        ]
        return rewriter.add(node, "Clip", [source, *bounds], wanted=f"{node.name}_saturate")
    axes = rank(source)
    assert axes is not None
    shape = [-1 if place == parameters.axis else 1 for place in range(axes)]
    for operator, bound in (("Max", low), ("Min", high)):
        constant = rewriter.constant(graph, f"{node.name}_{operator.lower()}imum", bound.reshape(shape))
        source = rewriter.add(node, operator, [source, constant], wanted=f"{node.name}_saturate")
    return source


def _ends(quantizer: _Quantizer, parameters: _Parameters) -> tuple[Array, Array]:
    scale, zero_point = parameters.scale, parameters.zero_point.astype(np.int32)
    if scale.ndim == 0 and not (quantizer.narrow and not quantizer.signed):
        # The numbers that the encoding of this type has, bit for bit, so that the Clip is known again for it.
        kind = IntegerType(bits=quantizer.some_bits, signed=quantizer.signed, narrow=quantizer.narrow)
        if kind.minimum <= int(zero_point) <= kind.maximum:
            encoding = Encoding(type=kind, granularity=PerTensor(), scale=scale, zero_point=zero_point)
            return np.asarray(encoding.minimum), np.asarray(encoding.maximum)
    ends = [(level - zero_point).astype(np.float32) * scale for level in (quantizer.lowest, quantizer.highest)]
    return np.asarray(ends[0], dtype=np.float32), np.asarray(ends[1], dtype=np.float32)


# --- spelled out ---


@dataclass(frozen=True, kw_only=True, slots=True)
class _Spelling:
    """Writes ordinary operators before a node."""

    rewriter: Rewriter
    node: ir.Node

    def add(self, operator: str, *inputs: ir.Value | float | None) -> ir.Value:
        """Add an operator; numbers become constants."""
        return self.rewriter.add(
            self.node, operator, [self.value(one) for one in inputs], wanted=f"{self.node.name}_{operator.lower()}"
        )

    def value(self, one: ir.Value | float | None) -> ir.Value | None:
        """Return a number as a constant."""
        if one is None or isinstance(one, ir.Value):
            return one
        array = np.asarray(one, dtype=np.float32)
        return self.rewriter.constant(graph_of(self.node), f"{self.node.name}_number", array)

    def rounded(self, value: ir.Value, rounding: _Rounding) -> ir.Value:
        """Round to integers."""
        if not rounding.sized:
            return self.add(rounding.function, value)
        size = self.add("Abs", value)
        if rounding.shift:
            size = self.add("Add", size, rounding.shift)
        return self.add("Mul", self.add("Sign", value), self.add(rounding.function, size))

    def chosen(self, value: ir.Value, positive: ir.Value | float, negative: ir.Value | float) -> ir.Value:
        """Choose by sign; zero counts as positive."""
        condition = self.add("GreaterOrEqual", value, 0.0)
        condition.type = ir.TensorType(ir.DataType.BOOL)
        return self.add("Where", condition, positive, negative)


def _spelled_quant(rewriter: Rewriter, quantizer: _Quantizer) -> ir.Value:
    node = quantizer.node
    spelling = _Spelling(rewriter=rewriter, node=node)
    data, scale, zero_point = node.inputs[:3]
    if quantizer.bits is None:
        raise ModelError(
            f"node {node.name!r} ({node.op_type}): its bit width {node.inputs[3].name if node.inputs[3] else ''!r} is "
            "computed by the network; expected a constant; export the network with fixed bit widths"
        )
    steps = spelling.add("Add", spelling.add("Div", data, scale), zero_point)
    if quantizer.is_bipolar:
        levels = spelling.chosen(steps, 1.0, -1.0)
    else:
        cut = spelling.add("Clip", steps, float(quantizer.lowest), float(quantizer.highest))
        levels = spelling.rounded(cut, quantizer.rounding)
    return spelling.add("Mul", spelling.add("Sub", levels, zero_point), scale)


def _bipolar(rewriter: Rewriter, node: ir.Node) -> ir.Value:
    if len(node.inputs) < 2 or node.inputs[0] is None or node.inputs[1] is None:
        raise ModelError(f"node {node.name!r} (BipolarQuant): expected the inputs x and scale; the network is damaged")
    array, scale = constant_array(node.inputs[0]), constant_array(node.inputs[1])
    if array is not None and array.size and scale is not None:
        quantizer = _Quantizer(
            node=node, bits=1, signed=True, narrow=False, rounding=_NEAREST, scale=scale,
            zero_point=np.zeros((), dtype=np.float32),
        )  # fmt: skip
        parameters = _parameters(quantizer, array.ndim)
        if parameters is not None:
            return _constant_pair(rewriter, quantizer, array, parameters)
    spelling = _Spelling(rewriter=rewriter, node=node)
    return spelling.chosen(node.inputs[0], node.inputs[1], spelling.add("Neg", node.inputs[1]))


def _trunc(rewriter: Rewriter, node: ir.Node) -> ir.Value:
    """Spell out Trunc: of version 1 with five inputs, or of version 2 with the output's scale among six."""
    count = len([value for value in node.inputs if value is not None])
    if count not in (5, 6):
        raise ModelError(f"node {node.name!r} (Trunc): expected 5 or 6 inputs, got {count}; the network is damaged")
    numbers = [constant_array(value) for value in node.inputs[1:count]]
    known = [number for number in numbers if number is not None]
    if len(known) < len(numbers) or any(number.size != 1 for number in known):
        raise ModelError(
            f"node {node.name!r} (Trunc): expected one constant number in each input behind the first; export the "
            "network with fixed scales"
        )
    scale, zero_point, bits, *rest = (float(number.reshape(())) for number in known)
    rounding = _rounding(node, "FLOOR")
    spelling = _Spelling(rewriter=rewriter, node=node)
    steps = spelling.add("Round", spelling.add("Add", spelling.add("Div", node.inputs[0], scale), zero_point))
    if count == 5:
        divided = spelling.add("Div", steps, 2.0 ** (bits - rest[0]))
        levels = spelling.rounded(divided, rounding)
        return spelling.add("Mul", spelling.add("Sub", levels, zero_point), scale)
    output_scale, width = rest[0], int(rest[1])
    factor = float(2.0 ** np.rint(np.log2(output_scale / scale)))
    signed, narrow = bool(node.attributes.get_int("signed", 1)), bool(node.attributes.get_int("narrow", 0))
    ends = _Quantizer(
        node=node, bits=width, signed=signed, narrow=narrow, rounding=rounding, scale=None, zero_point=None
    )
    cut = spelling.add("Clip", spelling.add("Div", steps, factor), float(ends.lowest), float(ends.highest))
    levels = spelling.rounded(cut, rounding)
    return spelling.add("Mul", spelling.add("Sub", levels, zero_point / factor), output_scale)


_RULES: Mapping[str, Callable[[Rewriter, ir.Node], ir.Value]] = {
    "Quant": _quant,
    "IntQuant": _quant,
    "BipolarQuant": _bipolar,
    "Trunc": _trunc,
}
