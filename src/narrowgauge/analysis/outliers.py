"""Channels that stretch a value's range: found in the statistics, followed to the layer and unit that write them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.analysis.outlier_positions import Spot, look_at
from narrowgauge.analysis.records import Outlier
from narrowgauge.calibration.statistics import Statistics, TensorStatistics
from narrowgauge.graph.block_roles import Role, block_roles
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.edits import is_operator
from narrowgauge.graph.feeds import Batch
from narrowgauge.graph.moves import MOVES
from narrowgauge.graph.roles import activation_inputs, weight_inputs
from narrowgauge.graph.shapes import dimensions
from narrowgauge.recovery.read_positions import ReadPositions, read_positions

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]

_Key = tuple[str, int]  # who writes an outlier, into which channel

# A range is stretched where it would be so many times narrower without a few channels: two bits.
STRETCHED = 4.0

# Few channels: this share of them, one at least; a value of fewer than eight channels has no few.
_FEW = 1 / 32
_FEWEST_CHANNELS = 8

# On the way back a channel counts as large where it is so many times larger than all the others.
_STANDS_OUT = 2.0

# One unit makes an outlier where its share is half of it, and twice what any other unit can bring.
_SHARE = 0.5
_ALONE = 2.0


@dataclass(frozen=True, slots=True)
class Place:
    """A channel of a value.

    Attributes:
        value: the value.
        axis: axis of its channels.
        channel: which of them.
    """

    value: ir.Value
    axis: int
    channel: int


def find_outliers(
    model: ir.Model, statistics: Statistics, batches: Iterable[Batch] = (), *, threads: int | None = None
) -> tuple[Outlier, ...]:
    """Find the channels that stretch ranges, name the layers that write them, and on which positions they fall.

    A value is stretched where its largest magnitude is four times that of its channels without the largest few (one in
    32). Each such channel is followed back through additions, activation functions and moves of data as long as it
    stands out there, too: a residual stream carries an outlier far, and the layer that wrote it is meant, not all that
    read it. Outliers that one layer writes into one channel are one; the value named is the one that suffers most.

    Args:
        model: the float network, shapes inferred.
        statistics: of this network.
        batches: a few samples, to see on which positions (tokens, pixels) the outliers fall and how large they are
            there; none leaves that open.
        threads: of the engine.

    Returns:
        The outliers, those that stretch most first.

    Raises:
        RuntimeFailure: if the engine cannot run the network on the samples.
    """
    found: dict[_Key, tuple[Outlier, Place]] = {}
    stretched: dict[_Key, dict[str, None]] = {}
    values = {str(value.name): value for value in model.graph.inputs}
    values |= {str(value.name): value for node in model.graph for value in node.outputs}
    for name, tensor in statistics.tensors.items():
        for channel, reach, others in stretching(tensor) if name in values else ():
            assert tensor.channels is not None
            here = Place(values[name], tensor.channels.axis, channel)
            outlier = _named(statistics, here, reach, others)
            key = (outlier.source or outlier.value, origin(statistics, here).channel)
            stretched.setdefault(key, {})[name] = None
            if key not in found or _stretch(found[key][0]) < _stretch(outlier):
                found[key] = outlier, here
    spots = {
        key: Spot(
            value=outlier.value, axis=place.axis, channel=place.channel,
            threshold=math.sqrt(outlier.reach * outlier.others),
        )
        for key, (outlier, place) in found.items()
    }  # fmt: skip
    seen = look_at(model, spots, batches, threads=threads)
    named = _Names(roles=block_roles(model), read=read_positions(model) if found else {})
    order = {name: number for number, name in enumerate(values)}
    return tuple(
        sorted(
            (
                replace(
                    named.named(outlier, place), positions=seen[key].positions, low=seen[key].low, high=seen[key].high,
                    ordinary=seen[key].ordinary, stretched=tuple(sorted(stretched[key], key=order.__getitem__)),
                )
                for key, (outlier, place) in found.items()
            ),
            key=_stretch, reverse=True,
        )
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class _Names:
    """What is known of a network's structure."""

    roles: Mapping[str, Role]
    read: Mapping[str, ReadPositions]

    def named(self, outlier: Outlier, place: Place) -> Outlier:
        """Say what an outlier's channel and unit are, where a block of a transformer holds them."""
        role, source = self.roles.get(outlier.value), self.roles.get(outlier.source_value)
        tokens = role is not None and _rank(place.value) == 3 and place.axis == 2
        read = self.read.get(outlier.value)
        return replace(
            outlier,
            words=role.channel_words(outlier.channel) if role is not None else "",
            source_words=source.channel_words(outlier.unit) if source is not None and outlier.unit is not None else "",
            tokens=tokens,
            read=read.positions if read is not None and tokens and read.axis == 1 else (),
        )


def stretching(tensor: TensorStatistics) -> list[tuple[int, float, float]]:
    """Return the few channels that stretch a value's range: channel, its reach, the reach of all the others.

    The fewest channels are taken without which the range is `STRETCHED` times narrower, and of these the ones twice as
    large as all the others; none where there are no such few, or where all the others are 0 and need no range.
    """
    if tensor.channels is None or tensor.is_empty or tensor.nan_count or tensor.infinity_count:
        return []
    reach = _reach(tensor)
    if reach.size < _FEWEST_CHANNELS:
        return []
    order = np.argsort(-reach, kind="stable")
    for count in range(1, max(1, int(reach.size * _FEW)) + 1):
        others = float(reach[order[count]])
        if others > 0 and reach[order[0]] >= STRETCHED * others:
            return [(int(c), float(reach[c]), others) for c in order[:count] if reach[c] >= _STANDS_OUT * others]
    return []


def origin(statistics: Statistics, place: Place) -> Place:
    """Follow a channel back to the first value in which it stands out."""
    while True:
        before = _before(statistics, place)
        if before is None:
            return place
        place = before


def _named(statistics: Statistics, here: Place, reach: float, others: float) -> Outlier:
    first = origin(statistics, here)
    writer = first.value.producer()
    unit, source_value = (None, "") if writer is None else _unit(statistics, writer, first)
    return Outlier(
        value=str(here.value.name),
        channel=here.channel,
        positions=(),
        reach=reach,
        others=others,
        source="" if writer is None else str(writer.name),
        unit=unit,
        source_value=source_value,
    )


def _stretch(outlier: Outlier) -> float:
    return outlier.reach / outlier.others


def _reach(tensor: TensorStatistics) -> Float:
    """Largest magnitude per channel."""
    assert tensor.channels is not None
    return np.maximum(np.abs(tensor.channels.minimum), np.abs(tensor.channels.maximum)).astype(np.float64)


def _reaches(statistics: Statistics, value: ir.Value, axis: int) -> Float | None:
    """Largest magnitude per channel along an axis of a value, None where that was not observed."""
    name = str(value.name)
    while name not in statistics.tensors:
        target = statistics.aliases.get(name)
        writer = value.producer()
        if target is None or (writer is not None and any(i is not None and i.name == target for i in writer.inputs)):
            return None  # moved data: its channels lie elsewhere in what was observed
        following = [output for use in value.uses() for output in use.node.outputs if output.name == target]
        if not following:
            return None
        name, value = target, following[0]
    tensor = statistics.tensors[name]
    if tensor.channels is None or tensor.channels.axis != axis or tensor.is_empty:
        return None
    return _reach(tensor)


# --- back to the source ---------------------------------------------------------------------------------------


def _before(statistics: Statistics, place: Place) -> Place | None:
    """The input of a value's writer that brings the channel, None where the writer itself makes it."""
    node = place.value.producer()
    step = None if node is None or node.domain not in ("", "ai.onnx") else _STEPS.get(node.op_type)
    if node is None or step is None or weight_inputs(node):
        return None
    candidates = [found for found in step(node, place) if constant_array(found.value) is None]
    if node.op_type in MOVES and len(candidates) == 1:
        return candidates[0]
    weighed = [(found, share) for found in candidates if (share := _standing(statistics, found)) is not None]
    largest = max(weighed, key=lambda pair: pair[1], default=None)
    own = _size(statistics, place)
    if largest is None or (own is not None and node.op_type in _SUMS and largest[1] < _SHARE * own):
        return None
    return largest[0]


def _size(statistics: Statistics, place: Place) -> float | None:
    reaches = _reaches(statistics, place.value, place.axis)
    return None if reaches is None or place.channel >= reaches.size else float(reaches[place.channel])


def _standing(statistics: Statistics, place: Place) -> float | None:
    """Reach of a channel, None where it does not stand out or was not observed, nor what was moved there."""
    reaches = _reaches(statistics, place.value, place.axis)
    if reaches is None:
        writer = place.value.producer()
        before = None if writer is None or writer.op_type not in MOVES else _before(statistics, place)
        return None if before is None else _standing(statistics, before)
    if place.channel >= reaches.size or reaches.size < 2:
        return None
    own = float(reaches[place.channel])
    others = float(np.sort(np.delete(reaches, place.channel))[-max(1, int(reaches.size * _FEW))])
    return own if own >= _STANDS_OUT * others else None


def _elementwise(node: ir.Node, place: Place) -> list[Place]:
    """Inputs of an operator that computes element by element, broadcast as NumPy does."""
    rank = _rank(place.value)
    found = []
    for _, value in activation_inputs(node):
        sizes = dimensions(value)
        if rank is None or sizes is None:
            continue
        axis = place.axis - (rank - len(sizes))
        if axis >= 0 and sizes[axis] != 1:
            found.append(Place(value, axis, place.channel))
    return found


def _channels_second(node: ir.Node, place: Place) -> list[Place]:
    return _same(node, place) if place.axis == 1 else []


def _same(node: ir.Node, place: Place) -> list[Place]:
    source = node.inputs[0]
    return [] if source is None else [Place(source, place.axis, place.channel)]


def _normalized(node: ir.Node, place: Place) -> list[Place]:
    return _same(node, place) if _rank(place.value) == place.axis + 1 else []


def _transposed(node: ir.Node, place: Place) -> list[Place]:
    source, rank = node.inputs[0], _rank(place.value)
    if source is None or rank is None:
        return []
    order = node.attributes.get_ints("perm", list(reversed(range(rank))))
    return [Place(source, order[place.axis], place.channel)]


def _reshaped(node: ir.Node, place: Place) -> list[Place]:
    """The axis with the same elements before and behind it, as far as the sizes are known."""
    source = node.inputs[0]
    before, after = dimensions(source), dimensions(place.value)
    if source is None or before is None or after is None:
        return []
    behind = after[place.axis :]
    for axis in range(len(before)):
        if before[axis] == after[place.axis] and _product(before[axis:]) == _product(behind) is not None:
            return [Place(source, axis, place.channel)]
    return []


def _concatenated(node: ir.Node, place: Place) -> list[Place]:
    rank = _rank(place.value)
    if rank is None:
        return []
    if node.attributes.get_int("axis", 0) % rank != place.axis:
        return [Place(value, place.axis, place.channel) for value in node.inputs if value is not None]
    start = 0
    for value in node.inputs:
        sizes = dimensions(value)
        size = sizes[place.axis] if sizes else None
        if value is None or size is None:
            return []
        if place.channel < start + size:
            return [Place(value, place.axis, place.channel - start)]
        start += size
    return []


def _gathered(node: ir.Node, place: Place) -> list[Place]:
    source, indices = node.inputs[0], node.inputs[1]
    rank, index_rank = _rank(source), _rank(indices)
    if source is None or rank is None or index_rank is None:
        return []
    axis = node.attributes.get_int("axis", 0) % rank
    if axis <= place.axis < axis + index_rank:
        return []
    return [Place(source, place.axis if place.axis < axis else place.axis - index_rank + 1, place.channel)]


def _cut_elsewhere(node: ir.Node, place: Place) -> list[Place]:
    """A part of the input, where the axis of the channels is whole."""
    before, after = dimensions(node.inputs[0]), dimensions(place.value)
    if before is None or after is None or len(before) != len(after) or before[place.axis] is None:
        return []
    return _same(node, place) if before[place.axis] == after[place.axis] else []


def _rank(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else value.shape.rank()


def _product(sizes: Sequence[int | None]) -> int | None:
    known = [size for size in sizes if size is not None]
    return math.prod(known) if len(known) == len(sizes) else None


_SUMS = {"Add", "Sub", "Sum"}

# Where a channel of an operator's output comes from: operator -> function of node and place.
_STEPS: dict[str, Callable[[ir.Node, Place], list[Place]]] = {
    **dict.fromkeys((*_SUMS, "Mul", "Div", "Max", "Min", "Expand"), _elementwise),
    **dict.fromkeys(
        ("Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Gelu", "HardSwish", "Mish", "Softplus", "Swish",
         "ThresholdedRelu", "Abs", "Neg", "Cast", "Identity", "Dropout"), _same,
    ),
    **dict.fromkeys(
        ("BatchNormalization", "InstanceNormalization", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"),
        _channels_second,
    ),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"), _normalized),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshaped),
    **dict.fromkeys(("Slice", "Split", "Pad", "Resize"), _cut_elsewhere),
    "Transpose": _transposed,
    "Concat": _concatenated,
    "Gather": _gathered,
}  # fmt: skip


# --- the unit -------------------------------------------------------------------------------------------------


def _unit(statistics: Statistics, layer: ir.Node, place: Place) -> tuple[int | None, str]:
    """The one channel of a layer's input that makes an output channel large, and that input's name."""
    source = layer.inputs[0] if layer.inputs else None
    shares = None if source is None else contributions(statistics, layer, place)
    own = _size(statistics, place)
    if source is None or shares is None or shares.size < 2 or own is None:
        return None, ""
    unit = int(np.argmax(shares))
    second = float(np.delete(shares, unit).max())
    alone = shares[unit] >= _SHARE * own and shares[unit] >= _ALONE * second
    return (unit, str(source.name)) if alone else (None, "")


def contributions(statistics: Statistics, layer: ir.Node, place: Place) -> Float | None:
    """What each input channel of a layer can bring to one output channel: its reach times the weights' magnitudes.

    Args:
        statistics: of the network.
        layer: Conv, ConvTranspose, Gemm or MatMul with constant weights; anything else has None.
        place: the output channel.

    Returns:
        Shape `(input channels,)`, real units; None where the input's channels were not observed.
    """
    source = layer.inputs[0]
    if (
        source is None
        or weight_inputs(layer) != [1]
        or layer.op_type not in {"Conv", "ConvTranspose", "Gemm", "MatMul"}
    ):
        return None
    weights = constant_array(layer.inputs[1])
    rank = _rank(source)
    if weights is None or rank is None:
        return None
    convolution = is_operator(layer, "Conv", "ConvTranspose")
    reaches = _reaches(statistics, source, 1 if convolution else rank - 1)
    if reaches is None or place.axis != (1 if convolution else (_rank(place.value) or 0) - 1):
        return None
    column = _column(layer, weights, place.channel, reaches.size)
    return None if column is None else column * reaches


def _column(layer: ir.Node, weights: Array, channel: int, inputs: int) -> Float | None:
    """Magnitude of the weights from each input channel to one output channel, summed over the kernel."""
    if is_operator(layer, "MatMul", "Gemm"):
        if weights.ndim != 2 or layer.attributes.get_int("transA", 0) != 0:
            return None
        matrix = weights.T if layer.attributes.get_int("transB", 0) else weights
        column = np.abs(matrix[:, channel].astype(np.float64))
        return column if column.size == inputs else None
    groups = layer.attributes.get_int("group", 1)
    kernel = np.abs(weights.astype(np.float64)).sum(axis=tuple(range(2, weights.ndim)))
    column = np.zeros(inputs)
    size = inputs // groups
    if is_operator(layer, "Conv"):  # [outputs, inputs of a group]
        group = channel // (kernel.shape[0] // groups)
        column[group * size : (group + 1) * size] = kernel[channel]
    else:  # [inputs, outputs of a group]
        group, place = divmod(channel, kernel.shape[1])
        column[group * size : (group + 1) * size] = kernel[group * size : (group + 1) * size, place]
    return column
