"""Arithmetic on sizes of which some are known only when the network runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import onnx_ir as ir

Symbol: TypeAlias = tuple[str, int]
"""A size known only when the network runs: of a named axis (name, -1), of an axis of a value (name, axis), or a number
that is computed (name of the value that holds it, `place_of(element)`) and of which nothing is known."""

Sizes: TypeAlias = tuple[int | Symbol, ...]

LONGEST = 64
"""Vectors of more elements are data, not shapes."""


def computed(value: ir.Value, element: int) -> Symbol:
    """Name an element of a vector of which nothing is known."""
    return value.name or "", -2 - element


def elementwise(node: ir.Node, inputs: Sequence[Sizes | None]) -> Sizes | None:
    """Compute an operator of integers or booleans element by element, as far as its operands are known."""
    operands = [each for each in inputs if each is not None]
    count = max((len(each) for each in operands), default=0)
    if len(operands) != len(inputs) or any(len(each) not in {1, count} for each in operands) or count > LONGEST:
        return None
    spread = [each if len(each) == count else each * count for each in operands]
    combine = ELEMENTWISE[node.op_type]
    found = (combine(*elements) for elements in zip(*spread, strict=True))
    output = node.outputs[0]
    return tuple(computed(output, place) if each is None else each for place, each in enumerate(found))


def filled(node: ir.Node, inputs: Sequence[Sizes | None]) -> Sizes | None:
    """Compute ConstantOfShape of integers."""
    target, value = inputs[0], node.attributes.get("value")
    if target is None or len(target) != 1 or not isinstance(target[0], int) or value is None or target[0] > LONGEST:
        return None
    tensor = value.as_tensor()
    return (int(tensor.numpy().reshape(())),) * target[0] if tensor.dtype.is_integer() else None


_Element = int | Symbol
_Result = int | Symbol | None


def _numbers(combine: Callable[[int, int], int]) -> Callable[[_Element, _Element], _Result]:
    def known(first: _Element, second: _Element) -> _Result:
        return combine(first, second) if isinstance(first, int) and isinstance(second, int) else None

    return known


def _add(first: _Element, second: _Element) -> _Result:
    if first == 0 or second == 0:
        return second if first == 0 else first
    return _numbers(int.__add__)(first, second)


def _subtract(first: _Element, second: _Element) -> _Result:
    return first if second == 0 else _numbers(int.__sub__)(first, second)


def _multiply(first: _Element, second: _Element) -> _Result:
    if first == 1 or second == 1:
        return second if first == 1 else first
    return _numbers(int.__mul__)(first, second)


def _divide(first: _Element, second: _Element) -> _Result:
    """Divide towards zero, as ONNX does integers."""
    if second == 1:
        return first
    if not isinstance(first, int) or not isinstance(second, int) or second == 0:
        return None
    return abs(first) // abs(second) * (1 if (first < 0) == (second < 0) else -1)


def _equal(first: _Element, second: _Element) -> _Result:
    if first == second:
        return 1
    if isinstance(first, int) and isinstance(second, int):
        return 0
    size, number = (first, second) if isinstance(second, int) else (second, first)
    # An axis has no negative size; what is computed may be anything.
    return 0 if isinstance(number, int) and number < 0 and isinstance(size, tuple) and size[1] >= -1 else None


def _choose(condition: _Element, first: _Element, second: _Element) -> _Result:
    if first == second:
        return first
    return (first if condition else second) if isinstance(condition, int) else None


ELEMENTWISE: dict[str, Callable[..., _Result]] = {
    "Add": _add,
    "And": _numbers(lambda first, second: int(bool(first) and bool(second))),
    "Div": _divide,
    "Equal": _equal,
    "Max": _numbers(max),
    "Min": _numbers(min),
    "Mul": _multiply,
    "Sub": _subtract,
    "Where": _choose,
}
"""Operator -> what it makes of known and unknown elements, None where that is not known."""


def broadcast(first: Sequence[int | Symbol | None], second: Sizes) -> list[int | Symbol | None]:
    """Return the sizes that a value of sizes `first` gets where it is expanded to `second`; None where not known."""
    count = max(len(first), len(second))
    padded = [1] * (count - len(first)), [1] * (count - len(second))
    return [_spread(one, other) for one, other in zip([*padded[0], *first], [*padded[1], *second], strict=True)]


def _spread(first: int | Symbol | None, second: int | Symbol) -> int | Symbol | None:
    if second in (first, 1):
        return first
    if first == 1:
        return second
    known = [size for size in (first, second) if isinstance(size, int)]
    return known[0] if known else None
