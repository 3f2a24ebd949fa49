"""Which values of two networks are the same."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from narrowgauge.analysis.pairing import Pairing, pair_values
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import Granularity, PerAxis, PerTensor, PowerOfTwoFactor
from narrowgauge.core.numbers import integer_type
from tests.planning.networks import network, normal

FLOAT = (
    "c = Conv<pads = [1, 1, 1, 1]>(image, w)  r = Relu(c)  p = GlobalAveragePool(r)  f = Flatten(p)  y = MatMul(f, v)"
)
WEIGHTS = {"w": normal(8, 3, 3, 3), "v": normal(8, 5)}
PARAMETERS = {"s": np.float32(0.1), "z": np.uint8(0), "s2": np.float32(0.05)}


def floats() -> ir.Model:
    return network("float[n, 3, 8, 8] image", "float[n, 5] y", FLOAT, **WEIGHTS)


def rounded(nodes: str) -> ir.Model:
    return network("float[n, 3, 8, 8] image", "float[n, 5] y", nodes, **WEIGHTS, **PARAMETERS)


def renamed(model: ir.Model) -> ir.Model:
    """Give all but the inputs meaningless names."""
    model = model.clone()
    for number, node in enumerate(model.graph):
        node.name = f"node{number}"
        for output in node.outputs:
            output.name = f"value{number}"
    return model


def found(pairing: Pairing) -> dict[str, tuple[str, str]]:
    return {pair.first.name: (pair.second.value, pair.matched) for pair in pairing.pairs}


def test_equal_networks_pair_every_value_and_no_float_input() -> None:
    pairing = pair_values(floats(), floats(), {"image": "image"})
    assert found(pairing) == {name: (name, "name") for name in "crpfy"}
    assert pairing.only_first == pairing.only_second == ()


# How tools name what they round.
@pytest.mark.parametrize(
    ("levels", "back"),
    [("r_quantized", "r_dequantized"), ("r_QuantizeLinear_Output", "r_DequantizeLinear_Output"), ("a", "b")],
)
def test_levels_stand_for_the_value_that_was_rounded(levels: str, back: str) -> None:
    other = rounded(
        f"c = Conv<pads = [1, 1, 1, 1]>(image, w)  r = Relu(c)  {levels} = QuantizeLinear(r, s, z)"
        f"  {back} = DequantizeLinear({levels}, s, z)  p = GlobalAveragePool({back})  f = Flatten(p)  y = MatMul(f, v)"
    )
    pairing = pair_values(floats(), other, {"image": "image"})
    assert found(pairing)["r"] == (levels, "name")
    encoding = next(pair.second.encoding for pair in pairing.pairs if pair.first.name == "r")
    assert encoding is not None
    assert (encoding.type.name, float(encoding.scale), int(encoding.zero_point)) == ("uint8", np.float32(0.1), 0)
    assert pairing.only_first == pairing.only_second == ()


@pytest.mark.parametrize(
    ("granularity", "found_axis"), [(PerTensor(), None), (PowerOfTwoFactor(-3), -3), (PowerOfTwoFactor(0), ())]
)
def test_integers_are_levels_where_their_meaning_is_known(
    granularity: Granularity, found_axis: int | tuple[()] | None
) -> None:
    """A network in integers alone names them, a plan says what they mean; 8 scales do not fit another axis."""
    other = rounded(
        "c = Conv<pads = [1, 1, 1, 1]>(image, w)  k = Div(c, s)  i = Round(k)  r_quantized = Cast<to = 2>(i)"
        "  e = Cast<to = 1>(r_quantized)  g = Mul(e, s2)  p = GlobalAveragePool(g)  f = Flatten(p)  y = MatMul(f, v)"
    )
    scale = np.full((), 0.1, np.float32) if found_axis is None else np.float32(0.1) * 2.0 ** np.arange(8)
    known = Encoding(
        type=integer_type("uint8"), granularity=granularity, scale=scale.astype(np.float32),
        zero_point=np.zeros(scale.shape, np.int32),
    )  # fmt: skip
    pairing = pair_values(floats(), other, {"image": "image"}, encodings=({}, {"r": known}))
    pairs = {pair.first.name: pair.second for pair in pairing.pairs}
    if found_axis == ():
        assert "r" not in pairs
        return
    assert pairs["r"].value == "r_quantized"
    encoding = pairs["r"].encoding
    assert encoding is not None
    assert encoding.granularity == (PerTensor() if found_axis is None else PerAxis(found_axis))
    assert "r" not in {pair.first.name for pair in pair_values(floats(), other, {"image": "image"}).pairs}


@pytest.mark.parametrize("name", ["c", "r", "else"])
def test_a_relu_that_saturation_does_is_passed_over(name: str) -> None:
    """Whatever the quantizer calls the value behind it: ONNX Runtime's keeps the name of what the Relu read."""
    other = rounded(
        f"{name} = Conv<pads = [1, 1, 1, 1]>(image, w)  q = QuantizeLinear({name}, s, z)  d = DequantizeLinear(q, s, z)"
        "  p = GlobalAveragePool(d)  f = Flatten(p)  y = MatMul(f, v)"
    )
    pairing = pair_values(floats(), other, {"image": "image"})
    assert found(pairing)["r"][0] == "q"
    assert pairing.only_first == ("c",)
    back = pair_values(other, floats(), {"image": "image"})
    assert next((pair.first.value, pair.second.value) for pair in back.pairs) == ("q", "r")


def test_levels_of_another_scale_are_a_value_of_their_own() -> None:
    other = rounded(
        "c = Conv<pads = [1, 1, 1, 1]>(image, w)  r = Relu(c)"
        "  q = QuantizeLinear(r, s, z)  d = DequantizeLinear(q, s, z)"
        "  q2 = QuantizeLinear(d, s2, z)  d2 = DequantizeLinear(q2, s2, z)  p = GlobalAveragePool(d2)  f = Flatten(p)"
        "  y = MatMul(f, v)"
    )
    pairing = pair_values(floats(), other, {"image": "image"})
    assert found(pairing)["r"] == ("q", "name")
    assert pairing.only_second == ("q2",)


def test_the_same_structure_under_other_names() -> None:
    pairing = pair_values(floats(), renamed(floats()), {"image": "image"})
    assert found(pairing) == {name: (f"value{number}", "structure") for number, name in enumerate("crpfy")}


def test_branches_are_told_apart_by_their_weights() -> None:
    nodes = ["a = MatMul(x, u)", "b = MatMul(x, v)"]
    ends = "  c = MatMul(b, w)  y = Add(a, c)"
    weights = {"u": normal(4, 3), "v": normal(4, 6), "w": normal(6, 3)}
    one, other = (
        network("float[n, 4] x", "float[n, 3] y", "  ".join(order) + ends, **weights) for order in (nodes, nodes[::-1])
    )
    assert found(pair_values(one, renamed(other), {"x": "x"}))["a"] == ("value1", "structure")


def test_values_under_other_inputs_and_in_another_layout_are_found() -> None:
    other = network(
        "float[n, 8, 8, 3] picture", "float[n, 5] out",
        "t = Transpose<perm = [0, 3, 1, 2]>(picture)  c1 = Conv<pads = [1, 1, 1, 1]>(t, w)"
        "  t1 = Transpose<perm = [0, 2, 3, 1]>(c1)  r1 = Relu(t1)  t2 = Transpose<perm = [0, 3, 1, 2]>(r1)"
        "  p1 = GlobalAveragePool(t2)  f1 = Flatten(p1)  out = MatMul(f1, v)",
        **WEIGHTS,
    )  # fmt: skip
    pairs = found(pair_values(floats(), other, {"image": "picture"}))
    assert pairs == {"c": ("c1", "structure"), "r": ("r1", "structure"), "p": ("p1", "structure"),
                     "f": ("f1", "structure"), "y": ("out", "structure")}  # fmt: skip


def test_outputs_are_paired_by_position_where_nothing_else_pairs_them() -> None:
    other = network("float[n, 4] x", "float[n, 3] out", "out = Gemm(x, w)", w=normal(4, 3))
    first = network("float[n, 4] x", "float[n, 3] y", "m = MatMul(x, w)  y = Add(m, b)", w=normal(4, 3), b=normal(3))
    assert found(pair_values(first, other, {"x": "x"})) == {"y": ("out", "position")}


def test_constants_shapes_and_accumulators_are_left_out() -> None:
    model = network(
        "float[n, 4] x", "float[n, 3] y, int64[n] best",
        "shape = Shape(x)  twice = Mul(w, w)  m = MatMul(x, twice)  best = ArgMax<axis = 1, keepdims = 0>(m)"
        "  y = Identity(m)",
        w=normal(4, 3),
    )  # fmt: skip
    assert found(pair_values(model, model, {"x": "x"})).keys() == {"m", "best", "y"}


def test_scales_computed_at_run_time_leave_the_real_numbers() -> None:
    model = network(
        "float[n, 4] x", "float[n, 3] y",
        "q, s, z = DynamicQuantizeLinear(x)  d = DequantizeLinear(q, s, z)  y = MatMul(d, w)", w=normal(4, 3),
    )  # fmt: skip
    plain = network("float[n, 4] x", "float[n, 3] y", "y = MatMul(x, w)", w=normal(4, 3))
    pair = pair_values(plain, model, {"x": "x"}).pairs[0]
    assert (pair.first.value, pair.second.value, pair.second.encoding) == ("x", "d", None)


def test_networks_with_branches_and_old_files_that_list_weights_among_the_inputs() -> None:
    then, other = (
        helper.make_graph(
            [helper.make_node(operator, ["x"], ["inner"])], operator, [],
            [helper.make_tensor_value_info("inner", TensorProto.FLOAT, ["n", 4])],
        )
        for operator in ("Relu", "Neg")
    )  # fmt: skip
    graph = helper.make_graph(
        [
            helper.make_node("If", ["flag"], ["h"], "if", then_branch=then, else_branch=other),
            helper.make_node("QuantizeLinear", ["h", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ],
        "g",
        [
            helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4]),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, []),
            helper.make_tensor_value_info("z", TensorProto.INT8, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor("s", TensorProto.FLOAT, [], [0.5]), helper.make_tensor("z", TensorProto.INT8, [], [3])],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]))
    onnx.checker.check_model(ir.to_proto(model))
    (pair,) = pair_values(model, model, {"x": "x", "flag": "flag"}).pairs
    assert (pair.first.value, pair.first.operator) == ("q", "If")
    assert pair.first.encoding is not None
    assert int(pair.first.encoding.zero_point) == 3
