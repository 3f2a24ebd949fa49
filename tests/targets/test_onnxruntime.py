"""The rows of onnxruntime.toml against the installed ONNX Runtime: what they promise is fused into integer kernels."""

from pathlib import Path

import onnx
import onnxruntime
import pytest
from onnx import parser

from narrowgauge.targets.registry import load_target

# What a node reads beside the dequantized input `real`, and its attributes.
NODES = {
    "Add": "Add(real, other)",
    "AveragePool": "AveragePool<kernel_shape=[2, 2]>(real)",
    "Concat": "Concat<axis=1>(real, other)",
    "Conv": "Conv(real, weight)",
    "DepthToSpace": "DepthToSpace<blocksize=2>(real)",
    "Expand": "Expand(real, shape)",
    "Flatten": "Flatten(real)",
    "GlobalAveragePool": "GlobalAveragePool(real)",
    "LeakyRelu": "LeakyRelu<alpha=0.1>(real)",
    "MatMul": "MatMul(real, other)",
    "MaxPool": "MaxPool<kernel_shape=[2, 2]>(real)",
    "Mul": "Mul(real, other)",
    "ReduceMax": "ReduceMax(real, axes)",
    "ReduceMin": "ReduceMin(real, axes)",
    "Reshape": "Reshape(real, flat)",
    "Sigmoid": "Sigmoid(real)",
    "Slice": "Slice(real, first, last, axes)",
    "Split": "Split<axis=1, num_outputs=2>(real)",
    "Squeeze": "Squeeze(real)",
    "Tile": "Tile(real, repeats)",
    "Transpose": "Transpose<perm=[0, 2, 3, 1]>(real)",
    "Unsqueeze": "Unsqueeze(real, first)",
}
CONSTANTS = """
    float scale = {0.0234375}, int64[4] shape = {2, 4, 8, 8}, int64[1] axes = {2},
    int64[2] flat = {4, 64}, int64[1] first = {0}, int64[1] last = {2}, int64[4] repeats = {1, 1, 2, 1},
    float low = {0.0}, float high = {6.0}
"""
INPUTS = {
    "real": "levels = QuantizeLinear(input, scale, zero) real = DequantizeLinear(levels, scale, zero)",
    "other": "others = QuantizeLinear(other_input, scale, zero) other = DequantizeLinear(others, scale, zero)",
    "weight": "weight = DequantizeLinear(weight_levels, scale, no_offset)",
}
# Gather, GRU and LSTM have no static kernel, Gemm takes a matrix, which the input is not, and Pad's row itself says
# that it runs in float between Q and DQ: it is there for the integer operators behind it.
UNTESTED = {"Gather", "GRU", "LSTM", "Gemm", "Pad"}
STATIC = [(operator, rule) for rule in load_target("onnxruntime").operators for operator in rule.operators]


def fused(expression: str, type: str, folder: Path, *, then: str = "") -> list[str]:
    """Name the nodes that ONNX Runtime leaves of a quantized node and perhaps an activation, but for the last DQ."""
    outputs = 2 if expression.startswith("Split") else 1
    results = [f"result{index}" for index in range(outputs)]
    written = ["activated"] if then else results
    text = f"""
    <ir_version: 10, opset_import: ["": 21]>
    network (float[1, 4, 8, 8] input, float[1, 4, 8, 8] other_input)
        => ({", ".join(f"float[] output{index}" for index in range(outputs))})
    <{type} zero = {{0}}, int8[4, 4, 1, 1] weight_levels = {{{", ".join(["1"] * 16)}}}, int8 no_offset = {{0}},
     {CONSTANTS}>
    {{
        {" ".join(line for name, line in INPUTS.items() if name in expression)}
        {", ".join(results)} = {expression}
        {f"activated = {then}" if then else ""}
        {" ".join(f"levels{index} = QuantizeLinear({name}, scale, zero)" for index, name in enumerate(written))}
        {" ".join(f"output{index} = DequantizeLinear(levels{index}, scale, zero)" for index in range(outputs))}
    }}
    """
    model = parser.parse_model(text)
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")  # the text form cannot leave it open
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3  # it warns that the file holds for this machine only, which is what is asked
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    left = [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]
    for _ in range(outputs):
        left.remove("DequantizeLinear")
    return left


def test_every_static_operator_of_the_target_is_tried() -> None:
    assert {operator for operator, _ in STATIC} == NODES.keys() | UNTESTED


@pytest.mark.parametrize("type", ["uint8", "int8"])
@pytest.mark.parametrize("operator", NODES)
def test_a_named_operator_runs_on_levels(operator: str, type: str, tmp_path: Path) -> None:
    assert "DequantizeLinear" not in fused(NODES[operator], type, tmp_path)


@pytest.mark.parametrize("operator", ["Expand", "Flatten", "Reshape", "Slice", "Split", "Tile", "Transpose"])
def test_what_moves_levels_moves_those_of_16_bits_too(operator: str, tmp_path: Path) -> None:
    assert "DequantizeLinear" not in fused(NODES[operator], "uint16", tmp_path)


@pytest.mark.parametrize("operator", ["Conv", "MatMul", "Add", "AveragePool", "Concat", "MaxPool"])
def test_16_bits_run_in_float_as_the_notes_say(operator: str, tmp_path: Path) -> None:
    assert any("16-bit activations have no integer kernel" in note for note in load_target("onnxruntime").notes)
    assert "DequantizeLinear" in fused(NODES[operator], "uint16", tmp_path)


@pytest.mark.parametrize("expression", ["SpaceToDepth<blocksize=2>(real)", "Tanh(real)", "Sub(real, other)"])
def test_what_the_target_does_not_name_stays_float(expression: str, tmp_path: Path) -> None:
    assert load_target("onnxruntime").rule(expression.split("<", maxsplit=1)[0].split("(", maxsplit=1)[0]) is None
    assert "DequantizeLinear" in fused(expression, "uint8", tmp_path)


@pytest.mark.parametrize("operator", ["Conv", "MatMul", "Add", "Mul"])
@pytest.mark.parametrize(("activation", "name"), [("Relu", "Relu(result0)"), ("Clip", "Clip(result0, low, high)")])
def test_a_fused_activation_leaves_no_node(operator: str, activation: str, name: str, tmp_path: Path) -> None:
    found = load_target("onnxruntime").rule(operator)
    assert found is not None
    assert activation in found.fuses
    left = fused(NODES[operator], "uint8", tmp_path, then=name)
    assert "DequantizeLinear" not in left
    assert activation not in left
