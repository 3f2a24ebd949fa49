"""Encodings and plans as data: JSON there and back, and what a person may get wrong in it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrowgauge.core.encoding import (
    AnyEncoding,
    DynamicEncoding,
    Encoding,
    encoding_from_json,
    encoding_to_json,
    same_encoding,
)
from narrowgauge.core.granularity import PerAxis, PerBlock, PerTensor
from narrowgauge.core.numbers import integer_type
from narrowgauge.core.plan import FloatNode, Plan, load_plan, plan_from_json, plan_to_json
from narrowgauge.errors import PlanError
from tests.core.strategies import any_encodings, plans


def plan() -> dict[str, Any]:
    """A plan as JSON values, for the tests to spoil."""
    return {
        "version": 1,
        "target": "onnxruntime",
        "mode": "static",
        "encodings": {"x": {"type": "uint8", "granularity": "tensor", "scale": 0.1, "zero_point": 3}},
    }


def spoiled(**changes: Any) -> str:
    record = plan()
    record["encodings"]["x"].update(changes)
    return json.dumps(record)


@given(any_encodings)
def test_encoding_survives_json_bit_for_bit(encoding: AnyEncoding) -> None:
    text = json.dumps(encoding_to_json(encoding))
    back = encoding_from_json(json.loads(text), name="x")
    assert same_encoding(back, encoding)
    if isinstance(back, Encoding) and isinstance(encoding, Encoding):
        assert back.scale.tobytes() == encoding.scale.tobytes()
        assert back.zero_point.tobytes() == encoding.zero_point.tobytes()
        assert back.scale.shape == encoding.scale.shape


@given(st.floats(0, exclude_min=True, allow_infinity=False, width=32))
def test_every_float32_scale_survives(scale: float) -> None:
    encoding = Encoding(type=integer_type("int8"), granularity=PerTensor(), scale=scale, zero_point=0)  # type: ignore[arg-type]
    back = encoding_from_json(json.loads(json.dumps(encoding_to_json(encoding))), name="x")
    assert same_encoding(back, encoding)


@given(plans)
def test_plan_survives_json(original: Plan) -> None:
    back = plan_from_json(plan_to_json(original))
    assert back.same_as(original)
    assert (back.target, back.float_nodes, back.float_outputs, back.notes, back.network) == (
        original.target,
        original.float_nodes,
        original.float_outputs,
        original.notes,
        original.network,
    )
    assert plan_to_json(back) == plan_to_json(original)


def test_plan_file_has_one_encoding_a_line(tmp_path: Path) -> None:
    encoding = DynamicEncoding(type=integer_type("uint8"))
    written = Plan(target="t", encodings={f"value {number}": encoding for number in range(5)})
    path = tmp_path / "plan.json"
    path.write_text(plan_to_json(written))
    assert sum("value" in line for line in path.read_text().splitlines()) == 5
    assert load_plan(path).same_as(written)


def test_what_a_hand_written_plan_may_leave_out() -> None:
    short = {"version": 1, "encodings": {"w": {"type": "int4", "granularity": "axis", "axis": 0, "scale": [1, 0.5]}}}
    encoding = plan_from_json(json.dumps(short)).encodings["w"]
    assert isinstance(encoding, Encoding)
    assert encoding.granularity == PerAxis(0)
    assert encoding.scale.tolist() == [1.0, 0.5]
    assert encoding.zero_point.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "JSON"),
        ("{", "JSON"),
        ("[1, 2]", "encodings"),
        ('{"version": 1}', "encodings"),
        ('{"version": 1, "encodings": []}', "encodings"),
        ('{"encodings": {}}', "version"),
        ('{"version": 2, "encodings": {}}', "version 1.*2"),
        ('{"version": 1, "encodings": {}, "activations": {}}', "'activations'"),
        ('{"version": 1, "encodings": {}, "mode": "fast"}', "'fast'"),
        ('{"version": 1, "encodings": {}, "mode": ["static"]}', "mode"),
        ('{"version": 1, "encodings": {}, "notes": "one"}', "'notes'.*str"),
        ('{"version": 1, "encodings": {}, "float_nodes": ["conv_1"]}', "conv_1"),
        ('{"version": 1, "encodings": {"x": 3}}', "'x'.*object"),
    ],
)
def test_malformed_plan_is_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(PlanError, match=f"(?s)my_plan.json.*{named}"):
        plan_from_json(text, source="my_plan.json")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"scale": -0.5}, "scale"),
        ({"scale": 0}, "scale"),
        ({"scale": float("nan")}, "scale"),
        ({"scale": 1e39}, "scale"),
        ({"scale": 1e-60}, "scale"),
        ({"scale": None}, "'scale'"),
        ({"scale": "0.1"}, "'scale'"),
        ({"scale": True}, "'scale'"),
        ({"scale": [0.1, 0.2]}, "scale"),
        ({"scale": [[0.1], [0.2, 0.3]]}, "'scale'"),
        ({"granularity": "axis", "axis": 0, "scale": [1.0, "a"]}, "'scale'"),
        ({"granularity": "axis", "axis": 0, "scale": [1.0, 2.0], "zero_point": [1]}, "shape"),
        ({"granularity": "axis", "axis": 0}, "list of scales"),
        ({"granularity": "axis", "scale": [1.0]}, "'axis'"),
        ({"granularity": "axis", "axis": 0.5, "scale": [1.0]}, "'axis'"),
        ({"granularity": "axis", "axis": "0", "scale": [1.0]}, "'axis'"),
        ({"granularity": "block", "axis": 0, "scale": [1.0]}, "'size'"),
        ({"granularity": "block", "axis": 0, "size": 0, "scale": [1.0]}, "block"),
        ({"granularity": "block", "axis": 0, "size": 32.7, "scale": [1.0]}, "'size'"),
        ({"granularity": "block", "axis": 0, "size": 32}, "block"),
        ({"granularity": "row"}, "'row'"),
        ({"type": "int9000"}, "9000"),
        ({"type": "float16"}, "'float16'"),
        ({"type": 8}, "'type'"),
        ({"zero_point": 256}, "zero point.*256"),
        ({"zero_point": -1}, "zero point"),
        ({"zero_point": 2**40 + 5}, "zero point"),
        ({"zero_point": [2**40 + 5]}, "zero point"),
        ({"zero_point": 10**30}, "zero point|zero_point"),
        ({"zero_point": 3.5}, "zero point"),
        ({"zero_point": None}, "zero_point"),
        ({"zero_point": float("nan")}, "zero point"),
        ({"zeropoint": 3}, "'zeropoint'"),
        ({"dynamic": True}, "'granularity'|'scale'"),
        ({"dynamic": "no"}, "'dynamic'"),
    ],
)  # fmt: skip
def test_malformed_encoding_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(PlanError, match=rf"encoding of 'x'.*({named})"):
        plan_from_json(spoiled(**changes))


@pytest.mark.parametrize("key", ["type", "scale"])
def test_missing_key_is_named(key: str) -> None:
    record = plan()
    del record["encodings"]["x"][key]
    with pytest.raises(PlanError, match=f"'x'.*'{key}'"):
        plan_from_json(json.dumps(record))


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", None])
def test_unreadable_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "plan.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PlanError, match=r"plan\.json"):
        load_plan(path)


def test_plans_differ_where_they_quantize_differently() -> None:
    encoding = Encoding(type=integer_type("int8"), granularity=PerTensor(), scale=0.5, zero_point=0)  # type: ignore[arg-type]
    first = Plan(target="a", encodings={"x": encoding}, float_nodes=(FloatNode(name="n", operator="Conv", reason=""),))
    assert first.same_as(Plan(target="b", encodings={"x": encoding}, float_nodes=first.float_nodes, notes=("said",)))
    assert not first.same_as(Plan(target="a", encodings={"x": encoding}))
    assert not first.same_as(Plan(target="a", encodings={}, float_nodes=first.float_nodes))
    other = Encoding(type=integer_type("int8"), granularity=PerTensor(), scale=0.5, zero_point=1)  # type: ignore[arg-type]
    assert not first.same_as(Plan(target="a", encodings={"x": other}, float_nodes=first.float_nodes))


def test_encodings_keep_their_own_copy_of_arrays() -> None:
    scale = np.array([1.0, 2.0], np.float32)
    encoding = Encoding(type=integer_type("int8"), granularity=PerAxis(0), scale=scale, zero_point=np.zeros(2))
    scale[0] = 9.0
    assert encoding.scale.tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="read-only"):
        encoding.scale[0] = 3.0


@pytest.mark.parametrize(
    ("granularity", "shape"), [(PerTensor(), (1,)), (PerAxis(0), ()), (PerAxis(0), (2, 2)), (PerBlock(0, 4), ())]
)
def test_shapes_that_contradict_the_granularity_are_refused(granularity: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(PlanError, match="scale"):
        Encoding(type=integer_type("int8"), granularity=granularity, scale=np.ones(shape), zero_point=np.zeros(shape))
