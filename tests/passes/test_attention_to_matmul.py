from itertools import product

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from narrowgauge.importers.onnx import load
from narrowgauge.passes.attention_to_matmul import attention_to_matmul
from tests.passes.networks import network, node, operators, random, rewrite

FORMS = {
    4: ({"q": ["N", 2, 5, 4], "k": ["N", 2, 6, 4], "v": ["N", 2, 6, 3]}, {}),
    3: ({"q": ["N", 5, 8], "k": ["N", 6, 8], "v": ["N", 6, 6]}, {"q_num_heads": 2, "kv_num_heads": 2}),
}


def attention(
    axes: int = 4, mask: np.ndarray | None = None, inputs: str = "q k v", outputs: str = "y", **attributes: object
) -> onnx.ModelProto:
    sizes, heads = FORMS[axes]
    names = inputs if mask is None else f"{inputs} mask"
    nodes = [node("Attention", names, outputs, **heads, **attributes)]
    constants = {} if mask is None else {"mask": mask}
    return network(nodes, sizes, outputs.split()[:1], constants, opset=23)


MASKS = {
    "none": None,
    "numbers": random(5, 6),
    "numbers of heads": random(1, 2, 5, 6),
    "booleans": np.arange(30).reshape(5, 6) % 3 != 1,
}


@pytest.mark.parametrize(("axes", "mask", "scale", "causal"), list(product((3, 4), MASKS, (None, 0.3), (0, 1))))
def test_all_forms(axes: int, mask: str, scale: float | None, causal: int) -> None:
    given = {} if scale is None else {"scale": scale}
    proto = attention(axes, MASKS[mask], is_causal=causal, **given)
    model, refusals = rewrite(proto, attention_to_matmul)
    assert not refusals
    found = operators(model)
    assert (found["Attention"], found["MatMul"], found["Softmax"]) == (0, 2, 1)
    assert found["Add"] == (mask != "none") + causal


def test_a_mask_of_booleans_that_is_fed() -> None:
    sizes = {**FORMS[4][0], "m": ["N", 1, 5, 6]}
    nodes = [node("Greater", "m level", "mask"), node("Attention", "q k v mask", "y")]
    model, refusals = rewrite(network(nodes, sizes, ["y"], {"level": np.float32(-1)}, opset=23), attention_to_matmul)
    assert not refusals
    assert operators(model)["Where"] == 1


@pytest.mark.parametrize(
    ("proto", "reason"),
    [
        (attention(softcap=2.0), "soft cap"),
        (attention(outputs="y present_key present_value"), "keys, values or scores"),
    ],
    ids=["soft cap", "outputs"],
)
def test_what_stays(proto: onnx.ModelProto, reason: str) -> None:
    if len(proto.graph.node[0].output) > 1:
        proto.graph.output.append(onnx.helper.make_tensor_value_info("present_key", TensorProto.FLOAT, None))
        proto.graph.output.append(onnx.helper.make_tensor_value_info("present_value", TensorProto.FLOAT, None))
        inputs = {"past_key": ["N", 2, 3, 4], "past_value": ["N", 2, 3, 3]}
        for name, sizes in inputs.items():
            proto.graph.input.append(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes))
        proto.graph.node[0].input.extend(["", *inputs])
        reason = "earlier calls"
    model, (refusal,) = rewrite(proto, attention_to_matmul)
    assert reason in refusal.reason
    assert operators(model) == {"Attention": 1}


def test_a_mask_that_is_shorter_than_the_keys_stays() -> None:
    model = load(attention(mask=random(5, 4)), simplify=False).model  # ONNX Runtime does not run it
    (refusal,) = attention_to_matmul(model)
    assert "shorter" in refusal.reason


def test_fewer_heads_of_keys_stay() -> None:
    sizes = {"q": ["N", 4, 5, 4], "k": ["N", 2, 6, 4], "v": ["N", 2, 6, 4]}
    proto = network([node("Attention", "q k v", "y")], sizes, ["y"], opset=23)
    model, (refusal,) = rewrite(proto, attention_to_matmul)
    assert "fewer heads" in refusal.reason
    assert operators(model) == {"Attention": 1}
