"""A float network to an equal, simpler float network.

Every pass is a function `pass(model) -> refusals`: it rewrites an `onnx_ir.Model` in place and returns a `Refusal` for
each node that it looked at and left alone for a reason worth reporting. It never changes what the network computes
beyond float rounding, never looks at data, and keeps the name of every value that survives. Passes expect what
`importers.onnx.load` makes: opset 21 or newer, constants as initializers, everything named, shapes inferred.

To add a pass: one file, its test, one line in `SIMPLIFICATIONS`.
"""

from collections.abc import Callable

import onnx_ir as ir

from narrowgauge.graph.edits import remove_unused
from narrowgauge.graph.refusals import Refusal
from narrowgauge.graph.shapes import infer_shapes
from narrowgauge.passes.attention_to_matmul import attention_to_matmul
from narrowgauge.passes.cancel_transposes import cancel_transposes
from narrowgauge.passes.cast_like import cast_like
from narrowgauge.passes.divide_to_multiply import divide_to_multiply
from narrowgauge.passes.einsum_of_activations import einsum_of_activations
from narrowgauge.passes.einsum_to_matmul import einsum_to_matmul
from narrowgauge.passes.finite_masks import finite_masks
from narrowgauge.passes.flatten_transposed import flatten_transposed
from narrowgauge.passes.fold_affine import fold_affine
from narrowgauge.passes.fold_all import fold_all
from narrowgauge.passes.fold_batchnorm import fold_batchnorm
from narrowgauge.passes.fold_pads import fold_pads
from narrowgauge.passes.fuse_gelu import fuse_gelu
from narrowgauge.passes.fuse_gelu_tanh import fuse_gelu_tanh
from narrowgauge.passes.fuse_hardswish import fuse_hardswish
from narrowgauge.passes.fuse_layernorm import fuse_layernorm
from narrowgauge.passes.matmul_to_gemm import matmul_to_gemm
from narrowgauge.passes.matrix_transposes import matrix_transposes
from narrowgauge.passes.merge_reshapes import merge_reshapes
from narrowgauge.passes.merge_scales import merge_scales
from narrowgauge.passes.patches_to_matmul import patches_to_matmul
from narrowgauge.passes.pointwise_to_gemm import pointwise_to_gemm
from narrowgauge.passes.pool_means import pool_means
from narrowgauge.passes.remove_no_ops import remove_no_ops
from narrowgauge.passes.select_early import select_early
from narrowgauge.passes.split_sequences import split_sequences
from narrowgauge.passes.split_shared import split_shared_weights
from narrowgauge.passes.zero_states import zero_states

__all__ = ["SIMPLIFICATIONS", "Simplification", "simplify", "split_shared_weights"]

Simplification = Callable[[ir.Model], tuple[Refusal, ...]]

SIMPLIFICATIONS: tuple[Simplification, ...] = (
    cast_like,
    remove_no_ops,
    fold_all,
    remove_no_ops,  # again, now that more shapes are known
    split_sequences,
    zero_states,
    attention_to_matmul,
    einsum_to_matmul,
    einsum_of_activations,
    matrix_transposes,
    finite_masks,
    fuse_gelu,  # the fusions come before the folds, which would take their constants away
    fuse_gelu_tanh,
    fuse_layernorm,
    fuse_hardswish,
    cancel_transposes,
    fold_batchnorm,
    fold_affine,
    merge_scales,
    divide_to_multiply,  # behind the fusions and folds, which read divisions
    fold_pads,
    pool_means,
    merge_reshapes,  # before what looks for layers on a single pixel
    pointwise_to_gemm,  # behind the pools, and behind the folds that need a convolution's bias
    patches_to_matmul,
    merge_reshapes,  # again, before the selections, which follow an axis through a reshape only where it stays one
    select_early,
    flatten_transposed,
    matmul_to_gemm,  # behind the selections, which leave one token, and the folds, which see to the bias
    merge_reshapes,  # again, now that axes have shrunk to 1
)
"""The order in which `simplify` runs them."""


def simplify(model: ir.Model) -> tuple[Refusal, ...]:
    """Run all `SIMPLIFICATIONS` in order, in place, and infer shapes anew.

    Returns:
        What they refused, each node and reason once, without nodes that a later pass removed.
    """
    refusals: dict[Refusal, None] = {}
    for run in SIMPLIFICATIONS:
        refusals.update(dict.fromkeys(run(model)))
    remove_unused(model)
    infer_shapes(model)
    left = {node.name for node in model.graph}
    return tuple(refusal for refusal in refusals if refusal.node in left)
