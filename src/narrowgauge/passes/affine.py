"""Nodes that multiply or shift by constants, read as `scale * x + shift`."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.edits import is_operator

ELEMENTWISE = ("Add", "Div", "Mul", "Neg", "Sub")


@dataclass(frozen=True, kw_only=True, slots=True)
class Affine:
    """A node that computes `scale * x + shift` with constants.

    Attributes:
        node: The node.
        source: The value x.
        scale: float64, broadcast against x.
        shift: float64, broadcast against x.
    """

    node: ir.Node
    source: ir.Value
    scale: np.ndarray
    shift: np.ndarray


def affine_of(node: ir.Node) -> Affine | None:
    """Read an Add, Sub, Mul, Div or Neg with one constant operand, else None.

    `c - x` is `-1 x + c`; `c / x` is not affine. Division by zero gives None.
    """
    if not is_operator(node, *ELEMENTWISE):
        return None
    source = node.inputs[0]
    if node.op_type == "Neg":
        return None if source is None else _affine(node, source, -1.0, 0.0)
    constant, constant_first = constant_array(node.inputs[1]), False
    if constant is None:
        constant, constant_first, source = constant_array(node.inputs[0]), True, node.inputs[1]
    if constant is None or source is None or constant.dtype.kind != "f" or constant_array(source) is not None:
        return None
    number = constant.astype(np.float64)
    if node.op_type == "Mul":
        return _affine(node, source, number, 0.0)
    if node.op_type == "Div":
        return None if constant_first or not number.all() else _affine(node, source, 1.0 / number, 0.0)
    if node.op_type == "Add":
        return _affine(node, source, 1.0, number)
    return _affine(node, source, -1.0 if constant_first else 1.0, number if constant_first else -number)


def _affine(node: ir.Node, source: ir.Value, scale: np.ndarray | float, shift: np.ndarray | float) -> Affine:
    return Affine(node=node, source=source, scale=np.asarray(scale, np.float64), shift=np.asarray(shift, np.float64))


def per_channel(numbers: np.ndarray, *, axis: int, axes: int, channels: int) -> np.ndarray | None:
    """Return one number per channel (or one for all, shape [1]) of an array that is constant along all other axes.

    Args:
        numbers: An operand as ONNX broadcasts it against a tensor of `axes` axes.
        axis: Where the channels lie in that tensor, counted from the front.
        axes: The tensor's number of axes.
        channels: How many channels there are.

    Returns:
        Shape [channels] or [1]; None where the operand differs along another axis or would widen the tensor.
    """
    if numbers.size == 1:
        return numbers.reshape(1) if numbers.ndim <= axes else None
    place = axis - (axes - numbers.ndim)
    if place < 0 or numbers.ndim > axes or numbers.size != channels or numbers.shape[place] != channels:
        return None
    return numbers.reshape(-1)
