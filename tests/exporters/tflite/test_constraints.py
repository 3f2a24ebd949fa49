"""What the Edge TPU and the Hexagon delegate take: graphs made here, and files that others made for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from narrowgauge.exporters.tflite.constraints import CHIPS, check, describe, on_chip
from narrowgauge.exporters.tflite.constraints.hexagon import parts
from narrowgauge.importers.tflite.network import Graph, Operator, Quantization, Tensor
from narrowgauge.importers.tflite.operators import OPERATORS

EDGETPU, HEXAGON = CHIPS["tflite-edgetpu"], CHIPS["tflite-hexagon"]


def scales(count: int = 1, axis: int = 0) -> Quantization:
    return Quantization(scale=np.ones(count, np.float32), zero_point=np.zeros(count, np.int64), axis=axis)


def computed(*shape: int, type: str = "INT8", **fields: Any) -> Tensor:
    return Tensor(name="?", type=type, shape=shape, **({"quantization": scales()} | fields))


def constant(array: Any, dtype: Any = np.int32, **fields: Any) -> Tensor:
    made = np.array(array, dtype=dtype)
    data = np.frombuffer(made.tobytes(), np.uint8)
    return Tensor(name="?", type=made.dtype.name.upper(), shape=made.shape, data=data, **fields)


def weights(*shape: int, count: int = 1, axis: int = 0) -> Tensor:
    return constant(np.ones(shape), np.int8, quantization=scales(count, axis))


def graph(
    name: str, inputs: list[Tensor | None], *outputs: Tensor, version: int = 1, variables: int = 0, **options: Any
) -> Graph:
    """A graph of one operator; its tensors are named `a`, `b`, ... in their order."""
    given = [one for one in inputs if one is not None]
    tensors = tuple(replace(one, name=chr(97 + number)) for number, one in enumerate([*given, *outputs]))
    numbers = iter(range(len(given)))
    read = tuple(None if one is None else next(numbers) for one in inputs)
    written = tuple(range(len(given), len(tensors)))
    operator = Operator(
        index=0, name=name, version=version, inputs=read, outputs=written, options=options, kind="Options"
    )
    fed = tuple(number for number in read if number is not None and tensors[number].data is None)
    return Graph(tensors=tensors, inputs=fed, outputs=written, operators=(operator,))


IMAGE = computed(1, 8, 8, 4)
ROW = computed(1, 16)
BIAS = constant([0] * 4)

CONV = [IMAGE, weights(4, 3, 3, 4, count=4), BIAS]
DEPTHWISE = [IMAGE, weights(1, 3, 3, 4, count=4, axis=3), BIAS]
DENSE = [ROW, weights(4, 16), BIAS]

FINE = [
    graph("CONV_2D", CONV, IMAGE, version=3, stride_h=2, stride_w=2, fused_activation_function="RELU6"),
    graph("DEPTHWISE_CONV_2D", DEPTHWISE, IMAGE, version=3, stride_h=1, stride_w=1, depth_multiplier=1),
    graph("FULLY_CONNECTED", DENSE, computed(1, 4), version=4, weights_format="DEFAULT", keep_num_dims=False),
    graph("FULLY_CONNECTED", [ROW, weights(4, 16), None], computed(1, 4), version=4),
    graph("ADD", [IMAGE, IMAGE], IMAGE, version=2, fused_activation_function="RELU_N1_TO_1"),
    graph("ADD", [computed(1, 8, type="UINT8")] * 2, computed(1, 8, type="UINT8")),
    graph("CONCATENATION", [IMAGE, IMAGE], computed(1, 8, 8, 8), version=2, axis=3),
    graph("MAX_POOL_2D", [IMAGE], computed(1, 4, 4, 4), version=2, filter_height=2, filter_width=2),
    graph("MEAN", [IMAGE, constant([1, 2])], computed(1, 4), version=2),
    graph("PAD", [IMAGE, constant([[0, 0], [1, 1], [1, 1], [0, 0]])], computed(1, 10, 10, 4), version=2),
    graph("RESHAPE", [IMAGE, constant([1, 256])], computed(1, 256)),
    graph("SOFTMAX", [ROW], ROW, version=2),
    graph("QUANTIZE", [computed(1, 4, type="UINT8")], computed(1, 4), version=2),
    graph("RESIZE_BILINEAR", [IMAGE, constant([80, 80])], computed(1, 80, 80, 4), version=2),
    graph("STRIDED_SLICE", [IMAGE, constant([0] * 4), constant([1, 4, 4, 4]), constant([1] * 4)],
          computed(1, 4, 4, 4), version=2, ellipsis_mask=0, new_axis_mask=0),
    graph("SPLIT", [constant(3), IMAGE], computed(1, 8, 8, 2), computed(1, 8, 8, 2), version=2),
    graph("TRANSPOSE", [IMAGE, constant([0, 3, 1, 2])], computed(1, 4, 8, 8), version=2),
    graph("SPACE_TO_DEPTH", [IMAGE], computed(1, 4, 4, 16), version=2),
    graph("TRANSPOSE_CONV", [constant([1, 16, 16, 4]), weights(4, 3, 3, 4), IMAGE], computed(1, 16, 16, 4),
          version=2, stride_h=2, stride_w=2, padding="SAME"),
]  # fmt: skip


@pytest.mark.parametrize("one", FINE, ids=lambda one: one.operators[0].name)
@pytest.mark.parametrize("chip", [EDGETPU, HEXAGON], ids=lambda chip: chip.title)
def test_what_both_chips_run(chip: Any, one: Graph) -> None:
    assert check(one, chip) == []
    assert describe(replace(one, operators=()), chip) == (f"{chip.title} runs all 0 operators",)


FLOAT = computed(1, 8, type="FLOAT32", quantization=None)
WORD = computed(1, 8, type="INT16")
BATCH = computed(2, 8, 8, 4)

BROKEN = [
    # of every operator
    ("edgetpu", graph("ADD", [FLOAT, FLOAT], FLOAT), "tensor 'a' is FLOAT32; expected INT8 or UINT8"),
    ("edgetpu", graph("ADD", [WORD, WORD], WORD, version=4), "tensor 'a' is INT16; expected INT8 or UINT8"),
    ("edgetpu", graph("ADD", [computed(8, quantization=None)] * 2, computed(8)), "'a' has no scale"),
    ("edgetpu", graph("ADD", [ROW, constant([1.0], np.float32)], ROW), "constant 'b' is FLOAT32"),
    ("edgetpu", graph("ADD", [BATCH, BATCH], BATCH, version=2), "shape [2, 8, 8, 4]; expected only the 3 inner"),
    ("edgetpu", graph("LEAKY_RELU", [ROW], ROW), "the Edge TPU has no such operator"),
    ("edgetpu", graph("CUSTOM TFLite_Detection_PostProcess", [ROW], ROW), "has no such operator"),
    ("edgetpu", graph("CONV_2D", CONV, IMAGE, version=6), "version 6; expected 1 to 5"),
    ("hexagon", graph("ADD", [FLOAT, FLOAT], FLOAT), "input 'a' is FLOAT32; expected INT8 or UINT8"),
    ("hexagon", graph("ADD", [computed(1, 1, 1, 1, 8)] * 2, ROW), "[1, 1, 1, 1, 8]; expected at most 4 dimensions"),
    ("hexagon", graph("SQUEEZE", [ROW], computed(16)), "the Hexagon delegate has no such operator"),
    ("hexagon", graph("RELU", [ROW], ROW, version=1), "version 1; expected 2"),
    ("hexagon", graph("ADD", [ROW, ROW], ROW, version=4), "version 4; expected 1 to 2"),
    # layers
    ("edgetpu", graph("CONV_2D", CONV, IMAGE, dilation_h_factor=2, dilation_w_factor=1), "dilations [2, 1]; expected"),
    ("edgetpu", graph("CONV_2D", [IMAGE, IMAGE, BIAS], IMAGE), "input 'b' is computed; expected a constant"),
    ("edgetpu", graph("CONV_2D", CONV, IMAGE, fused_activation_function="TANH"), "TANH; expected one of NONE, RELU"),
    ("edgetpu", graph("FULLY_CONNECTED", DENSE, computed(2, 4)), "'d' has shape [2, 4]; expected one row"),
    ("edgetpu", graph("FULLY_CONNECTED", DENSE, computed(1, 4), weights_format="SHUFFLED4x16INT8"), "expected DEFAULT"),
    ("edgetpu", graph("FULLY_CONNECTED", [ROW, weights(4, 16, count=4), BIAS], ROW), "'b' has 4 scales; expected one"),
    ("hexagon", graph("FULLY_CONNECTED", [ROW, weights(4, 16, count=4), BIAS], ROW), "'b' has 4 scales; expected one"),
    ("hexagon", graph("FULLY_CONNECTED", DENSE, computed(1, 4), keep_num_dims=True), "keep_num_dims is True"),
    ("hexagon", graph("FULLY_CONNECTED", DENSE, computed(1, 4), version=9), "version 9; expected 1 to 4"),
    ("hexagon", graph("CONV_2D", CONV[:2], IMAGE), "2 inputs; expected 3"),
    ("hexagon", graph("CONV_2D", CONV, IMAGE, stride_h=4, stride_w=4), "strides [4, 4]; expected at most 3"),
    ("hexagon", graph("CONV_2D", CONV, IMAGE, dilation_h_factor=2, dilation_w_factor=2), "dilations [2, 2]"),
    ("hexagon", graph("DEPTHWISE_CONV_2D", DEPTHWISE, IMAGE, dilation_h_factor=2, stride_h=2), "one of both to be 1"),
    ("hexagon", graph("DEPTHWISE_CONV_2D", DEPTHWISE, IMAGE, depth_multiplier=2), "a depth multiplier of 2"),
    ("hexagon", graph("DEPTHWISE_CONV_2D", [IMAGE, weights(1, 1, 3, 4), BIAS], IMAGE), "a filter of 1 rows"),
    ("hexagon", graph("TRANSPOSE_CONV", [constant([1, 9, 9, 4]), weights(4, 3, 3, 4), IMAGE], IMAGE, stride_h=4),
     "strides [4, 1]"),
    # pools and places
    ("edgetpu", graph("MAX_POOL_2D", [IMAGE], IMAGE, fused_activation_function="RELU"), "RELU; expected none"),
    ("hexagon", graph("AVERAGE_POOL_2D", [IMAGE], IMAGE, fused_activation_function="RELU6"), "RELU6; expected none"),
    ("hexagon", graph("MAX_POOL_2D", [IMAGE], IMAGE, padding="SAME", filter_height=13, filter_width=1),
     "a window of [13, 1]; expected at most 12"),
    ("edgetpu", graph("CONCATENATION", [IMAGE, weights(1, 8, 8, 4)], IMAGE), "constant 'b' is not all zeros"),
    ("edgetpu", graph("CONCATENATION", [ROW, ROW, weights(1, 16)], ROW), "a constant among 3 inputs"),
    ("edgetpu", graph("MEAN", [computed(1, 8, 8, 3), constant([3])], ROW), "a mean along 3 channels"),
    ("edgetpu", graph("MEAN", [computed(3, 8), constant([0])], computed(8)), "works along axis 0 of shape [3, 8]"),
    ("edgetpu", graph("SUM", [computed(3, 8), constant([-2])], computed(8)), "works along axis 0 of shape [3, 8]"),
    ("hexagon", graph("MEAN", [IMAGE, computed(1, type="INT32")], ROW), "input 'b' is computed; expected a const"),
    ("edgetpu", graph("PAD", [computed(1, 4), constant([[1, 0], [0, 0]])], computed(2, 4)), "pads [1, 0] along"),
    ("edgetpu", graph("PACK", [computed(8)] * 2, computed(2, 8), axis=-2), "it packs along axis 0 of shape [2, 8]"),
    ("edgetpu", graph("SPLIT", [constant(0), computed(2, 8)], *[computed(1, 8)] * 2), "it splits axis 0 of shape [2"),
    ("edgetpu", graph("SOFTMAX", [computed(4, 8)], computed(4, 8)), "has shape [4, 8]; expected one row"),
    ("edgetpu", graph("SOFTMAX", [computed(1, 16001)], computed(1, 16001)), "16001 elements; expected at most 16,000"),
    ("edgetpu", graph("PRELU", [IMAGE, weights(8, 8, 4)], IMAGE), "slopes of shape [8, 8, 4]"),
    ("edgetpu", graph("STRIDED_SLICE", [ROW, constant([0]), constant([9]), constant([2])], ROW), "steps [2]"),
    ("hexagon", graph("STRIDED_SLICE", [ROW, constant([0]), constant([9]), constant([2])], ROW, new_axis_mask=1),
     "new_axis_mask is 1; expected 0"),
    ("hexagon", graph("SLICE", [ROW, computed(2, type="INT32"), constant([1, 9])], ROW), "'b' is computed"),
    ("hexagon", graph("RESIZE_BILINEAR", [IMAGE, constant([8])], IMAGE), "1 sizes; expected 2"),
    ("hexagon", graph("PAD", [ROW, constant([[0, 0]] * 2), ROW], ROW), "3 inputs; expected 2"),
]  # fmt: skip


@pytest.mark.parametrize(("chip", "one", "problem"), BROKEN, ids=[problem for _, _, problem in BROKEN])
def test_what_a_chip_does_not_run(chip: str, one: Graph, problem: str) -> None:
    violations = check(one, CHIPS[f"tflite-{chip}"])
    assert len(violations) == 1
    assert problem in violations[0].problem
    assert str(violations[0]).startswith(f"operator 0 ({one.operators[0].name}), which writes ")
    assert on_chip(one, CHIPS[f"tflite-{chip}"], violations) == frozenset()


def test_a_batch_of_one_is_no_batch() -> None:
    assert check(graph("MEAN", [IMAGE, constant([0, 1, 2])], computed(4)), EDGETPU) == []
    assert check(graph("PACK", [computed(8)], computed(1, 8), axis=0), EDGETPU) == []


def test_zeros_may_be_appended_on_the_edge_tpu() -> None:
    zeros = constant(np.full((1, 8, 8, 4), 3), np.int8, quantization=replace(scales(), zero_point=np.array([3])))
    assert check(graph("CONCATENATION", [IMAGE, zeros], computed(1, 8, 8, 8)), EDGETPU) == []


def test_sizes_that_may_change_make_the_edge_tpu_compiler_refuse_the_file() -> None:
    one = graph("TANH", [replace(ROW, dynamic=(0,))], replace(ROW, dynamic=(0,)))
    violations = check(one, EDGETPU)
    assert [violation.operator for violation in violations] == [None]
    assert "'a' has shape [None, 16]" in str(violations[0])
    assert on_chip(one, EDGETPU, violations) == frozenset()
    assert describe(one, EDGETPU)[0] == "the software of the Edge TPU refuses this file"
    assert check(one, HEXAGON) == []


def test_a_damaged_file_is_no_crash() -> None:
    for chip in CHIPS.values():
        for name in chip.operators:
            for shape in ((), (0,), (4,)):
                for inputs in ([], [computed(*shape)], [computed(*shape), constant(7), constant([]), constant([[9]])]):
                    check(graph(name, inputs, computed(*shape)), chip)
                    assert check(graph(name, inputs), chip)


def test_the_tables_name_operators_as_the_reader_does() -> None:
    for chip in CHIPS.values():
        assert set(chip.operators) <= set(OPERATORS)


# --- which operators run where ----------------------------------------------------------------------------------------


def chain(links: dict[str, str], kinds: dict[str, str], fed: str = "x") -> Graph:
    """A graph of operators on rows of levels: `links` are what they read, by the name of what they write."""
    names = [*fed.split(), *links]
    tensors = tuple(
        replace(ROW, name=name, **({"type": "FLOAT32"} if kinds.get(name) == "FLOAT" else {})) for name in names
    )
    operators = tuple(
        Operator(
            index=index, name=kinds.get(name, "LOGISTIC"), version=1, options={}, kind="",
            inputs=tuple(map(names.index, read.split())), outputs=(names.index(name),),
        )
        for index, (name, read) in enumerate(links.items())
    )  # fmt: skip
    return Graph(tensors=tensors, inputs=tuple(range(len(fed.split()))), outputs=(), operators=operators)


def run_by(one: Graph, chip: Any) -> set[str]:
    return {one.tensors[one.operators[n].outputs[0]].name for n in on_chip(one, chip, check(one, chip))}


def test_the_edge_tpu_runs_what_comes_before_the_first_operator_that_it_does_not_run() -> None:
    one = chain({"a": "x", "b": "a", "c": "b", "d": "a", "e": "c d"}, {"b": "ELU", "e": "ADD"})
    assert run_by(one, EDGETPU) == {"a", "d"}
    assert "runs 2 of 5 operators" in describe(one, EDGETPU)[0]
    assert "operator 1 (ELU), which writes 'b'; its compiler maps one part" in describe(one, EDGETPU)[0]


def test_the_edge_tpu_begins_behind_the_rounding_of_a_float_input() -> None:
    one = chain({"a": "x", "b": "a", "c": "b"}, {"x": "FLOAT", "a": "QUANTIZE"})
    assert run_by(one, EDGETPU) == {"b", "c"}
    other = chain({"a": "x", "b": "a", "c": "b"}, {"a": "ELU"})
    assert run_by(other, EDGETPU) == set()


def test_the_hexagon_delegate_takes_the_largest_parts() -> None:
    links, kinds = {}, {}
    previous = "x"
    for length in (1, 2, 3, 4, 5, 2):  # runs of operators, each behind one that the delegate does not run
        for number in range(length + 1):
            name = f"{length}{previous}"[:40] + str(len(links))
            links[name], previous = previous, name
            if number == 0:
                kinds[name] = "ELU"
    one = chain(links, kinds)
    assert len(run_by(one, HEXAGON)) == 5 + 4 + 3 + 2
    assert "at most 4 parts of the network, of 2 operators or more" in describe(one, HEXAGON)[0]


def test_a_part_gathers_what_is_ready_wherever_it_stands() -> None:
    one = chain({"a": "x", "b": "a", "c": "y", "d": "b"}, {"b": "ELU"}, fed="x y")
    assert parts(one, frozenset({1})) == [[0, 2], [1], [3]]


def test_operators_that_wait_for_each_other_end_the_search() -> None:
    one = chain({"a": "b", "b": "a"}, {})
    assert parts(one, frozenset()) == []


def test_equal_problems_are_told_once() -> None:
    one = chain({"a": "x", "b": "a", "c": "b", "d": "c"}, {"a": "ELU", "b": "ELU", "d": "FLOOR"})
    assert describe(one, HEXAGON)[1:] == (
        "operator 0 (ELU), which writes 'a': the Hexagon delegate has no such operator; so in 2 more: ELU 1, FLOOR 1",
    )


def test_problems_that_differ_in_shapes_alone_are_told_together() -> None:
    one = chain({"a": "x", "b": "a"}, {"a": "SOFTMAX", "b": "SOFTMAX"})
    tensors = tuple(replace(tensor, shape=(2, 4 + number)) for number, tensor in enumerate(one.tensors))
    assert describe(replace(one, tensors=tensors), EDGETPU)[1:] == (
        "operator 0 (SOFTMAX), which writes 'a': tensor 'x' has shape [2, 4]; expected one row; "
        "so in 1 more: SOFTMAX 1",
    )


def test_large_networks_are_told_to_be_large() -> None:
    kernel = Tensor(name="?", type="INT8", shape=(9 << 20,), data=np.zeros(9 << 20, np.uint8), quantization=scales())
    assert "the constants take 9.0 MiB; the Edge TPU keeps about 8 MiB" in describe(
        graph("ADD", [computed(9 << 20), kernel], computed(9 << 20)), EDGETPU
    )[-1]  # fmt: skip


# --- files of others --------------------------------------------------------------------------------------------------

FOR_THE_EDGE_TPU = [
    "mobilenet_v1_0.25_224_quant", "mobilenet_v2_1.0_224_quant", "keras_lstm_mnist_ptq",
    "mobilenet_v2_quantized_1x3x224x224",
]  # fmt: skip


def read(zoo: Path, name: str) -> Graph:
    pytest.importorskip("ai_edge_litert", reason="ai-edge-litert, which has the schema of .tflite, is not installed")
    from narrowgauge.importers.tflite import read_network

    return read_network(zoo / "models" / f"{name}.tflite").main


@pytest.mark.parametrize("name", FOR_THE_EDGE_TPU)
def test_files_that_were_made_for_the_edge_tpu_break_no_condition(zoo: Path, name: str) -> None:
    one = read(zoo, f"tflite_int8/{name}")
    assert check(one, EDGETPU) == []
    assert describe(one, EDGETPU) == (f"the Edge TPU runs all {len(one.operators)} operators",)


@pytest.mark.parametrize("name", ["pretrainedResnet_quant", "vww_96_int8", "kws_ref_model", "ad01_int8"])
def test_the_hexagon_delegate_runs_quantized_networks_of_convolutions(zoo: Path, name: str) -> None:
    assert check(read(zoo, f"mlperf_tiny/{name}"), HEXAGON) == []


def test_float_ends_stay_on_the_cpu(zoo: Path) -> None:
    one = read(zoo, "tflite_int8/vww")
    left = {operator.index for operator in one.operators} - on_chip(one, HEXAGON, check(one, HEXAGON))
    assert [one.operators[number].name for number in sorted(left)] == ["QUANTIZE", "DEQUANTIZE"]
