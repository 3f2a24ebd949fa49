"""What the person (or a recipe) decides about a plan, beside what the target decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from narrowgauge.calibration.ranges import Estimator, estimator
from narrowgauge.core.numbers import IntegerType
from narrowgauge.core.plan import Mode
from narrowgauge.targets.schema import Scope


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeChoice:
    """What is asked for one node; None leaves it to the rest.

    Attributes:
        keep_float: reason why it stays float, None if it need not.
        weights: number type of its weights.
        activations: number type of its output (and of inputs that no other node decides).
        granularity: what one scale of its weights covers.
        estimator: range estimator of its output.
    """

    keep_float: str | None = None
    weights: IntegerType | None = None
    activations: IntegerType | None = None
    granularity: Scope | None = None
    estimator: Estimator | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Choices:
    """What is asked for the whole network.

    Attributes:
        mode: when activations are rounded.
        everywhere: what holds for every node that has no choice of its own.
        nodes: node name -> what is asked for that node; a field left None falls back to `everywhere`.
        estimator: range estimator of activations.
        weight_estimator: name of the range estimator of weights: max or mse.
        block_size: elements per scale where blocks are asked for, 0 for the target's first.
    """

    mode: Mode = "static"
    everywhere: NodeChoice = field(default_factory=NodeChoice)
    nodes: Mapping[str, NodeChoice] = field(default_factory=dict)
    estimator: Estimator = field(default_factory=lambda: estimator("mse"))
    weight_estimator: str = "max"
    block_size: int = 0

    def keep_float(self, node: str) -> str | None:
        """Reason why a node stays float, None if it need not."""
        own = self.nodes.get(node)
        return (own.keep_float if own else None) or self.everywhere.keep_float

    def weights(self, node: str) -> IntegerType | None:
        """Number type asked for a node's weights."""
        own = self.nodes.get(node)
        return (own.weights if own else None) or self.everywhere.weights

    def activations(self, node: str | None) -> IntegerType | None:
        """Number type asked for a node's output."""
        own = self.nodes.get(node) if node else None
        return (own.activations if own else None) or self.everywhere.activations

    def granularity(self, node: str) -> Scope | None:
        """What one scale of a node's weights covers."""
        own = self.nodes.get(node)
        return (own.granularity if own else None) or self.everywhere.granularity

    def range_estimator(self, node: str | None) -> Estimator:
        """Range estimator of a node's output."""
        own = self.nodes.get(node) if node else None
        return (own.estimator if own else None) or self.everywhere.estimator or self.estimator
