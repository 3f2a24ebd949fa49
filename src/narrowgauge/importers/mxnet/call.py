"""One node of an MXNet network while it is translated, and what its rule may ask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.errors import ModelError
from narrowgauge.importers.mxnet.attributes import Attributes
from narrowgauge.importers.mxnet.builder import Builder, Operand, sizes_of
from narrowgauge.importers.mxnet.symbol import Node

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Levels:
    """Integers of a quantized network, as the real numbers that they stand for.

    Attributes:
        real: the real numbers.
        threshold: the largest real number, by its size.
        steps: between zero and the threshold.
        signed: whether there are negative levels.
    """

    real: ir.Value
    threshold: float
    steps: float
    signed: bool

    @property
    def scale(self) -> np.float32:
        """Real value of one step."""
        return np.float32(self.threshold / self.steps)


@dataclass(frozen=True, slots=True)
class Bound:
    """A threshold that MXNet hands from node to node beside the integers."""

    number: float


Item = ir.Value | Levels | Bound


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """A node, and what it reads in ONNX.

    Attributes:
        node: of MXNet.
        items: what it reads.
        attributes: its attributes.
        builder: where its translation goes.
        version: of the MXNet that wrote the file, 10901 of 1.9.1; 0 where the file does not say.
    """

    node: Node
    items: Sequence[Item]
    attributes: Attributes
    builder: Builder
    version: int = 0

    @property
    def where(self) -> str:
        """The node, for messages."""
        return self.attributes.where

    def refusal(self, reason: str) -> ModelError:
        """Make the error of a node that cannot be translated."""
        return ModelError(f"{self.where}: {reason}")

    def value(self, number: int = 0) -> ir.Value:
        """Return an input.

        Raises:
            ModelError: it is not there, or holds integers of a quantized network.
        """
        if number >= len(self.items):
            raise self.refusal(f"expected an input {number}, got {len(self.items)} inputs; the file is damaged")
        item = self.items[number]
        if not isinstance(item, ir.Value):
            raise self.refusal(f"expected real numbers in input {number}, got quantized ones")
        return item

    def values(self) -> list[ir.Value]:
        """Return all inputs; see `value`."""
        return [self.value(number) for number in range(len(self.items))]

    def sizes(self, number: int = 0) -> tuple[int | None, ...]:
        """Return the lengths of an input's axes, None where one is not known.

        Raises:
            ModelError: not even the rank is known.
        """
        sizes = sizes_of(self.value(number))
        if sizes is None:
            raise self.refusal(
                f"needs the number of axes of {self.value(number).name!r}, which is not known; give example inputs"
            )
        return sizes

    def rank(self, number: int = 0) -> int:
        """Return the number of an input's axes; see `sizes`."""
        return len(self.sizes(number))

    def add(self, operator: str, inputs: Sequence[Operand], **attributes: Any) -> ir.Value:
        """Add an ONNX node of one output."""
        return self.builder.add(operator, inputs, f"{self.node.name}_{operator.lower()}", **attributes)

    def claim(self, value: ir.Value, suffix: str = "") -> None:
        """Give a value that this node made the name that MXNet has for it."""
        self.builder.claim(value, self.node.name, f"{self.node.name}_output{suffix}")

    def scalar(self, number: float, like: ir.Value) -> ir.Value:
        """Add a constant of the same type as a value."""
        kind = np.float32 if like.dtype is None else like.dtype.numpy()
        return self.builder.constant(f"{self.node.name}_constant", np.asarray(number, dtype=kind))

    def cast(self, value: ir.Value, kind: ir.DataType) -> ir.Value:
        """Convert a value, if it is not of that type already."""
        return value if value.dtype == kind else self.add("Cast", [value], to=kind)

    def constant(self, number: int) -> Array | None:
        """Return an input's numbers if it is constant, else None."""
        tensor = self.value(number).const_value
        return None if tensor is None else tensor.numpy()


Rule = Callable[[Call], Sequence[Item]]
"""Translates a node: adds what computes it, and returns its outputs in MXNet's order; further ones may be left out."""


def integers(numbers: Sequence[int]) -> Array:
    """Return an array of int64, which ONNX takes shapes, axes and pads in."""
    return np.asarray(numbers, dtype=np.int64)
