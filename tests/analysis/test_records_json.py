import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrowgauge.analysis.records import (
    Analysis,
    Cause,
    Distribution,
    Outlier,
    Remedy,
    Sensitivity,
    TensorLoss,
    ValueNoise,
)
from narrowgauge.analysis.records_json import analysis_from_json, analysis_to_json
from narrowgauge.errors import NarrowgaugeError

SENSITIVITY = Sensitivity(name="a", kind="layer", node="n", depth=3, alone=1e-3, without=2e-3, gain=-1e-9)

analyses = st.builds(
    Analysis,
    losses=st.lists(st.builds(TensorLoss), max_size=3).map(tuple),
    distributions=st.dictionaries(st.text(), st.builds(Distribution), max_size=2),
    sensitivities=st.lists(st.builds(Sensitivity), max_size=3).map(tuple),
    depth=st.lists(st.builds(ValueNoise), max_size=3).map(tuple),
    remedies=st.lists(st.builds(Remedy), max_size=3).map(tuple),
    outliers=st.lists(st.builds(Outlier), max_size=2).map(tuple),
    causes=st.lists(st.builds(Cause), max_size=2).map(tuple),
    noise=st.floats(),
    seconds=st.dictionaries(st.text(), st.floats(), max_size=3),
    notes=st.lists(st.text(), max_size=3).map(tuple),
)


@given(analyses)
def test_every_analysis_survives_the_round_trip(analysis: Analysis) -> None:
    text = analysis_to_json(analysis)
    json.loads(text, parse_constant=pytest.fail)  # "NaN" and "Infinity" are no JSON
    again = analysis_from_json(text)
    assert repr(again) == repr(analysis)  # NaN equals nothing, its text does
    assert analysis_to_json(again) == text


def test_numbers_of_numpy_are_written_as_numbers() -> None:
    analysis = Analysis(noise=np.float32(0.5), samples=np.int64(3))  # type: ignore[arg-type]
    assert analysis_from_json(analysis_to_json(analysis)) == Analysis(noise=0.5, samples=3)


def test_infinity_and_nan_are_texts() -> None:
    values = tuple(
        ValueNoise(name="v", node="", operator="", depth=0, sqnr_db=value) for value in (math.inf, -math.inf, math.nan)
    )
    record = json.loads(analysis_to_json(Analysis(depth=values)))
    assert [one["sqnr_db"] for one in record["depth"]] == ["inf", "-inf", "nan"]


def test_what_has_a_default_may_be_left_out() -> None:
    assert analysis_from_json('{"version": 1}') == Analysis()


def _changed(**changes: object) -> str:
    record = json.loads(analysis_to_json(Analysis(sensitivities=(SENSITIVITY,))))
    record["sensitivities"][0] |= changes
    return json.dumps(record)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("[" * 100_000, "analysis in JSON"),
        ("[]", r"expected an object, got \[\]"),
        ("{}", "expected version 1, got null"),
        ('{"version": 2}', "expected version 1, got 2"),
        ('{"version": true}', "expected version 1, got true"),
        ('{"version": 1, "colour": 3}', "unknown key 'colour'"),
        ('{"version": 1, "losses": {}}', r"losses: expected a list, got \{\}"),
        ('{"version": 1, "losses": [{}]}', "losses, item 1: key 'name' is missing"),
        ('{"version": 1, "losses": [7]}', "losses, item 1: expected an object, got 7"),
        ('{"version": 1, "samples": 1.5}', "samples: expected an integer, got 1.5"),
        ('{"version": 1, "samples": true}', "samples: expected an integer, got true"),
        ('{"version": 1, "noise": "loud"}', 'noise: expected a number, got "loud"'),
        ('{"version": 1, "noise": 1' + "0" * 400 + "}", "noise: expected a number, got one of 401 digits"),
        ('{"version": 1, "seconds": []}', "seconds: expected an object"),
        (_changed(kind="bias"), "kind: expected 'activation' or 'weights' or 'layer', got \"bias\""),
        (_changed(name=5), "name: expected a text, got 5"),
        (_changed(gain=None), "gain: expected a number, got null"),
    ],
)
def test_a_bad_file_ends_in_one_line_that_says_where(text: str, message: str) -> None:
    with pytest.raises(NarrowgaugeError, match=message) as caught:
        analysis_from_json(text, source="build/analysis.json")
    assert str(caught.value).startswith("build/analysis.json: ")
    assert "\n" not in str(caught.value)


def test_every_field_of_the_records_can_be_written_and_read() -> None:
    """A field of a new kind needs a way to be read: this fails until there is one."""
    record = json.loads(analysis_to_json(Analysis()))
    assert record.keys() == {field.name for field in dataclasses.fields(Analysis)} | {"version"}
