"""From pairs of QuantizeLinear and DequantizeLinear to a float network whose roundings are marked.

Each pair becomes an Identity, the marker, that stands for the rounding, and an encoding; constants become real numbers
with an encoding. `prequantized` then sees which markers a plan can do without.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.core.arithmetic import dequantize, quantize
from narrowgauge.core.encoding import AnyEncoding, DynamicEncoding, Encoding
from narrowgauge.core.granularity import Granularity, PerAxis, PerBlock, PerTensor, normalized_axis
from narrowgauge.core.numbers import IntegerType, integer_type
from narrowgauge.errors import ModelError, PlanError
from narrowgauge.graph.constants import constant_array, constant_tensor
from narrowgauge.graph.edits import all_nodes, is_operator, remove_unused, sole_consumer
from narrowgauge.graph.roles import is_constant
from narrowgauge.graph.shapes import rank
from narrowgauge.importers.rewriting import Parameters, Rewriter, parameters_of, real_name

_TYPES = {
    kind: integer_type(kind.name)
    for kind in (
        ir.DataType.INT2, ir.DataType.UINT2, ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT8, ir.DataType.UINT8,
        ir.DataType.INT16, ir.DataType.UINT16,
    )
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredBias:
    """A constant of 32 bits, as the file has it.

    Attributes:
        levels: its integers.
        scale: real value of one.
        zero_point: level of real 0.
    """

    levels: npt.NDArray[np.int64]
    scale: npt.NDArray[np.float32]
    zero_point: npt.NDArray[np.int64]


@dataclass(kw_only=True, slots=True)
class Roundings:
    """A network without pairs, and what they were.

    Attributes:
        markers: Identity nodes that stand for a rounding of an activation, in the network's order.
        constants: float initializers that hold the real numbers of integers.
        biases: float initializers that hold those of integers of 32 bits.
    """

    markers: dict[ir.Node, AnyEncoding] = field(default_factory=dict)
    constants: dict[ir.Value, Encoding] = field(default_factory=dict)
    biases: dict[ir.Value, StoredBias] = field(default_factory=dict)

    def rounded(self, value: ir.Value | None) -> bool:
        """Whether a value holds numbers that were rounded to levels."""
        return value is not None and (value.producer() in self.markers or value in self.constants)


def mark_roundings(rewriter: Rewriter) -> Roundings:
    """Replace every pair of the main graph, in place, and return what stood there.

    A pair whose scale is found at run time, or that stands in the body of If or Loop, stays in the network as it is:
    a plan has no word for it. So does one to floating-point numbers of 8 bits. A note says so.

    Raises:
        ModelError: something other than a DequantizeLinear reads integers; the node is named.
    """
    marking = _Marking(rewriter=rewriter, graph=rewriter.model.graph, found=Roundings())
    marking.fold_constants()
    marking.mark_all()
    remove_unused(rewriter.model)
    for marker in [node for node in marking.found.markers if node.graph is None]:  # nothing read it
        del marking.found.markers[marker]
    marking.note_what_stays()
    return marking.found


@dataclass(kw_only=True, slots=True)
class _Marking:
    rewriter: Rewriter
    graph: ir.Graph
    found: Roundings
    made: dict[object, ir.Value] = field(default_factory=dict)  # what a constant is -> its float initializer

    # --- constants ---

    def fold_constants(self) -> None:
        for node in list(self.graph):
            if is_operator(node, "QuantizeLinear"):
                self.fold_quantize(node)
        for node in list(self.graph):
            if is_operator(node, "DequantizeLinear") and constant_array(node.inputs[0]) is not None:
                self.fold_dequantize(node)

    def fold_quantize(self, node: ir.Node) -> None:
        """Round a constant now: fake-quantized weights become the integers that they stand for."""
        value = node.inputs[0]
        array = constant_array(value)
        encoding = self.encoding(node, value) if array is not None and array.dtype == np.float32 else None
        if array is None or value is None or encoding is None or node.outputs[0].is_graph_output():
            return
        levels = quantize(array, encoding).astype(_array_type(node.outputs[0]))
        constant = self.rewriter.constant(self.graph, f"{value.name}_quantized", levels)
        node.outputs[0].replace_all_uses_with(constant)
        self.graph.remove(node, safe=True)
        if not value.uses() and not value.is_graph_output() and value.is_initializer():
            del self.graph.initializers[str(value.name)]
            self.rewriter.taken.discard(str(value.name))

    def fold_dequantize(self, node: ir.Node) -> None:
        levels = node.inputs[0]
        tensor = constant_tensor(levels)
        assert levels is not None
        assert tensor is not None
        parameters = parameters_of(node)
        scale, zero_point = constant_array(parameters.scale), constant_array(parameters.zero_point)
        if scale is None or (parameters.zero_point is not None and zero_point is None):
            return
        zeros = b"" if zero_point is None else zero_point.tobytes()
        key = (levels, scale.tobytes(), scale.shape, zeros, parameters.axis, parameters.block_size)
        constant = self.made.get(key)
        if constant is None:
            constant = self.constant(node, levels, tensor, parameters)
            if constant is None:
                return
            self.made[key] = constant
        self.give(node, constant)

    def constant(
        self, node: ir.Node, levels: ir.Value, tensor: ir.TensorProtocol, parameters: Parameters
    ) -> ir.Value | None:
        """Add the real numbers that constant levels stand for; None for levels that are no integers."""
        if tensor.dtype == ir.DataType.INT32:
            return self.bias(node, levels, tensor, parameters)
        encoding = self.encoding(node, levels) if tensor.dtype in _TYPES else None
        if encoding is None:
            return None
        try:
            real = dequantize(tensor.numpy().astype(np.int64), encoding)
        except PlanError as error:
            raise ModelError(f"node {node.name!r} ({node.op_type}): {error}; the network is damaged") from None
        if not np.isfinite(real).all():
            raise ModelError(f"the weight {levels.name!r} times its scale is beyond float32; it is damaged")
        constant = self.rewriter.constant(self.graph, self.name_of(levels, node), real)
        self.found.constants[constant] = encoding
        return constant

    def name_of(self, levels: ir.Value, node: ir.Node) -> str:
        """Name of a constant's real numbers: that of the levels without what tools put behind it."""
        wanted = real_name(levels)
        if node.outputs[0].name == wanted and not node.outputs[0].is_graph_output():
            node.outputs[0].name = self.rewriter.name(f"{wanted}_dequantized")
            self.rewriter.taken.discard(wanted)
        return wanted

    def bias(
        self, node: ir.Node, levels: ir.Value, tensor: ir.TensorProtocol, parameters: Parameters
    ) -> ir.Value | None:
        scale, zeros = constant_array(parameters.scale), constant_array(parameters.zero_point)
        if scale is None or parameters.block_size or not np.isfinite(scale).all():
            return None
        integers = tensor.numpy().astype(np.int64)
        shape = _spread_shape(scale, integers.ndim, parameters.axis)
        zero_point = np.zeros((), np.int64) if zeros is None else zeros.astype(np.int64)
        if scale.size > 1 and shape is None:
            return None
        spread_scale = np.asarray(scale, np.float32).reshape(shape or ())
        spread_zeros = zero_point.reshape(shape or ()) if zero_point.size == scale.size else zero_point
        real = _nearest_real(integers - spread_zeros, spread_scale)
        constant = self.rewriter.constant(self.graph, self.name_of(levels, node), real)
        stored = StoredBias(
            levels=integers,
            scale=np.array(np.broadcast_to(spread_scale, integers.shape)),
            zero_point=np.array(np.broadcast_to(spread_zeros, integers.shape)),
        )
        self.found.biases[constant] = stored
        return constant

    def give(self, node: ir.Node, constant: ir.Value) -> None:
        """Let a constant take a node's output's place; a graph output gets an Identity of its name."""
        result = node.outputs[0]
        if result.is_graph_output():
            node.op_type, node.name = "Identity", self.rewriter.name(f"{result.name}_constant")
            node.attributes.clear()
            node.resize_inputs(1)
            node.replace_input_with(0, constant)
            return
        result.replace_all_uses_with(constant)
        self.graph.remove(node, safe=True)

    # --- activations ---

    def mark_all(self) -> None:
        for value in list(self.graph.inputs):
            self.make_input_real(value)
        for node in list(self.graph):
            if is_operator(node, "QuantizeLinear"):
                self.mark(node)
            elif is_operator(node, "DynamicQuantizeLinear"):
                self.mark_dynamic(node)

    def make_input_real(self, value: ir.Value) -> None:
        """Let an input of integers be one of real numbers, rounded by its first DequantizeLinear's scale."""
        readers = [use.node for use in value.uses()]
        if value.dtype not in _TYPES or not readers or not all(is_operator(one, "DequantizeLinear") for one in readers):
            return
        encoding = self.encoding(readers[0], value)
        if encoding is None:
            return
        self.rewriter.note(
            f"input {value.name!r} of the given network takes integers of {encoding.type.name}; here it takes the real "
            "numbers that they stand for"
        )
        value.type = ir.TensorType(ir.DataType.FLOAT)
        marker = self.marker(value, encoding, before=self.graph[0])
        for reader in readers:
            self.take(reader, marker, encoding)

    def mark(self, node: ir.Node) -> None:
        source, levels = node.inputs[0], node.outputs[0]
        encoding = self.encoding(node, source)
        readers = [use.node for use in levels.uses()]
        if source is None or encoding is None or not self.all_readable(readers):
            return
        source, encoding = self.unclipped(source, encoding, node)
        marker = self.known_marker(source, encoding) or self.marker(source, encoding, before=node)
        for reader in readers:
            self.take(reader, marker, encoding)
        if levels.is_graph_output():
            self.rewriter.note(
                f"output {levels.name!r} of the given network gives integers of {encoding.type.name}; here it gives "
                "the real numbers that they stand for"
            )
            self.return_value(marker.outputs[0], levels)
        self.graph.remove(node, safe=True)

    def all_readable(self, readers: list[ir.Node]) -> bool:
        """Whether every reader of levels dequantizes them by a constant scale.

        Raises:
            ModelError: a reader does something else with them.
        """
        for reader in readers:
            if not is_operator(reader, "DequantizeLinear"):
                raise ModelError(
                    f"node {reader.name!r} ({reader.op_type}) reads quantized integers, and what it makes of the "
                    "numbers behind them is not known; expected operators between DequantizeLinear and QuantizeLinear"
                )
        return all(constant_array(parameters_of(reader).scale) is not None for reader in readers)

    def known_marker(self, source: ir.Value, encoding: Encoding) -> ir.Node | None:
        """Return a marker that rounds a value alike already, or that wrote it, rounded alike."""
        producer = source.producer()
        candidates = [producer, *(use.node for use in source.uses())]
        for node in candidates:
            other = self.found.markers.get(node) if node is not None else None
            if isinstance(other, Encoding) and other.same_as(encoding):
                return node
        return None

    def marker(self, source: ir.Value, encoding: AnyEncoding, *, before: ir.Node) -> ir.Node:
        result = self.rewriter.add(before, "Identity", [source], wanted=f"{source.name}_rounded")
        node = result.producer()
        assert node is not None
        result.shape = source.shape
        self.found.markers[node] = encoding
        return node

    def take(self, reader: ir.Node, marker: ir.Node, encoding: Encoding) -> None:
        """Let who reads a DequantizeLinear read the marker, or what the other scale makes of its numbers."""
        own = parameters_of(reader)
        other = self.encoding(reader, marker.inputs[0], like=encoding)
        result = marker.outputs[0]
        if other is not None and not _same_map(other, encoding) and reader.graph is not self.graph:
            raise ModelError(
                f"node {reader.name!r} (DequantizeLinear), in the body of another, reads integers by another scale "
                "than they were written with"
            )
        if other is not None and not _same_map(other, encoding):
            result = self.rescaled(reader, result, encoding, other)
        elif other is None:
            raise ModelError(
                f"node {reader.name!r} (DequantizeLinear): its scale {own.scale.name!r} is not one of positive numbers"
            )
        old = reader.outputs[0]
        if old.is_graph_output():
            self.return_value(result, old)
        old.replace_all_uses_with(result)
        graph = reader.graph
        if graph is not None:
            graph.remove(reader, safe=True)

    def rescaled(self, before: ir.Node, value: ir.Value, first: Encoding, second: Encoding) -> ir.Value:
        """Read levels of one encoding by the scale and zero point of another.

        `(l - z1) * s1` times `s2 / s1` plus `(z1 - z2) * s2` is `(l - z2) * s2` but for its float rounding, which a
        marker of the second encoding takes away.
        """
        if not isinstance(first.granularity, PerTensor) or not isinstance(second.granularity, PerTensor):
            raise ModelError(
                f"node {before.name!r} (DequantizeLinear) reads integers by other scales than they were written with; "
                "expected the same, or one scale each"
            )
        factor = np.float32(float(second.scale) / float(first.scale))
        offset = np.float32((int(first.zero_point) - int(second.zero_point)) * float(second.scale))
        name = f"{value.name}_rescaled"
        factors = [value, self.rewriter.constant(self.graph, f"{name}_factor", np.asarray(factor))]
        product = self.rewriter.add(before, "Mul", factors, wanted=f"{name}_product")
        terms = [product, self.rewriter.constant(self.graph, f"{name}_offset", np.asarray(offset))]
        total = self.rewriter.add(before, "Add", terms, wanted=name)
        kind = replace(second, type=first.type) if _holds(first.type, second) else second
        return self.marker(total, kind, before=before).outputs[0]

    def mark_dynamic(self, node: ir.Node) -> None:
        source, (levels, scale, zero_point) = node.inputs[0], node.outputs
        readers = list(dict.fromkeys(use.node for output in node.outputs for use in output.uses()))
        if source is None or any(output.is_graph_output() for output in node.outputs):
            return
        for reader in readers:
            if not is_operator(reader, "DequantizeLinear"):
                raise ModelError(
                    f"node {reader.name!r} ({reader.op_type}) reads what {node.name!r} (DynamicQuantizeLinear) found; "
                    "expected a DequantizeLinear, or an integer product with the scaling that belongs to it"
                )
            if list(reader.inputs) != [levels, scale, zero_point]:
                return
        marker = self.marker(source, DynamicEncoding(type=_TYPES[ir.DataType.UINT8]), before=node)
        for reader in readers:
            old = reader.outputs[0]
            if old.is_graph_output():
                self.return_value(marker.outputs[0], old)
            old.replace_all_uses_with(marker.outputs[0])
            if reader.graph is not None:
                reader.graph.remove(reader, safe=True)

    # --- outputs ---

    def return_value(self, value: ir.Value, old: ir.Value) -> None:
        """Let the network return a value in the place and under the name of an old one, through an Identity."""
        name = str(old.name)
        old.name = self.rewriter.name(f"{name}_before")
        identity = ir.node("Identity", inputs=[value], name=self.rewriter.name(f"{name}_returned"))
        identity.outputs[0].name = name
        identity.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        identity.outputs[0].shape = old.shape
        self.graph.append(identity)
        for number, output in enumerate(self.graph.outputs):
            if output is old:
                self.graph.outputs[number] = identity.outputs[0]

    # --- encodings ---

    def encoding(self, node: ir.Node, value: ir.Value | None, *, like: Encoding | None = None) -> Encoding | None:
        """Read the encoding that a QuantizeLinear or DequantizeLinear holds; None where a plan has no word for it.

        Args:
            node: it.
            value: what it reads or the levels, whose rank tells what an axis means.
            like: of the levels' writer, for the type and the axis.

        Raises:
            ModelError: a scale or zero point is damaged.
        """
        parameters = parameters_of(node)
        scale, zeros = constant_array(parameters.scale), constant_array(parameters.zero_point)
        kind = like.type if like is not None else self.type_of(node, value)
        if scale is None or kind is None or (parameters.zero_point is not None and zeros is None):
            return None
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            self.refuse_scale(node)
            return None
        zero_point = np.zeros(scale.shape, np.int64) if zeros is None else zeros.astype(np.int64)
        if zero_point.shape != scale.shape and zero_point.size == scale.size:
            zero_point = zero_point.reshape(scale.shape)
        granularity = _granularity(node, parameters, scale, value)
        shape = () if isinstance(granularity, PerTensor) else scale.shape
        if like is not None and not _within(zero_point, kind):
            kind = self.container(kind)
        try:
            return Encoding(
                type=kind,
                granularity=granularity,
                scale=scale.reshape(shape),
                zero_point=zero_point.reshape(shape).astype(np.int32),
            )
        except (PlanError, ValueError) as error:
            raise ModelError(f"node {node.name!r} ({node.op_type}): {error}; the network is damaged") from None

    def container(self, kind: IntegerType) -> IntegerType:
        return IntegerType(bits=next(bits for bits in (8, 16) if bits >= kind.bits), signed=kind.signed)

    def type_of(self, node: ir.Node, value: ir.Value | None) -> IntegerType | None:
        zero_point = parameters_of(node).zero_point
        if zero_point is not None and zero_point.dtype is not None:
            return _TYPES.get(zero_point.dtype)
        if is_operator(node, "DequantizeLinear"):
            return _TYPES.get(value.dtype) if value is not None and value.dtype is not None else None
        asked = node.attributes.get_int("output_dtype", 0)
        return _TYPES.get(ir.DataType(asked)) if asked else _TYPES[ir.DataType.UINT8]

    def refuse_scale(self, node: ir.Node) -> None:
        """Leave a constant with scales that are no positive numbers as it is; an activation cannot be."""
        if constant_array(node.inputs[0]) is None or not is_operator(node, "DequantizeLinear"):
            raise ModelError(
                f"node {node.name!r} ({node.op_type}): expected positive finite scales, got another in "
                f"{parameters_of(node).scale.name!r}; the network is damaged"
            )

    def unclipped(self, source: ir.Value, encoding: Encoding, node: ir.Node) -> tuple[ir.Value, Encoding]:
        """Take a Clip to the ends of a narrower type's levels for that type."""
        clip = source.producer()
        if clip is None or not is_operator(clip, "Clip") or sole_consumer(source) is not node:
            return source, encoding
        before = clip.inputs[0]
        kind = _narrow_type(clip, encoding)
        if before is None or kind is None:
            return source, encoding
        return before, replace(encoding, type=kind)

    def note_what_stays(self) -> None:
        names = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
        left = [node for node in all_nodes(self.rewriter.model) if is_operator(node, *names)]
        if left:
            bodies = sum(node.graph is not self.graph for node in left)
            where = f", {bodies} of them in the bodies of If, Loop or Scan" if bodies else ""
            self.rewriter.note(
                f"{len(left)} nodes that quantize or dequantize stay in the float network{where}: a plan has no word "
                f"for their scales (the first is {left[0].name!r})"
            )


def _array_type(levels: ir.Value) -> np.dtype[np.generic]:
    kind = levels.dtype or ir.DataType.UINT8
    return np.dtype(kind.numpy())


def _granularity(
    node: ir.Node, parameters: Parameters, scale: npt.NDArray[np.generic], value: ir.Value | None
) -> Granularity:
    axes = rank(value) if value is not None else rank(node.inputs[0])
    if axes is None and node.inputs[0] is not None:
        axes = rank(node.inputs[0])
    axis = parameters.axis if axes is None else _axis(node, parameters.axis, axes)
    if parameters.block_size:
        return PerBlock(axis, parameters.block_size)
    single = scale.size == 1 and not (is_constant(node.inputs[0]) and scale.ndim == 1 and _length(value, axis) == 1)
    if scale.ndim == 0 or single:
        return PerTensor()
    return PerAxis(axis)


def _axis(node: ir.Node, axis: int, axes: int) -> int:
    if axes == 0:
        return 0
    if not -axes <= axis < axes:
        if axis == 1 and axes == 1:
            return 0  # the attribute's default, of a value with one axis
        raise ModelError(f"node {node.name!r} ({node.op_type}): axis {axis} of a value of rank {axes}; it is damaged")
    return normalized_axis(axis, axes)


def _length(value: ir.Value | None, axis: int) -> int | None:
    array = constant_tensor(value)
    if array is None or not -array.shape.rank() <= axis < array.shape.rank():
        return None
    size = array.shape[axis]
    return size if isinstance(size, int) else None


def _within(zero_point: npt.NDArray[np.int64], kind: IntegerType) -> bool:
    return bool(((zero_point >= kind.minimum) & (zero_point <= kind.maximum)).all())


def _holds(kind: IntegerType, encoding: Encoding) -> bool:
    return _within(encoding.zero_point.astype(np.int64), kind)


def _same_map(first: Encoding, second: Encoding) -> bool:
    """Whether levels mean the same; scales written per tensor and per one channel do."""
    if first.scale.size == 1 and second.scale.size == 1:
        return first.scale.item() == second.scale.item() and first.zero_point.item() == second.zero_point.item()
    return first.same_as(replace(second, type=first.type)) if _holds(first.type, second) else False


def _narrow_type(clip: ir.Node, encoding: Encoding) -> IntegerType | None:
    """Return the type whose levels a Clip cuts to, narrower than its container; None if there is none."""
    bounds = [constant_array(bound) for bound in clip.inputs[1:3]]
    if len(bounds) != 2 or not isinstance(encoding.granularity, PerTensor):
        return None
    low, high = bounds
    if low is None or high is None:
        return None
    for bits in range(2, encoding.type.bits + 1):
        for narrow in (False, True) if encoding.type.signed else (False,):
            kind = IntegerType(bits=bits, signed=encoding.type.signed, narrow=narrow)
            if kind == encoding.type or not _within(encoding.zero_point.astype(np.int64), kind):
                continue
            trial = replace(encoding, type=kind)
            if np.array_equal(trial.minimum, low.reshape(())) and np.array_equal(trial.maximum, high.reshape(())):
                return kind
    return None


def _spread_shape(scale: npt.NDArray[np.generic], axes: int, axis: int) -> tuple[int, ...] | None:
    """Shape in which scales along an axis broadcast over a tensor of that rank."""
    if scale.size == 1 or scale.ndim != 1:
        return () if scale.size == 1 else None
    if axes == 0 or not -axes <= axis < axes:
        axis = 0
    return tuple(-1 if index == axis % max(axes, 1) else 1 for index in range(axes))


def _nearest_real(steps: npt.NDArray[np.int64], scale: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return float32 numbers that a division by the scale and rounding bring back to the steps, where any does.

    The product in float64 rounded to float32 does for less than 2**22 steps. Beyond, one of its neighbours may.
    """
    spread = np.broadcast_to(scale, steps.shape).astype(np.float32)
    real = (steps * spread.astype(np.float64)).astype(np.float32)
    best = real.copy()
    error = np.abs(steps_of(best, spread) - steps)
    for towards in (np.float32(-np.inf), np.float32(np.inf)):
        other = np.nextafter(real, towards)
        closer = np.abs(steps_of(other, spread) - steps) < error
        best = np.where(closer, other, best)
        error = np.where(closer, np.abs(steps_of(other, spread) - steps), error)
    return np.asarray(best, dtype=np.float32)


def steps_of(real: npt.NDArray[np.float32], scale: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """How many steps float32 numbers are rounded to, as QuantizeLinear does it; 0 where a scale is no positive one."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        quotient = np.nan_to_num(np.rint(real / scale).astype(np.float64), nan=0.0, posinf=2.0**40, neginf=-(2.0**40))
    return np.asarray(np.clip(quotient, -(2.0**40), 2.0**40), dtype=np.int64)
