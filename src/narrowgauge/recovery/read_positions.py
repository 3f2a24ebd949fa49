"""Positions (tokens) that the network's end reads alone: an error there counts more than anywhere else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from narrowgauge.graph.shapes import dimensions, rank
from narrowgauge.passes.positions import sources
from narrowgauge.passes.select_early import selection_of


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadPositions:
    """Which positions of a value are read alone further on.

    Attributes:
        axis: the axis that they are counted along.
        positions: which they are.
    """

    axis: int
    positions: tuple[int, ...]


def read_positions(model: ir.Model) -> Mapping[str, ReadPositions]:
    """Find the values whose positions a Gather or Slice selects later, such as the class token of a transformer.

    From each selection of at most half of an axis the same positions are followed through all operators that compute
    every position by itself, backwards and forwards (`passes.positions`): a residual stream and all that reads it.
    Positions that are mixed on the way (by an attention) are not followed, so this does not say that others do not
    count, only that these are what the answer is read from.

    Args:
        model: the float network, shapes inferred.

    Returns:
        Value name -> the positions, of every value along one of whose axes they could be followed.
    """
    found: dict[str, ReadPositions] = {}
    for node in model.graph:
        selection = selection_of(node)
        size = (dimensions(node.inputs[0]) or ())[selection.axis] if selection is not None else None
        if selection is None or node.inputs[0] is None or size is None or 2 * len(selection.indices) > size:
            continue
        waiting = [(node.inputs[0], selection.axis)]
        positions = ReadPositions(axis=selection.axis, positions=tuple(sorted(selection.indices)))
        while waiting:
            value, axis = waiting.pop()
            sizes = dimensions(value) or ()
            if value.name in found or value.const_value is not None or axis >= len(sizes) or sizes[axis] != size:
                continue
            found[str(value.name)] = ReadPositions(axis=axis, positions=positions.positions)
            waiting += [*_before(value, axis), *_behind(value, axis)]
    return found


def _before(value: ir.Value, axis: int) -> Iterator[tuple[ir.Value, int]]:
    node = value.producer()
    for number, own in (sources(node, axis) or {}).items() if node is not None else ():
        source = node.inputs[number] if node is not None else None
        if source is not None:
            yield source, own


def _behind(value: ir.Value, axis: int) -> Iterator[tuple[ir.Value, int]]:
    for node, number in value.uses():
        result = node.outputs[0]
        for own in range(rank(result) or 0):
            if (sources(node, own) or {}).get(number) == axis:
                yield result, own
