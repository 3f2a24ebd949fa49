"""A TFLite graph under way: where each value of the network is found in it, and a way to add operators.

Every value has one home, the tensor that was written first: in some order of its axes, in real numbers or in levels.
Other forms are made where something reads them, once: levels from real numbers and back (QUANTIZE, DEQUANTIZE), then
another order (TRANSPOSE, or RESHAPE where only axes of one entry move). A Transpose of the network moves nothing: its
output is its input in another order. So transposes are left only where two orders really meet.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.core.arithmetic import quantize
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.plan import Plan
from narrowgauge.errors import TargetError
from narrowgauge.exporters.tflite.forms import (
    Extents,
    Form,
    Home,
    Levels,
    Order,
    extents_of,
    identity,
    packed,
    permuted,
    type_of,
    weight_levels,
)
from narrowgauge.exporters.tflite.versions import operator_version
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.edits import free_name
from narrowgauge.importers.tflite.network import TYPES, Operator, Quantization, Tensor
from narrowgauge.importers.tflite.operators import OPERATORS

_FEWEST_HALVES = 256
"""Constants of fewer numbers stay float32 in a float16 file: the DEQUANTIZE takes more bytes than they would save."""


@dataclass(kw_only=True, slots=True)
class Emitter:
    """A conversion under way.

    Attributes:
        graph: the float network.
        plan: its encodings.
        halves: constants of real numbers are written in float16.
        tensors: of the file.
        operators: of the file.
        forms: where a value is found in a form.
        homes: value -> what was written first.
        aliases: value -> the value that it is in another order, and that order (of a Transpose, an Identity).
        flattened: value of two axes -> channels and spatial extents that its columns are of in the network; in the
            file the channels are the innermost of them.
        orders: number of a tensor that has a value's name (or that and `_float`) -> its order.
        notes: what a person should know.
        taken: names that no helping tensor may have.
        named: names that tensors have.
        constants: those without a scale, by name (of initializers), type, shape and digest.
        derived: what was made of a tensor of levels: levels in another encoding, or (None) real numbers.
    """

    graph: ir.Graph
    plan: Plan
    halves: bool = False
    tensors: list[Tensor] = field(default_factory=list)
    operators: list[Operator] = field(default_factory=list)
    forms: dict[Form, int] = field(default_factory=dict)
    homes: dict[str, Home] = field(default_factory=dict)
    aliases: dict[str, tuple[ir.Value, Order]] = field(default_factory=dict)
    flattened: dict[str, tuple[int, ...]] = field(default_factory=dict)
    orders: dict[int, Order] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    named: set[str] = field(default_factory=set)
    constants: dict[tuple[str, str, tuple[int, ...], bytes], int] = field(default_factory=dict)
    derived: dict[tuple[int, Levels | None], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        values = [*self.graph.inputs, *self.graph.initializers.values()]
        values += [value for node in self.graph for value in node.outputs]
        self.taken = {str(value.name) for value in values}  # a tensor gets one of these only as its value's own name

    # --- tensors and operators ---

    def wanted_name(self, value: ir.Value, levels: Levels | None) -> str:
        """Name a tensor that holds a value in the network's order."""
        rounded = isinstance(self.plan.encodings.get(str(value.name)), Encoding)
        return f"{value.name}_float" if rounded and levels is None else str(value.name)

    def own_name(self, value: ir.Value, levels: Levels | None) -> str:
        """Name the home of a value: its own name; of real numbers beside levels of that name, with `_float` behind."""
        name = self.wanted_name(value, levels)
        if name == str(value.name):
            return name if name not in self.named else self.free(f"{name}_{'float' if levels is None else 'levels'}")
        return self.free(name)

    def free(self, wanted: str) -> str:
        """Return a name that nothing else has, and keep it taken."""
        name = free_name(wanted, self.taken)
        self.taken.add(name)
        return name

    def tensor(self, name: str, type: str, extents: Extents, levels: Levels | None = None) -> int:
        """Add a tensor that an operator will write, or an input."""
        return self.add(
            Tensor(
                name=name, type=type if levels is None else levels.type,
                shape=tuple(1 if extent is None else extent for extent in extents),
                dynamic=tuple(axis for axis, extent in enumerate(extents) if extent is None),
                quantization=None if levels is None else levels.quantization,
            )
        )  # fmt: skip

    def add(self, tensor: Tensor) -> int:
        """Add a tensor."""
        self.tensors.append(tensor)
        self.named.add(tensor.name)
        return len(self.tensors) - 1

    def constant(
        self, array: npt.NDArray[Any], name: str, *, quantization: Quantization | None = None, own: bool = False
    ) -> int:
        """Add a constant; equal ones without a scale are one tensor.

        Args:
            array: of a type that TFLite has.
            name: wanted.
            quantization: where the array holds levels.
            own: whether the name is that of an initializer, which the first constant made of it gets.
        """
        kind = next(key for key, dtype in TYPES.items() if dtype == array.dtype)
        data = packed(array)
        key = (name if own else "", kind, array.shape, hashlib.sha256(data.tobytes()).digest())
        if quantization is None and key in self.constants:
            return self.constants[key]
        given = name if own and name not in self.named else self.free(name)
        number = self.add(Tensor(name=given, type=kind, shape=array.shape, data=data, quantization=quantization))
        if quantization is None:
            self.constants[key] = number
        return number

    def operator(
        self, name: str, inputs: Sequence[int | None], outputs: Sequence[int], options: Mapping[str, Any] | None = None
    ) -> None:
        """Add an operator; its record of options and its versions are those of the reader's table."""
        row = OPERATORS[name]
        operator = Operator(
            index=len(self.operators), name=name, version=1, inputs=tuple(inputs), outputs=tuple(outputs),
            options=dict(options or {}), kind=row.options,
        )  # fmt: skip
        version = min(operator_version(operator, self.tensors), row.newest)
        self.operators.append(replace(operator, version=version))

    # --- forms of values ---

    def source(self, value: ir.Value, order: Order) -> tuple[ir.Value, Order]:
        """Follow aliases: return what holds the numbers, and the order of its axes that is this one of the value's."""
        while str(value.name) in self.aliases:
            value, moved = self.aliases[str(value.name)]
            order = tuple(moved[axis] for axis in order)
        return value, order

    def home_order(self, value: ir.Value) -> Order:
        """Return the order in which a value is found without a TRANSPOSE; the network's own for constants."""
        rank = len(extents_of(value))
        root, order = self.source(value, identity(rank))
        home = self.homes.get(str(root.name))
        return identity(rank) if home is None else tuple(order.index(axis) for axis in home.order)

    def write(self, value: ir.Value, order: Order, levels: Levels | None) -> int:
        """Add the tensor that is a value's home."""
        number = self.tensor(
            self.own_name(value, levels), type_of(value), permuted(extents_of(value), order), levels
        )  # fmt: skip
        self.settle(value, order, levels, number)
        return number

    def settle(self, value: ir.Value, order: Order, levels: Levels | None, number: int) -> None:
        """Say that a tensor is a value's home."""
        self.homes[str(value.name)] = Home(order=order, levels=levels)
        self.forms[str(value.name), order, levels] = number
        self.orders.setdefault(number, order)

    def read(self, value: ir.Value, order: Order, levels: Levels | None) -> int:
        """Return the tensor that holds a value in a form; it is made where there is none yet.

        Args:
            value: of the network.
            order: of the tensor's axes.
            levels: None for the numbers themselves.
        """
        root, inner = self.source(value, order)
        name = str(root.name)
        if (name, inner, levels) in self.forms:
            return self.forms[name, inner, levels]
        array = constant_array(root)
        if array is not None:
            number = self.constant_form(root, array, inner, levels)
        else:
            number = self.made(value, order, root, inner, levels)
        self.forms[name, inner, levels] = number
        return number

    def made(self, value: ir.Value, order: Order, root: ir.Value, inner: Order, levels: Levels | None) -> int:
        """Make a form of a value out of its home.

        Args:
            value: that is read.
            order: of its axes.
            root: what holds its numbers.
            inner: the same order, of the root's axes.
            levels: None for the numbers themselves.
        """
        name = str(root.name)
        home = self.homes[name]
        if (name, home.order, levels) in self.forms:
            wanted = self.wanted_name(value, levels) if order == identity(len(order)) else ""
            number = self.transposed(self.forms[name, home.order, levels], home.order, inner, wanted)
            self.orders.setdefault(number, order)
            return number
        if levels is None:  # levels are moved, in fewer bytes than real numbers
            return self.converted(value, order, self.read(root, inner, home.levels), None)
        number = self.converted(value, self.home_order(value), self.forms[name, home.order, home.levels], levels)
        self.forms[name, home.order, levels] = number
        return self.made(value, order, root, inner, levels)

    def converted(self, value: ir.Value, order: Order, source: int, levels: Levels | None) -> int:
        """Make levels of real numbers, or the other way, of a tensor that holds a value in an order."""
        number = self.tensor(
            self.own_name(value, levels), type_of(value), permuted(extents_of(value), order), levels
        )  # fmt: skip
        self.orders[number] = order
        self.operator("QUANTIZE" if levels is not None else "DEQUANTIZE", [source], [number])
        return number

    def levels_at(self, number: int) -> Levels | None:
        """Return the encoding of a tensor of activations."""
        tensor = self.tensors[number]
        if tensor.quantization is None:
            return None
        scale, zero_point = tensor.quantization.scale[0], tensor.quantization.zero_point[0]
        return Levels(type=tensor.type, scale=float(scale), zero_point=int(zero_point))

    def requantized(self, number: int, levels: Levels) -> int:
        """Return a tensor of levels in another encoding; itself where it has that one."""
        tensor = self.tensors[number]
        if self.levels_at(number) == levels:
            return number
        if (number, levels) not in self.derived:
            made = self.tensor(self.free(f"{tensor.name}_rescaled"), "", tensor.extents, levels)
            self.operator("QUANTIZE", [number], [made])
            self.derived[number, levels] = made
        return self.derived[number, levels]

    def rounded(self, value: ir.Value, order: Order, levels: Levels) -> int:
        """Return a value as real numbers that levels stand for, also where its home are others."""
        root, inner = self.source(value, order)
        home = self.homes.get(str(root.name))
        if home is None or home.levels is not None:
            return self.read(value, order, None)
        found = self.read(root, inner, levels)
        if (found, None) not in self.derived:
            made = self.tensor(self.free(f"{root.name}_rounded"), "FLOAT32", self.tensors[found].extents)
            self.operator("DEQUANTIZE", [found], [made])
            self.derived[found, None] = made
        return self.derived[found, None]

    def transposed(self, number: int, have: Order, order: Order, wanted: str) -> int:
        """Return a tensor with its axes in another order."""
        if have == order:
            return number
        tensor = self.tensors[number]
        moves = tuple(have.index(axis) for axis in order)
        extents = permuted(tensor.extents, moves)
        name = wanted if wanted and wanted not in self.named else self.free(f"{tensor.name}_transposed")
        made = self.add(
            replace(
                tensor, name=name, shape=permuted(tensor.shape, moves), data=None,
                dynamic=tuple(axis for axis, extent in enumerate(extents) if extent is None),
            )
        )  # fmt: skip
        kept = [axis for axis in moves if tensor.extents[axis] != 1]
        if kept == sorted(kept) and extents.count(None) < 2:
            self.reshape(number, made)
        else:
            self.operator("TRANSPOSE", [number, self.constant(np.array(moves, np.int32), "order")], [made])
        return made

    def reshape(self, source: int, result: int) -> None:
        """Add a RESHAPE to the result's shape, of whose extents at most one is open."""
        shape = [-1 if extent is None else extent for extent in self.tensors[result].extents]
        numbers = self.constant(np.array(shape, np.int32), "shape")
        self.operator("RESHAPE", [source, numbers], [result], {"new_shape": shape})

    # --- constants ---

    def constant_form(self, value: ir.Value, array: npt.NDArray[Any], order: Order, levels: Levels | None) -> int:
        """Add a constant in the place of an activation."""
        name, moved = str(value.name), array.transpose(order)
        encoding = self.plan.encodings.get(name)
        if levels is not None:
            assert isinstance(encoding, Encoding)
            stored = quantize(moved.astype(np.float32), encoding).astype(TYPES[levels.type])
            return self.constant(stored, name, quantization=levels.quantization, own=True)
        if isinstance(encoding, Encoding) and array.dtype == np.float32:
            return self.dequantized_constant(value, array, encoding, order)
        return self.float_constant(moved, name, own=True)

    def float_constant(self, array: npt.NDArray[Any], name: str, *, own: bool = False) -> int:
        """Add a constant of numbers that are no levels; in float16 behind a DEQUANTIZE where the file asks for that."""
        if array.dtype not in TYPES.values():
            raise TargetError(f"constant {name!r}: TFLite has no numbers of type {array.dtype}")
        array = np.ascontiguousarray(array).reshape(array.shape)
        if not self.halves or array.dtype != np.float32 or array.size < _FEWEST_HALVES:
            return self.constant(array, name, own=own)
        with np.errstate(over="ignore"):
            halves = array.astype(np.float16)
        if not np.array_equal(np.isfinite(halves), np.isfinite(array)):
            return self.constant(array, name, own=own)  # beyond the reach of float16
        return self.dequantized(self.constant(halves, name, own=own))

    def dequantized_constant(self, value: ir.Value, array: npt.NDArray[Any], encoding: Encoding, order: Order) -> int:
        """Add levels of a constant and the DEQUANTIZE that makes real numbers of them, once."""
        return self.dequantized(self.weights(value, array, encoding, order))

    def dequantized(self, number: int) -> int:
        """Add a DEQUANTIZE behind a constant."""
        tensor = self.tensors[number]
        made = self.tensor(self.free(f"{tensor.name}_float"), "FLOAT32", tensor.extents)
        self.operator("DEQUANTIZE", [number], [made])
        return made

    def weights(self, value: ir.Value, array: npt.NDArray[Any], encoding: Encoding, order: Order) -> int:
        """Add levels of a constant with their scales, its axes in an order.

        Raises:
            TargetError: TFLite has no such levels.
        """
        levels, quantization = weight_levels(array, encoding, str(value.name))
        axis = order.index(quantization.axis) if quantization.per_channel else 0
        return self.constant(
            np.ascontiguousarray(levels.transpose(order)), str(value.name),
            quantization=replace(quantization, axis=axis), own=True,
        )  # fmt: skip
