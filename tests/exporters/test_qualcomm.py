"""Qualcomm's encodings: the formulas of their specification, what they cannot say, and AIMET's own results."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from narrowgauge.core.arithmetic import dequantize, quantize, spread
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import PerAxis, PerBlock
from narrowgauge.core.numbers import integer_type
from narrowgauge.demo import digits
from narrowgauge.errors import PlanError, TargetError
from narrowgauge.exporters import qualcomm
from narrowgauge.exporters.formats import Export, Exported
from narrowgauge.exporters.qualcomm import ENCODINGS, MODEL, VERSIONS, read_encodings
from narrowgauge.lowering.qdq import QdqStyle, lower_to_qdq
from tests.exporters.written import by_hand, demo_export
from tests.lowering.networks import per_channel, per_tensor
from tests.planning.networks import network, normal, run

each_version = pytest.mark.parametrize("version", VERSIONS)


def write(export: Export, folder: Path, version: str) -> tuple[dict[str, Any], Exported]:
    exported = getattr(qualcomm, f"write_{version.replace('.', '_')}")(export, folder)
    return json.loads((folder / ENCODINGS).read_text()), exported


def grid(entry: Any, version: str) -> tuple[np.ndarray, np.ndarray]:
    """Real values of the lowest and the highest level, by the formulas of each version."""
    if version == "0.6.1":
        return np.array([one["min"] for one in entry]), np.array([one["max"] for one in entry])
    if version == "1.0.0":
        scale, offset = np.array(entry["scale"]), np.array(entry["offset"])
        return scale * offset, scale * (offset + 2 ** entry["bw"] - 1)
    kind, scale = integer_type(entry["output_dtype"]), np.array(entry["y_scale"])
    zero_point = np.array(entry.get("y_zero_point", 0))
    return scale * (kind.minimum - zero_point), scale * (kind.maximum - zero_point)


def entry_of(record: dict[str, Any], name: str, part: str) -> Any:
    if record["version"] == "2.0.0":
        return next(one for one in record["encodings"] if one["name"] == name)
    entries = record[part]
    return entries[name] if record["version"] == "0.6.1" else next(one for one in entries if one["name"] == name)


LAYER = network("float[n, 2, 4, 4] x", "float[n, 3, 2, 2] y", "y = Conv (x, w, b)", w=normal(3, 2, 3, 3), b=normal(3))


@each_version
@pytest.mark.parametrize(
    "activation",
    [
        per_tensor("uint8", 0.02, 114), per_tensor("uint8", 0.02), per_tensor("uint16", 1e-4, 40_000),
        per_tensor("int8", 0.02), per_tensor("int8", 0.02, -7), per_tensor("int16", 1e-4), per_tensor("int4", 0.3, 3),
    ],
    ids=lambda one: f"{one.type.name}-{one.zero_point}",
)  # fmt: skip
def test_ends_of_the_range(tmp_path: Path, version: str, activation: Encoding) -> None:
    weights = per_channel("int8", normal(3, 2, 3, 3), 0)
    export = by_hand(LAYER, "qnn", {"x": activation, "w": weights})
    record, _ = write(export, tmp_path, version)
    for name, part, encoding in (("x", "activation_encodings", activation), ("w", "param_encodings", weights)):
        low, high = grid(entry_of(record, name, part), version)
        np.testing.assert_allclose(low, np.atleast_1d(encoding.minimum) if low.ndim else encoding.minimum, rtol=1e-6)
        np.testing.assert_allclose(high, np.atleast_1d(encoding.maximum) if high.ndim else encoding.maximum, rtol=1e-6)


def test_the_fields_of_0_6_1(tmp_path: Path) -> None:
    export = by_hand(LAYER, "snpe", {"x": per_tensor("uint8", 0.5, 114), "w": per_tensor("int8", 0.25)})
    record, exported = write(export, tmp_path, "0.6.1")
    assert list(record) == ["version", "activation_encodings", "param_encodings", "quantizer_args"]
    assert record["activation_encodings"] == {
        "x": [
            {"bitwidth": 8, "dtype": "int", "is_symmetric": "False",
             "max": 70.5, "min": -57.0, "offset": -114, "scale": 0.5}
        ]
    }  # fmt: skip
    (weights,) = record["param_encodings"]["w"]
    assert (weights["is_symmetric"], weights["offset"], weights["min"]) == ("True", -128, -32.0)
    assert record["quantizer_args"]["param_bitwidth"] == record["quantizer_args"]["activation_bitwidth"] == 8
    assert record["quantizer_args"]["per_channel_quantization"] == "False"
    assert "--quantization_overrides" in exported.notes[0]


def test_the_fields_of_1_0_0(tmp_path: Path) -> None:
    model = network("float[n, 4] x", "float[n, 4] z", "y = MatMul (x, w) z = Tanh (y)", w=normal(4, 4))
    tanh = str(model.graph[1].name)
    export = by_hand(model, "qnn", {"x": per_tensor("uint16", 0.5, 3), "w": per_tensor("int4", 0.25)}, tanh)
    record, exported = write(export, tmp_path, "1.0.0")
    assert record["activation_encodings"] == [
        {"name": "x", "enc_type": "PER_TENSOR", "dtype": "INT", "bw": 16, "is_sym": False,
         "scale": [0.5], "offset": [-3]}
    ]  # fmt: skip
    assert record["param_encodings"] == [
        {"name": "w", "enc_type": "PER_TENSOR", "dtype": "INT", "bw": 4, "is_sym": True,
         "scale": [0.25], "offset": [-8]}
    ]  # fmt: skip
    assert record["excluded_layers"] == [tanh]
    assert "--float_fallback" in exported.notes[0]


def test_2_0_0_lists_integer_biases_along_their_axis(tmp_path: Path) -> None:
    weights = per_channel("int8", normal(3, 2, 3, 3), 0)
    export = by_hand(LAYER, "qnn", {"x": per_tensor("uint8", 0.5, 3), "w": weights})
    record, _ = write(export, tmp_path, "2.0.0")
    assert [entry["name"] for entry in record["encodings"]] == ["x", "w", "b"]
    bias = record["encodings"][2]
    assert (bias["output_dtype"], bias["axis"], "y_zero_point" in bias) == ("int32", 0, False)
    np.testing.assert_allclose(bias["y_scale"], 0.5 * weights.scale, rtol=1e-6)


def test_a_bias_of_two_layers_is_left_to_the_converter(tmp_path: Path) -> None:
    body = "h = Gemm (x, w, b) y = Gemm (h, v, b)"
    model = network("float[n, 4] x", "float[n, 4] y", body, w=normal(4, 4), v=normal(4, 4), b=normal(4))
    scales = {"x": per_tensor("uint8", 0.5), "h": per_tensor("uint8", 0.1), "w": per_tensor("int8", 0.2)}
    export = by_hand(model, "qnn", scales | {"v": per_tensor("int8", 0.2)})
    record, exported = write(export, tmp_path, "2.0.0")
    assert "b" not in [entry["name"] for entry in record["encodings"]]
    assert "'b': a bias of layers with several scales" in exported.notes[-1]


@each_version
def test_transposed_weights(tmp_path: Path, version: str) -> None:
    """Channels of ConvTranspose and of MatMul lie along axis 1: said by 2.0.0, meant by the others."""
    for body, weights in (("y = ConvTranspose (x, w)", normal(2, 3, 2, 2)), ("y = MatMul (x, w)", normal(4, 5))):
        shape = "float[n, 2, 4, 4] x" if weights.ndim == 4 else "float[n, 4] x"
        model = network(shape, "float y", body, w=weights)
        encoding = per_channel("int8", weights, 1)
        record, exported = write(
            by_hand(model, "qnn", {"x": per_tensor("uint8", 0.5), "w": encoding}), tmp_path, version
        )
        entry = entry_of(record, "w", "param_encodings")
        assert read_encodings(tmp_path / ENCODINGS, model)["w"].same_as(encoding)
        if version == "2.0.0":
            assert entry["axis"] == 1
        assert any("not along axis 0" in note for note in exported.notes) == (version != "2.0.0")


@each_version
def test_scales_along_another_axis(tmp_path: Path, version: str) -> None:
    model = network("float[n, 4] x", "float y", "y = MatMul (x, w)", w=normal(4, 5))
    encoding = replace(per_channel("int8", normal(4, 5), 0), granularity=PerAxis(-2))
    export = by_hand(model, "qnn", {"x": per_tensor("uint8", 0.5), "w": encoding})
    if version == "2.0.0":
        assert entry_of(write(export, tmp_path, version)[0], "w", "")["axis"] == 0
        return
    with pytest.raises(TargetError, match=r"'w' has one per axis 0: take encodings-2\.0\.0"):
        write(export, tmp_path, version)


@each_version
def test_blocks(tmp_path: Path, version: str) -> None:
    model = network("float[n, 8] x", "float y", "y = MatMul (x, w)", w=normal(8, 5))
    blocks = Encoding(
        type=integer_type("int4"), granularity=PerBlock(0, 4), scale=np.abs(normal(2, 5)) + 0.1,
        zero_point=np.zeros((2, 5), np.int32),
    )  # fmt: skip
    export = by_hand(
        model,
        "qnn",
        {"w": blocks},
    )
    if version == "2.0.0":
        entry = entry_of(write(export, tmp_path, version)[0], "w", "")
        assert (entry["axis"], entry["block_size"], np.shape(entry["y_scale"])) == (0, 4, (2, 5))
        assert read_encodings(tmp_path / ENCODINGS, model)["w"].same_as(blocks)
        return
    with pytest.raises(TargetError, match="blocks of 4"):
        write(export, tmp_path, version)


def test_blocks_that_no_reader_knows_are_refused(tmp_path: Path) -> None:
    for shape, scales in (((6, 5), (2, 5)), ((8, 2, 3, 3), (2, 2, 3, 3))):
        body = "y = MatMul (x, w)" if len(shape) == 2 else "y = Conv (x, w)"
        model = network(f"float[{'n, 6' if len(shape) == 2 else 'n, 2, 5, 5'}] x", "float y", body, w=normal(*shape))
        blocks = Encoding(
            type=integer_type("int4"),
            granularity=PerBlock(0, 4),
            scale=np.ones(scales),
            zero_point=np.zeros(scales, int),
        )
        with pytest.raises(TargetError, match="that fill the axis"):
            write(by_hand(model, "qnn", {"w": blocks}), tmp_path, "2.0.0")


@each_version
def test_narrow_types(tmp_path: Path, version: str) -> None:
    weights = per_channel("int8_narrow", normal(3, 2, 3, 3), 0)
    export = by_hand(LAYER, "qnn", {"x": per_tensor("uint8", 0.5), "w": weights})
    low, _ = grid(entry_of(write(export, tmp_path, version)[0], "w", "param_encodings"), version)
    np.testing.assert_allclose(low, -128 * weights.scale, rtol=1e-6)
    clipping = per_tensor("int8_narrow", 0.001)
    for scales in ({"x": per_tensor("uint8", 0.5), "w": clipping}, {"x": clipping, "w": weights}):
        with pytest.raises(TargetError, match=r"one more|one less"):
            write(by_hand(LAYER, "qnn", scales), tmp_path, version)


def test_values_are_rounded_before_they_are_moved(tmp_path: Path) -> None:
    body = "r = Reshape (x, s) t = Transpose <perm = [1, 0]> (r) y = MatMul (t, w) l = Shape (x)"
    model = network("float[4, 2] x", "float y, int64[2] l", body, s=np.array([2, 4]), w=normal(2, 5))
    moves = [str(model.graph[number].name) for number in (0, 1)]
    encoding = per_tensor("uint8", 0.5, 7)
    export = by_hand(model, "qnn", {"t": encoding, "w": per_tensor("int8", 0.2)}, *moves)
    record, exported = write(export, tmp_path, "1.0.0")
    assert {entry["name"] for entry in record["activation_encodings"]} == {"x", "r", "t"}
    assert record["excluded_layers"] == []
    assert len(exported.notes) == 1
    assert "--float_fallback" not in exported.notes[0]


def test_what_else_reads_a_value_is_told(tmp_path: Path) -> None:
    model = network("float[n, 4] x", "float y, float z", "y = MatMul (x, w) z = Tanh (x)", w=normal(4, 5))
    export = by_hand(
        model, "qnn", {"x": per_tensor("uint8", 0.5), "w": per_tensor("int8", 0.2)}, str(model.graph[1].name)
    )
    _, exported = write(export, tmp_path, "1.0.0")
    assert "'x': rounded for integer nodes only in the simulation" in exported.notes[-1]


def test_constants_in_the_place_of_activations(tmp_path: Path) -> None:
    model = network("float[n, 4] x", "float y", "y = Add (x, c)", c=normal(4))
    export = by_hand(model, "qnn", {"x": per_tensor("uint8", 0.5), "c": per_tensor("uint8", 0.1, 9)})
    for version in VERSIONS:
        write(export, tmp_path, version)
        assert read_encodings(tmp_path / ENCODINGS, model)["c"].same_as(per_tensor("uint8", 0.1, 9))


@pytest.mark.parametrize(
    ("version", "record", "said"),
    [
        ("3.0", {}, "one of 0.6.1, 1.0.0, 2.0.0, got '3.0'"),
        ("0.6.1", {"activation_encodings": []}, "expected 'activation_encodings' to be an object, got list"),
        ("1.0.0", {"activation_encodings": {}}, "expected 'activation_encodings' to be a list, got dict"),
        ("1.0.0", {"activation_encodings": [7]}, "objects with a 'name', got 7"),
        ("1.0.0", {"activation_encodings": [{"name": "x", "dtype": "INT"}]}, "key 'enc_type' is missing"),
        ("2.0.0", {"encodings": [{"name": "x", "output_dtype": "int99", "y_scale": 1}]}, "2 to 16 bits"),
        ("2.0.0", {"encodings": [{"name": "x", "output_dtype": "uint8", "y_scale": -1}]}, "positive finite"),
        ("2.0.0", {"encodings": [{"name": "x", "output_dtype": "uint8", "y_scale": 1, "y_zero_point": 0.5}]}, "levels"),
        ("2.0.0", {"encodings": [{"name": "x", "output_dtype": "uint8", "y_scale": [1, 2], "axis": 0}]}, "that fit"),
        ("2.0.0", {"encodings": [{"name": "x", "output_dtype": "int8", "y_scale": 1}] * 2}, "stands twice"),
        ("2.0.0", {"encodings": [{"name": "w", "output_dtype": "int8", "per_block_int_scale": 1}]}, "LPBQ"),
        ("0.6.1", {"activation_encodings": {"x": []}}, "one per channel"),
        ("0.6.1", {"activation_encodings": {"x": [{"dtype": "int", "bitwidth": 8, "is_symmetric": False}]}}, "'True'"),
    ],
)  # fmt: skip
def test_refused_entries(tmp_path: Path, version: str, record: dict[str, Any], said: str) -> None:
    path = tmp_path / ENCODINGS
    path.write_text(json.dumps({"version": version, "param_encodings": {} if version == "0.6.1" else []} | record))
    with pytest.raises(PlanError, match=said) as caught:
        read_encodings(path, LAYER)
    assert str(path) in str(caught.value)


def test_ends_that_contradict_the_scale_are_refused(tmp_path: Path) -> None:
    record, _ = write(by_hand(LAYER, "snpe", {"x": per_tensor("uint8", 0.5, 3)}), tmp_path, "0.6.1")
    record["activation_encodings"]["x"][0]["max"] *= 2
    (tmp_path / ENCODINGS).write_text(json.dumps(record))
    with pytest.raises(PlanError, match="'max' is not what scale and offset say"):
        read_encodings(tmp_path / ENCODINGS, LAYER)


def test_float_entries_are_left_out(tmp_path: Path) -> None:
    entries = {"x": [{"bitwidth": 16, "dtype": "float"}]}
    record = {"version": "0.6.1", "activation_encodings": entries, "param_encodings": {}}
    (tmp_path / ENCODINGS).write_text(json.dumps(record))
    assert read_encodings(tmp_path / ENCODINGS, LAYER) == {}


@each_version
@pytest.mark.parametrize(("name", "most"), [("digits_conv", 0), ("digits_vit", 3)])
def test_aimet_computes_what_our_simulation_does(tmp_path: Path, name: str, most: int, version: str) -> None:
    """Loaded into AIMET's simulation, which leaves biases float.

    Every tensor is rounded to the same levels. The outputs of the convolutional network are equal, too. Those of the
    transformer differ by some steps: sums of floats in another order fall on the other side of a tie here and there.
    """
    pytest.importorskip("aimet_onnx", reason="needs aimet-onnx, see benchmarks/aimet_outputs.py")
    from aimet_onnx import QuantizationSimModel
    from aimet_onnx.quantsim import load_encodings_to_sim

    export = demo_export(name, "qnn")
    write(export, tmp_path, version)
    images = digits().images[1200:1232]
    simulation = QuantizationSimModel(onnx.load(tmp_path / MODEL), dummy_input={"image": images[:1]})
    load_encodings_to_sim(simulation, str(tmp_path / ENCODINGS), strict=False)
    for tensor, encoding in export.plan.encodings.items():
        assert isinstance(encoding, Encoding)
        constant = export.network.graph.initializers.get(tensor)
        numbers = normal(1000) * float(encoding.maximum.max()) if constant is None else constant.const_value.numpy()
        quantizer = simulation.qc_quantize_op_dict.get(tensor)
        if quantizer is None or not quantizer.is_initialized():  # of levels that are only moved
            continue
        rounded = dequantize(quantize(numbers, encoding), encoding)
        steps = np.abs(quantizer.quantize_dequantize(numbers) - rounded) / spread(
            encoding.scale, encoding, numbers.shape
        )
        assert steps.max() < 1.001
        assert (steps > 0.001).mean() < 0.001  # but for ties: AIMET's go away from zero, and it divides in float64
    theirs = simulation.session.run(None, {"image": images})[0]
    ours = run(lower_to_qdq(export.network, export.plan, QdqStyle(bias_bits=0, drop_clips=False)), images)
    logits = export.plan.encodings["logits"]
    assert isinstance(logits, Encoding)
    assert np.rint(np.abs(theirs - ours) / logits.scale).max() <= most


def test_the_network_is_the_float_one(tmp_path: Path) -> None:
    export = demo_export("digits_conv", "qnn")
    write(export, tmp_path, "1.0.0")
    written = ir.load(tmp_path / MODEL)
    assert [node.op_type for node in written.graph] == [node.op_type for node in export.network.graph]
