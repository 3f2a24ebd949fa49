"""The table of integer operators: what each adds to a module.

Each function adds one node and returns True, or False where TVM's importer is to do it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import onnx_ir as ir

from narrowgauge.exporters.tvm import conversion, layers
from narrowgauge.exporters.tvm.builder import Builder, as_rows, flat_shape
from narrowgauge.exporters.tvm.elementwise import Pair, concat_kernel, pair_kernel
from narrowgauge.exporters.tvm.image import whole
from narrowgauge.exporters.tvm.pooling import Average, average_pool_kernel, max_pool_kernel
from narrowgauge.exporters.tvm.reading import NO_HALO, encoding_of, halo_of, window_of
from narrowgauge.exporters.tvm.weights import dequantized_constant
from narrowgauge.graph.shapes import static_shape


def _quantize(builder: Builder, node: ir.Node) -> bool:
    source, result = node.inputs[0], node.outputs[0]
    encoded = encoding_of(node, 1, 2)
    shape = static_shape(result)
    readers = [use.node for use in result.uses()]
    if source is None or encoded is None or not shape or 0 in shape or result.is_graph_output():
        return False
    kinds = {_LAYOUT[reader.op_type] for reader in readers if reader.op_type in _LAYOUT}
    if not kinds or (len(shape) > 4 and "second" in kinds):
        return False
    last = "second" not in kinds and ("last" in kinds or len(shape) < 3)
    image = replace(whole(shape, last=last), halo=NO_HALO if last else builder.halo(result))
    build = conversion.pack_rows_kernel if last else conversion.pack_kernel
    real = builder.reshaped(builder.plain(source), shape, flat_shape(image, last=last))
    variable = builder.call(
        ("pack", image, encoded, last),
        lambda: build(image, scale=encoded.scale, zero_point=encoded.zero_point), [real], image.size, "uint8",
    )  # fmt: skip
    operand = encoded.operand(image)
    builder.write(result, variable, operand, signed=encoded.signed, last=last)
    return True


def _dequantize(builder: Builder, node: ir.Node) -> bool:
    value = node.inputs[0]
    constant = dequantized_constant(node)
    if constant is not None:
        builder.importer._nodes[str(node.outputs[0].name)] = builder.constant(constant)
        return True
    encoded = encoding_of(node, 1, 2)
    if value is None or encoded is None or str(value.name) not in builder.levels:
        return False
    found = builder.levels[str(value.name)]

    build = functools.partial(conversion.unpack_kernel, scale=encoded.scale, zero_point=encoded.zero_point)
    builder.importer._nodes[str(node.outputs[0].name)] = builder.taken_out(found, encoded, build, "float32")
    return True


def _pair(builder: Builder, node: ir.Node) -> bool:
    first, second, target = encoding_of(node, 1, 2), encoding_of(node, 4, 5), encoding_of(node, 6, 7)
    one, other = node.inputs[0], node.inputs[3]
    assert first is not None
    assert second is not None
    assert target is not None
    assert one is not None
    assert other is not None
    known = [builder.levels[str(value.name)] for value in (one, other) if str(value.name) in builder.levels]
    shape = static_shape(node.outputs[0]) or (known[0].shape if known else ())
    last = known[0].last if known else len(shape) not in (3, 4)
    depth = max((found.image.depth for found in known if found.last == last), default=0)
    read = [builder.read(value, encoded, last=last, depth=depth) for value, encoded in ((one, first), (other, second))]
    if read[0].last != read[1].last:  # a matrix and an image of single pixels
        read = [as_rows(levels) for levels in read]
    last = read[0].last
    value, low, high = builder.written(node, target.signed)
    image = replace(read[0].image, halo=NO_HALO if last else builder.halo(value))
    pair = Pair(
        operator="Add" if node.op_type == "QLinearAdd" else "Mul",
        first=first.operand(read[0].image), second=second.operand(read[1].image), result=target.operand(image),
        low=low, high=high, fused=builder.processor.fuses,
    )  # fmt: skip
    arguments = [levels.variable for levels in read]
    variable = builder.call(("pair", pair), lambda: pair_kernel(pair), arguments, image.size, "uint8")
    builder.write(value, variable, pair.result, signed=target.signed, last=last)
    return True


def _concat(builder: Builder, node: ir.Node) -> bool:
    target = encoding_of(node, 0, 1)
    assert target is not None
    parts = []
    for number in range(2, len(node.inputs), 3):
        value, encoded = node.inputs[number], encoding_of(node, number + 1, number + 2)
        assert value is not None
        assert encoded is not None
        parts.append(builder.read(value, encoded, last=False))
    value, low, high = builder.written(node, target.signed)
    shape = static_shape(value)
    assert shape is not None
    image = replace(whole(shape, last=False), halo=builder.halo(value))
    result = target.operand(image)
    operands = tuple(part.operand for part in parts)
    arguments = [part.variable for part in parts]
    variable = builder.call(
        ("concat", operands, result, low, high),
        lambda: concat_kernel(operands, result, low, high), arguments, image.size, "uint8",
    )  # fmt: skip
    builder.write(value, variable, result, signed=target.signed, last=False)
    return True


def _average_pool(builder: Builder, node: ir.Node) -> bool:
    source, target = encoding_of(node, 1, 2), encoding_of(node, 3, 4)
    assert source is not None
    assert target is not None
    assert node.inputs[0] is not None
    entire = node.op_type == "QLinearGlobalAveragePool"
    levels = builder.read(node.inputs[0], source, last=False, halo=NO_HALO if entire else halo_of(node, 0))
    window, pads = (None, (0, 0)) if entire else window_of(node)
    value, low, high = builder.written(node, target.signed)
    shape = static_shape(value)
    assert shape is not None
    image = replace(whole(shape, last=False), depth=levels.image.depth, halo=builder.halo(value))
    average = Average(
        source=levels.operand, result=target.operand(image),
        window=window, pads=pads, counts_padding=bool(node.attributes.get_int("count_include_pad", 0)), low=low,
        high=high,
    )  # fmt: skip
    variable = builder.call(
        ("average", average), lambda: average_pool_kernel(average), [levels.variable], image.size, "uint8"
    )
    builder.write(value, variable, average.result, signed=target.signed, last=False)
    return True


def _max_pool(builder: Builder, node: ir.Node) -> bool:
    value, result = node.inputs[0], node.outputs[0]
    found = builder.levels.get(str(value.name)) if value is not None else None
    shape = static_shape(result)
    dilated = any(step != 1 for step in node.attributes.get_ints("dilations", ()))
    if found is None or found.last or shape is None or len(shape) < 3 or dilated or len(node.outputs) > 1:
        return False
    window, _ = window_of(node)
    image = replace(whole(shape, last=False), depth=found.image.depth, halo=builder.halo(result))
    zero_point = found.operand.zero_point
    variable = builder.call(
        ("max_pool", found.image, image, window, zero_point),
        lambda: max_pool_kernel(found.image, image, window, zero_point), [found.variable], image.size, "uint8",
    )  # fmt: skip
    builder.write(result, variable, replace(found.operand, image=image), signed=found.signed, last=False)
    return True


def _reshape(builder: Builder, node: ir.Node) -> bool:
    """A reshape that leaves our layout as it is: of single pixels to a matrix, or of a matrix's rows."""
    value, result = node.inputs[0], node.outputs[0]
    found = builder.levels.get(str(value.name)) if value is not None else None
    shape = static_shape(result)
    if found is None or not shape or shape[-1] != found.image.channels:
        return False
    if found.last:
        builder.levels[str(result.name)] = replace(found, shape=shape)
        return True
    image = found.image
    if image.height != 1 or image.width != 1 or any(image.halo) or len(shape) != 2:
        return False
    builder.levels[str(result.name)] = replace(as_rows(found), shape=shape)
    return True


OPERATORS: dict[str, Callable[[Builder, ir.Node], bool]] = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "QLinearConv": layers.convolution,
    "QLinearMatMul": layers.product_of_levels,
    "MatMulIntegerToFloat": layers.product_to_float,
    "QGemm": layers.gemm,
    "QLinearAdd": _pair,
    "QLinearMul": _pair,
    "QLinearConcat": _concat,
    "QLinearAveragePool": _average_pool,
    "QLinearGlobalAveragePool": _average_pool,
    "MaxPool": _max_pool,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
}

_LAYOUT = {
    "QLinearConv": "second", "QLinearConcat": "second", "QLinearAveragePool": "second",
    "QLinearGlobalAveragePool": "second", "MaxPool": "second", "QLinearMatMul": "last", "MatMulIntegerToFloat": "last",
    "QGemm": "last", "QLinearAdd": "any", "QLinearMul": "any",
}  # fmt: skip
"""Which axis of its levels an operator takes for the channels."""
