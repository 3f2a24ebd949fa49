"""The simulated form: every encoding as a pair of QuantizeLinear and DequantizeLinear, in an ordinary ONNX network.

The same form is what ONNX Runtime, OpenVINO and TensorRT load: their own fusions make integer kernels of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.core.arithmetic import bounds_in_levels
from narrowgauge.core.encoding import DynamicEncoding, Encoding, LogEncoding, NormalizedEncoding
from narrowgauge.core.granularity import PerAxis, PerBlock, PerTensor, PowerOfTwoFactor, normalized_axis
from narrowgauge.core.numbers import IntegerType
from narrowgauge.core.plan import Plan
from narrowgauge.errors import PlanError
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.edits import is_operator, new_node, remove_unused, take_place
from narrowgauge.graph.roles import activation_inputs, clip_bounds, is_constant, weight_inputs
from narrowgauge.graph.shapes import dimensions
from narrowgauge.lowering.parameters import Parameters, array_type, check_names, fills_container
from narrowgauge.lowering.probabilities import logarithm_nodes, shares_nodes

_BIAS = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2}

_Use = tuple[ir.Node, int]  # a node and the number of its input


@dataclass(frozen=True, kw_only=True, slots=True)
class QdqStyle:
    """What differs between the engines that read Q/DQ networks.

    Attributes:
        bias_bits: width of an integer bias, 32; 0 leaves biases float (TensorRT).
        drop_clips: leave out a Relu or Clip that the saturation of the integers behind it already does.
        clip_levels: put a Relu or Clip that saturation does not do behind the rounding, on the levels: the same
            numbers. ONNX Runtime runs a layer in float where one stands between it and its rounding.
        convert_weights: write weights of a weight-only plan as Cast and Mul, the same numbers, instead of
            DequantizeLinear, which ONNX Runtime runs with every sample; not weights in blocks of a matrix product,
            for which it has a kernel (com.microsoft.MatMulNBits).
        widen_weights: dequantize weights of 4 bits as 8 bits, through a Cast, for ONNX Runtime's kernels.
        shield_float_layers: let a float Conv, ConvTranspose or Gemm read rounded values through a DequantizeLinear with
            the same scale once per channel. ONNX Runtime takes one with a single scale for a sign to round the layer's
            float weights too, per tensor and silently (its WeightBiasQuantization).
        spell_out_channels: round activations with a scale per channel by Div, Round, Add, Clip and Cast, and back by
            Cast, Sub and Mul: the same numbers. For measuring in ONNX Runtime (1.31), whose QuantizeLinear takes ten
            times as long for scales along the last axis.
    """

    bias_bits: int = 32
    drop_clips: bool = True
    clip_levels: bool = False
    convert_weights: bool = False
    widen_weights: bool = False
    shield_float_layers: bool = False
    spell_out_channels: bool = False


def lower_to_qdq(model: ir.Model, plan: Plan, style: QdqStyle | None = None) -> ir.Model:
    """Write a plan into a copy of its network as QuantizeLinear and DequantizeLinear nodes.

    A value that an integer operator writes is rounded once, behind it, and everything reads the rounded value; one
    that a float operator writes is rounded only for the integer operators that read it. A bias becomes an integer in
    units of the product of its input's and weights' scales.

    Args:
        model: the float network that the plan was made for; it is not changed.
        plan: the encodings; names that the network lacks are refused.
        style: what the reader wants.

    Returns:
        A network of the same inputs and outputs.

    Raises:
        PlanError: if the plan names a value or node that the network does not have, or a scale does not fit.
    """
    lowered = model.clone()
    check_names(lowered.graph, plan)
    lowering = _Lowering(
        graph=lowered.graph,
        plan=plan,
        style=style or QdqStyle(),
        parameters=Parameters(lowered.graph),
        float_nodes=frozenset(node.name for node in plan.float_nodes),
    )
    lowering.lower_weights()
    lowering.lower_activations()
    remove_unused(lowered)
    return lowered


@dataclass(kw_only=True, slots=True)
class _Lowering:
    graph: ir.Graph
    plan: Plan
    style: QdqStyle
    parameters: Parameters
    float_nodes: frozenset[str]

    def is_integer(self, node: ir.Node | None) -> bool:
        return node is not None and str(node.name) not in self.float_nodes

    # --- weights ---

    def lower_weights(self) -> None:
        for node in list(self.graph):
            if not self.is_integer(node):
                continue
            weights = {number: node.inputs[number] for number in weight_inputs(node)}
            for number, value in weights.items():
                encoding = self.plan.encodings.get(str(value.name)) if value is not None else None
                if value is not None and isinstance(encoding, Encoding):
                    self.lower_bias(node, encoding)
                    self.lower_weight(node, number, value, encoding)

    def lower_weight(self, node: ir.Node, number: int, value: ir.Value, encoding: Encoding) -> None:
        blocks = isinstance(encoding.granularity, PerBlock) and node.op_type in {"MatMul", "Gemm"}
        if is_operator(node, "Gather") and isinstance(encoding.granularity, PerTensor) and encoding.type.bits >= 8:
            self.gather_levels(node, value, encoding)
        elif self.style.convert_weights and self.plan.mode == "weight-only" and not blocks:
            node.replace_input_with(number, self.parameters.converted(value, encoding, node))
        else:
            widen = self.style.widen_weights
            node.replace_input_with(number, self.parameters.dequantized(value, encoding, node, widen=widen))

    def gather_levels(self, node: ir.Node, table: ir.Value, encoding: Encoding) -> None:
        """Dequantize the rows that a Gather takes from a table, not the whole table."""
        array, name = constant_array(table), str(table.name)
        assert array is not None
        levels = self.parameters.levels(name, array.astype(np.float32, copy=False), encoding)
        axis = node.attributes.get_int("axis", 0)
        gather = new_node("Gather", [levels, node.inputs[1]], {"axis": axis}, name=str(node.name))
        gather.outputs[0].name = self.parameters.name(f"{node.outputs[0].name}_gathered")
        gather.outputs[0].type = ir.TensorType(ir.DataType.from_numpy(array_type(encoding.type)))
        gather.outputs[0].shape = node.outputs[0].shape
        dq = self.parameters.linear("DequantizeLinear", gather.outputs[0], encoding, name, f"{node.name}_dequantize")
        node.prepend([gather, dq])
        take_place(dq.outputs[0], node.outputs[0])

    def lower_bias(self, node: ir.Node, weights: Encoding) -> None:
        number = _BIAS.get(node.op_type)
        bias = node.inputs[number] if number is not None and number < len(node.inputs) else None
        array = constant_array(bias)
        activation = next((value for _, value in activation_inputs(node)), None)
        scale = self.plan.encodings.get(str(activation.name)) if activation is not None else None
        if number is None or bias is None or array is None or not isinstance(scale, Encoding):
            return
        if not self.style.bias_bits or not isinstance(scale.granularity, PerTensor | PowerOfTwoFactor):
            return
        if node.attributes.get_float("alpha", 1.0) != 1.0 or node.attributes.get_float("beta", 1.0) != 1.0:
            return
        shape = () if isinstance(weights.granularity, PerTensor) else array.shape
        if isinstance(weights.granularity, PerBlock) or array.ndim != 1 or weights.scale.shape != shape:
            return
        encoding = Encoding(
            type=IntegerType(bits=32, signed=True),  # the only width that ONNX dequantizes besides the levels'
            granularity=PerAxis(0) if shape else PerTensor(),
            scale=(scale.scale.min() * weights.scale).astype(np.float32),  # sums count in the smallest step
            zero_point=np.zeros(shape, dtype=np.int32),
        )
        node.replace_input_with(number, self.parameters.dequantized(bias, encoding, node))

    # --- activations ---

    def lower_activations(self) -> None:
        written = list(self.graph.inputs) + [value for node in self.graph for value in node.outputs]
        for value in written:
            encoding = self.plan.encodings.get(str(value.name))
            if isinstance(encoding, Encoding):
                self.round(value, encoding)
            elif isinstance(encoding, DynamicEncoding):
                self.round_dynamically(value)
            elif isinstance(encoding, LogEncoding | NormalizedEncoding):
                self.round_probabilities(value, encoding)
        for value in list(self.graph.initializers.values()):
            encoding = self.plan.encodings.get(str(value.name))
            if isinstance(encoding, Encoding) and not any(
                number in weight_inputs(node) for node, number in value.uses()
            ):
                for node, number in list(value.uses()):
                    if self.is_integer(node):
                        node.replace_input_with(number, self.parameters.dequantized(value, encoding, node))

    def readers(self, value: ir.Value) -> list[_Use]:
        """Who reads the rounded value: everything behind an integer operator, else the integer operators."""
        if self.is_integer(value.producer()):
            return [(node, number) for node, number in value.uses()]
        return [(node, number) for node, number in value.uses() if self.is_integer(node) and node.graph is self.graph]

    def round(self, value: ir.Value, encoding: Encoding) -> None:
        bounds = None
        if self.style.drop_clips:
            value, bounds = self.without_clip(value, encoding)
        readers = self.readers(value)
        returned = value.is_graph_output() and self.is_integer(value.producer())
        if not readers and not returned:
            return
        name = str(value.name)
        if self.style.spell_out_channels and isinstance(encoding.granularity, PerAxis) and value.shape is not None:
            nodes = spelled_out(value, encoding, self.parameters)
            self.insert_behind(value, nodes)
            self.redirect(value, nodes[-1], readers, returned=returned)
            return
        source = self.clipped(value, encoding)
        encoding = _in_container(encoding)
        q = self.parameters.linear("QuantizeLinear", source, encoding, name, f"{name}_quantize")
        q.outputs[0].name = self.parameters.name(f"{name}_quantized")
        q.outputs[0].type = ir.TensorType(ir.DataType.from_numpy(array_type(encoding.type)))
        q.outputs[0].shape = value.shape
        nodes = [q] if bounds is None else [q, self.clipped_levels(q.outputs[0], bounds, name)]
        dq = self.parameters.linear("DequantizeLinear", nodes[-1].outputs[0], encoding, name, f"{name}_dequantize")
        self.insert_behind(source, [*nodes, dq])
        self.redirect(value, dq, readers, returned=returned)
        if self.style.shield_float_layers:
            self.shield(q.outputs[0], dq, encoding, name)

    def shield(self, levels: ir.Value, dq: ir.Node, encoding: Encoding, name: str) -> None:
        """Give float layers that read a rounded value a DequantizeLinear of their own, with a scale per channel."""
        sizes = dimensions(levels) or ()
        channels = sizes[1] if len(sizes) > 1 else None
        layers = [
            (node, number)
            for node, number in dq.outputs[0].uses()
            if number == 0 and is_operator(node, *_BIAS) and not self.is_integer(node)
        ]
        if not layers or channels is None or channels < 2 or not isinstance(encoding.granularity, PerTensor):
            return
        spread = Encoding(
            type=encoding.type,
            granularity=PerAxis(1),
            scale=np.full(channels, encoding.scale, dtype=np.float32),
            zero_point=np.full(channels, encoding.zero_point, dtype=np.int32),
        )
        own = self.parameters.linear(
            "DequantizeLinear", levels, spread, f"{name}_per_channel", f"{name}_dequantize_per_channel"
        )
        own.outputs[0].name = self.parameters.name(f"{name}_dequantized_per_channel")
        own.outputs[0].type = dq.outputs[0].type
        own.outputs[0].shape = dq.outputs[0].shape
        dq.append(own)
        for node, number in layers:
            node.replace_input_with(number, own.outputs[0])

    def redirect(self, value: ir.Value, last: ir.Node, readers: list[_Use], *, returned: bool) -> None:
        name = str(value.name)
        last.outputs[0].name = self.parameters.name(f"{name}_dequantized")
        last.outputs[0].type = value.type
        last.outputs[0].shape = value.shape
        for node, number in readers:
            node.replace_input_with(number, last.outputs[0])
        if returned:
            value.name = self.parameters.name(f"{name}_before_rounding")
            for number, output in enumerate(self.graph.outputs):
                if output is value:
                    self.graph.outputs[number] = last.outputs[0]
            last.outputs[0].name = name

    def insert_behind(self, source: ir.Value, nodes: list[ir.Node]) -> None:
        anchor = source.producer()
        if anchor is not None:
            anchor.append(nodes)
        else:
            self.graph[0].prepend(nodes)

    def round_dynamically(self, value: ir.Value) -> None:
        """DynamicQuantizeLinear and back: uint8, the range of each tensor at run time (ONNX operator of that name)."""
        readers = [(node, number) for node, number in self.readers(value) if self.is_integer(node)]
        if not readers:
            return
        nodes = dynamic_rounding(value, self.parameters)
        name = str(value.name)
        dq = new_node("DequantizeLinear", list(nodes.outputs), name=self.parameters.name(f"{name}_dequantize"))
        self.insert_behind(value, [nodes, dq])
        self.redirect(value, dq, readers, returned=False)

    def round_probabilities(self, value: ir.Value, encoding: LogEncoding | NormalizedEncoding) -> None:
        """Levels that are not affine and back, see `lowering.probabilities`."""
        readers = self.readers(value)
        returned = value.is_graph_output() and self.is_integer(value.producer())
        if not readers and not returned:
            return
        nodes = (
            logarithm_nodes(value, encoding, self.parameters)
            if isinstance(encoding, LogEncoding)
            else shares_nodes(value, encoding, self.parameters)
        )
        self.insert_behind(value, nodes)
        self.redirect(value, nodes[-1], readers, returned=returned)

    def without_clip(self, value: ir.Value, encoding: Encoding) -> tuple[ir.Value, tuple[int, int] | None]:
        """Leave out the Relu or Clip that wrote a value if saturation, or a Clip of the levels, does the same.

        Returns:
            The value to round, which has taken the name, and the levels to clip to, None where saturation does.
        """
        clip = value.producer()
        if clip is None or not is_operator(clip, "Relu", "Clip") or not self.is_integer(clip):
            return value, None
        source = clip.inputs[0]
        producer = source.producer() if source is not None else None
        if source is None or producer is None or len(source.uses()) != 1 or source.is_graph_output():
            return value, None
        bounds = clip_in_levels(clip, encoding)
        if producer.graph is not self.graph or not self.is_integer(producer) or bounds is None:
            return value, None
        saturated = bounds == (encoding.type.minimum, encoding.type.maximum)
        if not saturated and not (self.style.clip_levels and is_operator(producer, *_BIAS) and _in_8_bits(encoding)):
            return value, None
        take_place(source, value)
        return source, None if saturated else bounds

    def clipped_levels(self, levels: ir.Value, bounds: tuple[int, int], name: str) -> ir.Node:
        """Clip levels; what comes out has their type and shape."""
        kind = np.dtype(np.int8 if levels.dtype == ir.DataType.INT8 else np.uint8)
        limits = [
            self.parameters.constant(f"{name}_{suffix}", np.asarray(bound, dtype=kind))
            for suffix, bound in zip(("lowest", "highest"), bounds, strict=True)
        ]
        clip = new_node("Clip", [levels, *limits], name=self.parameters.name(f"{name}_clip"), like=levels)
        clip.outputs[0].name = self.parameters.name(f"{name}_clipped")
        return clip

    def clipped(self, value: ir.Value, encoding: Encoding) -> ir.Value:
        """Cut a value to the levels of a type that is narrower than its container."""
        if fills_container(_in_container(encoding).type) and _in_container(encoding) is encoding:
            return value
        name = str(value.name)
        if not isinstance(encoding.granularity, PerTensor):
            raise PlanError(
                f"value {name!r}: expected one scale for an activation of {encoding.type.name}, got "
                f"{encoding.granularity}; ONNX has no such type, and it is simulated only with one scale: use a type "
                "of 4, 8 or 16 bits or one scale"
            )
        bounds = [
            self.parameters.constant(f"{name}_{suffix}", np.asarray(bound, dtype=np.float32))
            for suffix, bound in (("lowest", encoding.minimum), ("highest", encoding.maximum))
        ]
        clip = new_node("Clip", [value, *bounds], name=self.parameters.name(f"{name}_saturate"), like=value)
        self.insert_behind(value, [clip])
        return clip.outputs[0]


def _along_axis(numbers: npt.NDArray[np.float32], encoding: Encoding, rank: int) -> npt.NDArray[np.float32]:
    assert isinstance(encoding.granularity, PerAxis)
    axis = normalized_axis(encoding.granularity.axis, rank)
    return numbers.reshape([-1 if index == axis else 1 for index in range(rank)])


def _in_container(encoding: Encoding) -> Encoding:
    """The same levels in 8 bits: ONNX Runtime cannot load a Clip before a QuantizeLinear of 4."""
    if encoding.type.bits != 4 or not isinstance(encoding.granularity, PerTensor):
        return encoding
    return replace(encoding, type=IntegerType(bits=8, signed=encoding.type.signed))


def spelled_out(value: ir.Value, encoding: Encoding, parameters: Parameters) -> list[ir.Node]:
    """Build the rounding of a value of known rank with a scale per channel in elementary operators.

    Returns:
        The nodes in order; the last one writes the rounded numbers. The levels are `x_quantized`, as elsewhere.
    """
    assert value.shape is not None
    name, kind = str(value.name), ir.DataType.from_numpy(encoding.type.storage)
    numbers = {
        "steps": encoding.scale,
        "zero_points": encoding.zero_point.astype(np.float32),
        "lowest": np.asarray(encoding.type.minimum, dtype=np.float32),
        "highest": np.asarray(encoding.type.maximum, dtype=np.float32),
    }
    values = {
        suffix: parameters.constant(
            f"{name}_{suffix}", _along_axis(array, encoding, value.shape.rank()) if array.ndim else array
        )
        for suffix, array in numbers.items()
    }
    nodes: list[ir.Node] = []
    last = value
    for operator, others in (
        ("Div", ["steps"]), ("Round", []), ("Add", ["zero_points"]), ("Clip", ["lowest", "highest"]), ("Cast", []),
        ("Cast", []), ("Sub", ["zero_points"]), ("Mul", ["steps"]),
    ):  # fmt: skip
        to = kind if len(nodes) == 4 else ir.DataType.FLOAT
        node = new_node(
            operator, [last, *(values[other] for other in others)], {"to": to} if operator == "Cast" else {},
            name=parameters.name(f"{name}_{operator.lower()}"), like=value,
        )  # fmt: skip
        node.outputs[0].type = ir.TensorType(to)
        nodes.append(node)
        last = node.outputs[0]
    nodes[4].outputs[0].name = parameters.name(f"{name}_quantized")
    return nodes


def dynamic_rounding(value: ir.Value, parameters: Parameters) -> ir.Node:
    """Build the DynamicQuantizeLinear of a value; its outputs are the levels (uint8), the scale and the zero point."""
    node = ir.node(
        "DynamicQuantizeLinear", inputs=[value], num_outputs=3, name=parameters.name(f"{value.name}_quantize")
    )
    for output, suffix, kind, shape in (
        (node.outputs[0], "quantized", ir.DataType.UINT8, value.shape),
        (node.outputs[1], "scale", ir.DataType.FLOAT, ir.Shape([])),
        (node.outputs[2], "zero_point", ir.DataType.UINT8, ir.Shape([])),
    ):
        output.name = parameters.name(f"{value.name}_{suffix}")
        output.type = ir.TensorType(kind)
        output.shape = shape
    return node


def _in_8_bits(encoding: Encoding) -> bool:
    """Whether the levels are all those of a type of 8 bits."""
    return encoding.type.bits == 8 and fills_container(encoding.type)


def saturates_like(clip: ir.Node, encoding: Encoding) -> bool:
    """Whether rounding and saturation alone give the levels that a Relu or Clip before them would.

    They do if both bounds of the clip are constants that fall on or beyond the ends of the levels once rounded.
    """
    return clip_in_levels(clip, encoding) == (encoding.type.minimum, encoding.type.maximum)


def clip_in_levels(clip: ir.Node, encoding: Encoding) -> tuple[int, int] | None:
    """Return the levels that the bounds of a Relu or Clip round to (`core.arithmetic.bounds_in_levels`).

    None where the bounds are not constant, or there are several scales.
    """
    if not isinstance(encoding.granularity, PerTensor):
        return None
    if any(bound is not None and not is_constant(bound) for bound in clip.inputs[1:]):
        return None
    return bounds_in_levels(clip_bounds(clip), encoding)
