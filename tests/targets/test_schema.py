import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrowgauge.core.numbers import integer_type
from narrowgauge.errors import TargetError
from narrowgauge.targets.schema import Target, target_from_toml

MINIMAL = """
name = "chip"
title = "A chip"
version = "1"
formats = []
bias_bits = 32

[activations]
types = ["int8", "int16"]
symmetric = false
symmetric_types = ["int16"]
granularity = ["tensor"]
source = "manual, page 1"

[weights]
types = ["int8_narrow", "int4"]
symmetric = true
granularity = ["channel", "block"]
block_sizes = [32]
source = "manual, page 2"

[arithmetic]
requantization = "unknown"
rounding = "unknown"
bit_exact = false
source = "not published"

[[operators]]
operators = ["Conv"]
kind = "compute"
source = "manual, page 3"

[[operators]]
operators = ["Softmax"]
kind = "compute"
fixed_output = [{ type = "int8", scale = 0.00390625, zero_point = -128 }]
source = "manual, page 4"
"""


def read(text: str) -> Target:
    return target_from_toml(text, source="chip.toml")


def test_a_minimal_file_gets_the_documented_defaults() -> None:
    target = read(MINIMAL)
    conv = target.operators[0]
    assert (target.runtime, target.notes, target.all_integer) == ("", (), False)
    assert (conv.output, conv.modes, conv.fuses) == ("quantized", ("static",), ())
    assert not conv.constant_weights
    assert not conv.shares_inputs
    assert not target.weights.power_of_two


def test_zero_points_may_be_bound_to_a_type() -> None:
    activations = read(MINIMAL).activations
    assert not activations.is_symmetric(integer_type("int8"))
    assert activations.is_symmetric(integer_type("int16"))
    assert read(MINIMAL).weights.is_symmetric(integer_type("int4"))


def test_rules_are_found_by_operator() -> None:
    target = read(MINIMAL)
    assert target.rule("Softmax") == target.operators[1]
    assert target.rule("Loop") is None


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('title = "A chip"', 'title = "A chip"\ncolour = "red"', "the file: unknown key 'colour'"),
        ('kind = "compute"', 'kind = "compute"\nfuse = ["Relu"]', "operators, row 1: unknown key 'fuse'"),
        ('source = "manual, page 1"', 'source = "x"\nscope = 1', "activations: unknown key 'scope'"),
        ("bias_bits = 32\n", "", "the file: key 'bias_bits' is missing"),
        ('source = "manual, page 3"\n', "", "operators, row 1: key 'source' is missing"),
        ('"manual, page 4"', '" "', "operators, row 2: expected 'source' to say something, got an empty text"),
        ('rounding = "unknown"\n', "", "arithmetic: key 'rounding' is missing"),
        ("bias_bits = 32", 'bias_bits = "32"', "the file: expected 'bias_bits' to be an integer, got '32'"),
        ("bias_bits = 32", "bias_bits = true", "the file: expected 'bias_bits' to be an integer, got True"),
        ("bias_bits = 32", "bias_bits = 64", "expected bias_bits 0 (float) or 8 to 32, got 64"),
        ("symmetric = true", "symmetric = 1", "weights: expected 'symmetric' to be true or false, got 1"),
        ('operators = ["Conv"]', 'operators = "Conv"', "expected 'operators' to be a list, got 'Conv'"),
        ('operators = ["Conv"]', "operators = []", "operators, row 1: expected at least one operator"),
        ('operators = ["Conv"]', "operators = [1]", "operators, row 1: expected 'operators' to hold texts, got 1"),
        ('["Softmax"]', '["Softmax", "Conv"]', "operators: Conv stands in two rows"),
        ('kind = "compute"', 'kind = "fast"', "expected 'kind' to be one of compute, join, same, got 'fast'"),
        (
            '["int8", "int16"]',
            '["float8"]',
            "activations: types: expected a number type such as int8",
        ),
        ('["int8", "int16"]', "[]", "activations: expected at least one type and one granularity"),
        ("block_sizes = [32]\n", "", "weights: expected block_sizes exactly where 'block' is one of granularity"),
        ("[32]", "[0]", "weights: expected 'block_sizes' to hold positive integers, got 0"),
        ("scale = 0.00390625", "scale = 0", "expected a positive finite scale, got 0.0"),
        ("scale = 0.00390625", "scale = true", "fixed_output, row 1: expected 'scale' to be a number, got True"),
        ("zero_point = -128", "zero_point = 128", "expected zero_point in -128 to 127 of int8, got 128"),
        ('[{ type = "int8", scale = 0.00390625, zero_point = -128 }]', "[1]", "expected 'fixed_output' to hold tables"),
        ('name = "chip"', 'name = "chip', "chip.toml:"),
    ],
)
def test_a_malformed_file_says_what_is_wrong_and_where(old: str, new: str, complaint: str) -> None:
    assert old in MINIMAL
    with pytest.raises(TargetError, match=re.escape(complaint)) as caught:
        read(MINIMAL.replace(old, new, 1))
    assert str(caught.value).startswith("chip.toml: ")


def test_rows_must_be_tables() -> None:
    text = "operators = [1]\n" + MINIMAL.split("[[operators]]", maxsplit=1)[0]
    with pytest.raises(TargetError, match="the file: expected 'operators' to hold tables, got 1"):
        read(text)


@given(st.integers(0, len(MINIMAL)), st.text(alphabet=' "[]{}=,.\n#abc0-', max_size=6))
def test_no_edit_of_a_file_ends_in_anything_but_a_target_or_a_target_error(position: int, inserted: str) -> None:
    try:
        read(MINIMAL[:position] + inserted + MINIMAL[position:])
    except TargetError:
        return
