"""TensorRT's files: the rules of explicit quantization one by one, NVIDIA's own cache, exact scales."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import PerBlock
from narrowgauge.core.numbers import integer_type
from narrowgauge.demo import NETWORK_NAMES
from narrowgauge.errors import PlanError, TargetError
from narrowgauge.exporters.tensorrt import (
    CACHE,
    CACHE_HEADER,
    MODEL,
    RANGE_TOLERANCE,
    RANGES,
    check_explicit_rules,
    missed_fusions,
    read_cache,
    read_ranges,
    write,
    write_cache,
    write_ranges,
)
from narrowgauge.graph.constants import set_constant
from narrowgauge.lowering.qdq import QdqStyle, lower_to_qdq
from tests.exporters.written import by_hand, demo_export
from tests.lowering.networks import per_channel, per_tensor
from tests.planning.networks import network, normal

LAYER = network("float[n, 2, 4, 4] x", "float[n, 3, 2, 2] y", "y = Conv (x, w, b)", w=normal(3, 2, 3, 3), b=normal(3))
ENCODINGS = {"x": per_tensor("int8", 0.5), "w": per_channel("int8", normal(3, 2, 3, 3), 0)}


@pytest.mark.parametrize("name", NETWORK_NAMES)
def test_demo_networks_follow_the_rules(tmp_path: Path, name: str) -> None:
    write(demo_export(name, "tensorrt"), tmp_path)
    assert check_explicit_rules(ir.load(tmp_path / MODEL)) == []


def test_the_cache_of_nvidias_sample(tmp_path: Path) -> None:
    """sampleINT8's README, "Calibration file"; `data` ranges over about 1, since 3c008912 is 1 / 127.5."""
    (tmp_path / CACHE).write_text(
        "TRT-7000-EntropyCalibration2\ndata: 3c008912\n(Unnamed Layer* 4) [x]_output: 3c010a14\n"
    )
    found = read_cache(tmp_path / CACHE)
    assert list(found) == ["data", "(Unnamed Layer* 4) [x]_output"]
    assert found["data"].scale == pytest.approx(0.00784518, rel=1e-6)
    assert found["(Unnamed Layer* 4) [x]_output"].scale == pytest.approx(1.00024 / 127, rel=1e-4)


def test_a_cache_names_activations_only(tmp_path: Path) -> None:
    write(by_hand(LAYER, "tensorrt", ENCODINGS), tmp_path)
    assert (tmp_path / CACHE).read_text() == f"{CACHE_HEADER}\nx: 3f000000\n"
    assert json.loads((tmp_path / RANGES).read_text()) == {"x": 63.5}


@given(st.floats(2**-60, 2**60, width=32))
def test_scales_come_back(tmp_path_factory: pytest.TempPathFactory, scale: float) -> None:
    folder = tmp_path_factory.getbasetemp()
    encodings = {"a: b": per_tensor("int8", scale)}
    write_cache(encodings, folder / CACHE)
    assert read_cache(folder / CACHE)["a: b"].scale == np.float32(scale)
    write_ranges(encodings, folder / RANGES)
    assert read_ranges(folder / RANGES)["a: b"].scale == pytest.approx(scale, rel=RANGE_TOLERANCE)


@pytest.mark.parametrize("encoding", [per_tensor("uint8", 0.5), per_tensor("int8", 0.5, 1), per_tensor("int16", 0.5)])
def test_activations_that_implicit_quantization_has_not(tmp_path: Path, encoding: Encoding) -> None:
    for writer in (write_cache, write_ranges):
        with pytest.raises(TargetError, match="int8 with zero point 0"):
            writer({"x": encoding}, tmp_path / CACHE)
    with pytest.raises(TargetError, match="would refuse the Q/DQ network"):
        write(by_hand(LAYER, "tensorrt", ENCODINGS | {"x": encoding}), tmp_path)


def test_a_name_that_is_no_line(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="rename it"):
        write_cache({"a\nb": per_tensor("int8", 1)}, tmp_path / CACHE)


def test_weights_alone_have_no_cache(tmp_path: Path) -> None:
    model = network("float[n, 8] x", "float y", "y = MatMul (x, w)", w=normal(8, 5))
    blocks = Encoding(
        type=integer_type("int4"), granularity=PerBlock(0, 4), scale=np.abs(normal(2, 5)) + 0.1,
        zero_point=np.zeros((2, 5), np.int32),
    )  # fmt: skip
    write(by_hand(model, "tensorrt", {"w": blocks}), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [MODEL]


# --- rules ----------------------------------------------------------------------------------------------------------


def lowered(model: ir.Model = LAYER, style: QdqStyle | None = None, **changed: Encoding) -> ir.Model:
    export = by_hand(model, "tensorrt", ENCODINGS | changed)
    return lower_to_qdq(export.network, export.plan, style or QdqStyle(bias_bits=0))


def node_of(model: ir.Model, operator: str, number: int = 0) -> ir.Node:
    return [node for node in model.graph if node.op_type == operator][number]


def not_constant(model: ir.Model) -> None:
    node_of(model, "QuantizeLinear").replace_input_with(1, model.graph.inputs[0])


def another_axis(model: ir.Model) -> None:
    node = next(node for node in model.graph if "axis" in node.attributes)
    set_constant(node.inputs[1], np.ones(2, np.float32))
    set_constant(node.inputs[2], np.zeros(2, np.int8))
    node.attributes["axis"] = ir.AttrInt64("axis", 1)


def no_data(model: ir.Model) -> None:
    node_of(model, "Conv").replace_input_with(0, model.graph.inputs[0])


def levels_returned(model: ir.Model) -> None:
    levels = node_of(model, "QuantizeLinear").outputs[0]
    relu = ir.node("MaxPool", [levels], {"kernel_shape": [1, 1]}, name="pool")
    model.graph.append(relu)


def negative(model: ir.Model) -> None:
    set_constant(node_of(model, "QuantizeLinear").inputs[1], np.float32(-1))


def two_scales(model: ir.Model) -> None:
    node = node_of(model, "QuantizeLinear")
    set_constant(node.inputs[1], np.ones(2, np.float32))
    set_constant(node.inputs[2], np.zeros(2, np.int8))


@pytest.mark.parametrize(
    ("change", "rule"),
    [(not_constant, 1), (negative, 1), (two_scales, 4), (another_axis, 4), (no_data, 6), (levels_returned, 7)],
)
def test_broken_rules(change: Callable[[ir.Model], None], rule: int) -> None:
    model = lowered()
    assert check_explicit_rules(model) == []
    change(model)
    assert any(f"({rule})" in sentence for sentence in check_explicit_rules(model))


def test_types_and_zero_points_and_biases() -> None:
    for model, rule in (
        (lowered(x=per_tensor("uint8", 0.5, 3)), 2),
        (lowered(x=per_tensor("uint8", 0.5)), 3),
        (lowered(x=per_tensor("int4", 0.5), w=per_tensor("int16", 0.5)), 3),
        (lowered(style=QdqStyle(bias_bits=32)), 5),
    ):
        assert any(f"({rule})" in sentence for sentence in check_explicit_rules(model))


@pytest.mark.parametrize(
    ("shape", "body", "weights", "axis"),
    [
        ("float[n, 2, 4, 4] x", "y = ConvTranspose (x, w)", (2, 3, 2, 2), 1),
        ("float[n, 4] x", "y = MatMul (x, w)", (4, 5), 1),
        ("float[n, 4] x", "y = Gemm <transB = 1> (x, w)", (5, 4), 0),
        ("float[n, 4] x", "y = Gemm (x, w)", (4, 5), 1),
    ],
)
def test_scales_of_weights_lie_along_the_output_channels(
    shape: str, body: str, weights: tuple[int, ...], axis: int
) -> None:
    model = network(shape, "float y", body, w=normal(*weights))
    for other in (0, 1):
        export = by_hand(
            model, "tensorrt", {"x": per_tensor("int8", 1), "w": per_channel("int8", normal(*weights), other)}
        )
        found = check_explicit_rules(lower_to_qdq(model, export.plan, QdqStyle(bias_bits=0)))
        assert bool(found) == (other != axis)


def test_blocks_are_of_four_bits() -> None:
    model = network("float[n, 8] x", "float y", "y = MatMul (x, w)", w=normal(8, 5))
    for kind in ("int4", "int8"):
        blocks = Encoding(
            type=integer_type(kind), granularity=PerBlock(0, 4), scale=np.abs(normal(2, 5)) + 0.1,
            zero_point=np.zeros((2, 5), np.int32),
        )  # fmt: skip
        export = by_hand(model, "tensorrt", {"x": per_tensor("int8", 1), "w": blocks})
        found = check_explicit_rules(lower_to_qdq(model, export.plan, QdqStyle(bias_bits=0)))
        assert bool(found) == (kind == "int8")


def test_scales_at_run_time_are_refused() -> None:
    model = network("float[n, 8] x", "uint8 q, float s, uint8 z", "q, s, z = DynamicQuantizeLinear (x)")
    assert "computed at run time" in check_explicit_rules(model)[0]


def test_a_residual_that_is_not_rounded_is_told() -> None:
    body = "h = Conv (x, w) y = Add (h, x)"
    model = network("float[n, 2, 4, 4] x", "float[n, 2, 4, 4] y", body, w=normal(2, 2, 1, 1))
    weights = per_channel("int8", normal(2, 2, 1, 1), 0)
    addition = str(model.graph[1].name)
    floating = by_hand(model, "tensorrt", {"x": per_tensor("int8", 1), "w": weights}, addition)
    rounded = by_hand(model, "tensorrt", {"x": per_tensor("int8", 1), "w": weights})
    style = QdqStyle(bias_bits=0)
    assert addition in missed_fusions(lower_to_qdq(model, floating.plan, style))[0]
    assert missed_fusions(lower_to_qdq(model, rounded.plan, style)) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("TRT-x\n", "first line like TRT-"),
        (f"{CACHE_HEADER}\nx: 3f00000\n", "line 2: expected 'tensor: 8 hexadecimal digits'"),
        (f"{CACHE_HEADER}\nx 3f000000\n", "line 2"),
        (f"{CACHE_HEADER}\nx: 7fc00000\n", "line 2: scale of 'x': .*positive finite"),
        (f"{CACHE_HEADER}\nx: 3f000000\nx: 3f000000\n", "line 3: 'x' stands twice"),
    ],
)
def test_refused_caches(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / CACHE).write_text(content)
    with pytest.raises(PlanError, match=said):
        read_cache(tmp_path / CACHE)


@pytest.mark.parametrize("content", ["[", "[]", '{"x": "1"}', '{"x": true}', '{"x": NaN}', '{"x": 1e999}', '{"x": 0}'])
def test_refused_ranges(tmp_path: Path, content: str) -> None:
    (tmp_path / RANGES).write_text(content)
    with pytest.raises(PlanError, match=RANGES):
        read_ranges(tmp_path / RANGES)
