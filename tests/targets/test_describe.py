from dataclasses import replace

import pytest

from narrowgauge.targets.describe import Section, explain, summarize, summary_rows
from narrowgauge.targets.registry import load_target, target_names


def section(name: str, title: str) -> Section:
    (found,) = [section for section in explain(load_target(name)) if section.title == title]
    return found


def test_the_table_has_one_line_for_each_target() -> None:
    assert tuple(row.name for row in summary_rows()) == target_names()


def test_a_line_says_types_scales_and_rounding() -> None:
    row = summarize(load_target("tensorrt"))
    assert row.activations == "int8, zero point 0"
    assert row.weights == "int8 or int4, one scale a channel, a tensor or a block"
    assert (row.rounding, row.bit_exact, row.formats) == ("half to even", False, ("qdq", "tensorrt"))
    assert summarize(load_target("tflite")).activations == "int8, int16 or uint8, any zero point (0 for int16)"


@pytest.mark.parametrize("name", target_names())
def test_every_row_of_a_target_is_explained_with_its_source(name: str) -> None:
    target = load_target(name)
    table = section(name, "Operators")
    assert all(len(row) == len(table.header) for row in table.rows)
    assert [row[0] for row in table.rows] == [", ".join(rule.operators) for rule in target.operators]
    assert [row[-1] for row in table.rows] == [rule.source for rule in target.operators]
    everything = " ".join(sentence for part in explain(target) for sentence in part.sentences)
    assert target.arithmetic.source in everything
    assert target.activations.source in everything
    assert target.weights.source in everything
    assert all(note in everything for note in target.notes)


def test_particulars_are_put_in_words() -> None:
    particulars = {row[0]: row[2] for row in section("tflite", "Operators").rows}
    assert "int8 output fixed to scale 1/256, zero point -128" in particulars["Softmax"]
    assert "int8 output fixed to scale 1/16, zero point 127" in particulars["LogSoftmax"]
    assert "inputs and output share one encoding" in particulars["AveragePool"]
    assert "modes: static, dynamic, weights only" in particulars["Conv"]
    assert "applies Relu, Clip itself" in particulars["Conv"]


def test_a_bias_that_stays_float_and_one_that_does_not() -> None:
    assert "Bias: stays float." in section("tensorrt", "What it quantizes").sentences
    assert "Bias: int32." in section("tflite", "What it quantizes").sentences


def test_what_is_not_read_again_is_said_so() -> None:
    assert any("[recalled]" in sentence for sentence in section("tensorrt", "Operators").sentences)
    assert not any("[recalled]" in sentence for sentence in section("onnxruntime", "Operators").sentences)


def test_targets_without_a_file_say_what_they_are_good_for() -> None:
    without = explain(replace(load_target("snpe"), formats=()))
    (files,) = [section for section in without if section.title == "Files"]
    assert files.sentences[0].startswith("None in this version")
    assert section("onnxruntime", "Files").sentences[-1] == "Runs here in: onnxruntime."


def test_inexact_arithmetic_is_called_inexact() -> None:
    assert "not bit-exact" in section("qnn", "Rounding").sentences[1]
    assert "equals the target's integers" in section("onnxruntime", "Rounding").sentences[1]


def test_the_edge_tpu_is_said_to_stop_at_the_first_float_node() -> None:
    assert "ends the part that the chip runs" in section("tflite-edgetpu", "Operators").sentences[0]
