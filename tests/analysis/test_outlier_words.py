"""Outliers and causes, each in one sentence."""

import numpy as np
import pytest

from narrowgauge.analysis.outlier_words import cause, describe, where
from narrowgauge.analysis.records import Outlier
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import PerTensor
from narrowgauge.core.numbers import integer_type


def outlier(**fields: object) -> Outlier:
    base = {
        "value": "linear_31", "channel": 41, "positions": (1, 14, 196, 183), "reach": 578.1, "others": 35.0,
        "source": "fc2", "unit": 417, "source_value": "gelu_7",
    }  # fmt: skip
    return Outlier(**{**base, **fields})  # type: ignore[arg-type]


STREAM = outlier(
    low=-590.0, high=-480.0, ordinary=2.3, words="block 7, residual channel 41", source_words="block 7, MLP unit 417",
    tokens=True, stretched=("linear_31", "add_841"),
)  # fmt: skip
UNIT = outlier(value="linear_30", channel=417, reach=219.2, others=8.17, source="fc1", unit=None, source_value="",
               words="block 7, MLP unit 417", stretched=("linear_30", "gelu_7"), tokens=True)  # fmt: skip


def encoding(scale: float) -> Encoding:
    return Encoding(
        type=integer_type("uint8"), granularity=PerTensor(), scale=np.array(scale, np.float32),
        zero_point=np.array(128, np.int32),
    )  # fmt: skip


def test_the_cause_of_a_vision_transformers_loss() -> None:
    assert cause([STREAM, UNIT], encoding(2.45), "linear_31") == (
        "block 7, MLP unit 417 (channel 417 of 'gelu_7': up to 219, the other channels up to 8.17) at tokens 1, 14, "
        "183, 196 writes -480 to -590 into residual channel 41 (ordinary values there: median 2.3), where the other "
        "channels reach 35; one step of uint8 there is 2.45"
    )


def test_the_range_that_suffers_may_be_another_ones() -> None:
    said = cause([STREAM], encoding(2.45), "add_841", "block 7, residual stream after MLP")
    assert said.startswith("block 7, MLP unit 417 (channel 417 of 'gelu_7') at tokens 1, 14, 183, 196 writes")
    assert said.endswith("; one step of uint8 of block 7, residual stream after MLP ('add_841') is 2.45")
    assert cause([STREAM], encoding(2.45), "add_841").endswith("; one step of uint8 of 'add_841' is 2.45")


def test_another_blocks_channel_is_named_with_its_block() -> None:
    there = outlier(words="block 8, residual channel 41", source_words="block 7, MLP unit 417")
    assert "writes up to 578 into block 8, residual channel 41, where" in cause([there], encoding(1), "linear_31")


def test_a_network_without_blocks_has_values_and_channels() -> None:
    plain = outlier(low=-590.0, high=-480.0, ordinary=2.3)
    assert cause([plain], encoding(2.45), "linear_31") == (
        "channel 417 of 'gelu_7' at positions 1, 14, 183, 196 writes -480 to -590 into channel 41 of 'linear_31' "
        "(ordinary values there: median 2.3), where the other channels reach 35; one step of uint8 there is 2.45"
    )


@pytest.mark.parametrize(
    ("source", "end"),
    [("fc2", "the other channels up to 35: 'fc2' writes it;"), ("", "the other channels up to 35: the samples bring")],
)
def test_no_single_unit_makes_it(source: str, end: str) -> None:
    said = cause([outlier(unit=None, source_value="", source=source)], encoding(2.45), "linear_31")
    assert said.startswith("channel 41 of 'linear_31' holds up to 578 at positions 1, 14, 183, 196, ")
    assert end in said


def test_an_outlier_in_one_sentence() -> None:
    assert describe(STREAM) == (
        "block 7, residual channel 41 (channel 41 of 'linear_31') reaches 578 at tokens 1, 14, 183, 196, the other "
        "channels 35: 'fc2' writes it, from block 7, MLP unit 417 (channel 417 of 'gelu_7')"
    )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"positions": ()}, ""),
        ({"positions": (3,)}, " at position 3"),
        ({"positions": (9, 3)}, " at positions 3, 9"),
        ({"positions": (0, 3), "tokens": True, "read": (0,)}, " at tokens 0 (the class token), 3"),
        ({"positions": (0, 3), "tokens": True}, " at tokens 0, 3"),
        ({"positions": (5,), "tokens": True, "read": (0,)}, " at token 5"),
    ],
)
def test_where(fields: dict[str, object], said: str) -> None:
    assert where(outlier(**fields)) == said
