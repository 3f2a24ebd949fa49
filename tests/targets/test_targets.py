"""What must hold of the targets that the package brings along, whoever edits their files."""

from collections.abc import Iterator

import numpy as np
import onnx
import pytest

from narrowgauge.core.arithmetic import dequantize
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import PerTensor
from narrowgauge.core.numbers import integer_type
from narrowgauge.exporters.formats import FORMATS
from narrowgauge.exporters.forms import LOWERED
from narrowgauge.targets.registry import load_target, target_names
from narrowgauge.targets.schema import FixedOutput, OperatorRule, Target, TensorRules

OPSET = 21
BOUNDS = {
    "Softmax": (0.0, 1.0), "Sigmoid": (0.0, 1.0), "HardSigmoid": (0.0, 1.0), "Tanh": (-1.0, 1.0),
    "LpNormalization": (-1.0, 1.0), "LogSoftmax": (-15.9, 0.0),
}  # fmt: skip

each_target = pytest.mark.parametrize("target", [load_target(name) for name in target_names()], ids=lambda t: t.name)


def rule(name: str, operator: str) -> OperatorRule:
    found = load_target(name).rule(operator)
    assert found is not None, f"{name} has no rule of {operator}"
    return found


def names(rules: TensorRules) -> list[str]:
    return [type.name for type in rules.types]


def fixed(name: str, operator: str) -> dict[str, tuple[float, int]]:
    return {row.type.name: (row.scale, row.zero_point) for row in rule(name, operator).fixed_output}


def operators(target: Target) -> Iterator[tuple[str, OperatorRule]]:
    return ((operator, rule) for rule in target.operators for operator in rule.operators)


@each_target
def test_every_operator_exists_in_the_opset_that_networks_are_brought_to(target: Target) -> None:
    for operator, rule in operators(target):
        for name in (operator, *rule.fuses):
            assert not onnx.defs.get_schema(name, OPSET).deprecated, name


@each_target
def test_every_row_says_where_it_was_read(target: Target) -> None:
    sources = [target.activations.source, target.weights.source, target.arithmetic.source]
    sources += [rule.source for rule in target.operators]
    assert all(len(source) > 15 for source in sources)


@each_target
def test_convolutions_and_matrix_products_are_computed_in_integers(target: Target) -> None:
    for operator in ("Conv", "MatMul", "Gemm"):
        found = target.rule(operator)
        assert found is not None
        assert found.kind == "compute"
        assert "static" in found.modes


@each_target
def test_fixed_outputs_are_of_types_that_the_operator_computes_with_and_cover_its_range(target: Target) -> None:
    for operator, found in operators(target):
        for row in found.fixed_output:
            assert row.type in (found.types or target.activations.types)
            low, high = reach(row)
            least, most = BOUNDS[operator]
            assert low <= least + row.scale
            assert high >= most - row.scale


def reach(row: FixedOutput) -> tuple[float, float]:
    encoding = Encoding(
        type=row.type,
        granularity=PerTensor(),
        scale=np.asarray(row.scale, dtype=np.float32),
        zero_point=np.asarray(row.zero_point, dtype=np.int32),
    )
    low, high = dequantize([row.type.minimum, row.type.maximum], encoding)
    return float(low), float(high)


@each_target
def test_an_operator_never_asks_for_what_the_target_has_not(target: Target) -> None:
    for operator, found in operators(target):
        assert set(found.types) <= set(target.activations.types), operator
        assert set(found.weight_granularity) <= set(target.weights.granularity), operator
        assert not (found.kind == "same" and found.output == "float"), operator
        assert not (found.kind == "same" and found.fixed_output), operator


@each_target
def test_only_the_formats_that_this_version_writes_are_promised(target: Target) -> None:
    assert set(target.formats) <= {*LOWERED, *FORMATS}
    assert bool(target.runtime) <= bool(target.formats)


@each_target
def test_what_was_not_measured_is_not_called_exact(target: Target) -> None:
    if target.arithmetic.bit_exact:
        assert "measured" in target.arithmetic.source
        assert target.arithmetic.rounding != "unknown"


@pytest.mark.parametrize("name", ["tensorrt", "cambricon", "ncnn"])
def test_symmetric_chips_have_no_zero_points(name: str) -> None:
    target = load_target(name)
    for rules in (target.activations, target.weights):
        assert rules.symmetric
        assert all(type.signed for type in rules.types)


def test_tensorrt_has_four_bits_for_weights_alone() -> None:
    target = load_target("tensorrt")
    assert names(target.activations) == ["int8"]
    assert names(target.weights) == ["int8", "int4"]
    assert target.activations.granularity == ("tensor",)
    assert target.weights.granularity[0] == "channel"
    assert rule("tensorrt", "Conv").weight_types == (integer_type("int8"),)
    assert rule("tensorrt", "MatMul").modes == ("static", "weight-only")


def test_tflite_follows_its_specification() -> None:
    target = load_target("tflite")
    assert names(target.weights)[0] == "int8_narrow"
    assert target.weights.is_symmetric(integer_type("int8_narrow"))
    assert not target.weights.is_symmetric(integer_type("uint8"))
    assert not target.activations.is_symmetric(integer_type("int8"))
    assert target.activations.is_symmetric(integer_type("int16"))
    for operator in ("Softmax", "Sigmoid"):
        assert fixed("tflite", operator) == {"int8": (1 / 256, -128), "uint8": (1 / 256, 0), "int16": (1 / 32768, 0)}
    assert fixed("tflite", "Tanh") == {"int8": (1 / 128, 0), "uint8": (1 / 128, 128), "int16": (1 / 32768, 0)}
    assert fixed("tflite", "LogSoftmax") == {"int8": (16 / 256, 127)}
    assert fixed("tflite", "LpNormalization") == {"int8": (1 / 128, 0)}
    for operator in ("Concat", "AveragePool", "Resize", "Max", "Min"):
        assert rule("tflite", operator).shares_inputs
    for operator in ("Reshape", "MaxPool", "Pad", "Gather", "Transpose", "Slice"):
        assert rule("tflite", operator).kind == "same"
    for operator in ("Add", "Sub", "Mul", "ReduceMean"):
        assert not rule("tflite", operator).shares_inputs


def test_the_edge_tpu_leaves_nothing_in_float() -> None:
    target = load_target("tflite-edgetpu")
    assert target.all_integer
    assert target.arithmetic.requantization == "unknown"
    assert all(rule.output == "quantized" and rule.kind != "join" for rule in target.operators)


def test_fbgemm_takes_seven_bits_and_qnnpack_eight() -> None:
    fbgemm, qnnpack = load_target("pytorch-fbgemm"), load_target("pytorch-qnnpack")
    assert (fbgemm.activations.types[0].minimum, fbgemm.activations.types[0].maximum) == (0, 127)
    assert fbgemm.weights.granularity[0] == "channel"
    assert names(qnnpack.activations)[0] == "uint8"
    assert names(qnnpack.weights) == ["int8_narrow"]
    assert qnnpack.weights.granularity[0] == "tensor"
    for name in ("pytorch-fbgemm", "pytorch-qnnpack"):
        assert fixed(name, "Sigmoid") == {"uint8": (1 / 256, 0)}
        assert fixed(name, "Tanh") == {"uint8": (2 / 256, 128)}
        assert rule(name, "ConvTranspose").weight_granularity == ("tensor",)


def test_qualcomm_has_unsigned_activations_and_two_kinds_of_weights() -> None:
    snpe, qnn = load_target("snpe"), load_target("qnn")
    assert names(snpe.activations) == names(qnn.activations) == ["uint8", "uint16"]
    assert names(snpe.weights)[0] == "uint8"
    assert not snpe.weights.is_symmetric(integer_type("uint8"))
    assert snpe.weights.granularity[0] == "tensor"
    assert names(qnn.weights) == ["int8", "int4"]
    assert qnn.weights.symmetric
    assert rule("qnn", "Conv").weight_granularity == ()
    assert rule("qnn", "MatMul").weight_granularity == ("tensor",)
    assert fixed("qnn", "Sigmoid")["uint16"] == (1 / 65536, 0)
    assert fixed("qnn", "Tanh") == {"uint16": (1 / 32768, 32768)}
    assert rule("qnn", "LayerNormalization").kind == "compute"
