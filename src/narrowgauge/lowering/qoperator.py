"""The integer form for ONNX Runtime: the Q/DQ form with its operators replaced by those that compute on levels.

ONNX Runtime makes the same replacements when it loads a Q/DQ network with its extended optimisations
(onnxruntime/core/optimizer/qdq_transformer/selectors_actions/qdq_selectors.cc); here they stand in the file, so that
they hold at every optimisation level. Operators of the domain com.microsoft are defined in onnxruntime's
docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from narrowgauge.graph.constants import add_constant, constant_array
from narrowgauge.graph.edits import graph_of, is_operator, remove_unused, sole_consumer, take_place
from narrowgauge.graph.roles import clip_bounds, is_constant
from narrowgauge.lowering.pairs import BITS_8, LEVELS, Linear, Rounding, activation, dequantized, linear_of, rounded

CONTRIB = "com.microsoft"


def lower_to_qoperator(qdq: ir.Model) -> ir.Model:
    """Replace what stands between DequantizeLinear and QuantizeLinear by operators on integers.

    An operator that has no integer form, or whose types or scales its integer form does not take, stays float between
    its Q and DQ. A Relu or Clip that the saturation does not imply becomes a Clip of the levels, which is equal
    because rounding is monotone.

    Args:
        qdq: what `lower_to_qdq` made; it is not changed.

    Returns:
        A network of the same inputs, outputs and names of float values that survive.
    """
    model = qdq.clone()
    model.opset_imports.setdefault(CONTRIB, 1)
    for node in list(model.graph):
        rewrite = REWRITES.get(node.op_type) if node.domain == "" else None
        if rewrite is not None and node.graph is model.graph:
            rewrite(node)
    remove_unused(model)
    if not any(node.domain == CONTRIB for node in model.graph):
        del model.opset_imports[CONTRIB]
    return model


# --- replacing ------------------------------------------------------------------------------------------------------


def _replace_rounded(
    node: ir.Node, rounding: Rounding, operator: str, inputs: Sequence[ir.Value | None], *, domain: str = CONTRIB,
    attributes: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Let one integer operator write what node, clip and QuantizeLinear did."""
    new = _node(node, operator, inputs, domain, attributes or {})
    new.outputs[0].type = ir.TensorType(_known(rounding.linear.type))
    new.outputs[0].shape = node.outputs[0].shape
    levels = new.outputs[0]
    nodes = [new]
    for each in rounding.clips:
        clip = _clip_levels(each, levels, rounding.linear)
        if clip is not None:
            levels.name = f"{rounding.linear.levels.name}_unclipped"
            nodes.append(clip)
            levels = clip.outputs[0]
    rounding.node.prepend(nodes)
    _take_levels(levels, rounding.linear.levels)


def _replace_float(
    node: ir.Node, operator: str, inputs: Sequence[ir.Value | None], *, attributes: Mapping[str, Any] | None = None
) -> None:
    """Let one operator read integers and write the float numbers that the node wrote."""
    new = _node(node, operator, inputs, CONTRIB, attributes or {})
    node.prepend(new)
    take_place(new.outputs[0], node.outputs[0])


def _node(
    node: ir.Node, operator: str, inputs: Sequence[ir.Value | None], domain: str, attributes: Mapping[str, Any]
) -> ir.Node:
    new = ir.node(operator, inputs=inputs, attributes=attributes, domain=domain, name=node.name)
    new.metadata_props.update(node.metadata_props)
    return new


def _take_levels(new: ir.Value, old: ir.Value) -> None:
    shape = new.shape
    take_place(new, old)
    new.shape = shape


def _known(kind: ir.DataType | None) -> ir.DataType:
    assert kind is not None
    return kind


def _clip_levels(clip: ir.Node, levels: ir.Value, linear: Linear) -> ir.Node | None:
    """Build a Clip of levels that does what a Relu or Clip of real numbers did before rounding; None if nothing."""
    scale, zero_point = constant_array(linear.scale), constant_array(linear.zero_point)
    assert scale is not None
    assert zero_point is not None
    container = np.iinfo(zero_point.dtype)
    graph = graph_of(clip)
    bounds: list[ir.Value | None] = []
    for bound, end in zip(clip_bounds(clip), (container.min, container.max), strict=True):
        level = float(np.rint(np.float32(bound) / scale)) + int(zero_point)
        cuts = level > end if end == container.min else level < end
        array = np.array(np.clip(level, container.min, container.max), dtype=zero_point.dtype)
        bounds.append(add_constant(graph, f"{clip.name}_level_{len(bounds)}", array) if cuts else None)
    if not any(bound is not None for bound in bounds):
        return None
    node = ir.node("Clip", inputs=[levels, *bounds], name=clip.name)
    node.outputs[0].type = levels.type
    node.outputs[0].shape = levels.shape
    return node


def _attributes(node: ir.Node, *names: str) -> dict[str, Any]:
    """Attributes of a node by name, those that it has; all of them where no name is given."""
    return {name: attribute.value for name, attribute in node.attributes.items() if not names or name in names}


# --- operators with weights -----------------------------------------------------------------------------------------


def _product_types(first: Linear, second: Linear, output: Linear | None) -> bool:
    """Whether ONNX Runtime multiplies levels of these types: int8 only with int8, the output as the input."""
    if first.type == ir.DataType.INT8 and second.type != ir.DataType.INT8:
        return False
    return output is None or output.type == first.type


def _columns(node: ir.Node, axis: int) -> Linear | None:
    """Return the second factor of a product: one scale, or one per index of `axis`, with one zero point for all."""
    second = dequantized(node.inputs[1])
    if second is None or second.axis is None:
        return second
    value = node.inputs[1]
    rank = value.shape.rank() if value is not None and value.shape is not None else 2
    zero_points = constant_array(second.zero_point)
    uniform = zero_points is not None and (zero_points == zero_points.flat[0]).all()
    return second if second.axis % rank == axis % rank and uniform else None


def _bias(node: ir.Node, first: Linear, second: Linear) -> tuple[bool, ir.Value | None]:
    """Return whether the bias can be added to the accumulator, and its levels (None where there is no bias).

    It can if it is int32 in units of the product of both scales.
    """
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return True, None
    bias = dequantized(value, (ir.DataType.INT32,))
    scales = [constant_array(one.scale) for one in (first, second, bias) if one is not None]
    if bias is None or any(scale is None for scale in scales):
        return False, None
    unit = np.asarray(scales[0] * scales[1], dtype=np.float32)  # type: ignore[operator]
    return bool(np.array_equal(unit, scales[2])), bias.levels  # type: ignore[arg-type]


def _conv(node: ir.Node) -> None:
    first, second, rounding = activation(node.inputs[0]), _columns(node, 0), rounded(node.outputs[0])
    if first is None or second is None or rounding is None:
        return
    fits, bias = _bias(node, first, second)
    if not fits or not _product_types(first, second, rounding.linear):
        return
    inputs = [*first.inputs, *second.inputs, *rounding.linear.inputs[1:], *([bias] if bias is not None else [])]
    _replace_rounded(node, rounding, "QLinearConv", inputs, domain="", attributes=_attributes(node))


def _matmul(node: ir.Node) -> None:
    first, second, rounding = activation(node.inputs[0]), _columns(node, -1), rounded(node.outputs[0])
    if first is None or second is None:
        return
    if rounding is not None and _product_types(first, second, rounding.linear):
        inputs = [*first.inputs, *second.inputs, *rounding.linear.inputs[1:]]
        _replace_rounded(node, rounding, "QLinearMatMul", inputs, domain="")
    elif _product_types(first, second, None):
        inputs = [first.levels, second.levels, first.scale, second.scale, first.zero_point, second.zero_point]
        _replace_float(node, "MatMulIntegerToFloat", inputs)


def _gemm(node: ir.Node) -> None:
    columns = 0 if node.attributes.get_int("transB", 0) else 1
    first, second, rounding = activation(node.inputs[0]), _columns(node, columns), rounded(node.outputs[0])
    if first is None or second is None:
        return
    fits, bias = _bias(node, first, second)
    if not fits or (bias is not None and node.attributes.get_float("beta", 1.0) != 1.0):
        return
    attributes = _attributes(node, "alpha", "transA", "transB")
    inputs = [*first.inputs, *second.inputs, bias]
    if rounding is not None and _product_types(first, second, rounding.linear):
        inputs += rounding.linear.inputs[1:]
        _replace_rounded(node, rounding, "QGemm", inputs, attributes=attributes)
    elif _product_types(first, second, None):
        _replace_float(node, "QGemm", inputs[: 7 if bias is not None else 6], attributes=attributes)


# --- operators without weights --------------------------------------------------------------------------------------


def _join(operator: str, *names: str) -> Callable[[ir.Node], None]:
    """Make a rewrite to an operator that reads levels, scale and zero point of each input, then of the output."""

    def rewrite(node: ir.Node) -> None:
        sources = [activation(value) for value in node.inputs]
        rounding = rounded(node.outputs[0])
        if rounding is None or not all(_like(source, rounding) for source in sources) or _dilated(node):
            return
        inputs = [value for source in sources if source is not None for value in source.inputs]
        inputs += rounding.linear.inputs[1:]
        _replace_rounded(node, rounding, operator, inputs, attributes=_attributes(node, *names) if names else {})

    return rewrite


def _like(source: Linear | None, rounding: Rounding) -> bool:
    return source is not None and source.type == rounding.linear.type


def _dilated(node: ir.Node) -> bool:
    """Whether a pooling window has holes, which the integer operators do not know."""
    return any(step != 1 for step in node.attributes.get_ints("dilations", ()))


def _softmax(node: ir.Node) -> None:
    source, rounding = activation(node.inputs[0]), rounded(node.outputs[0])
    if source is None or rounding is None or not _like(source, rounding):
        return
    # From opset 13 on, Softmax is along one axis; the integer operator asks which of the two meanings holds.
    attributes = {"axis": node.attributes.get_int("axis", -1), "opset": 13}
    inputs = [*source.inputs, *rounding.linear.inputs[1:]]
    _replace_rounded(node, rounding, "QLinearSoftmax", inputs, attributes=attributes)


def _concat(node: ir.Node) -> None:
    sources = [activation(value) for value in node.inputs]
    rounding = rounded(node.outputs[0])
    if rounding is None or not all(_like(source, rounding) for source in sources):
        return
    inputs = rounding.linear.inputs[1:] + [value for source in sources if source is not None for value in source.inputs]
    _replace_rounded(node, rounding, "QLinearConcat", inputs, attributes=_attributes(node, "axis"))


def _same(types: Sequence[ir.DataType]) -> Callable[[ir.Node], None]:
    """Make a rewrite of an operator that moves or selects levels: it reads and writes integers itself."""

    def rewrite(node: ir.Node) -> None:
        source = activation(node.inputs[0], types)
        used = [value for value in node.outputs if value.uses() or value.is_graph_output()]
        roundings = [rounded(value) for value in used]
        if source is None or not roundings or any(one is None or not one.linear.same_as(source) for one in roundings):
            return
        if any(one is not None and one.clips for one in roundings):
            return
        new = ir.node(
            node.op_type, inputs=[source.levels, *node.inputs[1:]], attributes=_attributes(node), name=node.name,
            num_outputs=len(node.outputs),
        )  # fmt: skip
        new.metadata_props.update(node.metadata_props)
        node.prepend(new)
        for output, value in zip(new.outputs, node.outputs, strict=True):
            output.shape = value.shape
            output.type = ir.TensorType(_known(source.type))
            rounding = rounded(value)
            if rounding is not None:
                _take_levels(output, rounding.linear.levels)

    return rewrite


def _pad(node: ir.Node) -> None:
    """A Pad between levels of one meaning: what it puts around them is the constant's level."""
    source, rounding = activation(node.inputs[0]), rounded(node.outputs[0])
    if source is None or rounding is None or rounding.clips or not rounding.linear.same_as(source):
        return
    inputs: list[ir.Value | None] = [source.levels, *node.inputs[1:]]
    if node.attributes.get_string("mode", "constant") == "constant":
        given = node.inputs[2] if len(node.inputs) > 2 else None
        scale, zero_point = constant_array(source.scale), constant_array(source.zero_point)
        real = np.zeros((), np.float32) if given is None else constant_array(given)
        if real is None or scale is None or zero_point is None:
            return
        container = np.iinfo(zero_point.dtype)
        level = np.clip(np.rint(real / scale) + float(zero_point), container.min, container.max)
        inputs += [None] * (3 - len(inputs))
        inputs[2] = add_constant(graph_of(node), f"{node.name}_level", level.astype(zero_point.dtype).reshape(()))
    _replace_rounded(node, rounding, "Pad", inputs, domain="", attributes=_attributes(node))


def _resize(node: ir.Node) -> None:
    """A Resize that copies the nearest level."""
    if node.attributes.get_string("mode", "nearest") == "nearest":
        _same(BITS_8)(node)


def _clip(node: ir.Node) -> None:
    """A Relu or Clip that stands alone between levels of one meaning."""
    source, reader = activation(node.inputs[0]), sole_consumer(node.outputs[0])
    if source is None or reader is None or not is_operator(reader, "QuantizeLinear"):
        return
    if any(bound is not None and not is_constant(bound) for bound in node.inputs[1:]):
        return
    linear = linear_of(reader, reader.outputs[0])
    if linear is None or not linear.same_as(source):
        return
    clip = _clip_levels(node, source.levels, linear)
    if clip is None:
        reader.outputs[0].replace_all_uses_with(source.levels)
    else:
        reader.prepend(clip)
        _take_levels(clip.outputs[0], linear.levels)


def _quantize(node: ir.Node) -> None:
    """A QuantizeLinear of levels that have its scale and zero point already."""
    source = dequantized(node.inputs[0], LEVELS)
    linear = linear_of(node, node.outputs[0])
    if source is None or linear is None or not linear.same_as(source) or node.outputs[0].is_graph_output():
        return
    node.outputs[0].replace_all_uses_with(source.levels)


_POOLING = ("auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides")

REWRITES: dict[str, Callable[[ir.Node], None]] = {
    "Conv": _conv,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Add": _join("QLinearAdd"),
    "Mul": _join("QLinearMul"),
    "GlobalAveragePool": _join("QLinearGlobalAveragePool"),
    "AveragePool": _join("QLinearAveragePool", *_POOLING),
    "Sigmoid": _join("QLinearSigmoid"),
    "LeakyRelu": _join("QLinearLeakyRelu", "alpha"),
    "Softmax": _softmax,
    "Concat": _concat,
    "MaxPool": _same(BITS_8),
    "ReduceMax": _same(BITS_8),
    "ReduceMin": _same(BITS_8),
    "DepthToSpace": _same(BITS_8),
    "Reshape": _same(LEVELS),
    "Transpose": _same(LEVELS),
    "Flatten": _same(LEVELS),
    "Squeeze": _same(LEVELS),
    "Unsqueeze": _same(LEVELS),
    "Slice": _same(LEVELS),
    "Split": _same(LEVELS),
    "Expand": _same(LEVELS),
    "Tile": _same(LEVELS),
    "Gather": _same(LEVELS),
    "Pad": _pad,
    "Resize": _resize,
    "Relu": _clip,
    "Clip": _clip,
    "QuantizeLinear": _quantize,
}
"""Operator of ONNX -> how it is replaced; a function that cannot replace a node leaves it as it is."""
