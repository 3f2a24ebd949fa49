"""Mean and variance of a value over some of its axes, recognised in their parts."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from narrowgauge.graph.constants import constant_integers, constant_scalar
from narrowgauge.graph.edits import is_operator
from narrowgauge.graph.shapes import rank


@dataclass(frozen=True, kw_only=True, slots=True)
class Moments:
    """What a variance is the variance of.

    Attributes:
        source: x.
        axes: what it is taken over, counted from the front; all of them keep their place, with size 1.
    """

    source: ir.Value
    axes: tuple[int, ...]

    def is_mean(self, value: ir.Value | None) -> bool:
        """Tell whether a value is the mean of x over the same axes."""
        return mean_of(value) == self

    def is_difference(self, value: ir.Value | None) -> bool:
        """Tell whether a value is x - mean(x)."""
        return difference_of(value) == self


def producer(value: ir.Value | None, *operators: str) -> ir.Node | None:
    """Return the node of one of these operators that writes a value, else None."""
    node = None if value is None else value.producer()
    return node if is_operator(node, *operators) else None


def mean_of(value: ir.Value | None) -> Moments | None:
    """Return of what a value is the mean, and over which axes, else None."""
    node = producer(value, "ReduceMean")
    if node is None or node.inputs[0] is None or not node.attributes.get_int("keepdims", 1) or len(node.inputs) < 2:
        return None
    count, axes = rank(node.inputs[0]), constant_integers(node.inputs[1])
    if count is None or axes is None:
        return None
    return Moments(source=node.inputs[0], axes=tuple(sorted(axis % count for axis in axes)))


def square_of(value: ir.Value | None) -> ir.Value | None:
    """Return d where a value is d * d or d^2, else None."""
    node = producer(value, "Mul", "Pow")
    if node is None:
        return None
    twice = node.inputs[0] is node.inputs[1] if node.op_type == "Mul" else constant_scalar(node.inputs[1]) == 2.0
    return node.inputs[0] if twice else None


def difference_of(value: ir.Value | None) -> Moments | None:
    """Return x and the axes where a value is x - mean(x), else None."""
    node = producer(value, "Sub")
    mean = mean_of(node.inputs[1]) if node is not None else None
    return mean if node is not None and mean is not None and mean.source is node.inputs[0] else None


def variance_of(value: ir.Value | None) -> Moments | None:
    """Return x and the axes where a value is mean((x - mean(x))^2) or mean(x^2) - mean(x)^2, else None.

    The second form may be kept from falling below zero by a Relu or a Max with 0.
    """
    node = producer(value, "Relu", "Max")
    if node is not None and (node.op_type == "Relu" or _has_zero(node)):
        moving = [one for one in node.inputs if one is not None and constant_scalar(one) is None]
        return variance_of(moving[0]) if len(moving) == 1 else None
    whole = mean_of(value)
    if whole is not None:
        found = difference_of(square_of(whole.source))
        return found if found is not None and found.axes == whole.axes else None
    node = producer(value, "Sub")
    if node is None:
        return None
    squares, mean = mean_of(node.inputs[0]), mean_of(square_of(node.inputs[1]))
    if squares is None or mean is None or squares.axes != mean.axes:
        return None
    return mean if square_of(squares.source) is mean.source else None


def _has_zero(node: ir.Node) -> bool:
    return len(node.inputs) == 2 and any(constant_scalar(one) == 0.0 for one in node.inputs)
