"""Transformers on targets that have no integers for all of them: products with weights in integers, the rest float."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.core.plan import Plan
from narrowgauge.lowering.lower import lower
from narrowgauge.runtimes.openvino import the_core
from narrowgauge.targets.registry import load_target
from tests.planning.networks import network, normal, planned, seen

TARGETS = ("onnxruntime", "openvino", "tensorrt")
WIDTH, TOKENS = 32, 8
PRODUCTS = {"q0", "k", "v", "o0", "h0", "n0"}
"""What products with weights write."""
WEIGHTS = {
    **{name: normal(WIDTH, WIDTH, seed=number) / 4 for number, name in enumerate(("wq", "wk", "wv", "wo"))},
    "w1": normal(WIDTH, 128, seed=4) / 4, "w2": normal(128, WIDTH, seed=5) / 8, "b1": normal(128, seed=6),
    "gain": 1 + normal(WIDTH, seed=7) / 4, "bias": normal(WIDTH, seed=8), "factor": np.float32(WIDTH**-0.5),
}  # fmt: skip
BLOCK = """
    x = LayerNormalization<axis = -1>(input, gain, bias)
    q0 = MatMul(x, wq)  q = Add(q0, bias)  scaled = Mul(q, factor)
    k = MatMul(x, wk)  turned = Transpose<perm = [0, 2, 1]>(k)
    v = MatMul(x, wv)
    s = MatMul(scaled, turned)  p = Softmax<axis = -1>(s)  a = MatMul(p, v)
    o0 = MatMul(a, wo)  o = Add(o0, bias)  r = Add(input, o)
    m = LayerNormalization<axis = -1>(r, gain, bias)
    h0 = MatMul(m, w1)  h = Add(h0, b1)  g = Gelu(h)
    n0 = MatMul(g, w2)  n = Add(n0, bias)  output = Add(r, n)
"""


@pytest.fixture(scope="module")
def model() -> ir.Model:
    """Return one block of a transformer with random weights."""
    return network(f"float[n, {TOKENS}, {WIDTH}] input", f"float[n, {TOKENS}, {WIDTH}] output", BLOCK, **WEIGHTS)


def plan_for(model: ir.Model, target: str) -> Plan:
    return planned(model, seen(model, normal(8, TOKENS, WIDTH, seed=9)), target)


@pytest.mark.parametrize("target", TARGETS)
def test_products_with_weights_are_in_integers_and_the_rest_is_float(model: ir.Model, target: str) -> None:
    """Attention's products, LayerNormalization, Softmax, Gelu and the residual stream round nothing."""
    plan = plan_for(model, target)
    left = {node.name for node in plan.float_nodes}
    products = {node.outputs[0].name for node in model.graph if node.op_type == "MatMul" and node.name not in left}
    assert products == PRODUCTS
    assert set(plan.encodings) - set(WEIGHTS) == {"x", "a", "m", "g"}, "only what these products read is rounded"


@pytest.mark.parametrize("target", TARGETS)
def test_gelu_counts_as_float(model: ir.Model, target: str) -> None:
    """So an outlier channel behind it can be multiplied in float, beside the integers."""
    assert "Gelu" in {node.operator for node in plan_for(model, target).float_nodes}


def test_openvino_computes_these_products_in_integers_and_attention_in_float(model: ir.Model, tmp_path: Path) -> None:
    """Gelu and its rounding are fused into the product before them, although the plan counts Gelu as float."""
    pytest.importorskip("openvino", reason="shows what OpenVINO makes of the network")
    path = tmp_path / "model.onnx"
    ir.save(lower(model, plan_for(model, "openvino"), load_target("openvino")), path)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    nodes = the_core().compile_model(path, "CPU", settings).get_runtime_model().get_ordered_ops()
    made = {name: node for node in nodes for name in told(node, "originalLayersNames").split(",")}
    kinds = {str(node.outputs[0].name): made[str(node.name)] for node in model.graph if str(node.name) in made}
    assert {value: told(kinds[value], "runtimePrecision") for value in PRODUCTS} == dict.fromkeys(PRODUCTS, "u8")
    assert {told(kinds[value], "runtimePrecision") for value in ("s", "a")} == {"f32"}
    assert kinds["g"] is kinds["h0"]
    assert told(kinds["g"], "outputPrecisions") == "u8"


def told(node: Any, key: str) -> str:
    """What OpenVINO says of a node that it runs."""
    said = node.get_rt_info()
    return str(said[key].astype(str)) if key in said else ""
