"""Conditions that chips put on TFLite operators: small functions, from which their tables are made.

Each makes a `Condition`: it looks at one operator and says what was found and what the chip takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from narrowgauge.exporters.tflite.constraints.checking import Condition
from narrowgauge.importers.tflite.network import Graph, Operator, Tensor

LEVELS = ("INT8", "UINT8")
CLIPS = ("NONE", "RELU", "RELU6", "RELU_N1_TO_1")


def tensor(graph: Graph, operator: Operator, number: int) -> Tensor | None:
    """Return an input of an operator, None where it is left out."""
    place = operator.inputs[number] if number < len(operator.inputs) else None
    return None if place is None else graph.tensors[place]


def is_constant(one: Tensor) -> bool:
    """Whether a tensor's numbers are in the file; of a tensor without elements nothing is."""
    return one.data is not None or (bool(one.shape) and 0 in one.shape and not one.variable)


def computed(graph: Graph, operator: Operator) -> Iterator[Tensor]:
    """Give the inputs that are no constants and keep nothing from run to run, and the outputs."""
    for place in (*operator.inputs, *operator.outputs):
        one = None if place is None else graph.tensors[place]
        if one is not None and not is_constant(one) and not one.variable:
            yield one


def option(operator: Operator, name: str, default: Any) -> Any:
    """Return an attribute; where the file gives none, the schema's default."""
    return operator.options.get(name, default)


def eight_bits(graph: Graph, operator: Operator) -> str:
    """Every tensor that is computed is of 8 bits with a scale, and so are constants but for int32 biases and axes."""
    for one in computed(graph, operator):
        if one.type not in LEVELS:
            return f"tensor {one.name!r} is {one.type}; expected {' or '.join(LEVELS)}"
        if one.quantization is None:
            return f"tensor {one.name!r} has no scale; expected quantized levels"
    for place in operator.inputs:
        one_or_none = None if place is None else graph.tensors[place]
        if one_or_none is not None and is_constant(one_or_none) and one_or_none.type not in (*LEVELS, "INT32"):
            return f"constant {one_or_none.name!r} is {one_or_none.type}; expected {', '.join(LEVELS)} or INT32"
    return ""


def rank_up_to(limit: int) -> Condition:
    """No tensor of the operator has more dimensions, constants included."""

    def condition(graph: Graph, operator: Operator) -> str:
        for place in (*operator.inputs, *operator.outputs):
            if place is not None and len(graph.tensors[place].shape) > limit:
                one = graph.tensors[place]
                return f"tensor {one.name!r} has shape {list(one.shape)}; expected at most {limit} dimensions"
        return ""

    return condition


def innermost_extents(count: int) -> Condition:
    """Of tensors that are computed, only so many innermost dimensions are larger than 1."""

    def condition(graph: Graph, operator: Operator) -> str:
        for one in computed(graph, operator):
            if prod(one.shape[:-count]) > 1:
                return (
                    f"tensor {one.name!r} has shape {list(one.shape)}; expected only the {count} innermost dimensions "
                    "to be larger than 1"
                )
        return ""

    return condition


def inputs(*types: tuple[str, ...], optional: int = 0) -> Condition:
    """There is one input for each entry, of one of its types; the last `optional` may be missing from the list."""

    def condition(graph: Graph, operator: Operator) -> str:
        least = len(types) - optional
        if not least <= len(operator.inputs) <= len(types):
            expected = f"{least}" if not optional else f"{least} to {len(types)}"
            return f"{len(operator.inputs)} inputs; expected {expected}"
        for number, allowed in enumerate(types):
            one = tensor(graph, operator, number)
            if one is not None and one.type not in allowed:
                return f"input {one.name!r} is {one.type}; expected {' or '.join(allowed)}"
        return ""

    return condition


def all_inputs(*types: str) -> Condition:
    """However many inputs there are, they are of these types."""

    def condition(graph: Graph, operator: Operator) -> str:
        for number in range(len(operator.inputs)):
            one = tensor(graph, operator, number)
            if one is not None and one.type not in types:
                return f"input {one.name!r} is {one.type}; expected {' or '.join(types)}"
        return ""

    return condition


def constant(*numbers: int) -> Condition:
    """These inputs are in the file; one that is left out is no matter."""

    def condition(graph: Graph, operator: Operator) -> str:
        for number in numbers:
            one = tensor(graph, operator, number)
            if one is not None and not is_constant(one):
                return f"input {one.name!r} is computed; expected a constant"
        return ""

    return condition


def fused(*allowed: str) -> Condition:
    """The fused activation function is one of these."""

    def condition(graph: Graph, operator: Operator) -> str:
        found = option(operator, "fused_activation_function", "NONE")
        if found in allowed:
            return ""
        expected = "none" if allowed == ("NONE",) else f"one of {', '.join(allowed)}"
        return f"fused activation function {found}; expected {expected}"

    return condition


def chosen(name: str, allowed: Any, default: Any) -> Condition:
    """An attribute has this value."""

    def condition(graph: Graph, operator: Operator) -> str:
        found = option(operator, name, default)
        return "" if found == allowed else f"{name} is {found}; expected {allowed}"

    return condition


def strides_up_to(limit: int) -> Condition:
    """Strides in both directions."""

    def condition(graph: Graph, operator: Operator) -> str:
        found = (option(operator, "stride_h", 1), option(operator, "stride_w", 1))
        return "" if max(found) <= limit else f"strides {list(found)}; expected at most {limit}"

    return condition


def dilations(operator: Operator) -> tuple[int, int]:
    """Return the dilations of a convolution: height, width."""
    return option(operator, "dilation_h_factor", 1), option(operator, "dilation_w_factor", 1)


def no_dilation(graph: Graph, operator: Operator) -> str:
    """The filter's elements are neighbours."""
    found = dilations(operator)
    return "" if found == (1, 1) else f"dilations {list(found)}; expected 1"


def equal_dilations(graph: Graph, operator: Operator) -> str:
    """The dilation is the same in both directions."""
    found = dilations(operator)
    return "" if found[0] == found[1] else f"dilations {list(found)}; expected the same in both directions"


def one_scale(number: int) -> Condition:
    """An input has one scale for all its elements."""

    def condition(graph: Graph, operator: Operator) -> str:
        one = tensor(graph, operator, number)
        if one is None or one.quantization is None or not one.quantization.per_channel:
            return ""
        return f"input {one.name!r} has {one.quantization.scale.size} scales; expected one"

    return condition


def numbers(graph: Graph, operator: Operator, number: int) -> npt.NDArray[np.int64] | None:
    """Return the integers of a constant input, None where it is computed or left out.

    Raises:
        ModelError: they cannot be read.
    """
    one = tensor(graph, operator, number)
    if one is None or not is_constant(one):
        return None
    return one.array().astype(np.int64).reshape(-1)


def axes(graph: Graph, operator: Operator, number: int) -> list[int] | None:
    """Return the axes that a constant input names, from 0 on; None where they are computed."""
    found = numbers(graph, operator, number)
    one = tensor(graph, operator, 0)
    if found is None or one is None:
        return None
    return [int(axis) % len(one.shape) if one.shape else 0 for axis in found]


def not_along_batch(number: int) -> Condition:
    """The axes that an input names do not hold the first one of the first input, where that is larger than 1.

    An axis of one element is no matter: reducing it changes no number.
    """

    def condition(graph: Graph, operator: Operator) -> str:
        found, one = axes(graph, operator, number), tensor(graph, operator, 0)
        if found is None or one is None or 0 not in found or (one.shape and one.shape[0] == 1):
            return ""
        return f"it works along axis 0 of shape {list(one.shape)}; expected none along the batch"

    return condition
