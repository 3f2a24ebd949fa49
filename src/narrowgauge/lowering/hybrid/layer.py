"""A layer whose input is rounded when the network runs: its levels, its weights, its place in the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from narrowgauge.core.arithmetic import FloatArray
from narrowgauge.core.encoding import DynamicEncoding, Encoding
from narrowgauge.core.engines.hybrid import Hybrid, HybridKernels, HybridLayer
from narrowgauge.errors import PlanError
from narrowgauge.graph.edits import take_place
from narrowgauge.graph.roles import activation_inputs
from narrowgauge.lowering.dynamic import DynamicWriter, IntegerWeights, integer_weights
from narrowgauge.lowering.hybrid.maker import Maker
from narrowgauge.lowering.hybrid.results import RESULTS
from narrowgauge.lowering.hybrid.rounding import ROUNDINGS, RoundedRows


@dataclass(frozen=True, kw_only=True, slots=True)
class Readings:
    """What all layers share.

    Attributes:
        kernels: how they are computed.
        rounded: (name, rounding, axes) of a value -> its levels.
    """

    kernels: HybridKernels
    rounded: dict[tuple[str, object, tuple[int, ...]], RoundedRows] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """A layer that is being written.

    Attributes:
        readings: see there.
        writer: of the network.
        make: makes the nodes that go before the layer.
        node: the layer.
        how: how it is computed.
        rows: axes of its input that are rounded together.
    """

    readings: Readings
    writer: DynamicWriter
    make: Maker
    node: ir.Node
    how: Hybrid
    rows: tuple[int, ...]

    @property
    def value(self) -> ir.Value:
        """Its input."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    def rounded(self) -> RoundedRows:
        """Return the input as levels, once for all that read it so."""
        key = (str(self.value.name), self.how.rounding, self.rows)
        if key not in self.readings.rounded:
            make = Maker(parameters=self.writer.parameters, prefix=str(self.value.name))
            self.readings.rounded[key] = ROUNDINGS[self.how.rounding](make, self.value, self.rows)
            producer = self.value.producer()
            if producer is None:
                self.writer.graph[0].prepend(make.nodes)
            else:
                producer.append(make.nodes)
        return self.readings.rounded[key]

    def steps(self) -> ir.Value:
        """Return the levels less their zero point, whole numbers of float32."""
        rounded = self.rounded()
        return rounded.levels if rounded.zero_point is None else self.make("Sub", rounded.levels, rounded.zero_point)

    def finish(self, sums: ir.Value, scale: FloatArray, bias: FloatArray | None, output: ir.Value) -> None:
        """Scale the sums and let the result stand for `output`.

        Args:
            sums: of products, int32.
            scale: of the weights, in a shape that broadcasts over the output.
            bias: likewise; None for none.
            output: what the result replaces.
        """
        real = self.make.cast(sums, ir.DataType.FLOAT)
        result = RESULTS[self.how.results](self.make, real, self.rounded().scale, scale, bias)
        self.node.prepend(self.make.nodes)
        take_place(result, output)


def layer_of(
    readings: Readings, writer: DynamicWriter, node: ir.Node, kind: HybridLayer, weights: IntegerWeights
) -> Layer:
    """Begin to write a layer.

    Raises:
        PlanError: the kernels have none of this kind, are not LiteRT's, or the rank of its input is not known.
    """
    value = node.inputs[0]
    assert value is not None
    encoding = writer.plan.encodings.get(str(value.name))
    assert isinstance(encoding, DynamicEncoding)
    # LiteRT's depthwise kernels want a scale for each channel; one for all is written once for each of them.
    channels = weights.scale.size > 1 or kind == "depthwise convolution"
    how = readings.kernels.of(kind, per_channel=channels, symmetric=encoding.symmetric)
    if how.rounding not in ROUNDINGS:
        raise PlanError(f"expected kernels of LiteRT, got those of {readings.kernels.name}: lower_dynamically has them")
    rank = len(value.shape) if value.shape is not None else 0
    if not rank:
        raise PlanError(f"value {value.name!r}: expected a known number of axes, to round its rows; got none")
    if kind == "product":
        rows: tuple[int, ...] = (rank - 1,)
    else:
        rows = (1,) if how.scope == "row" else tuple(range(1, rank))
    make = Maker(parameters=writer.parameters, prefix=str(node.name))
    return Layer(readings=readings, writer=writer, make=make, node=node, how=how, rows=rows)


def weights_of(
    writer: DynamicWriter, node: ir.Node, encodings: Mapping[int, Encoding], axis: int
) -> IntegerWeights | None:
    """Return the weights of a node whose activation is rounded when the network runs; None of another.

    Raises:
        PlanError: LiteRT takes no such activation or weights.
    """
    value = next((value for _, value in activation_inputs(node)), None)
    encoding = writer.plan.encodings.get(str(value.name)) if value is not None else None
    if value is None or value is not node.inputs[0] or 1 not in encodings or not isinstance(encoding, DynamicEncoding):
        return None
    if encoding.type.name != "int8":
        raise PlanError(
            f"value {value.name!r}: expected a dynamic encoding of int8, which LiteRT's kernels write, got "
            f"{encoding.type.name}"
        )
    weights = integer_weights(node, encodings[1], axis)
    if weights.zero_point.any() or weights.levels.dtype != np.int8:
        raise PlanError(
            f"weights {weights.name!r}: expected signed levels with zero point 0, which LiteRT's kernels take, got "
            f"{encodings[1].type.name} with zero points; choose int8_narrow"
        )
    return weights
