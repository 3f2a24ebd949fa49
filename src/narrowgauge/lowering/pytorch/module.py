"""Build a torch.nn.Module of an ONNX network."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from narrowgauge.errors import MissingDependencyError, TargetError
from narrowgauge.graph.constants import lift_constants
from narrowgauge.graph.edits import free_name
from narrowgauge.lowering.pytorch.call import Call, as_tensor
from narrowgauge.lowering.pytorch.elementwise import Function
from narrowgauge.lowering.pytorch.known import compute
from narrowgauge.lowering.pytorch.linear_layers import DOMAIN, to_linear_layers
from narrowgauge.lowering.pytorch.rounding import ROUNDING, rounding_of, to_float_biases
from narrowgauge.lowering.pytorch.table import OPERATORS

if TYPE_CHECKING:
    import torch

_SMALL = 16
"""Integer constants of no more elements are shapes, axes and the like, which are no tensors of the module."""


def to_module(model: ir.Model) -> torch.nn.Module:
    """Build a module that computes what a network does.

    It takes the network's inputs and returns its outputs in their order, as a tuple. Each node is a submodule of
    `operators`, called like the first value that it writes (`identifiers`), so that exporting it keeps the names. Its
    float constants are parameters, others are buffers, called like the initializers. Its attributes `value_names` and
    `input_names` map a submodule's name to the values that it writes, and say what the inputs are called.

    Args:
        model: opset 21 or newer, float or in Q/DQ form; it is not changed.

    Raises:
        TargetError: an operator is not in the table, or is used as PyTorch has it not; the message names the node.
            Some such uses show only when the module first runs.
        MissingDependencyError: PyTorch is not installed.
    """
    try:
        import torch
        import torch.ao.quantization.fx._decomposed  # registers the operators
    except ImportError as error:
        raise MissingDependencyError(
            f'PyTorch is needed, and cannot be imported ({error}): pip install "narrowgauge[torch]"'
        ) from None

    network = model.clone()
    lift_constants(network)
    to_float_biases(network)
    to_linear_layers(network)
    nodes = [(node, _function(node)) for node in network.graph]
    reserved = set(dir(torch.nn.ModuleDict()))
    names = identifiers((value.name for node in network.graph for value in node.outputs if value.name), reserved)
    constants = {
        name: value.const_value.numpy()
        for name, value in network.graph.initializers.items()
        if value.const_value is not None
    }
    inputs = [str(value.name) for value in network.graph.inputs if not value.is_initializer()]
    outputs = [str(value.name) for value in network.graph.outputs]

    scales, zeros = _channel_numbers(network)
    constants |= {name: constants[name].astype(np.int64) for name in zeros}  # as PyTorch has them

    class Operator(torch.nn.Module):  # type: ignore[misc]  # checked without PyTorch
        """One node."""

        def __init__(self, node: ir.Node, function: Function) -> None:
            super().__init__()
            self.node, self.function = node, function

        def forward(self, *values: Any) -> Any:
            held = tuple(constants.get(str(value.name)) if value is not None else None for value in self.node.inputs)
            call = Call(torch=torch, node=self.node, inputs=values, constants=held)
            known = compute(call)
            return self.function(call) if known is None else known

    class Network(torch.nn.Module):  # type: ignore[misc]  # likewise
        """The network."""

        def __init__(self) -> None:
            super().__init__()
            self.input_names = inputs
            self.value_names: dict[str, tuple[str, ...]] = {}
            self.numbers = torch.nn.Module()
            self.operators = torch.nn.ModuleDict()
            self.steps: list[tuple[str, list[str | None], list[str]]] = []
            self.places = identifiers(_tensors(network), reserved)
            for name, key in self.places.items():
                _store(torch, self.numbers, key, constants[name], trained=name not in scales)
            for node, function in nodes:
                written = [str(value.name or "") for value in node.outputs]
                key = names[next(name for name in written if name)]
                self.value_names[key] = tuple(written)
                self.operators[key] = Operator(node, function)
                read = [None if value is None else str(value.name) for value in node.inputs]
                self.steps.append((key, read, written))

        def forward(self, *given: Any) -> tuple[Any, ...]:
            values: dict[str, Any] = dict(zip(inputs, given, strict=True))
            values |= {name: array for name, array in constants.items() if name not in self.places}
            values |= {name: getattr(self.numbers, key) for name, key in self.places.items()}
            for key, read, written in self.steps:
                found = self.operators[key](*(None if name is None else values[name] for name in read))
                results = found if isinstance(found, tuple) else (found,)
                values |= dict(zip(written, results, strict=False))
            return tuple(as_tensor(torch, values[name]) for name in outputs)

    return Network().eval()


def identifiers(names: Iterable[str], reserved: Iterable[str] = ()) -> dict[str, str]:
    """Give each name one that Python and PyTorch take: letters, digits and underscores, all different."""
    found: dict[str, str] = {}
    taken = set(reserved)
    for name in dict.fromkeys(names):
        base = re.sub(r"\W", "_", name, flags=re.ASCII)
        base = f"_{base}" if not base or base[0].isdigit() or keyword.iskeyword(base) else base
        found[name] = free_name(base, taken)
        taken.add(found[name])
    return found


def _function(node: ir.Node) -> Function:
    known = OPERATORS.get(node.op_type) if node.domain in ("", "ai.onnx", DOMAIN) else None
    if known is None:
        domain = f" of the domain {node.domain!r}" if node.domain else ""
        raise TargetError(
            f"node {node.name!r}: {node.op_type}{domain} cannot be written for PyTorch; another format of the target "
            "takes it, or leave it out of the network"
        )
    return known


def _channel_numbers(network: ir.Model) -> tuple[set[str], set[str]]:
    """Names of the initializers that are scales, and of those that are zero points, of channels."""
    scales, zeros = set(), set()
    for node in network.graph:
        rounding = rounding_of(node) if node.op_type in ROUNDING else None
        if rounding is not None and rounding.axis is not None:
            scales.add(str(node.inputs[1].name))  # type: ignore[union-attr]
            zeros |= {str(value.name) for value in node.inputs[2:3] if value is not None}
    return scales, zeros


def _tensors(network: ir.Model) -> list[str]:
    """List the initializers that the module needs as tensors: not shapes, axes, nor numbers of a single scale."""
    needed: dict[str, None] = {}
    for node in network.graph:
        rounding = rounding_of(node) if node.op_type in ROUNDING else None
        for number, value in enumerate(node.inputs):
            if value is None or not value.is_initializer() or value.const_value is None:
                continue
            if rounding is not None and number > 0 and rounding.axis is None:
                continue
            array = value.const_value
            if array.size == 0:
                continue
            if array.dtype.is_floating_point() or array.size > _SMALL or (rounding is not None and number == 2):
                needed[str(value.name)] = None
    return list(needed)


def _store(torch: Any, module: Any, key: str, array: Any, *, trained: bool) -> None:
    tensor = as_tensor(torch, array)
    if tensor.dtype.is_floating_point and trained:
        module.register_parameter(key, torch.nn.Parameter(tensor))
    else:
        module.register_buffer(key, tensor)
