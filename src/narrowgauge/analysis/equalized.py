"""One layer and its neighbours equalized, as a change of the quantized network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.analysis.chain import Change
from narrowgauge.analysis.sensitivity import quantized_tensors
from narrowgauge.calibration.statistics import Statistics, TensorStatistics
from narrowgauge.calibration.weights import weight_range
from narrowgauge.core.encoding import AnyEncoding, Encoding
from narrowgauge.core.granularity import PerTensor
from narrowgauge.core.plan import Plan
from narrowgauge.core.ranges import encoding_from_range
from narrowgauge.errors import StatisticsError
from narrowgauge.graph.constants import constant_array, replace_constant_input
from narrowgauge.graph.pieces import alive_after, piece
from narrowgauge.graph.roles import activation_inputs
from narrowgauge.passes.layers import Layer
from narrowgauge.planning.bias_room import with_room_for_biases
from narrowgauge.recovery.equalize import equalize
from narrowgauge.recovery.links import Link, find_links
from narrowgauge.targets.schema import Target, TensorRules

Array = npt.NDArray[Any]
Range = tuple[Array, Array]  # minima and maxima, real units, of the scale's shape


def equalized(
    network: ir.Model, plan: Plan, statistics: Statistics | None, layer: ir.Node, target: Target
) -> Change | None:
    """Even out the channels of a layer and of those before and behind it (`recovery.equalize`, without caps).

    The weights of all of them and the values between get the ranges that they then have, cut off by the share by which
    the plan cuts off those of today: of rescaled channels the extremes are known, not the histograms.

    Args:
        network: the float network that the plan describes, shapes inferred; it is not changed.
        plan: its plan.
        statistics: of the network; None does where no value between the layers has a static range.
        layer: a node of the main graph.
        target: what it says of ranges and biases.

    Returns:
        None where there is nothing to even out, it would take other nodes, a range would be unknown, or other nodes
        read the weights, too.
    """
    links = [link for link in find_links(network) if any(one.node is layer for one in _layers(link))]
    layers = list(dict.fromkeys(one.node for link in links for one in _layers(link)))
    if not links or not all(_owns_weights(node) for node in layers):
        return None
    if not all(_has_one_scale(plan.encodings.get(name)) for node in layers for name in _read(node)):
        return None  # there is no room for a bias to be told
    nodes, touched = list(network.graph), [node for link in links for node in _nodes(link)]
    first, last = min(map(nodes.index, touched)), max(map(nodes.index, touched))
    alive = alive_after(network)[last]
    kept = [str(value.name) for node in nodes[first : last + 1] for value in node.outputs if value.name in alive]
    section = piece(network, nodes[first : last + 1], kept)
    changed, seen, done = equalize(section, statistics, layers={str(node.name) for node in layers}, caps=False)
    if not done or [node.name for node in changed.graph] != [node.name for node in section.graph]:
        return None
    between = {name for one in done for name in one.values}
    if statistics is not None and seen is not None and not between & statistics.tensors.keys() <= seen.tensors.keys():
        return None
    between |= {name for link in links for node, _ in link.nodes for name in _constants(node)}
    values = _value_encodings(network, plan, statistics, changed, seen, between, target.activations)
    if values is None:
        return None
    weights = _weight_encodings(layers, changed, replace(plan, encodings={**plan.encodings, **values}), target)
    twins = {str(node.name): node for node in changed.graph}
    names = {str(node.name) for node in touched}

    def edit(graph: ir.Graph) -> None:
        for node in graph:
            if node.name in names:
                _take_over(node, twins[str(node.name)])

    return Change(first=first, last=last, encodings={**values, **weights}, edit=edit)


def _layers(link: Link) -> Iterator[Layer]:
    yield link.writer
    yield from (layer for layer, _ in link.readers)


def _nodes(link: Link) -> Iterator[ir.Node]:
    """Every node that a link may change."""
    for layer in _layers(link):
        yield layer.node
        if layer.bias_node is not None:
            yield layer.bias_node
    yield from (node for node, _ in link.nodes)


def _owns_weights(node: ir.Node) -> bool:
    """Whether a node alone reads its weights, so that they keep their name when they change."""
    weights = node.inputs[1]
    return (
        weights is not None and weights.is_initializer() and len(weights.uses()) == 1 and not weights.is_graph_output()
    )


def _has_one_scale(encoding: AnyEncoding | None) -> bool:
    return not isinstance(encoding, Encoding) or isinstance(encoding.granularity, PerTensor)


def _read(node: ir.Node) -> list[str]:
    """Names of the activations that a node reads."""
    return [str(value.name) for _, value in activation_inputs(node)]


def _constants(node: ir.Node) -> list[str]:
    return [str(value.name) for value in node.inputs if value is not None and value.is_initializer()]


def _take_over(node: ir.Node, twin: ir.Node) -> None:
    """Give a node the constants of its rescaled twin, and its operator: a Clip that never cuts became a Relu."""
    node.op_type = twin.op_type
    for name in set(node.attributes) - set(twin.attributes):
        node.attributes.pop(name)
    node.resize_inputs(len(twin.inputs))
    for number, value in enumerate(twin.inputs):
        array, own = constant_array(value), constant_array(node.inputs[number])
        if array is not None and (own is None or not np.array_equal(own, array)):
            replace_constant_input(node, number, array)


# --- encodings ------------------------------------------------------------------------------------------------


def _value_encodings(
    network: ir.Model, plan: Plan, statistics: Statistics | None, changed: ir.Model, seen: Statistics | None,
    between: set[str], rules: TensorRules,
) -> dict[str, Encoding] | None:  # fmt: skip
    """Encodings of rescaled values, those that share one together; None where one cannot be told."""
    found: dict[str, Encoding] = {}
    for tensor in quantized_tensors(network, plan):
        own = plan.encodings[tensor.name]
        if not isinstance(own, Encoding) or not between & set(tensor.members):
            continue
        before, after = _range(network, statistics, tensor.members), _range(changed, seen, tensor.members)
        one_scale = isinstance(own.granularity, PerTensor)
        if before is None or after is None or not one_scale or not set(tensor.members) <= between:
            return None
        found |= dict.fromkeys(tensor.members, _rescaled(own, before, after, rules))
    return found


def _range(model: ir.Model, statistics: Statistics | None, names: Iterable[str]) -> Range | None:
    """Extremes of values that share an encoding: what was seen, or the numbers of constants where nothing was."""
    seen = [tensor for name in names if (tensor := _tensor(statistics, name)) is not None]
    if any(tensor.is_empty or tensor.nan_count or tensor.infinity_count for tensor in seen):
        return None
    ends = [(tensor.minimum, tensor.maximum) for tensor in seen]
    if not ends:
        arrays = [constant_array(model.graph.initializers.get(name)) for name in names]
        ends = [(float(array.min()), float(array.max())) for array in arrays if array is not None and array.size]
    return (np.array(min(low for low, _ in ends)), np.array(max(high for _, high in ends))) if ends else None


def _tensor(statistics: Statistics | None, name: str) -> TensorStatistics | None:
    if statistics is None:
        return None
    try:
        return statistics.of(name)
    except StatisticsError:  # a copy that was not observed has the range of what it was made from
        return None


def _weight_encodings(
    layers: Iterable[ir.Node], changed: ir.Model, plan: Plan, target: Target
) -> dict[str, AnyEncoding]:  # fmt: skip
    """Encodings of rescaled weights, with room for the rescaled biases beside the inputs' new scales."""
    found: dict[str, AnyEncoding] = {}
    sources: dict[str, AnyEncoding] = {}
    for node in layers:
        value = node.inputs[1]
        own = plan.encodings.get(str(value.name)) if value is not None else None
        if value is None or not isinstance(own, Encoding):
            continue
        before, after = (
            _weight_range(constant_array(one), own, target.weights)
            for one in (value, changed.graph.initializers[str(value.name)])
        )
        found[str(value.name)] = _rescaled(own, before, after, target.weights)
        sources |= {name: plan.encodings[name] for name in _read(node) if name in plan.encodings}
    roomy = with_room_for_biases(
        changed, replace(plan, encodings={**sources, **found}), bits=target.bias_bits,
        power_of_two=target.weights.power_of_two,
    )  # fmt: skip
    return {name: roomy.encodings[name] for name in found}


def _weight_range(weights: Array | None, own: Encoding, rules: TensorRules) -> Range:
    assert weights is not None
    return weight_range(weights, own.granularity, own.type, symmetric=rules.is_symmetric(own.type))


def _rescaled(own: Encoding, before: Range, after: Range, rules: TensorRules) -> Encoding:
    """The encoding of a range that was another before, cut off by the share by which the other was."""

    def covering(low: Array, high: Array) -> Encoding:
        return encoding_from_range(
            low, high, own.type, own.granularity, symmetric=rules.is_symmetric(own.type),
            power_of_two=rules.power_of_two,
        )  # fmt: skip

    share = np.minimum(own.scale / covering(*before).scale, 1.0)
    return covering(*(end * share for end in after))
