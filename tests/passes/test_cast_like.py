import numpy as np
import pytest
from onnx import TensorProto

from narrowgauge.passes.cast_like import cast_like
from tests.passes.networks import network, node, operators, rewrite


@pytest.mark.parametrize("constant", [np.float32(1.7), np.int64(2), np.float64(-0.3)])
def test_the_type_is_taken_from_the_other_operand(constant: np.generic) -> None:
    nodes = [node("CastLike", "c x", "k"), node("Add", "x k", "y")]
    model, refusals = rewrite(network(nodes, {"x": ["N", 3]}, ["y"], {"c": np.asarray(constant)}), cast_like)
    assert operators(model) == {"Cast": 1, "Add": 1}
    assert not refusals
    assert [len(each.inputs) for each in model.graph] == [1, 2]


def test_an_activation_is_cast_too() -> None:
    nodes = [node("CastLike", "x i", "k"), node("Mul", "k i", "y")]
    inputs, types = {"x": ["N", 3], "i": ["N", 3]}, {"i": TensorProto.INT64}
    model, _ = rewrite(network(nodes, inputs, {"y": TensorProto.INT64}, input_types=types), cast_like)
    assert operators(model) == {"Cast": 1, "Mul": 1}
