"""Name the values, nodes and weights of a converted network after the layers that its author named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from narrowgauge.graph.edits import is_operator

_MOVES = (
    *("Cast", "CastLike", "Concat", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose"),
    "Unsqueeze",
)
"""Operators behind which stored weights are still the same weights."""


def name_after_layers(
    model: ir.Model,
    layers: Mapping[ir.Node, str],
    weights: Mapping[ir.Value, str],
    outputs: Sequence[str] = (),
) -> None:
    """Rename everything in the main graph but its inputs, in place.

    - The one value that a layer hands to others is called as the layer is. If the layer transposes it last (channels
      back to where its framework has them), what it transposes has the name: that is what stays when the transposes go.
    - Weights are called `layer/name`, after the first layer that reads them; a copy of them in another layout that the
      network itself makes has the name, since that is what stays when constants are folded.
    - Other values are called `layer/Operator`, and nodes as what they make first.

    A name that is taken gets a number behind it.

    Args:
        model: the network.
        layers: of each node, the path of the layer that it belongs to, outer names first, parted by slashes; nodes left
            out, or with "", belong to no layer.
        weights: initializers, and what their layer calls them.
        outputs: what to call the outputs of the network; () leaves that to the rules.
    """
    names = _Names({value.name for value in model.graph.inputs if value.name})
    constants = _made_of_constants(model.graph)
    chosen: dict[ir.Value, str] = {}
    for value, name in zip(model.graph.outputs, outputs, strict=False):
        if value.producer() is not None and value not in chosen:
            chosen[value] = names.new(name)
    for value, name in _handed_over(model.graph, layers, constants):
        if value not in chosen:
            chosen[value] = names.new(name)
    _name_weights(weights, layers, constants, chosen, names)
    for value in model.graph.initializers.values():
        if value not in chosen:
            chosen[value] = names.new(_joined(_layer_reading(value, layers), "constant"))
    for node in model.graph:
        for value in node.outputs:
            if value not in chosen:
                chosen[value] = names.new(_joined(layers.get(node, ""), node.op_type))
    _rename(model.graph, chosen)


class _Names:
    """Names given so far."""

    def __init__(self, taken: set[str]) -> None:
        self._taken = taken
        self._numbers: dict[str, int] = {}

    def new(self, base: str) -> str:
        """Return the name, with a number behind it where it is taken."""
        name = base
        while name in self._taken:
            self._numbers[base] = self._numbers.get(base, 0) + 1
            name = f"{base}_{self._numbers[base]}"
        self._taken.add(name)
        return name


def _joined(layer: str, name: str) -> str:
    return f"{layer}/{name}" if layer else name


def _made_of_constants(graph: ir.Graph) -> set[ir.Value]:
    """Return the values that depend on no input of the network."""
    found = set(graph.initializers.values())
    for node in graph:
        read = [value for value in node.inputs if value is not None]
        if all(value in found for value in read) and not any(map(_is_graph, node.attributes.values())):
            found.update(node.outputs)
    return found


def _is_graph(attribute: ir.Attr) -> bool:
    return attribute.type in {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}


def _handed_over(
    graph: ir.Graph, layers: Mapping[ir.Node, str], constants: set[ir.Value]
) -> Iterator[tuple[ir.Value, str]]:
    """Yield the values that are the only one which a layer's own nodes hand to others, with the layer's name."""
    made: dict[str, list[ir.Value]] = {}
    for node in graph:
        layer = layers.get(node, "")
        for value in node.outputs:
            if layer and value not in constants and _leaves(value, layer, layers):
                made.setdefault(layer, []).append(value)
    for layer, values in made.items():
        if len(values) == 1:
            yield _before_transposes(values[0], layer, layers), layer


def _leaves(value: ir.Value, layer: str, layers: Mapping[ir.Node, str]) -> bool:
    readers = (layers.get(use.node, "") for use in value.uses())
    return value.is_graph_output() or any(reader != layer and not reader.startswith(f"{layer}/") for reader in readers)


def _before_transposes(value: ir.Value, layer: str, layers: Mapping[ir.Node, str]) -> ir.Value:
    while not value.is_graph_output():
        node = value.producer()
        source = None if node is None else node.inputs[0]
        if not is_operator(node, "Transpose") or source is None or len(source.uses()) != 1:
            break
        producer = source.producer()
        if producer is None or layers.get(producer, "") != layer:
            break
        value = source
    return value


def _name_weights(
    weights: Mapping[ir.Value, str],
    layers: Mapping[ir.Node, str],
    constants: set[ir.Value],
    chosen: dict[ir.Value, str],
    names: _Names,
) -> None:
    for value, name in weights.items():
        full = _joined(_layer_reading(value, layers), name)
        final = _moved(value, constants)
        if final not in chosen:
            chosen[final] = names.new(full)
        if value not in chosen:
            chosen[value] = names.new(f"{full}_stored")


def _moved(value: ir.Value, constants: set[ir.Value]) -> ir.Value:
    """Follow weights through what only brings them into another layout, as far as nothing else reads their numbers."""
    while True:
        readers = [use.node for use in value.uses() if _reads_numbers(use.node, use.idx)]
        if len(readers) != 1 or not is_operator(readers[0], *_MOVES) or readers[0].outputs[0] not in constants:
            return value
        value = readers[0].outputs[0]


def _reads_numbers(node: ir.Node, index: int) -> bool:
    """Tell whether an input's numbers matter, not only its shape or type."""
    return not is_operator(node, "Shape", "Size") and not (is_operator(node, "CastLike") and index == 1)


def _layer_reading(value: ir.Value, layers: Mapping[ir.Node, str]) -> str:
    return next((layers.get(use.node, "") for use in value.uses()), "")


def _rename(graph: ir.Graph, chosen: Mapping[ir.Value, str]) -> None:
    """Give all at once: a new name may be another's old one."""
    for number, value in enumerate(chosen):
        value.name = f"narrowgauge.{number}"
    for value, name in chosen.items():
        value.name = name
    for node in graph:
        node.name = node.outputs[0].name
