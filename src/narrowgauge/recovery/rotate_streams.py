"""Residual streams are rotated, so that an outlier of one channel is spread over all; the network computes the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.calibration.statistics import Statistics
from narrowgauge.errors import StatisticsError
from narrowgauge.graph.constants import add_constant, constant_array, constant_integers, replace_constant_input
from narrowgauge.graph.edits import is_operator, new_node, unique_name
from narrowgauge.graph.roles import bias_addition, weight_inputs
from narrowgauge.graph.shapes import dimensions

Float = npt.NDArray[np.float64]
_Use = tuple[ir.Node, int]  # a node and the number of its input

_SEED = 0

# Fewer channels leave nothing to spread over.
_FEWEST_CHANNELS = 8

_SHAPES = {"Shape", "Size"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Rotation:
    """A residual stream that was rotated.

    Attributes:
        value: the value of the stream that reached furthest.
        size: channels.
        reach_before: largest magnitude of the stream, real units.
        reach_after: largest magnitude of the rotated stream.
        norms: names of the normalizations that read it.
    """

    value: str
    size: int
    reach_before: float
    reach_after: float
    norms: tuple[str, ...]


def rotate_streams(
    model: ir.Model, statistics: Statistics, *, calibrate: Callable[[ir.Model], Statistics]
) -> tuple[ir.Model, Statistics, tuple[Rotation, ...]]:
    """Multiply each residual stream by an orthogonal matrix and take it back out where layers read the stream.

    Ashkboos et al., "QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs", 2024, section 4, stage 1a: writers of the
    stream become W Q, the readers behind its normalizations Q^T diag(gain) W, with the normalization's offset in their
    bias. Differs: QuaRot rotates behind RMSNorm. A LayerNormalization also subtracts the mean over the channels, which
    commutes with a rotation that keeps the vector of ones, Q 1 = 1: such a one is taken, and the operator stays. It is
    a random rotation followed by a reflection that spreads the largest vector any unit writes (its reach times its row
    of weights) evenly over all channels.

    The network's outputs do not change but for float rounding, and no operator is added, but for an Add where a layer
    without a bias needs one. A stream is left alone where it is read or written by anything else than layers with
    constant weights, LayerNormalization over its channels, additions and moves of data.

    Args:
        model: the float network, shapes inferred; it is not changed.
        statistics: of this network.
        calibrate: gathers the statistics of a network.

    Returns:
        A copy of the network, its statistics, and what was done; what came in where there is no stream to rotate.
    """
    rotated = model.clone()
    streams = list(_streams(rotated.graph))
    if not streams:
        return model, statistics, ()
    for stream in streams:
        _rotate(stream, rotation(stream.size, _largest_write(statistics, stream)))
    found = calibrate(rotated)
    return rotated, found, tuple(_described(stream, statistics, found) for stream in streams)


def rotation(size: int, direction: Float | None = None, *, seed: int = _SEED) -> Float:
    """Build an orthogonal matrix Q with Q 1 = 1 that spreads a direction evenly over all channels.

    With the reflection H that takes the vector of ones to the first axis, R = H diag(1, R') H keeps it for any rotation
    R'; R' is random, uniform over all (Stewart, "The Efficient Generation of Random Orthogonal Matrices", 1980). Q is R
    and the reflection I - 2 v v^T, v along d R - f, for the direction d without its mean and a vector f of as many +1
    as -1 (and a 0 where the size is odd): v is at right angles to the ones, which therefore stay.

    Args:
        size: channels.
        direction: what to spread, shape `(size,)`; None leaves the reflection out.
        seed: of the random numbers.
    """
    random = np.random.default_rng(seed)
    ones = np.full(size, size**-0.5)
    first = np.zeros(size)
    first[0] = 1
    inner, triangle = np.linalg.qr(random.standard_normal((size - 1, size - 1)))
    spread = np.eye(size)
    spread[1:, 1:] = inner * np.where(np.diag(triangle) < 0, -1.0, 1.0)
    mirror = _reflection(ones - first)
    result: Float = mirror @ spread @ mirror
    if direction is None:
        return result
    centred = direction - direction.mean()
    length = float(np.linalg.norm(centred))
    if length == 0:
        return result
    signs = np.zeros(size)
    order = random.permutation(size)
    signs[order[: size // 2]], signs[order[size // 2 : 2 * (size // 2)]] = 1, -1
    return result @ _reflection(centred / length @ result - signs / np.linalg.norm(signs))


def _reflection(vector: Float) -> Float:
    length = float(vector @ vector)
    return np.eye(vector.size) - (2 / length if length > 0 else 0) * np.outer(vector, vector)


# --- finding streams ------------------------------------------------------------------------------------------


@dataclass(kw_only=True, slots=True)
class _Stream:
    """A residual stream: values that additions and moves of data tie together, and who writes and reads them.

    Attributes:
        size: channels, along the last axis of each value.
        values: the values.
        constants: inputs of nodes that are constants of the stream (position tables, biases, embedding tables).
        writers: layers whose outputs are values of the stream.
        readers: layers that multiply a value of the stream.
        norms: normalizations that read it, with the layers behind each.
    """

    size: int
    values: dict[ir.Value, None] = field(default_factory=dict)
    constants: dict[_Use, None] = field(default_factory=dict)
    writers: dict[ir.Node, None] = field(default_factory=dict)
    readers: dict[ir.Node, None] = field(default_factory=dict)
    norms: dict[ir.Node, list[ir.Node]] = field(default_factory=dict)


def _streams(graph: ir.Graph) -> Iterator[_Stream]:
    """Streams that can be rotated."""
    seen: set[ir.Value] = set()
    for node in graph:
        start = node.inputs[0] if is_operator(node, "LayerNormalization") else None
        if start is None or start in seen:
            continue
        size = (dimensions(start) or (None,))[-1]
        stream = _Stream(size=size or 0)
        whole = size is not None and size >= _FEWEST_CHANNELS and _fill(stream, start, graph)
        seen.update(stream.values)
        if whole:
            yield stream


def _fill(stream: _Stream, start: ir.Value, graph: ir.Graph) -> bool:
    """Gather all of a stream; return False where something in it cannot be rotated."""
    waiting = [start]
    while waiting:
        value = waiting.pop()
        if value in stream.values:
            continue
        stream.values[value] = None
        if value.is_graph_output() or (dimensions(value) or (None,))[-1] != stream.size:
            return False
        for neighbours in (_written(stream, value), _read(stream, value, graph)):
            if neighbours is None:
                return False
            waiting.extend(neighbours)
    return True


def _written(stream: _Stream, value: ir.Value) -> list[ir.Value] | None:
    """Values of the stream that a value is made of, None where it is made of anything else."""
    node = value.producer()
    if node is None:
        return None
    if weight_inputs(node) == [1] and is_operator(node, "MatMul", "Gemm"):
        stream.writers[node] = None
        return [] if len(_sizes(node.inputs[1])) == 2 and _bias_is_constant(node) else None
    if weight_inputs(node) == [0] and is_operator(node, "Gather"):
        stream.constants[node, 0] = None
        table = _sizes(node.inputs[0])
        return [] if len(table) == 2 and node.attributes.get_int("axis", 0) % 2 == 0 else None
    if not is_operator(node, "Add", "Sub") and not _keeps_channels(node):
        return None
    parts = [0, 1] if is_operator(node, "Add", "Sub") else _data_inputs(node)
    found = []
    for number in parts:
        part = node.inputs[number]
        if part is None:
            return None
        if constant_array(part) is None:
            found.append(part)
        elif _sizes(part)[-1:] == (stream.size,):
            stream.constants[node, number] = None
        elif not is_operator(node, "Add", "Sub", "Expand") or _sizes(part)[-1:] not in ((), (1,)):
            return None  # one number for all channels may stay where it is added: Q 1 = 1
    return found


def _read(stream: _Stream, value: ir.Value, graph: ir.Graph) -> list[ir.Value] | None:
    """Values of the stream that are made of a value, None where anything else reads it."""
    found: list[ir.Value] = []
    for node, number in value.uses():
        if node.graph is not graph:
            return None
        if is_operator(node, *_SHAPES):
            continue
        if is_operator(node, "LayerNormalization") and number == 0:
            layers = _layers_behind(node, stream.size, graph)
            if layers is None:
                return None
            stream.norms[node] = layers
        elif _multiplies(node, number):
            stream.readers[node] = None
        elif is_operator(node, "Add", "Sub") or (number in _data_inputs(node) and _keeps_channels(node)):
            found.extend(node.outputs)
        else:
            return None
    return found


def _layers_behind(norm: ir.Node, size: int, graph: ir.Graph) -> list[ir.Node] | None:
    """Layers that multiply what a normalization writes, None where anything else reads it or it cannot be folded."""
    last = len(_sizes(norm.inputs[0])) - 1
    gain = constant_array(norm.inputs[1])
    offset = constant_array(norm.inputs[2]) if len(norm.inputs) > 2 and norm.inputs[2] is not None else np.zeros(size)
    if norm.attributes.get_int("axis", -1) not in (-1, last) or gain is None or offset is None:
        return None
    if gain.shape != (size,) or offset.shape != (size,) or any(output.uses() for output in norm.outputs[1:]):
        return None
    layers = []
    waiting = [norm.outputs[0]]
    while waiting:
        value = waiting.pop()
        if value.is_graph_output() or (dimensions(value) or (None,))[-1] != size:
            return None
        for node, number in value.uses():
            if node.graph is not graph:
                return None
            if _multiplies(node, number) and _bias_is_constant(node):
                layers.append(node)
            elif (
                number in _data_inputs(node)
                and (_keeps_channels(node) or _is_mean(node))
                and len(_data_inputs(node)) == 1
            ):
                waiting.extend(node.outputs)
            elif not is_operator(node, *_SHAPES):
                return None
    return layers


def _multiplies(node: ir.Node, number: int) -> bool:
    """Whether a node multiplies that input with a constant matrix, along the last axis of the input."""
    layer = number == 0 and is_operator(node, "MatMul", "Gemm") and weight_inputs(node) == [1]
    return layer and len(_sizes(node.inputs[1])) == 2 and not node.attributes.get_int("transA", 0)


def _bias_is_constant(node: ir.Node) -> bool:
    """Whether a layer's own bias can be changed: it is a vector or missing, and not multiplied away."""
    bias = node.inputs[2] if is_operator(node, "Gemm") and len(node.inputs) > 2 else None
    if bias is None:
        return True
    known = constant_array(bias)
    return known is not None and known.ndim <= 1 and node.attributes.get_float("beta", 1.0) != 0


def _keeps_channels(node: ir.Node) -> bool:
    """Whether a node only moves data and leaves the last axis whole, as far as that is known."""
    if is_operator(node, "Identity", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand"):
        return True  # that the last axis has kept its length is seen at the output
    rank = len(_sizes(node.inputs[0])) if node.inputs else 0
    if is_operator(node, "Concat", "Split", "Gather"):
        axis = node.attributes.get_int("axis", 0)
        return axis not in (-1, rank - 1)
    if is_operator(node, "Transpose"):
        return node.attributes.get_ints("perm", list(reversed(range(rank))))[-1] == rank - 1
    if is_operator(node, "Slice"):
        axes = constant_integers(node.inputs[3]) if len(node.inputs) > 3 else None
        return axes is not None and not {-1, rank - 1} & set(axes)
    return False


def _is_mean(node: ir.Node) -> bool:
    """Whether a node takes means along other axes than the last."""
    rank = len(_sizes(node.inputs[0])) if node.inputs else 0
    if not is_operator(node, "ReduceMean"):
        return False
    axes = constant_integers(node.inputs[1]) if len(node.inputs) > 1 else node.attributes.get_ints("axes", [])
    return bool(axes) and not {-1, rank - 1} & set(axes or ())


def _data_inputs(node: ir.Node) -> list[int]:
    return list(range(len(node.inputs))) if is_operator(node, "Concat") else [0]


def _sizes(value: ir.Value | None) -> tuple[int | None, ...]:
    return dimensions(value) or ()


# --- rotating -------------------------------------------------------------------------------------------------


def _largest_write(statistics: Statistics, stream: _Stream) -> Float | None:
    """The largest vector that one unit can write into the stream, None where no writer's input was observed."""
    best: Float | None = None
    for node in stream.writers:
        source = node.inputs[0]
        try:
            tensor = statistics.of(str(source.name)) if source is not None else None
        except StatisticsError:
            continue
        weights = _matrix(node)
        if tensor is None or tensor.channels is None or tensor.channels.minimum.shape != weights.shape[:1]:
            continue
        reach = np.maximum(np.abs(tensor.channels.minimum), np.abs(tensor.channels.maximum))
        writes = (weights - weights.mean(axis=1, keepdims=True)) * reach[:, None]
        lengths = np.linalg.norm(writes, axis=1)
        largest = writes[int(np.argmax(lengths))]
        if np.isfinite(lengths).all() and (best is None or lengths.max() > np.linalg.norm(best)):
            best = largest
    return best


def _rotate(stream: _Stream, turn: Float) -> None:
    for norm, layers in stream.norms.items():
        gain = constant_array(norm.inputs[1])
        offset = constant_array(norm.inputs[2]) if len(norm.inputs) > 2 and norm.inputs[2] is not None else None
        assert gain is not None
        for layer in layers:
            weights = _matrix(layer)
            if offset is not None and offset.any():
                added = _add_to_bias(layer, offset.astype(np.float64) @ weights)
                if added is not None and layer in stream.writers:
                    stream.constants[added] = None
            _set_matrix(layer, turn.T @ (gain.astype(np.float64)[:, None] * weights))
        replace_constant_input(norm, 1, np.ones_like(gain))
        if offset is not None:
            replace_constant_input(norm, 2, np.zeros_like(offset))
    for layer in stream.readers:
        _set_matrix(layer, turn.T @ _matrix(layer))
    for layer in stream.writers:
        _set_matrix(layer, _matrix(layer) @ turn)
        if len(layer.inputs) > 2 and layer.inputs[2] is not None:
            _turn(layer, 2, turn)
    for node, number in stream.constants:
        _turn(node, number, turn)


def _turn(node: ir.Node, number: int, turn: Float) -> None:
    array = constant_array(node.inputs[number])
    assert array is not None
    if array.shape[-1:] == turn.shape[:1]:  # else the same number in all channels, which stays
        replace_constant_input(node, number, (array.astype(np.float64) @ turn).astype(array.dtype))


def _matrix(layer: ir.Node) -> Float:
    """Weights as [inputs, outputs]."""
    weights = constant_array(layer.inputs[1])
    assert weights is not None
    return (weights.T if layer.attributes.get_int("transB", 0) else weights).astype(np.float64)


def _set_matrix(layer: ir.Node, matrix: Float) -> None:
    weights = matrix.T if layer.attributes.get_int("transB", 0) else matrix
    replace_constant_input(layer, 1, np.ascontiguousarray(weights, dtype=np.float32))


def _add_to_bias(layer: ir.Node, amount: Float) -> _Use | None:
    """Add to what a layer adds to each output channel, in its bias, in the addition behind it, or in a new one.

    Returns:
        Where the numbers are, if in a new addition.
    """
    if is_operator(layer, "Gemm"):
        scaled = amount * layer.attributes.get_float("alpha", 1.0) / layer.attributes.get_float("beta", 1.0)
        bias = constant_array(layer.inputs[2]) if len(layer.inputs) > 2 else None
        total = scaled if bias is None else bias + scaled
        replace_constant_input(layer, 2, total.astype(np.float32), f"{layer.name}_bias")
        return None
    addition = bias_addition(layer)
    if addition is not None:
        number = 1 if addition.inputs[0] is layer.outputs[0] else 0
        bias = constant_array(addition.inputs[number])
        assert bias is not None
        replace_constant_input(addition, number, (bias + amount).astype(np.float32))
        return None
    graph, result = layer.graph, layer.outputs[0]
    assert isinstance(graph, ir.Graph)
    readers = list(result.uses())
    name = unique_name(graph, f"{layer.name}_bias")
    constant = add_constant(graph, f"{name}_values", amount.astype(np.float32))
    addition = new_node("Add", [result, constant], name=name, like=result)
    layer.append(addition)
    if result.is_graph_output():
        kept = result.name
        result.replace_all_uses_with(addition.outputs[0], replace_graph_outputs=True)
        addition.replace_input_with(0, result)
        result.name, addition.outputs[0].name = f"{kept}_without_bias", kept
    for node, number in readers:
        node.replace_input_with(number, addition.outputs[0])
    return addition, 1


def _described(stream: _Stream, before: Statistics, after: Statistics) -> Rotation:
    reaches = {str(value.name): (_reach(before, value), _reach(after, value)) for value in stream.values}
    value = max(reaches, key=lambda name: reaches[name][0])
    return Rotation(
        value=value,
        size=stream.size,
        reach_before=reaches[value][0],
        reach_after=max(reach for _, reach in reaches.values()),
        norms=tuple(str(norm.name) for norm in stream.norms),
    )


def _reach(statistics: Statistics, value: ir.Value) -> float:
    try:
        tensor = statistics.of(str(value.name))
    except StatisticsError:
        return 0.0
    return 0.0 if tensor.is_empty else max(-tensor.minimum, tensor.maximum)
