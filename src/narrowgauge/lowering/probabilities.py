"""Rounding what Softmax writes to levels that are not affine, in ordinary operators of ONNX, which has none for it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from narrowgauge.core.encoding import LogEncoding, NormalizedEncoding
from narrowgauge.core.numbers import IntegerType
from narrowgauge.graph.constants import constant_array, constant_scalar
from narrowgauge.graph.edits import is_operator, new_node
from narrowgauge.lowering.parameters import Parameters

# Float32 logarithms of the ratios where a level begins may come out below an integer by 2e-6; the next ratio below
# lies 4e-5 under it, up to the level 15.
_GUARD = 1e-5

_SHARES = ("Cast", "Round", "Mul", "Div")
_LOGARITHM = ("Cast", "Clip", "Floor", "Add", "Mul", "Log")
_RATIO = ("Mul", "Floor", "Add", "Reciprocal")
"""From levels back to the value: of shares, of a logarithm, and of the ratio that it may be taken of."""

_OPERATORS = {*_SHARES, *_LOGARITHM, *_RATIO, "Max", "ReduceMax", "ReduceSum", "Gather"}

_ENCODING = "encoding"
"""In the metadata of levels."""


def logarithm_nodes(value: ir.Value, encoding: LogEncoding, parameters: Parameters) -> list[ir.Node]:
    """Build what rounds a value to levels `x_quantized` (uint8) and looks their real numbers up in a table.

    The levels are those of `core.logarithmic.quantize_logarithm`, computed in float32; where rows are normalized, of
    each number over the greatest of its row, and what is looked up is divided by the sum of its row.

    Args:
        value: the value, numbers of 0 to 1.
        encoding: which logarithm.
        parameters: of the network.

    Returns:
        The nodes in order; the last one writes the rounded numbers.
    """
    steps = _Steps(value=value, parameters=parameters)
    octaves = 2.0**encoding.octave_bits / math.log(2)
    last = steps.of_greatest(value) if encoding.normalized else value
    if encoding.threshold == "three_halves":
        last = steps.add("Floor", steps.add("Add", steps.add("Reciprocal", last), steps.number("half", 0.5)))
        last = steps.add("Log", steps.add("Mul", last, steps.number("four_thirds", 4 / 3)))
        last = steps.add("Add", steps.add("Mul", last, steps.number("octaves", octaves)), steps.number("guard", _GUARD))
    else:
        last = steps.add("Mul", steps.add("Log", last), steps.number("octaves", -octaves))
        last = steps.add("Add", last, steps.number("half", 0.5))
    last = steps.add("Floor", last)
    last = steps.add("Clip", last, steps.number("lowest", 0), steps.number("highest", encoding.type.maximum))
    levels = steps.levels(last, ir.DataType.UINT8)
    table = parameters.constant(f"{value.name}_values", encoding.values)
    found = steps.add("Gather", table, steps.add("Cast", levels, to=ir.DataType.INT32))
    if encoding.normalized:
        steps.over_sum(found)
    return steps.nodes


def shares_nodes(value: ir.Value, encoding: NormalizedEncoding, parameters: Parameters) -> list[ir.Node]:
    """Build what rounds shares of a whole to levels `x_quantized` and divides these by the sums of their rows.

    `level = round(highest x / max(row))`, half to even; a row of zeros stays one.

    Args:
        value: the value, not negative, its rows along the last axis.
        encoding: how many levels.
        parameters: of the network.

    Returns:
        The nodes in order; the last one writes the rounded numbers.
    """
    steps = _Steps(value=value, parameters=parameters)
    highest = steps.number("highest", encoding.type.maximum)
    rounded = steps.add("Round", steps.add("Mul", steps.of_greatest(value), highest))
    levels = steps.levels(rounded, ir.DataType.from_numpy(encoding.type.storage))
    steps.over_sum(steps.add("Cast", levels, to=ir.DataType.FLOAT))
    return steps.nodes


@dataclass(kw_only=True, slots=True)
class _Steps:
    """Nodes that round one value, in order."""

    value: ir.Value
    parameters: Parameters
    nodes: list[ir.Node] = field(default_factory=list)

    def number(self, suffix: str, real: float) -> ir.Value:
        return self.parameters.constant(f"{self.value.name}_{suffix}", np.asarray(real, dtype=np.float32))

    def add(self, operator: str, *inputs: ir.Value, to: ir.DataType | None = None) -> ir.Value:
        name = self.parameters.name(f"{self.value.name}_{operator.lower()}")
        node = new_node(operator, inputs, {} if to is None else {"to": to}, name=name, like=self.value)
        node.outputs[0].type = ir.TensorType(to or ir.DataType.FLOAT)
        self.nodes.append(node)
        return node.outputs[0]

    def levels(self, rounded: ir.Value, kind: ir.DataType) -> ir.Value:
        """Write levels under the name that levels of the value have in every form."""
        levels = self.add("Cast", rounded, to=kind)
        levels.name = self.parameters.name(f"{self.value.name}_quantized")
        return levels

    def of_greatest(self, value: ir.Value) -> ir.Value:
        """Divide each number by the greatest of its row."""
        return self.add("Div", value, self._of_row("ReduceMax", value))

    def over_sum(self, value: ir.Value) -> ir.Value:
        """Divide each number by the sum of its row."""
        return self.add("Div", value, self._of_row("ReduceSum", value))

    def _of_row(self, operator: str, value: ir.Value) -> ir.Value:
        axis = self.parameters.constant(f"{self.value.name}_rows", np.array([-1], dtype=np.int64))
        least = self.number("least", float(np.finfo(np.float32).tiny))
        row = self.add("Max", self.add(operator, value, axis), least)  # a reduction keeps the axis
        for node in self.nodes[-2:]:
            node.outputs[0].shape = None
        return row


def logarithm_of(value: ir.Value | None) -> tuple[ir.Value, LogEncoding] | None:
    """Return the levels and the encoding behind a value that `logarithm_nodes` looked up, None for any other."""
    normalized = value is not None and is_operator(value.producer(), "Div")
    found = _before(value, "Div") if normalized else value
    gather, levels = found.producer() if found is not None else None, _looked_up(found)
    table = constant_array(gather.inputs[0]) if gather is not None and levels is not None else None
    if table is None or levels is None or _through(levels, "Cast", "Clip") is None:
        return None
    bits = len(table).bit_length() - 1
    if table.ndim != 1 or len(table) != 2**bits or not 2 <= bits <= 8 or not 0 < table[1] < 1:
        return None
    three_halves = _through(levels, *_LOGARITHM, *_RATIO) is not None
    encoding = LogEncoding(
        type=IntegerType(bits=bits, signed=False), octave_bits=round(-math.log2(-math.log2(float(table[1])))),
        threshold="three_halves" if three_halves else "square_root_of_two", normalized=normalized,
    )  # fmt: skip
    return (levels, encoding) if np.array_equal(encoding.values, table) else None


def shares_of(value: ir.Value | None) -> tuple[ir.Value, NormalizedEncoding] | None:
    """Return the levels and the encoding behind a value that `shares_nodes` divided, None for any other."""
    levels = _shared(value)
    scaled = _through(levels, "Cast", "Round")
    product = scaled.producer() if scaled is not None else None
    if levels is None or product is None or not is_operator(product, "Mul"):
        return None
    highest = constant_scalar(product.inputs[1])
    bits = round(math.log2(highest + 1)) if highest is not None and highest >= 1 else 0
    if highest != 2**bits - 1 or not 2 <= bits <= 16:
        return None
    return levels, NormalizedEncoding(type=IntegerType(bits=bits, signed=False))


def probabilities_of(value: ir.Value | None) -> tuple[ir.Value, LogEncoding | NormalizedEncoding] | None:
    """Return the levels and the encoding behind a value that the nodes of either kind wrote, None for any other.

    Where something else writes the levels by now, it has said what they are (`keep_encoding`).
    """
    levels = _shared(value) or _looked_up(value)
    kept = levels.meta.get(_ENCODING) if levels is not None else None
    if levels is not None and kept is not None:
        return levels, kept
    return shares_of(value) or logarithm_of(value)


def probabilities_behind(value: ir.Value) -> tuple[ir.Value, LogEncoding | NormalizedEncoding] | None:
    """Return the levels that such nodes round a value to, and the encoding; None where none do."""
    reached, seen = [value], {value}
    for one in reached:
        found = probabilities_of(one)
        if found is not None and _source(*found) is value:
            return found
        readers = [use.node for use in one.uses() if is_operator(use.node, *_OPERATORS)]
        following = [node.outputs[0] for node in readers if node.outputs[0] not in seen]
        seen.update(following)
        reached.extend(following)
    return None


def keep_encoding(levels: ir.Value, encoding: LogEncoding | NormalizedEncoding) -> None:
    """Say of levels that other nodes write what they stand for, while a network is being lowered."""
    levels.meta[_ENCODING] = encoding


def is_kept(levels: ir.Value) -> bool:
    """Whether other nodes write levels: `keep_encoding` was called."""
    return _ENCODING in levels.meta


def _source(levels: ir.Value, encoding: LogEncoding | NormalizedEncoding) -> ir.Value | None:
    """Return the value that nodes round to levels."""
    if isinstance(encoding, NormalizedEncoding):
        return _through(levels, *_SHARES)
    ratio = _RATIO if encoding.threshold == "three_halves" else ()
    return _through(levels, *_LOGARITHM, *ratio, *(("Div",) if encoding.normalized else ()))


def _shared(value: ir.Value | None) -> ir.Value | None:
    """Return the levels of what is divided by the sum of its row."""
    division = value.producer() if value is not None else None
    parts = division.inputs[0] if division is not None and is_operator(division, "Div") else None
    if division is None or parts is None or _through(division.inputs[1], "Max", "ReduceSum") is not parts:
        return None
    return _before(parts, "Cast") or _looked_up(parts)


def _looked_up(value: ir.Value | None) -> ir.Value | None:
    """Return the levels by which a value was looked up in a table."""
    gather = value.producer() if value is not None else None
    return _before(gather.inputs[1], "Cast") if gather is not None and is_operator(gather, "Gather") else None


def _through(value: ir.Value | None, *operators: str) -> ir.Value | None:
    """Go back from a value through what these operators read first, the last one first; None where others stand."""
    for operator in operators:
        value = _before(value, operator)
    return value


def _before(value: ir.Value | None, operator: str) -> ir.Value | None:
    node = value.producer() if value is not None else None
    return node.inputs[0] if node is not None and is_operator(node, operator) else None
