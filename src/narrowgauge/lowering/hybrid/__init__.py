"""The dynamic form as LiteRT computes it: each row of a product, each sample of a convolution is rounded for itself.

Standard operators, which any ONNX engine runs: `lowering.dynamic` writes ONNX Runtime's own arithmetic, one range for a
whole tensor, as few fused kernels. The results are LiteRT's bit for bit (`core.engines.hybrid`,
tests/lowering/test_hybrid.py) but for two things. XNNPACK's fused step is a sum in float64 here, rounded twice: another
last place where that sum lies on a tie of float32, in one of some 10^8 numbers. LiteRT's own kernels round the last
numbers of a row, those that fill no vector, exactly: another level for 0.49999997 steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import onnx_ir as ir

from narrowgauge.core.encoding import DynamicEncoding, Encoding
from narrowgauge.core.engines.hybrid import HybridKernels
from narrowgauge.core.plan import Plan
from narrowgauge.errors import PlanError
from narrowgauge.lowering.dynamic import DynamicWriter, rewritten
from narrowgauge.lowering.hybrid.convolutions import convolution, transposed_convolution
from narrowgauge.lowering.hybrid.layer import Readings
from narrowgauge.lowering.hybrid.products import gemm, matmul


def lower_as_litert(model: ir.Model, plan: Plan, kernels: HybridKernels) -> ir.Model:
    """Write a dynamic plan into a copy of its network, in the arithmetic of LiteRT's kernels.

    MatMul and Gemm (with the constant bias behind them), Conv and ConvTranspose multiply levels. Of an operator without
    such a kernel only the weights are integers, made float when loaded.

    Args:
        model: the float network that the plan was made for; it is not changed.
        plan: of mode "dynamic": activations with a `DynamicEncoding` of int8, weights with an `Encoding`.
        kernels: which of LiteRT's: `core.engines.hybrid.HYBRIDS["xnnpack"]` is its default.

    Returns:
        A network of the same inputs and outputs.

    Raises:
        PlanError: the plan is of another mode, names what the network does not have, or asks for what these kernels
            cannot do: weights in blocks, of more than 8 bits or with zero points, activations other than int8,
            convolutions of three dimensions, recurrent layers, ...; the message names the node or value.
    """
    readings = Readings(kernels=kernels)
    operators = {
        "MatMul": matmul, "Gemm": gemm, "Conv": convolution, "ConvTranspose": transposed_convolution,
        "LSTM": _recurrent, "GRU": _recurrent, "RNN": _recurrent,
    }  # fmt: skip
    return rewritten(model, plan, {name: partial(rewrite, readings) for name, rewrite in operators.items()})


def _recurrent(readings: Readings, writer: DynamicWriter, node: ir.Node, encodings: Mapping[int, Encoding]) -> bool:
    """Refuse a recurrent layer whose input is rounded; keep float one whose weights alone are integers.

    LiteRT rounds the state in every step. Its sigmoid and tanh are approximations of Eigen, whose last places decide
    about levels, and so about all steps that follow.
    """
    value = node.inputs[0]
    if value is None or not isinstance(writer.plan.encodings.get(str(value.name)), DynamicEncoding):
        return False
    raise PlanError(
        f"node {node.name!r} ({node.op_type}): the arithmetic of LiteRT's recurrent layers with dynamic ranges is not "
        "known bit for bit; keep it float, or quantize its weights alone"
    )
