"""One pass through the layers, float and quantized network side by side: each layer makes up for those before it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from threadpoolctl import threadpool_limits

from narrowgauge.core.arithmetic import dequantize, round_trip, spread
from narrowgauge.core.encoding import AnyEncoding, DynamicEncoding, Encoding
from narrowgauge.core.granularity import PerAxis, PerBlock, PerTensor, normalized_axis
from narrowgauge.core.plan import Plan
from narrowgauge.core.ranges import SMALLEST_SCALE, encoding_from_range
from narrowgauge.errors import PlanError
from narrowgauge.graph.constants import add_constant, constant_array, set_constant
from narrowgauge.graph.edits import is_operator, new_node, unique_name
from narrowgauge.graph.feeds import Feed
from narrowgauge.graph.pieces import Stream, alive_after, piece, plan_for
from narrowgauge.graph.roles import activation_inputs, bias_input, is_constant, output_axis
from narrowgauge.lowering.qdq import QdqStyle, lower_to_qdq
from narrowgauge.recovery.bias_correction import bias_place, has_place_for_bias, subtract_from_bias
from narrowgauge.recovery.matrix_form import MatrixForm, matrix_form
from narrowgauge.recovery.moments import Moments, moments
from narrowgauge.recovery.read_positions import ReadPositions, read_positions
from narrowgauge.recovery.rounding import Grid, ScaleRule, best_ridge, round_to_moments

Array = npt.NDArray[Any]
Float = npt.NDArray[np.floating]

# Rows of a layer's input that are taken from all samples together.
_ROWS = 16384

# Share of an accumulator that a bias may take, as in planning.bias_room.
_BIAS_SHARE = 0.5

# Share of the rows that are positions which the network's end reads alone (a class token).
_READ_SHARE = 1 / 3


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerRounding:
    """What was done to one layer.

    Attributes:
        node: its name.
        value: name of its weights.
        bits: of its weights.
        nearest: error of its output with weights rounded to the nearest level of the plan's grid, relative to the
            output's energy (both without their means where the bias is corrected).
        chosen: the same with the weights that were chosen.
        rounded: whether weights were chosen by their effect on the output.
        bias_shift: root mean square of what was taken out of the bias, relative to the output's; 0 if nothing was.
    """

    node: str
    value: str
    bits: int
    nearest: float
    chosen: float
    rounded: bool
    bias_shift: float


def optimize(  # noqa: PLR0913 - what the target says of weights and biases, each by name
    model: ir.Model,
    plan: Plan,
    batches: Iterable[Feed],
    *,
    reference: ir.Model | None = None,
    round_bits: int = 7,
    correct_bias: bool = True,
    bias_bits: int = 32,
    power_of_two: bool = False,
    threads: int | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> tuple[ir.Model, Plan, tuple[LayerRounding, ...]]:
    """Round weights and correct biases layer by layer, in the network's order.

    Two streams of activations go through the network: that of the float network, cut off at the ends of the plan's
    ranges, and that of the quantized network so far. At each layer weights are chosen that, on what the quantized
    stream brings, come nearest to what the float stream makes of them (`rounding.round_to_moments`), and the bias is
    shifted so that each channel's mean is the float stream's (Nagel et al. 2019, section 4.2, measured and layer by
    layer). The float stream is cut off because a bias that makes up for clipped values is wrong for all others.

    Rows at positions that the network's end reads alone (`read_positions`: a class token) count as a third of all:
    what the others lose reaches the answer only through later attentions.

    Left alone are weights that several nodes read, those of nodes in float, and operators without a matrix form
    (`matrix_form`); layers without a place for a bias keep theirs. No layer's weights get worse than rounding to the
    nearest level, by the error that is measured.

    Args:
        model: the float network that the plan describes; it is not changed.
        plan: its encodings.
        batches: samples; some 64 do. The activations that are alive between two layers are held for all of them.
        reference: the float network that is to be reached, of the same nodes; the model itself by default.
        round_bits: weights of at most so many bits are rounded by their effect; 0: none.
        correct_bias: whether biases are corrected.
        bias_bits: width of an integer bias, 0 where it stays float.
        power_of_two: whether weights' scales are powers of two.
        threads: of the engine.
        progress: called with 1 behind each layer.

    Returns:
        A copy of the network whose weights are the chosen levels' real numbers, so that rounding them to the nearest
        level gives back the levels; the plan with their scales; and what was done.

    Raises:
        PlanError: if the reference has other nodes than the model.
        RuntimeFailure: if a part of the network cannot be run.
    """
    feeds = [dict(batch.feed) for batch in batches]
    layers = _layers(model, plan)
    if not feeds or not layers or not (round_bits or correct_bias):
        return model, plan, ()
    wanted = reference if reference is not None else model
    if [node.name for node in wanted.graph] != [node.name for node in model.graph]:
        raise PlanError("expected a reference network of the same nodes as the one that the plan describes")
    walk = _Walk(
        network=model.clone(),
        plan=plan,
        float_stream=Stream.start(feeds, threads=threads),
        rounded_stream=Stream.start(feeds, threads=threads),
        round_bits=round_bits,
        correct_bias=correct_bias,
        bias_bits=bias_bits,
        power_of_two=power_of_two,
        read=read_positions(wanted),
    )
    with threadpool_limits(1, user_api="blas"):  # its threads wait for each other longer than these products take
        return walk.through(wanted, layers, progress)


def _layers(model: ir.Model, plan: Plan) -> list[str]:
    """Names of the layers whose weights are quantized and that have a matrix form."""
    float_nodes = {entry.name for entry in plan.float_nodes}
    return [
        str(node.name)
        for node in model.graph
        if node.name not in float_nodes
        and matrix_form(node) is not None
        and not any(is_constant(value) for _, value in activation_inputs(node))
        and isinstance(plan.encodings.get(str(node.inputs[1].name)), Encoding)  # type: ignore[union-attr]
    ]


def _clamped(reference: ir.Model, plan: Plan) -> ir.Model:
    """A copy of the float network that cuts values off where integer operators saturate as they write them."""
    clamped = reference.clone()
    float_nodes = {entry.name for entry in plan.float_nodes}
    for node in list(clamped.graph):
        for value in node.outputs if node.name not in float_nodes else ():
            encoding = plan.encodings.get(str(value.name))
            if isinstance(encoding, Encoding) and isinstance(encoding.granularity, PerTensor):
                _clamp(clamped.graph, value, encoding)
    return clamped


def _clamp(graph: ir.Graph, value: ir.Value, encoding: Encoding) -> None:
    """Let everything that reads a value read it cut off, under the value's name."""
    name = str(value.name)
    bounds = [
        add_constant(graph, f"{name}_{suffix}", np.asarray(bound, dtype=np.float32))
        for suffix, bound in (("lowest", encoding.minimum), ("highest", encoding.maximum))
    ]
    uses = list(value.uses())
    clip = new_node("Clip", [value, *bounds], name=unique_name(graph, f"{name}_clamp"), like=value)
    node = value.producer()
    assert node is not None
    node.append(clip)
    for reader, number in uses:
        reader.replace_input_with(number, clip.outputs[0])
    for number, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[number] = clip.outputs[0]
    value.name = unique_name(graph, f"{name}_unclamped")
    clip.outputs[0].name = name


def _segments(model: ir.Model, layers: Collection[str]) -> list[list[ir.Node]]:
    """The network's nodes, cut before each layer."""
    found: list[list[ir.Node]] = [[]]
    for node in model.graph:
        if node.name in layers:
            found.append([])
        found[-1].append(node)
    return found


@dataclass(kw_only=True, slots=True)
class _Walk:
    network: ir.Model
    plan: Plan
    float_stream: Stream
    rounded_stream: Stream
    round_bits: int
    correct_bias: bool
    bias_bits: int
    power_of_two: bool
    read: Mapping[str, ReadPositions]
    done: list[LayerRounding] = field(default_factory=list)

    def through(
        self, reference: ir.Model, layers: Sequence[str], progress: Callable[[int], None]
    ) -> tuple[ir.Model, Plan, tuple[LayerRounding, ...]]:
        names = set(layers)
        ends = alive_after(self.network)
        twins = {node.name: node for node in reference.graph}
        clamped = _clamped(reference, self.plan)
        float_segments = _segments(clamped, names)
        position = 0
        for number, segment in enumerate(_segments(self.network, names)):
            if number:
                self.visit(segment[0], twins[segment[0].name])
                progress(1)
            position += len(segment)
            if number < len(layers) and _kept(segment, ends[position - 1]):
                self.advance(segment, ends[position - 1])
                self.advance_float(clamped, float_segments[number], ends[position - 1])
        return self.network, self.plan, tuple(self.done)

    def advance(self, nodes: Sequence[ir.Node], keep: set[str]) -> None:
        part = piece(self.network, nodes, _kept(nodes, keep))
        lowered = lower_to_qdq(part, plan_for(part, self.plan), QdqStyle(bias_bits=self.bias_bits))
        self.rounded_stream.advance(lowered, keep)

    def advance_float(self, clamped: ir.Model, nodes: Sequence[ir.Node], keep: set[str]) -> None:
        self.float_stream.advance(piece(clamped, nodes, _kept(nodes, keep)), keep)

    # --- one layer ---

    def visit(self, node: ir.Node, wanted: ir.Node) -> None:
        form, value = matrix_form(node), node.inputs[1]
        assert form is not None
        assert value is not None
        assert value.const_value is not None
        encoding = self.plan.encodings[str(value.name)]
        assert isinstance(encoding, Encoding)
        weights = value.const_value.numpy()
        nearest = chosen = form.weights(round_trip(weights, encoding))
        rounds = encoding.type.bits <= self.round_bits and len(value.uses()) == 1 and not value.is_graph_output()
        corrects = self.correct_bias and has_place_for_bias(node, form.channels(nearest[:, :, 0]).size)
        if not (rounds or corrects):
            return
        halves = self.seen(node, form, _real_weights(wanted))
        seen = halves[0] if len(halves) == 1 else halves[0].merge(halves[1])
        if not (seen.count and all(np.isfinite(one).all() for one in (seen.energy, seen.gram, seen.cross))):
            return
        measured = seen.centered() if corrects else seen
        if rounds:
            parts = [half.centered() for half in halves] if corrects else halves
            chosen = self.round(node, form, value, encoding, measured, parts)
        shift: Float = np.zeros(1)
        if corrects:
            error = node.attributes.get_float("alpha", 1.0) * form.channels(seen.mean_error(chosen))
            shift = self.correct(node, error + _bias(node, error.size) - _bias(wanted, error.size))
        energy = max(float(measured.energy.sum()), 1e-30)
        self.done.append(
            LayerRounding(
                node=str(node.name),
                value=str(value.name),
                bits=encoding.type.bits,
                nearest=float(measured.error(nearest).sum()) / energy,
                chosen=float(measured.error(chosen).sum()) / energy,
                rounded=rounds,
                bias_shift=float(np.sqrt(np.square(shift).sum() * seen.count / max(float(seen.energy.sum()), 1e-30))),
            )
        )

    def seen(self, node: ir.Node, form: MatrixForm, weights: Float) -> list[Moments]:
        """Moments of what the layer reads in the quantized stream and writes in the float one, without its bias.

        Those of every other batch, and those of the rest.
        """
        source = next(value for _, value in activation_inputs(node))
        name = str(source.name)
        encoding = self.plan.encodings.get(name)
        quantized, floats = self.rounded_stream.values[name], self.float_stream.values[name]
        most = max(1, _ROWS // len(quantized))
        halves: list[Moments] = []
        for number, (rounded, real) in enumerate(zip(quantized, floats, strict=True)):
            # Padding is 0, which every encoding keeps: rounding the rows alone is rounding the value.
            rows = _rounded(self.rows(node, form, rounded, most, seed=number), _fixed(encoding, rounded))
            real_rows = _cut(self.rows(node, form, real, most, seed=number), encoding)
            wanted = real_rows @ weights.transpose(0, 2, 1)
            part = moments(rows, wanted)
            if number < 2:
                halves.append(part)
            else:
                halves[number % 2] = halves[number % 2].merge(part)
        return halves

    def rows(self, node: ir.Node, form: MatrixForm, values: Array, most: int, *, seed: int) -> Array:
        """Rows of the layer's input; positions that the network's end reads are repeated: their errors count more."""
        every = form.rows(values, most, np.random.default_rng(seed))
        source = node.inputs[0]
        read = self.read.get(str(source.name)) if source is not None and is_operator(node, "MatMul", "Gemm") else None
        if read is None or read.axis == values.ndim - 1:
            return every
        alone = form.rows(np.take(values, read.positions, axis=read.axis), most, np.random.default_rng(seed))
        times = round(_READ_SHARE / (1 - _READ_SHARE) * every.shape[1] / max(alone.shape[1], 1))
        return np.concatenate([every, *[alone] * times], axis=1)

    def round(
        self,
        node: ir.Node,
        form: MatrixForm,
        value: ir.Value,
        encoding: Encoding,
        measured: Moments,
        halves: Sequence[Moments],
    ) -> Float:
        """Round the layer's weights, write them into the network, and return them in matrix form."""
        assert value.const_value is not None
        weights = value.const_value.numpy()
        rows = form.weights(weights)
        grid = _grid(node, form, weights.shape, encoding)
        free = not isinstance(encoding.granularity, PerBlock) and grid.scale.size == encoding.scale.size
        # Twice as wide as the bias needs: it is yet to be corrected.
        smallest = (
            2
            * self.least_scale(node, encoding, _bias(node, form.channels(rows[:, :, 0]).size)).reshape(grid.scale.shape)
            if free
            else np.ones(())
        )
        rule = ScaleRule(free=free, power_of_two=self.power_of_two, smallest=smallest)
        ridge = best_ridge(rows, halves, grid, rule)
        scale, levels = round_to_moments(rows, measured, grid, rule, ridge=ridge)
        changed = replace(encoding, scale=scale.reshape(encoding.scale.shape)) if free else encoding
        stored = form.restored(levels).astype(np.int64) + spread(encoding.zero_point, encoding, weights.shape)
        chosen, nearest = dequantize(stored, changed), round_trip(weights, encoding)
        if measured.error(form.weights(chosen)).sum() > measured.error(form.weights(nearest)).sum():
            chosen, changed = nearest, encoding
        set_constant(value, chosen)
        self.plan = replace(self.plan, encodings={**self.plan.encodings, str(value.name): changed})
        return form.weights(chosen)

    def correct(self, node: ir.Node, shift: Float) -> Float:
        """Take a number out of each channel's bias where that leaves room for it; return what was taken."""
        weights = node.inputs[1]
        assert weights is not None
        encoding = self.plan.encodings[str(weights.name)]
        assert isinstance(encoding, Encoding)
        fits = self.least_scale(node, encoding, _bias(node, shift.size) - shift) <= encoding.scale
        shift = np.where(fits if fits.shape == shift.shape else fits.all(), shift, 0.0)
        subtract_from_bias(self.network.graph, node, shift.astype(np.float64))
        return shift

    def least_scale(self, node: ir.Node, encoding: Encoding, bias: Array) -> Float:
        """Least scale of the weights whose products with the input's scale can hold a bias (`planning.bias_room`)."""
        source = next((self.plan.encodings.get(str(value.name)) for _, value in activation_inputs(node)), None)
        if not self.bias_bits or bias_input(node) is None or not isinstance(source, Encoding):
            return np.full(encoding.scale.shape, SMALLEST_SCALE)
        reach = np.abs(bias)
        if reach.size != encoding.scale.size or encoding.scale.ndim != 1:
            reach = np.full(encoding.scale.shape, reach.max(initial=0.0))
        unit = float(source.scale) * _BIAS_SHARE * 2.0 ** (self.bias_bits - 1)
        return np.maximum(reach / unit, SMALLEST_SCALE)


def _real_weights(node: ir.Node) -> Float:
    """The reference network's weights in matrix form."""
    form, weights = matrix_form(node), constant_array(node.inputs[1])
    assert form is not None
    assert weights is not None
    return form.weights(weights)


def _bias(node: ir.Node, channels: int) -> Float:
    """A layer's constant bias, one number for each output channel; 0 where it has none."""
    holder, number = bias_place(node) or (node, len(node.inputs))
    bias = constant_array(holder.inputs[number]) if number < len(holder.inputs) else None
    if bias is None or bias.size != channels:
        return np.zeros(channels)
    return bias.astype(np.float64).reshape(-1)


def _kept(nodes: Sequence[ir.Node], keep: set[str]) -> list[str]:
    return [str(value.name) for node in nodes for value in node.outputs if value.name in keep]


def _fixed(encoding: AnyEncoding | None, values: Array) -> Encoding | None:
    """The encoding that a value gets at run time."""
    if not isinstance(encoding, DynamicEncoding):
        return encoding
    low, high = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    return encoding_from_range(low, high, encoding.type, PerTensor(), symmetric=encoding.symmetric)


def _rounded(values: Array, encoding: Encoding | None) -> Array:
    return values if encoding is None else round_trip(values, encoding)


def _cut(values: Array, encoding: AnyEncoding | None) -> Array:
    if not isinstance(encoding, Encoding) or not isinstance(encoding.granularity, PerTensor):
        return values
    return np.clip(values, encoding.minimum, encoding.maximum)


def _grid(node: ir.Node, form: MatrixForm, shape: tuple[int, ...], encoding: Encoding) -> Grid:
    """The levels and scales of weights in matrix form, with size 1 along the axes that share a scale."""
    scale, lowest, highest = (
        form.weights(np.broadcast_to(spread(np.asarray(numbers), encoding, shape), shape)).transpose(0, 2, 1)
        for numbers in (
            encoding.scale,
            (encoding.type.minimum - encoding.zero_point).astype(np.float32),
            (encoding.type.maximum - encoding.zero_point).astype(np.float32),
        )
    )
    granularity = encoding.granularity
    if isinstance(granularity, PerTensor):
        return Grid(scale=scale[:1, :1, :1], lowest=lowest[:1, :1, :1], highest=highest[:1, :1, :1])
    if isinstance(granularity, PerAxis) and normalized_axis(granularity.axis, len(shape)) == output_axis(node, 1):
        groups = slice(None) if scale.shape[0] * scale.shape[2] == encoding.scale.size else slice(1)
        return Grid(scale=scale[groups, :1], lowest=lowest[groups, :1], highest=highest[groups, :1])
    return Grid(scale=scale, lowest=lowest, highest=highest)
