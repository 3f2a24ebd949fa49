"""Every operator on levels: the integers of integer.onnx are LiteRT's, or the lowering says that they are not."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.analysis.exactness import check_exactness
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import PerTensor
from narrowgauge.core.numbers import integer_type
from narrowgauge.core.plan import Plan
from narrowgauge.data.batches import Batch
from narrowgauge.errors import RuntimeFailure
from narrowgauge.exporters.formats import FORMATS
from narrowgauge.lowering.lower import lower_by_rule
from narrowgauge.runtimes import litert, litert_reference
from narrowgauge.targets.registry import load_target
from tests.exporters.tflite.networks import CASES, case
from tests.exporters.tflite.planning import everything_in_integers
from tests.exporters.tflite.running import Array, exported, feed_of
from tests.planning.networks import network

pytest.importorskip("ai_edge_litert", reason="LiteRT runs what is written")

ENGINES: dict[str, ModuleType] = {"xnnpack": litert, "tflite-reference": litert_reference}

TYPES = {"int8": "int8_narrow", "uint8": "uint8", "int16": "int8_narrow"}

REFUSED = {
    # layers whose factors the lowering does not know in this form
    "gemm_transposed": "", "gemm_without_bias": "", "gemm_table": "", "gemm_computed_bias": "",
    "flatten_gemm_table": "", "matmul_stack": "", "matmul_two": "uint8", "matmul_transposed": "uint8",
    # LiteRT has no integer kernel, or one that reads the type as another, or no form of it is known
    "average_pool_padded": "", "average_pool_ceil_counted": "", "div_pair": "", "max_pair": "", "min_pair": "",
    "sum_pair": "", "add_three": "", "mean_pair": "", "pow": "", "comparisons": "", "neg": "", "sign": "", "sin": "",
    "cos": "", "floor": "", "ceil": "", "round": "", "softplus": "", "softsign": "", "hardsigmoid": "",
    "hard_sigmoid_sixth": "", "selu": "", "celu": "", "celu_alpha": "", "thresholdedrelu": "", "reciprocal": "",
    "mish": "", "sqrt_log": "", "reduceprod_0": "", "reduceprod_1": "", "reducel1_0": "", "reducel1_1": "",
    "reducel2_0": "", "reducel2_1": "", "reducesumsquare_0": "", "reducesumsquare_1": "", "log_softmax": "",
    "lp_normalization": "", "top_k": "", "cum_sum": "", "layer_normalization": "", "layer_normalization_two": "",
    "instance_normalization": "", "batch_normalization": "", "lrn": "", "abs": "uint8", "elu": "int16 uint8",
    "hardswish": "int16", "gelu": "int16", "gelu_tanh": "int16", "prelu": "int16", "prelu_one": "int16",
    "prelu_conv": "int16", "reducesum_0": "int8 int16", "reducesum_1": "int8 int16",
    "resize_linear_half_pixel": "uint8", "resize_linear_align_corners": "uint8", "resize_linear_asymmetric": "uint8",
    "resize_linear_pytorch_half_pixel": "uint8", "resize_sizes": "uint8",
}  # fmt: skip
"""Network -> the types of activations (none: all) with which a node of it may stay in real numbers."""

NOT_IN_REFERENCE = ("ceil", "round", "elu", "selu", "celu", "celu_alpha")
"""Networks of operators that LiteRT registers no reference kernel for."""

QUICK = (
    "conv_clip", "depthwise", "gemm", "average_pool_same", "average_pool_padded", "sigmoid", "tanh", "clip_low",
    "clip_unit", "prelu", "prelu_one", "concat", "embedding", "tile", "depth_to_space", "resize_linear_asymmetric",
)  # fmt: skip
QUICK_16_BITS = ("exp", "sqrt_log", "tanh", "concat", "embedding", "resize_linear_align_corners")


def differing(
    model: ir.Model, plan: Plan, feed: dict[str, Array], arithmetic: str, folder: Path
) -> tuple[int, set[str], set[str]]:
    """How many integers were compared, the operators whose integers differ, the operators left in real numbers."""
    file = FORMATS["tflite"].write(exported(model, plan), folder).runnable
    assert file is not None
    lowered = lower_by_rule(model, plan, load_target("tflite"), arithmetic=arithmetic)
    rows = len(next(iter(feed.values())))
    batch = Batch(feed=feed, count=rows, names=tuple(map(str, range(rows))), labels=(None,) * rows)
    inner = ENGINES[arithmetic].open_inner(file, threads=1)
    found = check_exactness(lowered.model, inner, [batch], network=model, threads=1)
    operators = {tensor.operator for tensor in found.tensors if tensor.remark or (tensor.own and tensor.own.different)}
    return found.elements, operators, {refusal.operator for refusal in lowered.refusals}


def is_quick(name: str, activations: str) -> bool:
    return (name in QUICK and activations == "int8") or (name in QUICK_16_BITS and activations == "int16")


@pytest.mark.parametrize("arithmetic", ENGINES)
@pytest.mark.parametrize(
    ("name", "activations"),
    [
        pytest.param(name, kind, marks=() if is_quick(name, kind) else pytest.mark.slow)
        for name in CASES
        if name not in ("counted", "mod", "equal", "gather_nd")  # no levels; rows that are not those of a batch
        for kind in TYPES
    ],
)
def test_integers_are_those_of_the_engine(name: str, activations: str, arithmetic: str, tmp_path: Path) -> None:
    model = case(name)
    feed = feed_of(model)
    plan = everything_in_integers(model, feed, activations, TYPES[activations])
    try:
        _, differ, refused = differing(model, plan, feed, arithmetic, tmp_path)
    except RuntimeFailure:
        assert (arithmetic, name in NOT_IN_REFERENCE) == ("tflite-reference", True)
        return
    assert differ <= refused
    if refused:
        assert name in REFUSED
        assert not REFUSED[name] or activations in REFUSED[name].split()


@pytest.mark.parametrize("arithmetic", ENGINES)
@pytest.mark.parametrize("activations", TYPES)
@pytest.mark.parametrize("operator", ["Sigmoid", "Tanh"])
def test_other_levels_than_a_kernel_writes_are_made_of_them(
    operator: str, activations: str, arithmetic: str, tmp_path: Path
) -> None:
    model = network("float[n, 6] x", "float[n, 6] y", f"y = {operator}(x)")
    feed = feed_of(model, rows=5)
    plan = everything_in_integers(model, feed, activations)
    kind = integer_type(activations)
    other = Encoding(type=kind, granularity=PerTensor(), scale=np.float32(0.011), zero_point=np.int32(0))
    plan = Plan(target="tflite", encodings={**plan.encodings, "y": other})
    elements, differ, refused = differing(model, plan, feed, arithmetic, tmp_path)
    assert elements
    assert differ <= refused


@pytest.mark.parametrize("arithmetic", ENGINES)
@pytest.mark.parametrize("pads", [(0, 0, 0, 0), (1, 1, 1, 1), (0, 0, 1, 1), (1, 0, 0, 2), (2, 2, 0, 0)])
@pytest.mark.parametrize("counted", [0, 1])
def test_pools_run_in_integers_on_both_sides_or_on_neither(
    pads: tuple[int, ...], counted: int, arithmetic: str, tmp_path: Path
) -> None:
    body = f"y = AveragePool<kernel_shape = [3, 3], pads = {list(pads)}, count_include_pad = {counted}>(x)"
    model = network("float[n, 2, 6, 7] x", "float[n, 2, h, w] y", body)
    feed = feed_of(model)
    plan = everything_in_integers(model, feed)
    _, differ, refused = differing(model, plan, feed, arithmetic, tmp_path)
    named = pads in ((0, 0, 0, 0), (1, 1, 1, 1)) or counted
    assert refused == (set() if named else {"AveragePool"})
    assert differ <= refused
