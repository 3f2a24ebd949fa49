"""Which values of a network calibration looks at, along which axis their channels lie, and how each is reduced."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from narrowgauge.graph.edits import is_operator, sole_consumer
from narrowgauge.graph.roles import (
    LAYOUT_OPERATORS,
    WEIGHT_ROLES,
    activation_inputs,
    bias_addition,
    bounded_by_constant,
    clip_bounds,
    clips_only,
    is_constant,
    weight_inputs,
)
from narrowgauge.graph.shapes import dimensions

# "whole": the value leaves the engine and is reduced here; "planes": the engine reduces it with pooling operators,
# which keep its blocked layout of convolutions.
Reduction = Literal["whole", "planes"]

# Operators that keep finite numbers finite and that ONNX Runtime runs in its blocked layout of convolutions.
_PLANE_OPERATORS = {"Conv", "ConvTranspose", "MaxPool", "AveragePool", "Relu", "Clip", "Add", "Concat"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """How one value is looked at.

    Attributes:
        name: the value's name.
        channel_axis: axis of its channels, None where it has none.
        reduction: where its extremes and sums are taken.
        shape: sizes of its axes, None for the batch and for unknown ones.
        lower_bound: bound that its own operator keeps it above (Relu: 0), minus infinity if none.
    """

    name: str
    channel_axis: int | None
    reduction: Reduction
    shape: tuple[int | None, ...]
    lower_bound: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Observations:
    """What calibration looks at.

    Attributes:
        values: by value name, in the network's order.
        aliases: value name -> name of the observed value whose statistics also hold for it.
        batch_first: whether every observed value has the batch as its first axis, so that samples can share a batch.
    """

    values: Mapping[str, Observation]
    aliases: Mapping[str, str]
    batch_first: bool


def observations(model: ir.Model, *, sampled: int) -> Observations:
    """Choose what calibration looks at: every float value that is no constant, each set of equal statistics once.

    Left out are reshaped and transposed copies (unless a layer with weights reads them: it needs the means along the
    copy's channels), what only a Relu, a Clip, or a Min or Max with a constant reads (an integer that saturates where
    they cut does the same), and products before their bias, which every integer kernel adds before it rounds.

    Args:
        model: the network, shapes inferred.
        sampled: elements per sample up to which a value is counted whole.
    """
    graph = model.graph
    axes = channel_axes(graph)
    batch = _batch_symbol(graph)
    values: dict[str, Observation] = {}
    aliases: dict[str, str] = {}
    for value in _candidates(graph):
        clipper = clips_only(value) or _bounds_only(value)
        producer = value.producer()
        if clipper is not None:
            aliases[str(value.name)] = str(clipper.outputs[0].name)
        elif producer is not None and (addition := bias_addition(producer)) is not None:
            aliases[str(value.name)] = str(addition.outputs[0].name)
        elif is_operator(producer, *LAYOUT_OPERATORS) and not _feeds_weights(value):
            aliases[str(value.name)] = str(producer.inputs[0].name)  # type: ignore[union-attr]
        else:
            values[str(value.name)] = _observation(value, axes.get(str(value.name)), sampled)
    others = {size.value for value in graph.inputs for size in _symbols(value)} - {batch, None}
    batch_first = batch is not None and all(
        _may_carry_batch(value, others) for value in _candidates(graph) if value.name in values
    )
    return Observations(values=values, aliases=aliases, batch_first=batch_first)


def _candidates(graph: ir.Graph) -> list[ir.Value]:
    inputs = [value for value in graph.inputs if not is_constant(value)]
    outputs = [value for node in graph for value in node.outputs]
    return [value for value in inputs + outputs if value.name and value.dtype == ir.DataType.FLOAT and _is_read(value)]


def _is_read(value: ir.Value) -> bool:
    return value.is_graph_output() or bool(value.uses())


def _bounds_only(value: ir.Value) -> ir.Node | None:
    """Return the Min or Max with a constant (a cap per channel, say) that alone reads a value, else None."""
    consumer = sole_consumer(value)
    return consumer if consumer is not None and bounded_by_constant(consumer) is value else None


def _feeds_weights(value: ir.Value) -> bool:
    return any(use.idx == 0 and weight_inputs(use.node) for use in value.uses())


def _batch_symbol(graph: ir.Graph) -> str | None:
    """Name of the first axis of every float input that has axes, None where they have no common one."""
    symbols = {_first_symbol(value) for value in graph.inputs if value.shape is not None and value.shape.rank() > 0}
    return symbols.pop() if len(symbols) == 1 else None


def _symbols(value: ir.Value) -> list[ir.SymbolicDim]:
    return [size for size in value.shape or () if isinstance(size, ir.SymbolicDim)]


def _may_carry_batch(value: ir.Value, others: set[str | None]) -> bool:
    """Whether a value's first axis is the batch as far as is known: open, and not one of the inputs' other axes."""
    if value.shape is None or value.shape.rank() == 0 or isinstance(value.shape[0], int):
        return False
    return value.shape[0].value not in others


def _first_symbol(value: ir.Value) -> str | None:
    if value.shape is None or value.shape.rank() == 0 or isinstance(value.shape[0], int):
        return None
    return value.shape[0].value


def _observation(value: ir.Value, channel_axis: int | None, sampled: int) -> Observation:
    sizes = dimensions(value)
    inner = sizes[1:] if sizes else ()
    producer = value.producer()
    clips = (
        producer is not None and is_operator(producer, "Relu", "Clip") and all(map(is_constant, producer.inputs[1:]))
    )
    known = sizes is not None and len(sizes) > 1 and all(size is not None for size in inner)
    reduction: Reduction = "whole"
    if known and math.prod(size or 1 for size in inner) > sampled:
        planes = channel_axis == 1 and len(inner) == 3 and is_operator(producer, *_PLANE_OPERATORS)
        reduction = "planes" if planes else "whole"
    return Observation(
        name=str(value.name),
        channel_axis=channel_axis,
        reduction=reduction,
        shape=(None, *inner) if sizes else (),
        lower_bound=clip_bounds(producer)[0] if clips and producer is not None else -math.inf,
    )


# --- channel axes ---------------------------------------------------------------------------------------------

_CHANNELS_SECOND = {"Conv", "ConvTranspose", "BatchNormalization", "InstanceNormalization", "GroupNormalization",
                    "GlobalAveragePool", "GlobalMaxPool", "AveragePool", "MaxPool"}  # fmt: skip
_CHANNELS_LAST = {"MatMul", "Gemm", "LayerNormalization", "LSTM", "GRU", "RNN"}


def channel_axes(graph: ir.Graph) -> dict[str, int | None]:
    """Axis of the channels of each float value: 1 around convolutions, the last around matrix products.

    Taken from the operator that reads the value as its data, else from the one that writes it, else handed on from
    the first input of the same rank; a value of rank 0 or 1 has none.
    """
    axes: dict[str, int | None] = {}
    for value in graph.inputs:
        axes[str(value.name)] = _axis(value, None)
    for node in graph:
        inherited = next((axes.get(str(value.name)) for _, value in activation_inputs(node)), None)
        for value in node.outputs:
            axes[str(value.name)] = _axis(value, _produced(node, value, inherited))
    return axes


def _axis(value: ir.Value, produced: int | None) -> int | None:
    if value.shape is None or value.shape.rank() < 2:
        return None
    rank = value.shape.rank()
    readers = {use.node.op_type for use in value.uses() if use.idx == 0 and use.node.domain == ""}
    if readers & _CHANNELS_SECOND:
        return 1
    if readers & _CHANNELS_LAST:
        return rank - 1
    return produced if produced is not None and produced < rank else rank - 1


def _produced(node: ir.Node, value: ir.Value, inherited: int | None) -> int | None:
    if value.shape is None or node.domain != "":
        return None
    if node.op_type in _CHANNELS_SECOND:
        return 1
    if node.op_type in _CHANNELS_LAST or node.op_type in LAYOUT_OPERATORS or node.op_type in WEIGHT_ROLES:
        return value.shape.rank() - 1
    data = next((data for _, data in activation_inputs(node)), None)
    same_rank = data is not None and data.shape is not None and data.shape.rank() == value.shape.rank()
    return inherited if same_rank else None
