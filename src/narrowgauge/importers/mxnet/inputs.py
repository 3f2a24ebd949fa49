"""The shapes of a network's inputs, which MXNet's files do not have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from narrowgauge.importers.mxnet.attributes import Attributes
from narrowgauge.importers.mxnet.symbol import VARIABLE, Node, Symbol

Array = npt.NDArray[Any]
Shape = tuple[int | None, ...]

_CONVOLUTIONS = {"Convolution", "Convolution_v1", "_contrib_quantized_conv", "_sg_mkldnn_conv", "_sg_onednn_conv"}
_PRODUCTS = {
    "FullyConnected", "_contrib_quantized_fully_connected", "_sg_mkldnn_fully_connected", "_sg_onednn_fully_connected",
}  # fmt: skip
_KEEP_RANK_AND_CHANNELS = {
    "BatchNorm", "BatchNorm_v1", "Activation", "LeakyReLU", "Dropout", "identity", "_copy", "BlockGrad", "Cast", "cast",
    "clip", "Pooling", "Pooling_v1", "LRN", "InstanceNorm", "L2Normalization", "_contrib_quantize",
    "_contrib_quantize_v2", "elemwise_add", "elemwise_sub", "elemwise_mul", "_plus_scalar", "_minus_scalar",
    "_mul_scalar", "_div_scalar", "_PlusScalar", "_MinusScalar", "_MulScalar", "_DivScalar", "_contrib_quantized_act",
    "broadcast_add", "broadcast_sub", "broadcast_mul", "broadcast_div", "relu", "Pad", "pad",
}  # fmt: skip


def shapes_of(example: Any) -> tuple[dict[str, Shape], list[Shape]]:
    """Return the shapes that example inputs tell: by name, and in order where they have none.

    Args:
        example: shapes or arrays by name, one array, or a sequence of them; of an array the first axis counts as the
            batch, of any length. Anything else tells nothing.
    """
    if isinstance(example, Mapping):
        found = {str(name): shape for name, one in example.items() if (shape := _shape(one)) is not None}
        return found, []
    if isinstance(example, list | tuple):
        shapes = [_of_array(one) for one in example if hasattr(one, "shape")]
        return {}, shapes if len(shapes) == len(example) else []
    return {}, [_of_array(example)] if hasattr(example, "shape") else []


def _shape(one: Any) -> Shape | None:
    if hasattr(one, "shape"):
        return _of_array(one)
    if isinstance(one, list | tuple) and all(size is None or isinstance(size, int) for size in one):
        return tuple(size if size is not None and size > 0 else None for size in one)
    return None


def _of_array(one: Any) -> Shape:
    sizes = tuple(int(size) for size in np.shape(one))
    return (None, *sizes[1:]) if sizes else ()


def shape_of_input(
    symbol: Symbol,
    readers: Mapping[int, Sequence[tuple[int, int]]],
    number: int,
    parameters: Mapping[str, Array],
    shapes: Mapping[str, Shape],
) -> Shape | None:
    """Find the shape of an input: as given, as its `__shape__` says, or as the layers that read it need it.

    Args:
        symbol: the graph.
        readers: see `Symbol.readers`.
        number: of the variable.
        parameters: by name.
        shapes: those that are given.

    Returns:
        The length of each axis, None where it may be any; None where nothing says how many axes there are.
    """
    node = symbol.nodes[number]
    if node.name in shapes:
        return shapes[node.name]
    written = Attributes(texts=node.attributes, where=f"input {node.name!r}").optional_sizes("__shape__")
    if written:
        sizes = tuple(size if size is not None and size > 0 else None for size in written)
        return (None, *sizes[1:])  # the first axis is the batch, whatever it was in training
    waiting, seen = [number], {number}
    while waiting:
        current = waiting.pop(0)
        for reader, place in readers[current]:
            layer = symbol.nodes[reader]
            if place == 0 and (found := _by_layer(symbol, layer, parameters)) is not None:
                return found
            if layer.operator in _KEEP_RANK_AND_CHANNELS and reader not in seen:
                seen.add(reader)
                waiting.append(reader)
    return None


def _by_layer(symbol: Symbol, node: Node, parameters: Mapping[str, Array]) -> Shape | None:
    if node.operator not in _CONVOLUTIONS | _PRODUCTS or len(node.inputs) < 2:
        return None
    weights = parameters.get(symbol.nodes[node.inputs[1][0]].name)
    if weights is None:
        return None
    layer = next((one for one in _inner(node) if one.operator in _CONVOLUTIONS | _PRODUCTS), node)
    attributes = Attributes(texts=layer.attributes, where=f"{layer.operator} {layer.name!r}")
    if node.operator in _PRODUCTS:
        flat = attributes.boolean("flatten", default=True)  # else the input may have any number of axes
        return (None, weights.shape[1]) if weights.ndim == 2 and flat else None
    spatial = (None,) * (weights.ndim - 2)
    if attributes.text("layout", "NCHW").endswith("C"):
        return (None, *spatial, weights.shape[-1] * attributes.integer("num_group", 1))
    return (None, weights.shape[1] * attributes.integer("num_group", 1), *spatial)


def _inner(node: Node) -> Sequence[Node]:
    return [one for graph in node.subgraphs for one in graph.nodes if one.operator != VARIABLE]
