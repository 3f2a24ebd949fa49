"""Which values of a graph are computed from which."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import onnx_ir as ir

from narrowgauge.graph.pieces import outer_inputs


@dataclass(slots=True)
class Lineage:
    """Which values a value is computed from, itself among them."""

    numbers: dict[ir.Value, int] = field(default_factory=dict)
    sets: dict[ir.Value, int] = field(default_factory=dict)  # bit sets of numbers

    @classmethod
    def of(cls, graph: ir.Graph) -> Lineage:
        """Follow every value of the main graph back."""
        found = cls()
        for value in graph.inputs:
            found.add(value, 0)
        for node in graph:
            before = 0
            for value in outer_inputs(node):
                before |= found.sets.get(value, 0)
            for value in node.outputs:
                found.add(value, before)
        return found

    def add(self, value: ir.Value, before: int) -> None:
        """Note a value that comes from a set of others."""
        self.numbers[value] = len(self.numbers)
        self.sets[value] = before | 1 << self.numbers[value]

    def comes_from(self, value: ir.Value | None, before: ir.Value | None) -> bool:
        """Whether a value is another one or computed from it; a constant is computed from nothing."""
        if value is None or before is None or value not in self.sets or before not in self.numbers:
            return False
        return bool(self.sets[value] >> self.numbers[before] & 1)

    def comes_from_any(self, value: ir.Value | None, nodes: Iterable[ir.Node]) -> bool:
        """Whether a value is computed from what one of some nodes writes."""
        return any(self.comes_from(value, output) for node in nodes for output in node.outputs)
