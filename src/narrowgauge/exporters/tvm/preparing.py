"""What happens to the Q/DQ form before kernels are made of it: fixed shapes, integer operators where there are any."""

from __future__ import annotations

import onnx_ir as ir

from narrowgauge.errors import TargetError
from narrowgauge.graph.constants import constant_array, lift_constants
from narrowgauge.graph.edits import is_operator
from narrowgauge.graph.shapes import dimensions, infer_shapes, static_shape
from narrowgauge.lowering.qoperator import lower_to_qoperator
from narrowgauge.passes.fold_constants import fold_constants
from narrowgauge.passes.fold_shapes import fold_shapes

_LAYERS = ("Conv", "MatMul", "Gemm")
_APART = "narrowgauge.float"  # a domain that the lowering does not know: nodes in it stay as they are


def in_integers(simulated: ir.Model) -> tuple[ir.Model, tuple[str, ...]]:
    """Return the network with fixed shapes and integer operators, those that have a kernel here.

    Args:
        simulated: Q/DQ form; it is not changed.

    Returns:
        The network, and a note where layers between integers have no kernel.

    Raises:
        TargetError: if an input leaves another axis open than the first one.
    """
    model = simulated.clone()
    _fix_shapes(model)
    apart = [node for node in model.graph if node.domain == "" and not _has_kernel(node)]
    for node in apart:
        node.domain = _APART
    lowered = lower_to_qoperator(model)
    left = []
    for node in lowered.graph:
        if node.domain == _APART:
            node.domain = ""
            if node.op_type in _LAYERS and all(_is_rounded(value) for value in node.inputs[:2]):
                left.append(node)
    return lowered, _notes(left)


def _is_rounded(value: ir.Value | None) -> bool:
    return value is not None and is_operator(value.producer(), "DequantizeLinear")


def _notes(left: list[ir.Node]) -> tuple[str, ...]:
    if not left:
        return ()
    kinds = ", ".join(sorted({node.op_type for node in left}))
    which = f"1 layer ({kinds}, {left[0].name!r})" if len(left) == 1 else f"{len(left)} layers ({kinds})"
    return (
        f"{which} of more than two dimensions, of open shapes or of other weights than int8 without a zero point: TVM "
        "computes these in float, from rounded numbers",
    )


def _fix_shapes(model: ir.Model) -> None:
    """Let the network take one sample at a time where it leaves their number open, and infer all shapes anew."""
    batch = {
        value.shape[0].value
        for value in model.graph.inputs
        if value.shape is not None and value.shape.rank() and isinstance(value.shape[0], ir.SymbolicDim)
    }
    for value in model.graph.inputs:
        if value.name in model.graph.initializers:
            continue
        if value.shape is None or value.dtype is None:
            raise TargetError(f"TVM compiles for fixed shapes, but input {value.name!r} has none: export it with one")
        sizes: list[int] = []
        for axis, size in enumerate(value.shape):
            if not isinstance(size, int) and axis and (size.value is None or size.value not in batch):
                raise TargetError(
                    f"TVM compiles for fixed shapes, but axis {axis} of input {value.name!r} is open "
                    f"({size.value or '?'}); only the number of samples, the first axis, may be: export the network "
                    "with the size that it will be used with"
                )
            sizes.append(size if isinstance(size, int) else 1)
        value.shape = ir.Shape(sizes)
    for node in model.graph.all_nodes():
        for value in node.outputs:
            value.shape = None
    infer_shapes(model)
    # What was open is constant now, and TVM's importer does not take every computation of a shape.
    lift_constants(model)
    fold_shapes(model)
    fold_constants(model)


# --- what has a kernel ----------------------------------------------------------------------------------------------


def _has_kernel(node: ir.Node) -> bool:
    """Whether an operator may become an integer one; operators that only move levels always may."""
    check = _CHECKS.get(node.op_type)
    return check is None or check(node)


def _shapes(node: ir.Node) -> list[tuple[int, ...]] | None:
    """Shapes of first inputs and output; None where one is open or empty."""
    found = [static_shape(value) for value in (*node.inputs[:2], node.outputs[0]) if value is not None]
    known = [shape for shape in found if shape is not None and 0 not in shape]
    return known if len(known) == len(found) else None


def _weights_fit(node: ir.Node) -> bool:
    """Whether the second input is int8 weights without a zero point."""
    value = node.inputs[1]
    source = value.producer() if value is not None else None
    if source is None or not is_operator(source, "DequantizeLinear") or len(source.inputs) < 3:
        return False
    levels, zero_point = constant_array(source.inputs[0]), constant_array(source.inputs[2])
    return levels is not None and zero_point is not None and levels.dtype == "int8" and not zero_point.any()


def _convolution_fits(node: ir.Node) -> bool:
    shapes = _shapes(node)
    return shapes is not None and len(shapes[0]) in (3, 4) and _weights_fit(node)


def _matmul_fits(node: ir.Node) -> bool:
    shapes = _shapes(node)
    return shapes is not None and len(shapes[0]) >= 2 and len(shapes[1]) == 2 and _weights_fit(node)


def _gemm_fits(node: ir.Node) -> bool:
    plain = not node.attributes.get_int("transA", 0) and node.attributes.get_float("alpha", 1.0) == 1.0
    return plain and _matmul_fits(node)


def _pair_fits(node: ir.Node) -> bool:
    shapes = _shapes(node)
    return shapes is not None and len(shapes) == 3 and len(set(shapes)) == 1 and len(shapes[0]) >= 2


def _pooling_fits(node: ir.Node) -> bool:
    shapes = _shapes(node)
    dilated = any(step != 1 for step in node.attributes.get_ints("dilations", ()))
    return shapes is not None and len(shapes[0]) in (3, 4) and not dilated


def _concat_fits(node: ir.Node) -> bool:
    known = [static_shape(value) for value in (*node.inputs, node.outputs[0])]
    if any(shape is None or 0 in shape for shape in known):
        return False
    rank = len(dimensions(node.outputs[0]) or ())
    return rank in (3, 4) and node.attributes.get_int("axis", 0) % rank == 1


def _never(node: ir.Node) -> bool:
    return False


_CHECKS = {
    "Conv": _convolution_fits,
    "MatMul": _matmul_fits,
    "Gemm": _gemm_fits,
    "Add": _pair_fits,
    "Mul": _pair_fits,
    "AveragePool": _pooling_fits,
    "GlobalAveragePool": _pooling_fits,
    "Concat": _concat_fits,
    "Sigmoid": _never,
    "LeakyRelu": _never,
    "Softmax": _never,
}
"""Operator of ONNX that becomes one on integers -> whether a kernel here does this node."""
