"""Inner values of a network as its outputs, in rounds, so that memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import onnx_ir as ir

Item = TypeVar("Item")


def returning(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """Copy a network so that it returns these values of its main graph's nodes, and no others; weights are shared."""
    copy = model.clone()
    values = {str(value.name): value for node in copy.graph for value in node.outputs}
    copy.graph.outputs[:] = [values[name] for name in names]
    return copy


def in_rounds(items: Iterable[Item], size: Callable[[Item], int], most: int) -> list[list[Item]]:
    """Cut items, in their order, into groups whose sizes stay within a bound; one that is larger is a group alone."""
    groups: list[list[Item]] = []
    held = 0
    for item in items:
        needed = size(item)
        if not groups or held + needed > most:
            groups.append([])
            held = 0
        groups[-1].append(item)
        held += needed
    return groups
