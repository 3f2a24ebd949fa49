"""What every rewrite needs: the graph that changes, the engine's kernels, and where the levels of a value are found.

Levels of 8 bits are kept unsigned, from 0 on, whatever the plan's type: ONNX Runtime's kernels for x86 are several
times faster so (measured on 1.31), and an unsigned level is a place in a table. Signed levels `x_quantized` are then
`x_quantized_unsigned` less 128 and stand in the network only where something else reads them; `planned.py` puts them
back everywhere. Levels of 16 bits stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.engines.kernels import Kernels
from narrowgauge.errors import PlanError
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.edits import take_place
from narrowgauge.lowering.pairs import LEVELS, Linear, Rounding, dequantized, encoding_of, linear_of, rounded
from narrowgauge.lowering.parameters import Parameters

UNSIGNED = "_unsigned"
"""Behind the name of signed levels: the name of the same levels, 128 higher."""

_ANY = 1000  # as many Relu and Clip before one rounding as there may be


def offset(linear: Linear) -> int:
    """Return what is added to levels as the plan has them to get them as they are kept."""
    return 128 if linear.type == ir.DataType.INT8 else 0


def kept_type(linear: Linear) -> npt.DTypeLike:
    """Return the type in which levels are kept."""
    return {ir.DataType.INT16: np.int16, ir.DataType.UINT16: np.uint16}.get(linear.type or ir.DataType.UINT8, np.uint8)


@dataclass(kw_only=True, slots=True)
class Emitter:
    """A lowering under way.

    Attributes:
        graph: the graph that changes.
        kernels: the engine's arithmetic.
        parameters: adds constants and finds free names.
        kept: levels as the plan has them -> as they are kept.
    """

    graph: ir.Graph
    kernels: Kernels
    parameters: Parameters = field(init=False)
    kept: dict[ir.Value, ir.Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.parameters = Parameters(self.graph)


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """An input of an operator.

    Attributes:
        linear: where its levels stand.
        encoding: what they stand for: one scale, or one for each channel of the last axis where that was asked.
        value: its levels as they are kept.
    """

    linear: Linear
    encoding: Encoding
    value: ir.Value


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """An output of an operator.

    Attributes:
        rounding: how it is rounded.
        encoding: what its levels stand for: one scale, or one for each channel of the last axis where that was asked.
    """

    rounding: Rounding
    encoding: Encoding

    @property
    def linear(self) -> Linear:
        """Where its levels stand."""
        return self.rounding.linear

    @property
    def offset(self) -> int:
        """See `offset`."""
        return offset(self.rounding.linear)

    @property
    def type(self) -> npt.DTypeLike:
        """The type in which its levels are kept."""
        return kept_type(self.rounding.linear)

    def kept(self, levels: npt.NDArray[np.int64]) -> npt.NDArray[np.integer[Any]]:
        """Write levels as they are kept."""
        return np.asarray(levels + self.offset).astype(self.type)


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """One operator that is being rewritten.

    Attributes:
        emitter: the lowering.
        node: the operator; new nodes are put before it.
    """

    emitter: Emitter
    node: ir.Node

    @property
    def kernels(self) -> Kernels:
        """The engine's arithmetic."""
        return self.emitter.kernels

    def constant(self, array: npt.ArrayLike, suffix: str, dtype: npt.DTypeLike | None = None) -> ir.Value:
        """Return an initializer of these numbers, named after the operator."""
        return self.emitter.parameters.constant(f"{self.node.name}_{suffix}", np.asarray(array, dtype=dtype))

    def add(
        self, operator: str, *inputs: ir.Value | None, type: ir.DataType | None = None, shape: ir.Shape | None = None,
        **attributes: Any,
    ) -> ir.Value:  # fmt: skip
        """Add a node of one output, of the first input's type and shape where none are given."""
        return self.add_several(operator, inputs, attributes, [(type, shape)])[0]

    def add_several(
        self, operator: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, Any],
        outputs: Sequence[tuple[ir.DataType | None, ir.Shape | None]],
    ) -> list[ir.Value]:  # fmt: skip
        """Add a node; each output has a type and shape, the first input's where they are None."""
        node = ir.node(operator, inputs=inputs, attributes=attributes, num_outputs=len(outputs))
        node.name = self.emitter.parameters.name(f"{self.node.name}_{operator.lower()}")
        first = inputs[0]
        for value, (kind, shape) in zip(node.outputs, outputs, strict=True):
            value.name = self.emitter.parameters.name(f"{self.node.name}_{operator.lower()}_result")
            value.type = first.type if kind is None and first is not None else ir.TensorType(_known(kind))
            value.shape = first.shape if shape is None and first is not None else shape
        self.node.prepend(node)
        return list(node.outputs)

    def cast(self, value: ir.Value, kind: ir.DataType) -> ir.Value:
        """Convert integers; what does not fit keeps its low bits, as ONNX defines Cast."""
        return value if value.dtype == kind else self.add("Cast", value, type=kind, to=kind)

    def source(self, number: int, *, channels: bool = False) -> Source:
        """Read an input of the operator.

        Args:
            number: of the input.
            channels: whether it may have a scale for each channel of its last axis.

        Raises:
            PlanError: it is not rounded, or has several scales otherwise.
        """
        return self.source_of(self.node.inputs[number], f"input {number}", channels=channels)

    def source_of(self, value: ir.Value | None, what: str, *, channels: bool = False) -> Source:
        """Read a value that a DequantizeLinear wrote.

        Raises:
            PlanError: it is not rounded, or has several scales, but those that `channels` allows.
        """
        linear = dequantized(value, LEVELS)
        if linear is not None and linear.axis is not None and not (channels and _is_last(value, linear.axis)):
            raise PlanError(f"{what} has a scale for each channel, which only what is added up over channels may have")
        encoding = encoding_of(linear) if linear is not None else None
        if linear is None or encoding is None:
            raise PlanError(f"{what} is not rounded to levels of 8 or 16 bits with one scale")
        return Source(linear=linear, encoding=encoding, value=self.kept(linear))

    def ends(self, output: ir.Value | None = None) -> tuple[Source, Result]:
        """Read the first input and an output, the operator's own where none is given.

        Both may have a scale for each channel where the kernels take one.

        Raises:
            PlanError: see `source` and `result_of`.
        """
        channels = self.kernels.transformer_forms
        value = self.node.outputs[0] if output is None else output
        return self.source(0, channels=channels), result_of(value, channels=channels)

    def kept(self, linear: Linear) -> ir.Value:
        """Return levels as they are kept."""
        levels = linear.levels
        if not offset(linear):
            return levels
        if levels not in self.emitter.kept:
            array = constant_array(levels)
            if array is not None:
                name = f"{levels.name}{UNSIGNED}"
                made = self.emitter.parameters.constant(name, (array.astype(np.int64) + 128).astype(np.uint8))
            else:
                made = self.shifted(levels, ir.DataType.UINT8, 128)
            self.emitter.kept[levels] = made
        return self.emitter.kept[levels]

    def write(self, value: ir.Value, result: Result) -> None:
        """Let levels, as they are kept, stand for what the QuantizeLinear wrote."""
        old = result.linear.levels
        value.shape = old.shape if old.shape is not None else value.shape
        if not result.offset:
            take_place(value, old)
            return
        signed = self.shifted(value, ir.DataType.INT8, -128)
        value.name = self.emitter.parameters.name(f"{old.name}{UNSIGNED}")
        take_place(signed, old)
        self.emitter.kept[signed] = value

    def shifted(self, value: ir.Value, kind: ir.DataType, by: int) -> ir.Value:
        """Add to levels of 8 bits, and write them as another type."""
        wide = self.add("Cast", value, type=ir.DataType.INT32, to=ir.DataType.INT32)
        return self.cast(self.add("Add", wide, self.constant(by, "offset", np.int32)), kind)


def _known(kind: ir.DataType | None) -> ir.DataType:
    assert kind is not None
    return kind


def result_of(value: ir.Value, *, channels: bool = False) -> Result:
    """Find the rounding behind an operator's output.

    Args:
        value: the output.
        channels: whether it may be rounded with a scale for each channel of its last axis.

    Raises:
        PlanError: something else reads it, or it is rounded with several scales otherwise.
    """
    found = rounded(value, most_clips=_ANY, per_axis=channels)
    if found is not None and found.linear.axis is not None and not _is_last(value, found.linear.axis):
        found = None
    return _result(found)


def result_at(node: ir.Node, *, channels: bool = False) -> Result:
    """Read a QuantizeLinear.

    Raises:
        PlanError: it has several scales, but those that `channels` allows, along the last axis.
    """
    linear = linear_of(node, node.outputs[0])
    if linear is not None and linear.axis is not None and not (channels and _is_last(node.outputs[0], linear.axis)):
        linear = None
    return _result(Rounding(node=node, linear=linear, clips=()) if linear is not None else None)


def _is_last(value: ir.Value | None, axis: int) -> bool:
    """Whether an axis is the last one of a value."""
    rank = value.shape.rank() if value is not None and value.shape is not None else None
    return axis == -1 or (rank is not None and axis == rank - 1)


def _result(rounding: Rounding | None) -> Result:
    encoding = encoding_of(rounding.linear) if rounding is not None else None
    if rounding is None or encoding is None or rounding.linear.type not in LEVELS:
        raise PlanError("its output is not rounded, by one QuantizeLinear alone, to levels of 8 or 16 bits")
    return Result(rounding=rounding, encoding=encoding)
