"""One node of the network being written: its inputs and attributes, and how its operators are added.

To write one more ONNX operator: a function `write(call: Call) -> None` and a line in `writers.WRITERS`. It reads inputs
in an order of axes (`call.read`), which gives numbers of tensors, levels where the node runs in integers and numbers
where it does not, and ends with `call.emit` (or `call.results` and `call.operator` for several outputs), which gives
the result its home, its activation function and, where the plan says so, another encoding. What it cannot write it
refuses: `raise call.refusal("...")`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.core.arithmetic import quantize
from narrowgauge.core.encoding import DynamicEncoding, Encoding
from narrowgauge.errors import TargetError
from narrowgauge.exporters.tflite.emitter import Emitter
from narrowgauge.exporters.tflite.forms import (
    Extents,
    Levels,
    Order,
    channels_last,
    extents_of,
    identity,
    levels_of,
    permuted,
    type_of,
)
from narrowgauge.exporters.tflite.steps import Step
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.roles import is_float
from narrowgauge.importers.tflite.network import TYPES
from narrowgauge.importers.tflite.operators import OPERATORS


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stage:
    """One of several operators that follow each other; each reads first what the one before it wrote."""

    name: str
    others: Sequence[int | None] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    extents: Extents
    levels: Levels | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One node (and those fused into it)."""

    emitter: Emitter
    step: Step

    @property
    def node(self) -> ir.Node:
        """The node."""
        return self.step.node

    @property
    def name(self) -> str:
        """What helping tensors are named after: the result."""
        return str(self.step.result.name)

    @property
    def integer(self) -> bool:
        """Whether the node runs on levels."""
        return self.step.integer

    @property
    def dynamic(self) -> bool:
        """Whether the activations are rounded at run time: kernels of float activations and integer weights."""
        value = self.node.inputs[0]
        return value is not None and isinstance(self.emitter.plan.encodings.get(str(value.name)), DynamicEncoding)

    def refusal(self, reason: str) -> TargetError:
        """Build the error that names the node."""
        return TargetError(f"TFLite cannot run node {self.node.name!r} ({self.node.op_type}): {reason}")

    # --- what the node says ---

    def given(self, number: int) -> bool:
        """Whether there is such an input."""
        return number < len(self.node.inputs) and self.node.inputs[number] is not None

    def input(self, number: int = 0) -> ir.Value:
        """Return an input.

        Raises:
            TargetError: it is left out.
        """
        value = self.node.inputs[number] if number < len(self.node.inputs) else None
        if value is None:
            raise self.refusal(f"expected input {number}")
        return value

    def result(self, number: int = 0) -> ir.Value:
        """Return an output; the first is that of the last node that is fused."""
        return self.step.result if number == 0 else self.node.outputs[number]

    def rank(self, number: int = 0) -> int:
        """Return how many axes an input has."""
        return len(self.extents(number))

    def extents(self, number: int = 0) -> Extents:
        """Return an input's shape in the network's order."""
        return extents_of(self.input(number))

    def array(self, number: int) -> npt.NDArray[Any] | None:
        """Return the numbers of a constant input, None where it is computed or left out."""
        return constant_array(self.node.inputs[number]) if self.given(number) else None

    def integers(self, number: int, default: Sequence[int] | None = None) -> list[int]:
        """Return a constant input of integers as a list.

        Raises:
            TargetError: it is computed, or left out and there is no default.
        """
        if not self.given(number) and default is not None:
            return list(default)
        array = self.array(number)
        if array is None or array.dtype.kind not in "iu":
            raise self.refusal(f"expected input {number} to be constant integers")
        return [int(one) for one in array.reshape(-1)]

    def whole(self, name: str, default: int) -> int:
        """Return an attribute that is an integer."""
        return int(self.node.attributes.get_int(name, default))

    def real(self, name: str, default: float) -> float:
        """Return an attribute that is a number."""
        return float(self.node.attributes.get_float(name, default))

    def text(self, name: str, default: str) -> str:
        """Return an attribute that is a text."""
        return str(self.node.attributes.get_string(name, default))

    def wholes(self, name: str, default: Iterable[int]) -> list[int]:
        """Return an attribute that is a list of integers."""
        return [int(one) for one in self.node.attributes.get_ints(name, tuple(default))]

    def axes(self, number: int = 1) -> list[int]:
        """Return the axes that a reduction or a change of shape names, counted from the front; input or attribute."""
        named = self.wholes("axes", ()) if not self.given(number) else self.integers(number)
        return sorted(self.from_front(axis, self.rank()) for axis in named)

    def from_front(self, axis: int, rank: int) -> int:
        """Count an axis from the front.

        Raises:
            TargetError: there is no such axis.
        """
        if not -rank <= axis < rank:
            raise self.refusal(f"expected an axis of a tensor of rank {rank}, got {axis}")
        return axis % rank

    # --- reading ---

    def planned(self, value: ir.Value) -> Levels | None:
        """Return the encoding that a value is rounded to for this node or by it; None where the plan has none."""
        encoding = self.emitter.plan.encodings.get(str(value.name)) if self.step.rounded and is_float(value) else None
        return levels_of(encoding, str(value.name)) if isinstance(encoding, Encoding) else None

    def levels(self, value: ir.Value) -> Levels | None:
        """Return how a value is read and written here: in levels where the node runs on them."""
        return self.planned(value) if self.integer else None

    def in_float(self) -> Call:
        """Return the same node running on real numbers, where TFLite's integer kernel does not do what it asks."""
        return replace(self, step=replace(self.step, integer=False))

    def read(self, number: int = 0, order: Order | None = None) -> int:
        """Return the tensor of an input, its axes in an order (default: the network's)."""
        return self.read_value(self.input(number), order)

    def read_value(self, value: ir.Value, order: Order | None = None) -> int:
        """Return the tensor of a value that the node reads."""
        order = identity(len(extents_of(value))) if order is None else order
        planned = self.planned(value)
        if planned is not None and not self.integer:
            return self.emitter.rounded(value, order, planned)
        return self.emitter.read(value, order, planned)

    def home(self, number: int = 0) -> Order:
        """Return the order in which an input is found."""
        return self.emitter.home_order(self.input(number))

    def last(self, number: int = 0) -> Order:
        """Return the order of an input that has its channels at the end."""
        return channels_last(self.rank(number))

    def free_order(self) -> Order:
        """Return the order of an operator that works in any: that in which most of its inputs are found.

        The network's own where computed inputs differ in rank.
        """
        rank = len(extents_of(self.result()))
        moving = [
            number
            for number, value in enumerate(self.node.inputs)
            if value is not None and constant_array(value) is None and self.rank(number)
        ]
        if not moving or any(self.rank(number) != rank for number in moving):
            return identity(rank)
        homes = [self.home(number) for number in moving]
        return max(homes, key=lambda order: (homes.count(order), order == channels_last(rank)))

    def read_spread(self, number: int, order: Order) -> int:
        """Return an input of an operator that broadcasts: a constant gets axes of one entry in front, then the order.

        Axes of one entry in front that come of it are left out again.
        """
        value, array = self.input(number), self.array(number)
        if self.rank(number) == len(order):
            return self.read(number, order)
        if array is None:
            return self.read(number)  # the order is the network's own then, see `free_order`
        moved = array.reshape((1,) * (len(order) - array.ndim) + array.shape).transpose(order)
        while moved.ndim and moved.shape[0] == 1:
            moved = moved[0]
        return self.constant_like(value, moved)

    def constant_like(self, value: ir.Value, array: npt.NDArray[Any]) -> int:
        """Add a constant that stands for an initializer in another shape, in the levels that it is read in."""
        levels, name = self.levels(value), str(value.name)
        if levels is None:
            return self.emitter.float_constant(array, name)
        encoding = self.emitter.plan.encodings[name]
        assert isinstance(encoding, Encoding)
        stored = quantize(array.astype(np.float32), encoding).astype(TYPES[levels.type])
        return self.emitter.constant(stored, name, quantization=levels.quantization, own=True)

    def constant(self, numbers: Any, name: str, dtype: npt.DTypeLike = np.int32) -> int:
        """Add a constant, a number or nested lists of them: shapes, axes, places."""
        return self.emitter.constant(np.array(numbers, dtype=dtype), name)

    # --- writing ---

    def operator(
        self, name: str, inputs: Sequence[int | None], outputs: Sequence[int], options: Mapping[str, Any] | None = None
    ) -> None:
        """Add an operator; one that can apply an activation function and is not told one applies none."""
        given = dict(options or {})
        if OPERATORS[name].fuses:
            given.setdefault("fused_activation_function", "NONE")
        self.emitter.operator(name, inputs, outputs, given)

    def temporary(self, suffix: str, extents: Extents, levels: Levels | None = None, type: str = "FLOAT32") -> int:
        """Add a tensor between operators of this node."""
        return self.emitter.tensor(self.emitter.free(f"{self.name}_{suffix}"), type, extents, levels)

    def between(
        self, name: str, inputs: Sequence[int | None], extents: Extents, options: Mapping[str, Any] | None = None,
        *, levels: Levels | None = None, type: str = "FLOAT32",
    ) -> int:  # fmt: skip
        """Add an operator whose output is not the node's."""
        made = self.temporary(name.lower(), extents, levels, type)
        self.operator(name, inputs, [made], options)
        return made

    def emit(
        self, name: str, inputs: Sequence[int | None], options: Mapping[str, Any] | None = None, *,
        order: Order | None = None, levels: Levels | None = None, shape: Extents | None = None,
    ) -> None:  # fmt: skip
        """Add the operator that writes the result, and what must follow it until the result is as the plan has it.

        Args:
            name: TFLite's.
            inputs: numbers of tensors.
            options: of the operator; the activation function is added where there is one.
            order: of the result's axes, default the network's.
            levels: that the kernel insists on, such as its input's; None for those of the plan.
            shape: that the operator gives, where a RESHAPE must follow; None for the result's.
        """
        value, given = self.result(), dict(options or {})
        order = identity(len(extents_of(value))) if order is None else order
        extents, planned = permuted(extents_of(value), order), self.planned(value)
        written = (levels or planned) if self.integer else None
        if self.step.activation != "NONE":
            given["fused_activation_function"] = self.step.activation
        stages = [_Stage(name=name, others=inputs, options=given, extents=shape or extents, levels=written)]
        if shape is not None:
            stages.append(_Stage(name="RESHAPE", extents=extents, levels=written))
        if written != planned:
            stages.append(_Stage(name="QUANTIZE", extents=extents, levels=planned))
        if self.step.bounds is not None and planned is not None:
            stages += [
                _Stage(name=kind, others=[self.level(bound, planned)], extents=extents, levels=planned)
                for kind, bound, end in zip(("MAXIMUM", "MINIMUM"), self.step.bounds, planned.bounds, strict=True)
                if bound != end
            ]
        self.run(stages, value, order)

    def run(self, stages: Sequence[_Stage], value: ir.Value, order: Order) -> None:
        """Add operators one behind the other; the last one writes the value."""
        found: list[int | None] = []
        for place, stage in enumerate(stages):
            if place == len(stages) - 1:
                made = self.emitter.write(value, order, stage.levels)
            else:
                made = self.temporary(stage.name.lower(), stage.extents, stage.levels, type_of(value))
            if stage.name == "RESHAPE" and place:
                self.emitter.reshape(cast(int, found[0]), made)
            else:
                self.operator(stage.name, [*found, *stage.others], [made], stage.options)
            found = [made]

    def level(self, level: int, levels: Levels) -> int:
        """Add a constant that is one level."""
        stored = np.array(level, TYPES[levels.type])
        return self.emitter.constant(stored, f"{self.name}_level", quantization=levels.quantization)

    def results(self, orders: Sequence[Order], levels: Levels | None = None) -> list[int]:
        """Return the tensors of all outputs, their homes."""
        numbers = []
        for number, order in enumerate(orders):
            value = self.node.outputs[number]
            numbers.append(self.emitter.write(value, order, self.levels(value) if levels is None else levels))
        return numbers

    def type(self, number: int = 0) -> str:
        """Return the type of the tensor that an input is read from."""
        levels = self.levels(self.input(number))
        return type_of(self.input(number)) if levels is None else levels.type
