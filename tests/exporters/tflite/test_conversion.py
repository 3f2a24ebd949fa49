"""What a network and a plan become, as plain records."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.plan import FloatNode, Plan
from narrowgauge.errors import TargetError
from narrowgauge.exporters.tflite.conversion import Conversion, Style, convert
from narrowgauge.importers.tflite.network import Tensor
from tests.exporters.tflite.networks import case
from tests.exporters.tflite.planning import everything_in_integers
from tests.exporters.tflite.running import feed_of
from tests.planning.networks import network, normal

FLOAT = Plan(target="tflite", encodings={})


def names(conversion: Conversion) -> list[str]:
    return [operator.name for operator in conversion.graph.operators]


def tensor(conversion: Conversion, name: str) -> Tensor:
    return next(one for one in conversion.graph.tensors if one.name == name)


def integers(model: ir.Model, **style: bool) -> Conversion:
    return convert(model, everything_in_integers(model, feed_of(model)), Style(**style))


def head(body: str, **weights: np.ndarray) -> ir.Model:
    return network("float[n, 3, 8, 9] x", "float[n, 5] y", body, w=normal(4, 3, 3, 3), **weights)


def test_images_go_in_with_their_channels_last_and_nothing_is_transposed() -> None:
    model = head("c = Conv(x, w) r = Relu(c) p = GlobalAveragePool(r) f = Flatten(p) y = Gemm(f, v)", v=normal(4, 5))
    found = convert(model, FLOAT)
    assert names(found) == ["CONV_2D", "MEAN", "RESHAPE", "FULLY_CONNECTED"]
    assert tensor(found, "x").extents == (None, 8, 9, 3)
    assert json.loads(found.metadata) == {"channels_last": ["x", "r", "p"]}


def test_image_whose_layouts_look_alike_keeps_its_own() -> None:
    model = network("float[n, 4, 4, 4] x", "float[n, 4, 4, 4] y", "y = Conv(x, w)", w=normal(4, 4, 1, 1))
    assert names(convert(model, FLOAT)) == ["TRANSPOSE", "CONV_2D", "TRANSPOSE"]


def test_columns_of_a_layer_move_instead_of_a_flattened_image() -> None:
    model = head("c = Conv(x, w) f = Flatten(c) y = Gemm(f, v)", v=normal(168, 5))
    found = convert(model, FLOAT)
    assert names(found) == ["CONV_2D", "RESHAPE", "FULLY_CONNECTED"]
    assert json.loads(found.metadata)["flattened"] == {"f": [4, 6, 7]}


def test_transpose_between_layouts_costs_nothing() -> None:
    model = network(
        "float[n, 8, 9, 3] x", "float[n, 6, 7, 4] y",
        "t = Transpose<perm = [0, 3, 1, 2]>(x) c = Conv(t, w) y = Transpose<perm = [0, 2, 3, 1]>(c)",
        w=normal(4, 3, 3, 3),
    )  # fmt: skip
    assert names(convert(model, FLOAT)) == ["CONV_2D"]


def test_levels_have_the_values_name_and_real_numbers_beside_them_another() -> None:
    model = case("conv_relu")
    found = integers(model)
    assert tensor(found, "x").type == "INT8"
    assert tensor(found, "x_float").type == "FLOAT32"
    assert tensor(found, "y").type == "INT8"
    assert found.inputs == {"x": found.graph.inputs[0]}
    assert found.graph.tensors[found.outputs["y"]].name == "y_float"
    assert tensor(found, "w").quantization is not None
    assert tensor(found, "w").quantization.axis == 0
    bias, scale = tensor(found, "b"), tensor(found, "x").quantization
    assert bias.type == "INT32"
    assert scale is not None
    np.testing.assert_array_equal(bias.quantization.scale, scale.scale * tensor(found, "w").quantization.scale)


def test_depthwise_scales_lie_along_the_last_axis() -> None:
    assert tensor(integers(case("depthwise")), "w").quantization.axis == 3


@pytest.mark.parametrize(
    ("name", "activation"), [("conv_relu", "RELU"), ("conv_relu6", "RELU6"), ("conv_same", "NONE")]
)
@pytest.mark.parametrize("rounded", [False, True])
def test_activation_functions_are_fused(name: str, activation: str, rounded: bool) -> None:
    found = integers(case(name)) if rounded else convert(case(name), FLOAT)
    layer = next(operator for operator in found.graph.operators if operator.name == "CONV_2D")
    assert layer.options["fused_activation_function"] == activation
    assert not {"RELU", "RELU6"} & set(names(found))


def test_other_bounds_become_bounds_of_levels() -> None:
    model = network(
        "float[n, 3] x", "float[n, 4] y", "c = Gemm(x, w) y = Clip(c, l, h)", w=normal(3, 4),
        l=np.float32(-0.3), h=np.float32(0.4),
    )  # fmt: skip
    plan = everything_in_integers(model, feed_of(model, rows=50))
    wide = everything_in_integers(case("gemm"), feed_of(case("gemm")))  # a range beyond the bounds
    plan = Plan(target="tflite", encodings={**plan.encodings, "y": wide.encodings["y"]})
    assert names(convert(model, plan)) == ["QUANTIZE", "FULLY_CONNECTED", "MAXIMUM", "MINIMUM", "DEQUANTIZE"]


def test_float_node_reads_and_writes_real_numbers() -> None:
    model = network("float[n, 4] x", "float[n, 4] y", "a = Gemm(x, w) b = Exp(a) y = Gemm(b, w)", w=normal(4, 4))
    plan = everything_in_integers(model, feed_of(model))
    node = next(node for node in model.graph if node.op_type == "Exp")
    floats = (FloatNode(name=str(node.name), operator="Exp", reason="by hand"),)
    found = convert(model, Plan(target="tflite", encodings=plan.encodings, float_nodes=floats))
    assert names(found) == [
        "QUANTIZE", "FULLY_CONNECTED", "DEQUANTIZE", "EXP", "QUANTIZE", "FULLY_CONNECTED", "DEQUANTIZE"
    ]  # fmt: skip


def test_integers_at_the_ends() -> None:
    found = integers(case("conv_relu"), integer_ends=True)
    assert found.graph.tensors[found.inputs["x"]].type == "INT8"
    assert found.graph.tensors[found.outputs["y"]].type == "INT8"
    assert set(names(found)) == {"CONV_2D", "TRANSPOSE"}


def test_input_that_is_read_float_stays_float() -> None:
    model = network("float[n, 4] x", "float[n, 4] y, float[n, 4] z", "y = Gemm(x, w) z = Exp(x)", w=normal(4, 4))
    plan = everything_in_integers(model, feed_of(model))
    node = next(node for node in model.graph if node.op_type == "Exp")
    floats = (FloatNode(name=str(node.name), operator="Exp", reason="by hand"),)
    mixed = Plan(target="tflite", encodings=plan.encodings, float_nodes=floats)
    found = convert(model, mixed, Style(integer_ends=True))
    assert found.graph.tensors[found.inputs["x"]].type == "FLOAT32"
    assert any("'x' stays float" in note for note in found.notes)


def test_halves_are_dequantized_and_small_constants_stay() -> None:
    model = network("float[n, 32] x", "float[n, 32] y", "y = Gemm(x, w, b)", w=normal(32, 32), b=normal(32))
    found = convert(model, FLOAT, Style(halves=True))
    assert names(found) == ["DEQUANTIZE", "FULLY_CONNECTED"]
    assert Counter(one.type for one in found.graph.tensors if one.data is not None) == {"FLOAT16": 1, "FLOAT32": 1}


def test_number_beyond_float16_stays_float32() -> None:
    model = network("float[n, 32] x", "float[n, 32] y", "y = Gemm(x, w)", w=normal(32, 32) * 1e5)
    assert names(convert(model, FLOAT, Style(halves=True))) == ["FULLY_CONNECTED"]


@pytest.mark.parametrize(
    ("inputs", "outputs", "body", "weights", "reason"),
    [
        ("float[n, 3] x", "float[n, 3] y", "y = Erf(x)", {}, "it has no such operator"),
        ("float[n, 3, 4, 5, 6] x", "float[n, 4, 4, 5, 6] y", "y = Conv(x, w)", {"w": normal(4, 3, 1, 1, 1)},
         "one or two spatial axes, got 3"),
        ("double[n, 3] x", "double[n, 3] y", "y = Relu(x)", {}, "got DOUBLE"),
        ("float[n, 3, 8, 9] x", "float[n, 3, 16, 18] y", 'y = Resize<mode = "cubic">(x, , f)',
         {"f": np.array([1, 1, 2, 2], np.float32)}, "nearest or linear"),
        ("float[n, 3, 8, 9] x", "float[n, 3, 6, 7] y", "y = MaxPool<kernel_shape = [2, 2], dilations = [2, 2]>(x)", {},
         "no dilation"),
        ("float[n, 3, 4] x", "float[n, 3, 6] y", 'y = Pad<mode = "edge">(x, p)',
         {"p": np.array([0, 0, 1, 0, 0, 1], np.int64)}, "constant or reflect, got edge"),
    ],
)  # fmt: skip
def test_what_tflite_cannot_say_is_refused_by_name(
    inputs: str, outputs: str, body: str, weights: dict[str, np.ndarray], reason: str
) -> None:
    model = network(inputs, outputs, body, **weights)
    with pytest.raises(TargetError, match=reason) as refused:
        convert(model, FLOAT)
    assert "node" in str(refused.value) or "value 'x'" in str(refused.value)


@pytest.mark.parametrize(
    ("activations", "reason"), [("int8_narrow", "int8, uint8 or int16"), ("int4", "int8, uint8 or int16")]
)
def test_activations_that_tflite_has_not_are_refused(activations: str, reason: str) -> None:
    model = case("gemm")
    plan = everything_in_integers(model, feed_of(model), activations)
    with pytest.raises(TargetError, match=reason):
        convert(model, plan)


def test_scales_along_the_summed_axis_are_refused() -> None:
    model = network("float[n, 4] x", "float[n, 4] y", "a = Gemm(x, w) y = Gemm<transB = 1>(a, w)", w=normal(4, 4))
    with pytest.raises(TargetError, match="along axis 1, its outputs, got axis 0"):
        integers(model)


def test_a_layer_that_xnnpack_does_not_load_is_refused_by_name() -> None:
    model = network("float[n, 4] x", "float[n, 4] y", "y = Gemm(x, w)", w=normal(4, 4))
    plan = everything_in_integers(model, feed_of(model))
    source, weights, result = (plan.encodings[name] for name in ("x", "w", "y"))
    assert isinstance(source, Encoding)
    assert isinstance(weights, Encoding)
    assert isinstance(result, Encoding)
    for ratio, fits in ((255.9, True), (256.1, False)):
        scale = np.float32(source.scale * weights.scale.max() / ratio)
        narrow = replace(plan, encodings={**plan.encodings, "y": replace(result, scale=scale)})
        if fits:
            convert(model, narrow)
            continue
        with pytest.raises(TargetError, match=r"Gemm.*256.* steps of its output.*in float"):
            convert(model, narrow)


def test_network_and_plan_are_not_changed() -> None:
    model = case("split_sizes")
    before = [(node.op_type, [value.name for value in node.outputs]) for node in model.graph]
    convert(model, FLOAT)
    assert before == [(node.op_type, [value.name for value in node.outputs]) for node in model.graph]
