"""Variables that only the initialization writes: they are constants.

Resources are told apart by name (VAR_HANDLE), are filled by a graph that runs once (CALL_ONCE), and read in the main
one. Where the main graph writes one, the network keeps a state from one run to the next, which ONNX has no place for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy.typing as npt

from narrowgauge.errors import ModelError
from narrowgauge.importers.tflite.network import Graph, Network, Operator

VARIABLE_OPERATORS = ("VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "CALL_ONCE")

Variable = tuple[bytes, bytes]
"""Container and name."""


def handles(graph: Graph) -> dict[int, Variable]:
    """Return which variable each handle's tensor names."""
    found = {}
    for operator in graph.operators:
        if operator.name == "VAR_HANDLE":
            options = operator.options
            found[operator.outputs[0]] = (options.get("container") or b"", options.get("shared_name") or b"")
    return found


def initial_values(network: Network) -> dict[Variable, npt.NDArray[Any]]:
    """Return what the initialization assigns to each variable.

    Raises:
        ModelError: it assigns what is not a constant, or the main graph assigns.
    """
    values: dict[Variable, npt.NDArray[Any]] = {}
    for operator in network.main.operators:
        if operator.name == "ASSIGN_VARIABLE":
            raise ModelError(f"{operator}: the network keeps a state from one run to the next, which ONNX cannot")
        if operator.name == "CALL_ONCE":
            graph = _called(network, operator)
            values.update(_assigned(graph, handles(graph)))
    return values


def _called(network: Network, operator: Operator) -> Graph:
    number = int(operator.options.get("init_subgraph_index", 0))
    if not 0 < number < len(network.graphs):
        raise ModelError(f"{operator} calls graph {number} of {len(network.graphs)}; the file is damaged")
    return network.graphs[number]


def _assigned(graph: Graph, named: dict[int, Variable]) -> Iterator[tuple[Variable, npt.NDArray[Any]]]:
    written = {number for operator in graph.operators for number in operator.outputs}
    for operator in graph.operators:
        if operator.name == "VAR_HANDLE":
            continue
        if operator.name != "ASSIGN_VARIABLE" or len(operator.inputs) != 2:
            raise ModelError(
                f"initialization: {operator} is not known there; expected variables that are assigned constants"
            )
        handle, value = operator.inputs
        if handle is None or value is None or handle not in named or value in written:
            raise ModelError(f"initialization: {operator}: expected a variable that is assigned a constant")
        yield named[handle], graph.tensors[value].array()
