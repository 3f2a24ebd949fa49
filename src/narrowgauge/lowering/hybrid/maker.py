"""Makes the nodes of a rewritten layer, one call for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from narrowgauge.graph.edits import new_node
from narrowgauge.lowering.parameters import Parameters

Operand = ir.Value | float | bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Maker:
    """Makes nodes in the order of their calls; numbers among the inputs become constants.

    Attributes:
        parameters: adds constants and finds free names.
        prefix: of the nodes' names.
        nodes: what was made.
    """

    parameters: Parameters
    prefix: str
    nodes: list[ir.Node] = field(default_factory=list)

    def __call__(
        self, operator: str, *inputs: Operand, attributes: Mapping[str, Any] | None = None, type: Any = np.float32
    ) -> ir.Value:
        """Make a node and return its output; `type` is that of the numbers among its inputs."""
        values = [one if isinstance(one, ir.Value) else self.constant(one, type) for one in inputs]
        name = self.parameters.name(f"{self.prefix}_{operator.lower()}")
        node = new_node(operator, values, attributes, name=name)
        self.nodes.append(node)
        return node.outputs[0]

    def constant(self, numbers: Any, type: Any = np.float32) -> ir.Value:
        """Return a constant, one for all that are equal."""
        array = np.asarray(numbers, dtype=type)
        return self.parameters.constant(f"{self.prefix}_constant", array)

    def cast(self, value: ir.Value, type: ir.DataType) -> ir.Value:
        """Make a Cast."""
        return self("Cast", value, attributes={"to": type})

    def reduced(self, operator: str, value: ir.Value, axes: Sequence[int]) -> ir.Value:
        """Make a reduction that keeps its axes."""
        return self(operator, value, self.constant(list(axes), np.int64), attributes={"keepdims": 1})
