"""Operators on integers, rewritten as float operators between DequantizeLinear and QuantizeLinear: one row each.

The operators of the domain com.microsoft are defined in onnxruntime's docs/ContribOperators.md, the others in ONNX's
"Operator Schemas". What a row writes is the operator's definition: real numbers in, real numbers out, rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.errors import ModelError
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.edits import all_nodes, graph_of, is_operator, remove_unused, take_place
from narrowgauge.graph.quantized import is_quantized_operator
from narrowgauge.graph.shapes import rank
from narrowgauge.importers.integer_products import rewrite_integer_product
from narrowgauge.importers.rewriting import Parameters, Rewriter, real_name

CONTRIB = "com.microsoft"

Rewrite = Callable[[Rewriter, ir.Node], None]


def rewrite_qoperators(rewriter: Rewriter) -> None:
    """Rewrite every operator on integers of a network, also in the bodies of If and Loop, in place.

    Args:
        rewriter: of a network of opset 21 or newer, its constants initializers.

    Raises:
        ModelError: an operator is not in the table, or uses what its row does not know; the node is named.
    """
    for node in tuple(all_nodes(rewriter.model)):
        rewrite = REWRITES.get((node.domain.replace("ai.onnx", ""), node.op_type))
        if rewrite is None and (not is_quantized_operator(node) or is_operator(node, *_ROUNDING)):
            continue
        if rewrite is None:
            raise ModelError(
                f"node {node.name!r} is a {node.op_type} of the domain {node.domain or 'ai.onnx'!r}, an operator of "
                f"integers that is not known; known are {', '.join(sorted({name for _, name in REWRITES}))}; export "
                "the network in Q/DQ form, or the float one"
            )
        try:
            rewrite(rewriter, node)
        except (TypeError, ValueError, IndexError) as error:  # an attribute or a shape that no such operator has
            raise ModelError(f"node {node.name!r} ({node.op_type}) is damaged: {error}; export it again") from error
    remove_unused(rewriter.model)


_ROUNDING = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")


# --- reading a node's operands --------------------------------------------------------------------------------------


def _input(node: ir.Node, number: int) -> ir.Value | None:
    return node.inputs[number] if number < len(node.inputs) else None


def _needed(node: ir.Node, number: int) -> ir.Value:
    value = _input(node, number)
    if value is None:
        raise ModelError(f"node {node.name!r} ({node.op_type}): expected an input {number}, got none; it is damaged")
    return value


def _real(
    rewriter: Rewriter, node: ir.Node, numbers: tuple[int, int, int], *, axis: int = 1, block_size: int = 0
) -> ir.Value:
    """Dequantize an operand; `numbers` are the inputs with its levels, scale and zero point."""
    levels, scale, zero_point = _needed(node, numbers[0]), _needed(node, numbers[1]), _input(node, numbers[2])
    parameters = _parameters(rewriter, node, scale, zero_point, axis=axis, block_size=block_size)
    return rewriter.dequantize(node, levels, parameters)


def _parameters(
    rewriter: Rewriter, node: ir.Node, scale: ir.Value, zero_point: ir.Value | None, *, axis: int = 1,
    block_size: int = 0,
) -> Parameters:  # fmt: skip
    """Return scale and zero point in one shape: `()` where there is one of both, else a list; blocks as they are."""
    scales, zeros = constant_array(scale), constant_array(zero_point)
    if scales is not None and not block_size:
        count = max(scales.size, 1 if zeros is None else zeros.size)
        shape = () if count == 1 else (count,)
        if scales.shape != shape:
            scale = rewriter.constant(graph_of(node), f"{_name(scale)}_spread", _spread(node, scales, shape))
        if zeros is not None and zeros.shape != shape:
            zero_point = rewriter.constant(graph_of(node), f"{_name(zero_point)}_spread", _spread(node, zeros, shape))
    return Parameters(scale=scale, zero_point=zero_point, axis=axis, block_size=block_size)


def _spread(node: ir.Node, numbers: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    if numbers.size not in (1, math.prod(shape)):
        raise ModelError(
            f"node {node.name!r} ({node.op_type}): expected 1 or {math.prod(shape)} scales and zero points, got "
            f"{numbers.size}; the network is damaged"
        )
    return np.ascontiguousarray(np.broadcast_to(numbers.reshape(-1) if shape else numbers.reshape(()), shape))


def _name(value: ir.Value | None) -> str:
    return str(value.name) if value is not None else ""


def _shape(value: ir.Value) -> tuple[int, ...]:
    array = constant_array(value)
    return () if array is None else array.shape


def _bias(
    rewriter: Rewriter, node: ir.Node, number: int, scales: tuple[int, int], factor: float = 1.0
) -> ir.Value | None:
    """Dequantize an int32 bias, whose scale is the product of those of input and weights; None where there is none."""
    bias = _input(node, number)
    if bias is None:
        return None
    first, second = (constant_array(_needed(node, scale)) for scale in scales)
    if first is None or second is None:
        raise ModelError(
            f"node {node.name!r} ({node.op_type}): expected constant scales, since its integer bias is in units of "
            "their product, got computed ones; export the network with constant scales"
        )
    product = (first.reshape(-1) * second.reshape(-1) * np.float32(factor)).astype(np.float32)
    scale = rewriter.constant(graph_of(node), f"{bias.name}_scale", product if product.size > 1 else product[0])
    zeros = np.zeros(product.shape if product.size > 1 else (), dtype=np.int32)
    zero_point = rewriter.constant(graph_of(node), f"{bias.name}_zero_point", zeros)
    return rewriter.dequantize(node, bias, Parameters(scale=scale, zero_point=zero_point, axis=0))


def _kept(node: ir.Node, *dropped: str) -> dict[str, Any]:
    return {name: attribute.value for name, attribute in node.attributes.items() if name not in dropped}


# --- writing the float operator -------------------------------------------------------------------------------------


def _write(
    rewriter: Rewriter, node: ir.Node, operator: str, inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Any], output: tuple[int, int] | None, *, levels_of: int = 0,
) -> None:  # fmt: skip
    """Let a float operator and a QuantizeLinear write what a node wrote.

    Args:
        rewriter: of the network.
        node: the operator on integers.
        operator: the float one.
        inputs: real numbers.
        attributes: of the float operator.
        output: inputs of the node with its output's scale and zero point; None where it writes real numbers.
        levels_of: input whose levels tell the output's type where there is no zero point.
    """
    old = node.outputs[0]
    if output is None:
        result = rewriter.add(node, operator, inputs, attributes, wanted=f"{old.name}_real")
        _finish(rewriter, node, result)
        take_place(result, old)
        return
    scale, zero_point = _needed(node, output[0]), _input(node, output[1])
    parameters = _parameters(rewriter, node, scale, zero_point)
    result = rewriter.add(node, operator, inputs, attributes, wanted=rewriter.real_name_for(old))
    result.shape = old.shape
    _finish(rewriter, node, result)
    if parameters.zero_point is None and old.dtype is None:
        kind = _needed(node, levels_of).dtype
        old.type = ir.TensorType(kind) if kind is not None else None
    rewriter.replace_levels(node, old, result, parameters)


def _finish(rewriter: Rewriter, node: ir.Node, result: ir.Value) -> None:
    """Give the float operator the node's name and what tools wrote beside it."""
    made = result.producer()
    assert made is not None
    name, made.name = str(node.name), rewriter.name(f"{node.name}_float")
    node.name, made.name = made.name, name
    made.metadata_props.update(node.metadata_props)


def _channels_last(rewriter: Rewriter, node: ir.Node, value: ir.Value, axes: int) -> ir.Value:
    """Move the last axis of a value behind the first: ONNX's float operators have channels there."""
    order = [0, axes - 1, *range(1, axes - 1)]
    return rewriter.add(node, "Transpose", [value], {"perm": order}, wanted=f"{value.name}_channels_first")


# --- rows -----------------------------------------------------------------------------------------------------------


def _join(operator: str, *operands: int, output: int, dropped: tuple[str, ...] = ()) -> Rewrite:
    """Make the row of an operator whose operands and output each come with scale and zero point.

    Args:
        operator: the float one.
        operands: first of three inputs (levels, scale, zero point) of each.
        output: first of two inputs (scale, zero point).
        dropped: attributes that the float operator does not have.
    """

    def rewrite(rewriter: Rewriter, node: ir.Node) -> None:
        inputs = [_real(rewriter, node, (first, first + 1, first + 2)) for first in operands]
        _write(rewriter, node, operator, inputs, _kept(node, *dropped), (output, output + 1))

    return rewrite


def _conv(rewriter: Rewriter, node: ir.Node) -> None:
    weights = _real(rewriter, node, (3, 4, 5), axis=0)
    inputs: list[ir.Value | None] = [_real(rewriter, node, (0, 1, 2)), weights]
    bias = _bias(rewriter, node, 8, (1, 4))
    inputs += [bias] if bias is not None else []
    _image_operator(rewriter, node, "Conv", inputs, (6, 7), axes=rank(_needed(node, 3)))


def _conv_transpose(rewriter: Rewriter, node: ir.Node) -> None:
    if node.attributes.get_int("group", 1) != 1 and len(_shape(_needed(node, 4))) and _shape(_needed(node, 4)) != (1,):
        raise ModelError(
            f"node {node.name!r} (QLinearConvTranspose): scales per channel of several groups have no place in ONNX's "
            "DequantizeLinear; quantize it with one scale"
        )
    inputs: list[ir.Value | None] = [_real(rewriter, node, (0, 1, 2)), _real(rewriter, node, (3, 4, 5), axis=1)]
    bias = _bias(rewriter, node, 8, (1, 4))
    inputs += [bias] if bias is not None else []
    _image_operator(rewriter, node, "ConvTranspose", inputs, (6, 7), axes=rank(_needed(node, 3)))


def _image_operator(
    rewriter: Rewriter, node: ir.Node, operator: str, inputs: list[ir.Value | None], output: tuple[int, int], *,
    axes: int | None,
) -> None:  # fmt: skip
    """Write an operator on images, whose channels lie on the last axis if its attribute says so."""
    attributes = _kept(node, "channels_last")
    if not node.attributes.get_int("channels_last", 0):
        _write(rewriter, node, operator, inputs, attributes, output)
        return
    if axes is None or inputs[0] is None:
        raise ModelError(f"node {node.name!r} ({node.op_type}): channels_last of an input of unknown rank")
    first = _channels_last(rewriter, node, inputs[0], axes)
    result = rewriter.add(node, operator, [first, *inputs[1:]], attributes, wanted=f"{node.name}_channels_first")
    _write(rewriter, node, "Transpose", [result], {"perm": [0, *range(2, axes), 1]}, output)


def _pool(operator: str) -> Rewrite:
    def rewrite(rewriter: Rewriter, node: ir.Node) -> None:
        inputs: list[ir.Value | None] = [_real(rewriter, node, (0, 1, 2))]
        _image_operator(rewriter, node, operator, inputs, (3, 4), axes=rank(node.inputs[0]))

    return rewrite


def _nhwc_max_pool(rewriter: Rewriter, node: ir.Node) -> None:
    """A maximum needs no scale: the float operator's place on levels, which `moved_levels` makes real."""
    source, old = _needed(node, 0), node.outputs[0]
    axes = rank(source)
    if axes is None:
        raise ModelError(f"node {node.name!r} (NhwcMaxPool): the rank of its input is unknown")
    first = _channels_last(rewriter, node, source, axes)
    pooled = rewriter.add(node, "MaxPool", [first], _kept(node), wanted=f"{node.name}_channels_first")
    order = [0, *range(2, axes), 1]
    last = rewriter.add(node, "Transpose", [pooled], {"perm": order}, wanted=f"{old.name}_channels_last")
    for value in (first, pooled, last):
        value.type = source.type
    take_place(last, old)
    last.type = source.type


def _matmul(rewriter: Rewriter, node: ir.Node) -> None:
    inputs = [_real(rewriter, node, (0, 1, 2), axis=-2), _real(rewriter, node, (3, 4, 5), axis=_columns(node, 3))]
    _write(rewriter, node, "MatMul", inputs, {}, (6, 7))


def _columns(node: ir.Node, number: int) -> int:
    """Axis of a second factor's columns, counted from the front where its rank is known."""
    axes = rank(_needed(node, number))
    return -1 if axes is None else axes - 1


def _gemm(rewriter: Rewriter, node: ir.Node) -> None:
    alpha = node.attributes.get_float("alpha", 1.0)
    columns = 0 if node.attributes.get_int("transB", 0) else 1
    inputs: list[ir.Value | None] = [_real(rewriter, node, (0, 1, 2)), _real(rewriter, node, (3, 4, 5), axis=columns)]
    bias = _bias(rewriter, node, 6, (1, 4), alpha)
    inputs += [bias] if bias is not None else []
    _write(rewriter, node, "Gemm", inputs, _kept(node), (7, 8) if _input(node, 7) is not None else None)


def _matmul_to_float(rewriter: Rewriter, node: ir.Node) -> None:
    """MatMulIntegerToFloat: A, B, scales, zero points, bias."""
    inputs = [_real(rewriter, node, (0, 2, 4), axis=-2), _real(rewriter, node, (1, 3, 5), axis=_columns(node, 1))]
    _add_bias(rewriter, node, inputs, _input(node, 6))


def _dynamic_matmul(rewriter: Rewriter, node: ir.Node) -> None:
    """DynamicQuantizeMatMul: A in float, B with scale, zero point and bias."""
    rounded = _round_dynamically(rewriter, node, _needed(node, 0))
    weights = _real(rewriter, node, (1, 2, 3), axis=_columns(node, 1))
    _add_bias(rewriter, node, [rounded, weights], _input(node, 4))


def _add_bias(rewriter: Rewriter, node: ir.Node, factors: Sequence[ir.Value], bias: ir.Value | None) -> None:
    if bias is None:
        _write(rewriter, node, "MatMul", factors, {}, None)
        return
    product = rewriter.add(node, "MatMul", factors, wanted=f"{node.name}_product")
    _write(rewriter, node, "Add", [product, bias], {}, None)


def _round_dynamically(rewriter: Rewriter, node: ir.Node, value: ir.Value) -> ir.Value:
    """Round a value by the range of each tensor at run time and return the real numbers."""
    wanted = rewriter.name(f"{value.name}_quantize")
    rounding = ir.node("DynamicQuantizeLinear", inputs=[value], num_outputs=3, name=wanted)
    kinds = (ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.UINT8)
    for output, suffix, kind in zip(rounding.outputs, ("quantized", "scale", "zero_point"), kinds, strict=True):
        output.name = rewriter.name(f"{value.name}_{suffix}")
        output.type = ir.TensorType(kind)
        output.shape = value.shape if suffix == "quantized" else ir.Shape([])
    node.prepend(rounding)
    levels, scale, zero_point = rounding.outputs
    return rewriter.dequantize(node, levels, Parameters(scale=scale, zero_point=zero_point))


def _softmax(rewriter: Rewriter, node: ir.Node) -> None:
    axis, opset = node.attributes.get_int("axis", -1), node.attributes.get_int("opset", 13)
    real = _real(rewriter, node, (0, 1, 2))
    axes = rank(node.inputs[0])
    if opset >= 13 or axis == -1 or (axes is not None and axis == axes - 1):
        _write(rewriter, node, "Softmax", [real], {"axis": axis}, (3, 4))
        return
    # Before 13 Softmax saw a matrix: the axes from `axis` on were one.
    shape = rewriter.add(node, "Shape", [real], wanted=f"{node.name}_shape")
    shape.type = ir.TensorType(ir.DataType.INT64)
    flat = rewriter.add(node, "Flatten", [real], {"axis": axis}, wanted=f"{node.name}_flat")
    soft = rewriter.add(node, "Softmax", [flat], {"axis": -1}, wanted=f"{node.name}_softmax")
    _write(rewriter, node, "Reshape", [soft, shape], {}, (3, 4))


def _reduce_mean(rewriter: Rewriter, node: ir.Node) -> None:
    inputs = [_real(rewriter, node, (0, 1, 2))]
    axes = node.attributes.get_ints("axes", ())
    if axes:
        inputs.append(rewriter.constant(graph_of(node), f"{node.name}_axes", np.array(axes, dtype=np.int64)))
    _write(rewriter, node, "ReduceMean", inputs, _kept(node, "axes"), (3, 4))


def _concat(rewriter: Rewriter, node: ir.Node) -> None:
    """QLinearConcat: the output's scale and zero point, then three inputs each."""
    inputs = [_real(rewriter, node, (first, first + 1, first + 2)) for first in range(2, len(node.inputs), 3)]
    _write(rewriter, node, "Concat", inputs, _kept(node), (0, 1), levels_of=2)


def _where(rewriter: Rewriter, node: ir.Node) -> None:
    inputs = [_needed(node, 0), _real(rewriter, node, (1, 2, 3)), _real(rewriter, node, (4, 5, 6))]
    _write(rewriter, node, "Where", inputs, {}, (7, 8), levels_of=1)


def _standard(rewriter: Rewriter, node: ir.Node) -> None:
    """The contributed QuantizeLinear and DequantizeLinear mean what ONNX's now do."""
    del rewriter
    node.domain = ""


# --- weights in blocks ----------------------------------------------------------------------------------------------


def _matmul_bits(rewriter: Rewriter, node: ir.Node) -> None:
    """MatMulNBits: B is `[N, blocks, bytes of a block]`, its transpose is what the product reads."""
    columns, rows = node.attributes.get_int("N", 0), node.attributes.get_int("K", 0)
    bits, size = node.attributes.get_int("bits", 4), node.attributes.get_int("block_size", 0)
    packed, scales = constant_array(_input(node, 1)), constant_array(_input(node, 2))
    zeros, order = _input(node, 3), _input(node, 4)
    blocks = -(-rows // size) if size > 0 else 0
    if packed is None or scales is None or order is not None or bits not in (4, 8) or blocks < 1 or columns < 1:
        raise ModelError(
            f"node {node.name!r} (MatMulNBits): expected constant weights of 4 or 8 bits in the order of their rows, "
            f"got {bits} bits, blocks of {size}{', another order (g_idx)' if order is not None else ''}"
        )
    if packed.size * 8 != columns * blocks * size * bits or scales.size != columns * blocks:
        raise ModelError(
            f"node {node.name!r} (MatMulNBits): expected {columns * blocks * size * bits // 8} bytes and "
            f"{columns * blocks} scales for {columns} columns of {rows}, got {packed.size} and {scales.size}"
        )
    levels = _unpacked(packed, bits).reshape(columns, blocks * size)[:, :rows].T
    zero_points = _block_zero_points(node, zeros, bits, columns, blocks).T
    kind = np.dtype(ml_dtypes.uint4) if bits == 4 else np.dtype(np.uint8)
    graph, base = graph_of(node), _name(node.inputs[1]).removesuffix("_quantized").removesuffix(f"_Q{bits}")
    scale = rewriter.constant(graph, f"{base}_scale", np.ascontiguousarray(scales.reshape(columns, blocks).T.astype(np.float32)))  # fmt: skip # noqa: E501
    parameters = Parameters(
        scale=scale,
        zero_point=rewriter.constant(graph, f"{base}_zero_point", np.ascontiguousarray(zero_points).astype(kind)),
        axis=0,
        block_size=size,
    )
    stored = rewriter.constant(graph, f"{base}_levels_quantized", np.ascontiguousarray(levels).astype(kind))
    weights = rewriter.dequantize(node, stored, parameters)
    _add_bias(rewriter, node, [_needed(node, 0), weights], _input(node, 5))


def _unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    """Numbers of 4 bits stand two to a byte, the lower one first."""
    flat = packed.reshape(-1).view(np.uint8)
    return flat if bits == 8 else np.stack([flat & 15, flat >> 4], axis=-1).reshape(-1)


def _block_zero_points(node: ir.Node, zeros: ir.Value | None, bits: int, columns: int, blocks: int) -> np.ndarray:
    """Zero points `[columns, blocks]`; half of all levels where none are given. Each column's begin at a byte."""
    array = constant_array(zeros)
    if zeros is None:
        return np.full((columns, blocks), 1 << (bits - 1), dtype=np.uint8)
    if array is None or array.dtype != np.uint8:
        raise ModelError(
            f"node {node.name!r} (MatMulNBits): expected constant zero points that are levels, got "
            f"{'computed ones' if array is None else array.dtype}; export it with integer zero points"
        )
    row = _unpacked(array, bits).reshape(columns, -1)
    return row[:, :blocks]


def _gather_blocks(rewriter: Rewriter, node: ir.Node) -> None:
    """GatherBlockQuantized: rows of a table; in uint8, levels of 4 bits stand two to a byte along its last axis."""
    stored, scales, points = (constant_array(_input(node, number)) for number in (0, 2, 3))
    bits, size = node.attributes.get_int("bits", 4), node.attributes.get_int("block_size", 128)
    computed = _input(node, 3) is not None and points is None
    if stored is None or scales is None or computed or bits not in (4, 8):
        raise ModelError(
            f"node {node.name!r} (GatherBlockQuantized): expected a constant table of 4 or 8 bits, got {bits} bits"
            f"{'' if stored is not None and scales is not None and not computed else ' that are computed'}"
        )
    kind = stored.dtype
    if kind == np.uint8:
        stored, kind = _table(stored, bits), np.dtype(ml_dtypes.uint4 if bits == 4 else np.uint8)
        middle = np.full(scales.shape, 1 << (bits - 1))
        points = middle if points is None else _table(points, bits)[..., : scales.shape[-1]]
    points = np.zeros(scales.shape) if points is None else points
    graph, base = graph_of(node), real_name(_needed(node, 0))
    parameters = Parameters(
        scale=rewriter.constant(graph, f"{base}_scale", scales.astype(np.float32)),
        zero_point=rewriter.constant(graph, f"{base}_zero_point", points.astype(kind)),
        axis=node.attributes.get_int("quantize_axis", 1) % stored.ndim,
        block_size=size,
    )
    table = rewriter.constant(graph, f"{base}_levels_quantized", np.ascontiguousarray(stored).astype(kind))
    inputs = [rewriter.dequantize(node, table, parameters), _needed(node, 1)]
    _write(rewriter, node, "Gather", inputs, {"axis": node.attributes.get_int("gather_axis", 0)}, None)


def _table(packed: np.ndarray, bits: int) -> np.ndarray:
    return _unpacked(packed, bits).reshape(*packed.shape[:-1], -1)


# --- recurrent ------------------------------------------------------------------------------------------------------


def _dynamic_lstm(rewriter: Rewriter, node: ir.Node) -> None:
    """DynamicQuantizeLSTM: its weights are `[directions, inputs, 4 * hidden]`, ONNX's the transpose of that."""
    rewriter.note(
        f"node {node.name!r} (DynamicQuantizeLSTM): its state is rounded in every step, too, which a plan cannot say; "
        "its float form rounds the input and the weights"
    )
    weights = [_lstm_weights(rewriter, node, number, first) for number, first in ((1, 8), (2, 10))]
    others = [_input(node, number) for number in range(3, 8)]
    while others and others[-1] is None:
        others.pop()
    rounded = _round_dynamically(rewriter, node, _needed(node, 0))
    new = ir.node(
        "LSTM", inputs=[rounded, *weights, *others], attributes=_kept(node), name=node.name,
        num_outputs=len(node.outputs),
    )  # fmt: skip
    new.metadata_props.update(node.metadata_props)
    node.prepend(new)
    for output, old in zip(new.outputs, list(node.outputs), strict=True):
        if not old.name:
            continue
        take_place(output, old)
        output.type = ir.TensorType(ir.DataType.FLOAT)


def _lstm_weights(rewriter: Rewriter, node: ir.Node, number: int, first: int) -> ir.Value:
    value = _needed(node, number)
    levels, scales, zeros = (constant_array(_needed(node, one)) for one in (number, first, first + 1))
    if levels is None or scales is None or zeros is None or levels.ndim != 3:
        raise ModelError(f"node {node.name!r} (DynamicQuantizeLSTM): expected constant weights of rank 3")
    levels = np.ascontiguousarray(levels.transpose(0, 2, 1))  # [directions, 4 * hidden, inputs]
    directions, gates, inputs = levels.shape
    axis, block = 0, 0
    if scales.size == directions * gates and scales.size != directions and directions > 1:
        axis, block = 2, inputs  # a scale for each direction and gate: a block is one gate's row
        scales, zeros = scales.reshape(directions, gates, 1), zeros.reshape(directions, gates, 1)
    elif scales.size == gates and directions == 1:
        axis, scales, zeros = 1, scales.reshape(-1), zeros.reshape(-1)
    elif scales.size == 1:
        scales, zeros = scales.reshape(()), zeros.reshape(())
    graph, base = graph_of(node), real_name(value)
    stored = rewriter.constant(graph, f"{base}_transposed_quantized", levels)
    parameters = Parameters(
        scale=rewriter.constant(graph, f"{base}_scale", scales),
        zero_point=rewriter.constant(graph, f"{base}_zero_point", zeros),
        axis=axis,
        block_size=block,
    )
    return rewriter.dequantize(node, stored, parameters)


REWRITES: dict[tuple[str, str], Rewrite] = {
    ("", "QLinearConv"): _conv,
    ("", "QLinearMatMul"): _matmul,
    ("", "ConvInteger"): rewrite_integer_product,
    ("", "MatMulInteger"): rewrite_integer_product,
    (CONTRIB, "QuantizeLinear"): _standard,
    (CONTRIB, "DequantizeLinear"): _standard,
    (CONTRIB, "QLinearConv"): _conv,
    (CONTRIB, "QLinearConvTranspose"): _conv_transpose,
    (CONTRIB, "QGemm"): _gemm,
    (CONTRIB, "MatMulIntegerToFloat"): _matmul_to_float,
    (CONTRIB, "DynamicQuantizeMatMul"): _dynamic_matmul,
    (CONTRIB, "DynamicQuantizeLSTM"): _dynamic_lstm,
    (CONTRIB, "MatMulNBits"): _matmul_bits,
    (CONTRIB, "GatherBlockQuantized"): _gather_blocks,
    (CONTRIB, "QLinearAdd"): _join("Add", 0, 3, output=6),
    (CONTRIB, "QLinearMul"): _join("Mul", 0, 3, output=6),
    (CONTRIB, "QLinearSigmoid"): _join("Sigmoid", 0, output=3),
    (CONTRIB, "QLinearLeakyRelu"): _join("LeakyRelu", 0, output=3),
    (CONTRIB, "QLinearAveragePool"): _pool("AveragePool"),
    (CONTRIB, "QLinearGlobalAveragePool"): _pool("GlobalAveragePool"),
    (CONTRIB, "NhwcMaxPool"): _nhwc_max_pool,
    (CONTRIB, "QLinearSoftmax"): _softmax,
    (CONTRIB, "QLinearReduceMean"): _reduce_mean,
    (CONTRIB, "QLinearConcat"): _concat,
    (CONTRIB, "QLinearWhere"): _where,
}
"""(domain, operator) -> how it is rewritten."""
