"""What converting one operator needs: where each tensor is found in the ONNX network, and a way to add nodes to it.

Every tensor has one home in the ONNX network, under its own name: in the file's layout (channels last), or, where an
ONNX operator wrote it that works on channels first, in that one. Operators that work in any layout follow their inputs.
A Transpose is added only where a tensor is read in the other layout, once.

A tensor of integers that stand for real numbers becomes a pair of QuantizeLinear and DequantizeLinear behind what
writes it, and the real numbers behind that pair are what is read. Its names are those that `lowering.qdq` gives:
`x` before rounding, `x_quantized`, `x_dequantized`; a network output is named behind the pair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.errors import ModelError
from narrowgauge.graph.edits import free_name
from narrowgauge.importers.tflite.network import Graph, Operator, Quantization, Tensor

Order = tuple[int, ...]
"""A permutation of a tensor's axes; () is the file's own order."""

CHANNELS_FIRST: Order = (0, 3, 1, 2)
CHANNELS_LAST: Order = (0, 2, 3, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """How one TFLite operator is read.

    Attributes:
        onnx: the ONNX operator that does the same with the same inputs; "" where `emit` makes more of it.
        emit: makes the nodes; returns the value of each output.
        options: TFLite's name of the record of attributes, "" for none.
        attributes: ONNX attribute -> TFLite option, of `onnx`.
        fixed: ONNX attribute -> value, of `onnx`.
        any_layout: `onnx` works element by element, so that it may work on channels first.
        fuses: the options name an activation function that is applied to the output.
        newest: newest version of the operator that is known.
    """

    onnx: str = ""
    emit: Callable[[Call], Results] | None = None
    options: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    any_layout: bool = False
    fuses: bool = False
    newest: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """A value made for an output, and the order of its axes against the file's."""

    value: ir.Value
    order: Order = ()


Results = ir.Value | Written | list[ir.Value] | list[Written]


@dataclass(kw_only=True, slots=True)
class Emitter:
    """A conversion under way.

    Attributes:
        source: the file's graph.
        graph: the ONNX graph that grows.
        values: (number of tensor, order of axes) -> where it is found.
        homes: number of tensor -> the order in which it was written.
        placed: tensors whose own name is given away.
        parameters: scales and zero points, by wanted name and numbers.
        notes: what could not be kept, one sentence each.
    """

    source: Graph
    graph: ir.Graph
    taken: set[str] = field(init=False)
    values: dict[tuple[int, Order], ir.Value] = field(default_factory=dict)
    homes: dict[int, Order] = field(default_factory=dict)
    placed: set[int] = field(default_factory=set)
    parameters: dict[tuple[str, str, bytes], ir.Value] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.taken = {tensor.name for tensor in self.source.tensors} | set(self.source.output_names())

    def name(self, wanted: str) -> str:
        """Return a name that nothing else has, and keep it taken."""
        name = free_name(wanted, self.taken)
        self.taken.add(name)
        return name

    def nodes(
        self, operator: str, inputs: list[ir.Value | None], attributes: Mapping[str, Any], *, name: str, count: int = 1
    ) -> list[ir.Value]:
        """Add a node and return its outputs."""
        node = ir.node(operator, inputs=inputs, attributes=attributes, num_outputs=count)
        for output in node.outputs:
            output.name = self.name(name)
        self.graph.append(node)
        return list(node.outputs)

    def constant(self, wanted: str, array: npt.NDArray[Any], *, named: bool = False) -> ir.Value:
        """Add an initializer; `named` says that the name is the tensor's own, kept for it."""
        name = wanted if named else self.name(wanted)
        tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)
        value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
        self.graph.register_initializer(value)
        return value

    def parameter(self, wanted: str, array: npt.NDArray[Any]) -> ir.Value:
        """Return an initializer of these numbers, one for both nodes of a pair."""
        key = (wanted, array.dtype.str, array.tobytes())
        if key not in self.parameters:
            self.parameters[key] = self.constant(wanted, array)
        return self.parameters[key]

    def place(self, index: int) -> bool:
        """Tell whether a constant may have its tensor's own name, once."""
        first = index not in self.placed
        self.placed.add(index)
        return first

    def is_constant(self, index: int) -> bool:
        """Whether a tensor's numbers are in the file, and no operator has written it."""
        tensor = self.source.tensors[index]
        if index in self.homes or tensor.variable:
            return False
        return tensor.data is not None or 0 in tensor.shape or bool(tensor.refused)

    def value(self, index: int, order: Order = ()) -> ir.Value:
        """Return where a tensor's numbers are found, real ones, with the axes in an order.

        A constant of fewer axes than the order has is read as if it had axes of one entry before its own.

        Raises:
            ModelError: nothing has written the tensor, or its numbers cannot be read.
        """
        if (index, order) in self.values:
            return self.values[index, order]
        tensor = self.source.tensors[index]
        if self.is_constant(index):
            made = self.constant_value(tensor, order, named=self.place(index))
        elif index not in self.homes:
            kind = "keeps a state from one run to the next" if tensor.variable else "is read before anything writes it"
            raise ModelError(f"tensor {tensor.name!r} {kind}")
        else:
            made = self.transposed(index, order)
        self.values[index, order] = made
        return made

    def transposed(self, index: int, order: Order) -> ir.Value:
        """Read a tensor in another order than its home's."""
        name, home = self.source.tensors[index].name, self.homes[index]
        if home and order:
            source, permutation = self.value(index), order
        else:
            source, permutation = self.values[index, home], order or tuple(np.argsort(home).tolist())
        suffix = "channels_first" if order == CHANNELS_FIRST else "channels_last" if not order else "transposed"
        return self.nodes("Transpose", [source], {"perm": permutation}, name=f"{name}_{suffix}")[0]

    def constant_value(self, tensor: Tensor, order: Order, *, named: bool) -> ir.Value:
        """Make an initializer of a constant, or of its levels, with a DequantizeLinear behind."""
        array, quantization = tensor.array(), tensor.encoding
        if order and quantization is not None and quantization.block:
            raise ModelError(f"tensor {tensor.name!r} has scales of blocks, expected one scale or one along an axis")
        array, axis = permuted(array, order, 0 if quantization is None else quantization.axis)
        if quantization is None:
            return self.constant(tensor.name, array, named=named)
        return self.dequantized(tensor.name, array, quantization, axis, named=named)

    def dequantized(
        self, name: str, levels: npt.NDArray[Any], quantization: Quantization, axis: int, *, named: bool = False
    ) -> ir.Value:
        """Make an initializer of levels and a DequantizeLinear whose output has the name."""
        quantization, levels = _without_zero_scales(quantization, levels, axis)
        value = self.constant(f"{name}_quantized", levels)
        output = self.linear("DequantizeLinear", value, name, quantization, levels.dtype, axis=axis)
        if named:
            output.name = name
        return output

    def linear(
        self, operator: str, value: ir.Value, name: str, quantization: Quantization, dtype: np.dtype[Any], *, axis: int
    ) -> ir.Value:
        """Add a QuantizeLinear or DequantizeLinear of the value of that name."""
        low, high = _limits(dtype)
        if (quantization.zero_point < low).any() or (quantization.zero_point > high).any():
            raise ModelError(f"tensor {name!r}: expected zero points from {low} to {high}, the file is damaged")
        scale, zero_point = quantization.scale, quantization.zero_point.astype(dtype)
        if not quantization.per_channel:
            scale, zero_point = scale.reshape(()), zero_point.reshape(())
        inputs: list[ir.Value | None] = [
            value, self.parameter(f"{name}_scale", scale), self.parameter(f"{name}_zero_point", zero_point)
        ]  # fmt: skip
        suffix = "quantized" if operator == "QuantizeLinear" else "dequantized"
        attributes = {"axis": axis} if quantization.per_channel else {}
        if quantization.block:
            attributes["block_size"] = quantization.block
        return self.nodes(operator, inputs, attributes, name=f"{name}_{suffix}")[0]

    def write(self, index: int, value: ir.Value, order: Order = (), *, output: str = "") -> None:
        """Give a tensor its home: what an operator made, rounded where the tensor holds integers.

        Args:
            index: number of the tensor.
            value: made by a node that was added last; it gets the tensor's name.
            order: of its axes.
            output: name of the network output that the tensor is, "" if it is none.
        """
        tensor = self.source.tensors[index]
        if index in self.homes:
            raise ModelError(f"tensor {tensor.name!r} is written twice; the file is damaged")
        if tensor.encoding is None:
            value.name = self.name(f"{tensor.name}_channels_first") if output and order else tensor.name
        else:
            value.name = self.name(f"{tensor.name}_before_rounding") if output else tensor.name
            value = self.rounded(tensor, value, order)
            if output and not order:
                value.name = output
        self.homes[index] = order
        self.values[index, order] = value
        if output and order:
            self.value(index).name = output

    def rounded(self, tensor: Tensor, value: ir.Value, order: Order = ()) -> ir.Value:
        """Add QuantizeLinear and DequantizeLinear behind the real numbers of a tensor of integers."""
        quantization = tensor.encoding
        assert quantization is not None
        if (quantization.scale <= 0).any():
            raise ModelError(
                f"tensor {tensor.name!r}: expected a positive scale, got {quantization.scale[:4].tolist()}"
            )
        axis = order.index(quantization.axis) if order else quantization.axis
        levels = self.linear("QuantizeLinear", value, tensor.name, quantization, tensor.dtype, axis=axis)
        return self.linear("DequantizeLinear", levels, tensor.name, quantization, tensor.dtype, axis=axis)


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One operator being converted: its inputs by number, its options by name."""

    emitter: Emitter
    operator: Operator
    row: Row

    @property
    def name(self) -> str:
        """What nodes are named after: the first output."""
        return self.emitter.source.tensors[self.operator.outputs[0]].name

    def refusal(self, reason: str) -> ModelError:
        """Build the error that names the operator."""
        return ModelError(f"{self.operator}, which writes {self.name!r}: {reason}")

    def given(self, number: int) -> bool:
        """Whether there is such an input."""
        return number < len(self.operator.inputs) and self.operator.inputs[number] is not None

    def index(self, number: int) -> int:
        """Return the tensor that an input is.

        Raises:
            ModelError: the input is left out.
        """
        index = self.operator.inputs[number] if self.given(number) else None
        if index is None:
            raise self.refusal(f"expected input {number}, the operator has {len(self.operator.inputs)}")
        return index

    def tensor(self, number: int) -> Tensor:
        """Return the tensor that an input is."""
        return self.emitter.source.tensors[self.index(number)]

    def result(self, number: int = 0) -> Tensor:
        """Return the tensor that an output is."""
        return self.emitter.source.tensors[self.operator.outputs[number]]

    def rank(self, number: int = 0) -> int:
        """Return how many axes an input has."""
        return len(self.tensor(number).shape)

    def extents(self, number: int = 0) -> tuple[int | None, ...]:
        """Return an input's shape, None for axes that may change."""
        return self.tensor(number).extents

    def read(self, number: int = 0, order: Order = ()) -> ir.Value:
        """Return the value of an input, its axes in an order."""
        return self.emitter.value(self.index(number), order)

    def is_constant(self, number: int) -> bool:
        """Whether an input's numbers are in the file."""
        return self.emitter.is_constant(self.index(number))

    def home(self, number: int = 0) -> Order:
        """Return the order in which an input was written."""
        return self.emitter.homes.get(self.index(number), ())

    def array(self, number: int) -> npt.NDArray[Any]:
        """Return the numbers of a constant input, levels where they stand for real numbers.

        Raises:
            ModelError: it is computed.
        """
        if not self.is_constant(number):
            raise self.refusal(f"expected input {number} ({self.tensor(number).name!r}) to be a constant")
        return self.tensor(number).array()

    def integers(self, number: int) -> list[int]:
        """Return a constant input of integers as a list."""
        array = self.array(number)
        if array.dtype.kind not in "iu":
            raise self.refusal(f"expected integers in input {number}, got {array.dtype}")
        return [int(one) for one in array.reshape(-1)]

    def axis(self, number: int, rank: int) -> int:
        """Return a constant input that names an axis of a tensor of some rank, counted from the front."""
        return self.from_front(self.integers(number)[0] if self.array(number).size else rank, rank)

    def from_front(self, axis: int, rank: int) -> int:
        """Count an axis from the front.

        Raises:
            ModelError: there is no such axis.
        """
        if not -rank <= axis < rank:
            raise self.refusal(f"expected an axis of a tensor of rank {rank}, got {axis}")
        return axis % rank

    def option(self, name: str) -> Any:
        """Return an option.

        Raises:
            ModelError: the file does not give it.
        """
        if name not in self.operator.options:
            raise self.refusal(f"expected the option {name!r} in {self.row.options}, the file does not give it")
        return self.operator.options[name]

    def positive(self, name: str) -> int:
        """Return an option that counts something."""
        count = int(self.option(name))
        if count < 1:
            raise self.refusal(f"expected {name} to be 1 or more, got {count}")
        return count

    def node(self, operator: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Add a node of one output."""
        return self.nodes(operator, *inputs, **attributes)[0]

    def nodes(self, operator: str, *inputs: ir.Value | None, count: int = 1, **attributes: Any) -> list[ir.Value]:
        """Add a node."""
        name = f"{self.name}_{operator.lower()}"
        return self.emitter.nodes(operator, list(inputs), attributes, name=name, count=count)

    def constant(self, numbers: npt.ArrayLike, suffix: str, dtype: npt.DTypeLike = np.int64) -> ir.Value:
        """Add an initializer."""
        return self.emitter.constant(f"{self.name}_{suffix}", np.array(numbers, dtype=dtype))

    def long(self, number: int) -> ir.Value:
        """Return an input of integers as int64, which ONNX wants for shapes and places; a constant is read anew."""
        if self.is_constant(number):
            return self.constant(self.integers(number), f"input_{number}")
        value = self.node("Cast", self.read(number), to=ir.DataType.INT64)
        return value if self.rank(number) == 1 else self.node("Reshape", value, self.constant([-1], "flat"))

    def free_order(self) -> Order:
        """Return the order in which an operator that works in any layout works here.

        Channels first, where an input was written so and all that are computed have rank 4.
        """
        moving = [number for number in range(len(self.operator.inputs)) if not self.is_constant(number)]
        first = any(self.home(number) == CHANNELS_FIRST for number in moving)
        return CHANNELS_FIRST if first and all(self.rank(number) == 4 for number in moving) else ()

    def note(self, text: str) -> None:
        """Say what could not be kept."""
        self.emitter.notes[text] = None


def permuted(array: npt.NDArray[Any], order: Order, axis: int) -> tuple[npt.NDArray[Any], int]:
    """Put the axes of an array into an order, after axes of one entry before its own where it has too few.

    Returns:
        The array, and where its axis `axis` is then.
    """
    if not order:
        return array, axis
    missing = len(order) - array.ndim
    moved = array.reshape((1,) * missing + array.shape).transpose(order)
    return moved, order.index(axis + missing) if array.ndim else 0


def _limits(dtype: np.dtype[Any]) -> tuple[int, int]:
    """Return the lowest and the highest number of an integer type, also one of 4 bits."""
    limits = ml_dtypes.iinfo(dtype)  # type: ignore[no-untyped-call]
    return int(limits.min), int(limits.max)


def _without_zero_scales(
    quantization: Quantization, levels: npt.NDArray[Any], axis: int
) -> tuple[Quantization, npt.NDArray[Any]]:
    """Write the zeros of a channel whose scale is zero with the scale 1, as levels at the zero point."""
    zero = quantization.scale == 0
    if not zero.any():
        return quantization, levels
    shape = [-1 if number == axis and quantization.per_channel else 1 for number in range(levels.ndim)]
    real = np.where(zero.reshape(shape), quantization.zero_point.reshape(shape), levels.astype(np.int64))
    scale = np.where(zero, np.float32(1), quantization.scale)
    return replace(quantization, scale=scale), real.astype(levels.dtype)
