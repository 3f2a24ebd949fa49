"""Fold BatchNormalization into the layer before it, or write it as a multiplication and an addition."""

import numpy as np
import onnx_ir as ir

from narrowgauge.graph.constants import add_constant, constant_array
from narrowgauge.graph.edits import graph_of, is_operator, new_node, take_place
from narrowgauge.graph.refusals import Refusal
from narrowgauge.graph.shapes import rank
from narrowgauge.passes.affine import Affine
from narrowgauge.passes.fold_affine import fold_into_producer

_DEFAULT_EPSILON = 1e-5
"""ONNX BatchNormalization, attribute `epsilon`."""


def fold_batchnorm(model: ir.Model) -> tuple[Refusal, ...]:
    """Remove every BatchNormalization with constant statistics from the main graph, in place.

    y = gamma (x - mean) / sqrt(variance + epsilon) + beta is affine per channel (axis 1) and goes into the Conv,
    ConvTranspose, Gemm or MatMul that makes x, if nothing else reads x. Elsewhere it becomes Mul and Add, which
    `fold_affine` may still fold into the layer behind.

    Refuses: training mode, statistics that are not constant or not finite, an input of unknown rank.
    """
    refusals = []
    for node in tuple(model.graph):
        if not is_operator(node, "BatchNormalization"):
            continue
        affine = _read(node)
        if isinstance(affine, Refusal):
            refusals.append(affine)
        elif not fold_into_producer(affine):
            _write_out(affine)
    return tuple(refusals)


def _read(node: ir.Node) -> Affine | Refusal:
    arrays = [constant_array(value) for value in node.inputs[1:5]]
    reason = None
    source, axes = node.inputs[0], rank(node.inputs[0])
    if node.attributes.get_int("training_mode", 0) or len(node.outputs) > 1:
        reason = "it is in training mode; export the network for inference"
    elif source is None or any(array is None for array in arrays):
        reason = "its statistics are not constant"
    elif axes is None or axes < 1:
        reason = "the rank of its input is unknown"
    if reason is not None or source is None or axes is None:
        return Refusal(node=node.name or "", operator=node.op_type, reason=reason or "")
    gamma, beta, mean, variance = (np.asarray(array, dtype=np.float64) for array in arrays)
    with np.errstate(all="ignore"):
        scale = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", _DEFAULT_EPSILON))
        shift = beta - mean * scale
    if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
        reason = "its statistics give a scale that is not finite (a variance below -epsilon, or NaN)"
        return Refusal(node=node.name or "", operator=node.op_type, reason=reason)
    trailing = (1,) * max(axes - 2, 0)  # channels on axis 1: [channels, 1, ..., 1]
    return Affine(node=node, source=source, scale=scale.reshape(-1, *trailing), shift=shift.reshape(-1, *trailing))


def _write_out(affine: Affine) -> None:
    """Replace the node by Mul and Add; the Add's output keeps its name."""
    node, result = affine.node, affine.node.outputs[0]
    dtype = np.float32 if result.dtype is None else result.dtype.numpy()
    graph = graph_of(node)
    scale = add_constant(graph, f"{node.name}_scale", affine.scale.astype(dtype))
    shift = add_constant(graph, f"{node.name}_shift", affine.shift.astype(dtype))
    scaled = new_node("Mul", [affine.source, scale], name=f"{node.name}_scaled", like=result)
    shifted = new_node("Add", [scaled.outputs[0], shift], name=node.name or f"{result.name}_shifted")
    graph.insert_before(node, [scaled, shifted])
    take_place(shifted.outputs[0], result)
