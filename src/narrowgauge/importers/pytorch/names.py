"""Names that a user of PyTorch knows: values after the modules that compute them, weights as in the state dict.

What a module without parts computes is named after it, `layer1.0.conv1`. Values inside it, and what the forward of a
module with parts computes by itself, have the operator behind the module's name, `layer1.0.add`. Where a name is taken,
a number follows it, `layer1.0.relu_1`. A layer is named after the module that has its weights. Levels and rounded
values are `name_quantized` and `name_dequantized`, as everywhere in narrowgauge.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from narrowgauge.graph.edits import all_nodes
from narrowgauge.importers.upgrade import OPSET

_SCOPES = "pkg.torch.onnx.name_scopes"
_LINEAR = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
_BATCH = "batch"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """Where in the module a node comes from.

    Attributes:
        path: of the module, "" for the whole one.
        operation: as PyTorch calls it, without a number; "" if the node has none of its own.
        own: name of PyTorch's value; others that the node's translation needed are named after ONNX's operator.
    """

    path: str
    operation: str
    own: str


def name_after_modules(model: ir.Model, program: Any) -> None:
    """Name all values and the weights that got new names on the way; inputs keep theirs."""
    places = _places(model)
    # What nodes write gets new names, one after the other; until then their old ones are nobody's.
    names = _Names(value for value in _values(model) if value.producer() is None)
    _part_equal_weights(places, program)
    leaves = _leaf_paths(places)
    for node, place in places.items():
        if node.op_type in _LINEAR:
            continue
        for value in node.outputs:
            if value.name:
                whole = place.path in leaves and _leaves(value, place.path, places)
                names.give(value, place.path if whole else _inside(place, node, value))
    _name_weights(model, program, places, names)
    _name_levels(model, places, names)
    _name_nodes(places)


def name_inputs_and_outputs(model: ir.Model, program: Any) -> None:
    """Name inputs and outputs in a dict after its keys, and the axis of rows `batch`."""
    from torch.utils import _pytree as pytree

    names = _Names(_values(model))
    inputs = _keys(program.call_spec.in_spec, pytree)
    if len(inputs) == len(model.graph.inputs):
        for value, key in zip(model.graph.inputs, inputs, strict=True):
            if key is not None:
                names.give(value, key)
    outputs = _keys(program.call_spec.out_spec, pytree)
    if len(outputs) == len(model.graph.outputs):
        for value, key in zip(model.graph.outputs, outputs, strict=True):
            if key is not None and value.producer() is not None:
                names.give(value, key)
    _name_rows(model)


class _Names:
    """The names of a network that are taken."""

    def __init__(self, values: Iterable[ir.Value]) -> None:
        """Collect them."""
        self._owners = {value.name: value for value in values}

    def give(self, value: ir.Value, name: str) -> None:
        """Name a value, with a number behind it where the name is taken."""
        if self._owners.get(value.name) is value:
            del self._owners[value.name]
        number, free = 1, name
        while free in self._owners:
            free, number = f"{name}_{number}", number + 1
        _rename(value, free)
        self._owners[free] = value


def _rename(value: ir.Value, name: str) -> None:
    value.name = name
    if value.const_value is not None:
        value.const_value.name = name


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.inputs
        yield from graph.initializers.values()
        for node in graph:
            yield from node.outputs


def _places(model: ir.Model) -> dict[ir.Node, _Place]:
    """Find each node's place; one that a rewriting made takes that of the node before or behind it."""
    found: dict[ir.Node, _Place] = {}
    for node in all_nodes(model):
        place = _place(node) or next(
            (
                _Place(path=found[producer].path, operation="", own="")
                for value in node.inputs
                if value is not None and (producer := value.producer()) in found and producer is not None
            ),
            _Place(path="", operation="", own=""),
        )
        found[node] = place
    return found


def _place(node: ir.Node) -> _Place | None:
    text = node.metadata_props.get(_SCOPES)
    if text is None:
        return None
    scopes = [str(scope) for scope in ast.literal_eval(text)]
    if len(scopes) < 2 or scopes[0]:
        return None
    own = scopes[-1]
    return _Place(path=scopes[-2], operation=re.sub(r"(_default)?(_\d+)?$", "", own).strip("_"), own=own)


def _leaf_paths(places: dict[ir.Node, _Place]) -> set[str]:
    """Paths of modules without parts that compute."""
    paths = {place.path for place in places.values()}
    parents = {path.rpartition(".")[0] for path in paths}
    for path in list(parents):
        while path:
            path = path.rpartition(".")[0]  # noqa: PLW2901
            parents.add(path)
    return {path for path in paths if path and path not in parents}


def _leaves(value: ir.Value, path: str, places: dict[ir.Node, _Place]) -> bool:
    """Tell whether a value is a module's result: others read it, or integers are made of it."""
    return value.is_graph_output() or any(
        node.op_type in _LINEAR or (node in places and places[node].path != path) for node, _ in value.uses()
    )


def _inside(place: _Place, node: ir.Node, value: ir.Value) -> str:
    own = value.name == place.own or str(value.name).startswith("getitem")
    operation = place.operation if place.operation and own else node.op_type.lower()
    return f"{place.path}.{operation}" if place.path else operation


def _name_nodes(places: dict[ir.Node, _Place]) -> None:
    """Name layers after the module whose weights they have, and other nodes after what they write.

    What a layer writes may have another name: that of a normalization which the exporter folded into it.
    """
    taken: set[str] = set()
    for node in places:
        layer = _layer(node)
        name = layer if layer and layer not in taken else str(node.outputs[0].name)
        number, free = 1, name
        while free in taken:
            free, number = f"{name}_{number}", number + 1
        node.name = free
        taken.add(free)


def _layer(node: ir.Node) -> str:
    """Path of the module whose weights a node has as its second input, "" if it has none."""
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    while weight is not None and (producer := weight.producer()) is not None and producer.op_type == "DequantizeLinear":
        weight = producer.inputs[0]
    if weight is None or weight.const_value is None:
        return ""
    path, _, last = str(weight.name).removesuffix("_quantized").rpartition(".")
    return path if last == "weight" else ""


def _name_weights(model: ir.Model, program: Any, places: dict[ir.Node, _Place], names: _Names) -> None:
    """Name transposed weights as in the state dict, and others that were computed on the way after their readers."""
    stored = program.state_dict
    for graph in model.graphs():
        for value in list(graph.initializers.values()):
            if "._packed_params" in str(value.name):
                names.give(value, str(value.name).replace("._packed_params", ""))
                continue
            readers = [(node, number) for node, number in value.uses()]
            if len(readers) != 1 or value.name in stored or value.name in program.constants:
                continue
            node, number = readers[0]
            path = places[node].path if node in places else ""
            tensor = value.const_value
            if tensor is None or tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE):
                continue
            original = stored.get(f"{path}.weight")
            if original is not None and _is_transposed(tensor, original):
                names.give(value, f"{path}.weight")
            elif node.op_type not in _LINEAR:
                parameter = _parameter(node, number)
                names.give(value, f"{path}.{parameter}" if path else f"{node.outputs[0].name}_{parameter}")


def _part_equal_weights(places: dict[ir.Node, _Place], program: Any) -> None:
    """Give each module its own weights again where equal ones were merged, as zeros and ones of new networks are.

    Weights that modules share in PyTorch stay one, under the first of their names.
    """
    stored = program.state_dict
    first: dict[tuple[int, Any], str] = {}
    for name, tensor in stored.items():
        first.setdefault((tensor.data_ptr(), tensor.shape), name)
    for node, place in places.items():
        graph = node.graph
        for number, value in enumerate(node.inputs):
            if value is None or value.name not in stored or not isinstance(graph, ir.Graph) or value.graph is not graph:
                continue
            merged = stored[value.name]
            own = stored.get(f"{place.path}.{str(value.name).rpartition('.')[2]}")
            if own is None or own.shape != merged.shape or not bool((own == merged).all()):
                continue
            name = first[own.data_ptr(), own.shape]
            if name == value.name or not _holds(value, merged):
                continue
            if name not in graph.initializers:
                _add_copy(value, name)
            node.replace_input_with(number, graph.initializers[name])


def _holds(value: ir.Value, stored: Any) -> bool:
    """Tell whether a weight is still the stored one; the exporter folds normalizations into some."""
    return value.const_value is not None and np.array_equal(value.const_value.numpy(), stored.detach().cpu().numpy())


def _add_copy(value: ir.Value, name: str) -> None:
    stored, graph = value.const_value, value.graph
    assert stored is not None
    assert isinstance(graph, ir.Graph)
    tensor = ir.Tensor(stored.numpy(), dtype=stored.dtype, name=name)
    graph.register_initializer(ir.Value(name=name, type=value.type, shape=value.shape, const_value=tensor))


def _is_transposed(tensor: ir.TensorProtocol, original: Any) -> bool:
    if original.ndim != 2 or list(tensor.shape.numpy()) != list(original.shape)[::-1]:
        return False
    return bool(np.array_equal(tensor.numpy(), original.detach().cpu().numpy().T))


def _parameter(node: ir.Node, number: int) -> str:
    """What ONNX calls an operator's input."""
    try:
        inputs = onnx.defs.get_schema(node.op_type, OPSET, node.domain).inputs
    except onnx.defs.SchemaError:
        return f"input_{number}"
    return inputs[min(number, len(inputs) - 1)].name.lower()


def _name_levels(model: ir.Model, places: dict[ir.Node, _Place], names: _Names) -> None:
    """Name integers, rounded values and their parameters after the value that was rounded."""
    for node in all_nodes(model):
        if node.op_type not in _LINEAR or not node.inputs or node.inputs[0] is None:
            continue
        source = node.inputs[0]
        producer = source.producer()
        if node.op_type != "DequantizeLinear":
            clipped = producer is not None and producer.op_type == "Clip" and _is_saturation(producer, places, node)
            root = producer.inputs[0] if clipped and producer is not None else source
            base = str(root.name if root is not None else source.name)
            if clipped:
                names.give(source, f"{base}_saturated")
            for value, suffix in zip(node.outputs, ("quantized", "scale", "zero_point"), strict=False):
                names.give(value, f"{base}_{suffix}")
        elif producer is None and source.const_value is not None:
            base = _name_stored(node, source, places, names)
        else:
            base = str(source.name).removesuffix("_quantized")
        if node.op_type == "DequantizeLinear":
            names.give(node.outputs[0], f"{base}_dequantized")
        for parameter, suffix in zip(node.inputs[1:], ("scale", "zero_point"), strict=False):
            if parameter is not None and _is_own(parameter):
                names.give(parameter, f"{base}_{suffix}")


def _is_own(parameter: ir.Value) -> bool:
    """Tell a scale or zero point without a name that only one pair has; others are shared."""
    unnamed = str(parameter.name).startswith("val_") and parameter.const_value is not None
    return unnamed and len(parameter.uses()) <= 2


def _is_saturation(clip: ir.Node, places: dict[ir.Node, _Place], reader: ir.Node) -> bool:
    """Tell a Clip that a quantization made from one of the network's."""
    return clip in places and reader in places and places[clip].own == places[reader].own != ""


def _name_stored(node: ir.Node, source: ir.Value, places: dict[ir.Node, _Place], names: _Names) -> str:
    """Name stored integers after the module that reads them: programs that were converted lose their names."""
    base = str(source.name).removesuffix("_quantized")
    for use in node.outputs[0].uses():
        reader, number = _behind_moves(use)
        place = places.get(reader)
        if place is not None and place.path and number in (1, 2):
            base = f"{place.path}.{'weight' if number == 1 else 'bias'}"
            break
    names.give(source, f"{base}_quantized")
    return base


def _behind_moves(use: tuple[ir.Node, int]) -> tuple[ir.Node, int]:
    """Find who computes with a weight that is transposed or reshaped first."""
    reader, number = use
    while reader.op_type in ("Transpose", "Reshape", "Cast") and len(reader.outputs[0].uses()) == 1:
        reader, number = next(iter(reader.outputs[0].uses()))
    return reader, number


def _keys(spec: Any, pytree: Any) -> list[str | None]:
    """Key of each leaf that stands in a dict, None for one that does not or whose key is not alone."""
    if spec is None:
        return []
    numbers = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    keys: list[str | None] = [None] * spec.num_leaves
    if isinstance(numbers, tuple) and len(numbers) == 2 and isinstance(numbers[1], dict) and not numbers[1]:
        numbers = numbers[0]
    for path, number in pytree.tree_flatten_with_path(numbers)[0]:
        last = path[-1] if path else None
        key = getattr(last, "key", None)
        keys[number] = key if isinstance(key, str) else None
    return [key if keys.count(key) == 1 else None for key in keys]


def _name_rows(model: ir.Model) -> None:
    """Call the symbol of the first axis of all inputs `batch` if they share one."""
    first = [value.shape[0] for value in model.graph.inputs if value.shape is not None and len(value.shape)]
    symbols = {axis.value for axis in first if isinstance(axis, ir.SymbolicDim)}
    if len(symbols) != 1 or None in symbols:
        return
    (symbol,) = symbols

    def renamed(axis: Any) -> Any:
        return ir.SymbolicDim(_BATCH) if isinstance(axis, ir.SymbolicDim) and axis.value == symbol else axis

    for value in _values(model):
        if value.shape is not None:
            value.shape = ir.Shape([renamed(axis) for axis in value.shape])
