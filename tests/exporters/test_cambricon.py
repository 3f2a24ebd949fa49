"""Cambricon's parameters: the published formula, how exactly scales come back, what cannot be said."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrowgauge.core.encoding import Encoding
from narrowgauge.errors import PlanError, TargetError
from narrowgauge.exporters.cambricon import PARAMETERS, RULE, position_and_factor, read_parameters, write
from tests.exporters.written import by_hand
from tests.lowering.networks import per_channel, per_tensor
from tests.planning.networks import network, normal

LAYER = network("float[n, 2, 4, 4] x", "float[n, 3, 2, 2] y", "y = Conv (x, w, b)", w=normal(3, 2, 3, 3), b=normal(3))


@given(st.floats(2**-60, 2**60, width=32), st.sampled_from([8, 16]))
def test_the_published_formula(absmax: float, bits: int) -> None:
    """Position = floor(log2(absmax) - (bits - 2)); scale = 2^position * (2^(bits - 1) - 1) / absmax."""
    highest = 2 ** (bits - 1) - 1
    encoding = per_tensor(f"int{bits}", absmax / highest)
    position, factor = position_and_factor(encoding)
    reach = float(encoding.scale) * highest
    exponent = math.log2(reach)
    if abs(exponent - round(exponent)) > 1e-9:  # a logarithm of float64 may miss a power of two
        assert position == math.floor(exponent - (bits - 2))
    assert factor == pytest.approx(2.0 ** int(position) * highest / reach, rel=2**-23)
    assert 1 - 2.0 ** (1 - bits) <= factor <= 2
    assert 2.0 ** int(position) / factor == pytest.approx(float(encoding.scale), rel=2**-22)


@pytest.mark.parametrize("power", [-20, -7, 0, 5])
def test_powers_of_two_have_the_factor_1(power: int) -> None:
    assert position_and_factor(per_tensor("int8", 2.0**power)) == (power, 1.0)


def test_the_fields(tmp_path: Path) -> None:
    weights = per_channel("int8", normal(3, 2, 3, 3), 0)
    exported = write(by_hand(LAYER, "cambricon", {"x": per_tensor("int16", 0.75), "w": weights}), tmp_path)
    record = json.loads((tmp_path / PARAMETERS).read_text())
    data = {"dtype": "DT_INT16", "position": 0, "scale": pytest.approx(4 / 3), "offset": 0}
    assert record["tensors"]["x"] == data
    kernel = record["tensors"]["w"]
    assert (kernel["dtype"], kernel["channelDim"], kernel["dimValues"]) == ("DT_INT8", 0, [3, 2, 3, 3])
    assert kernel["offsets"] == [0, 0, 0]
    (layer,) = record["layers"].values()
    assert layer["bottom_mlu_dtype"] == [{"type": "DT_INT16", "position": [0], "scale": [data["scale"]]}]
    assert layer["blobs_dtype"] == [{"type": "DT_INT8", "position": kernel["poses"], "scale": kernel["scales"]}]
    assert "cnrtCreateQuantizedParamByChannel" in exported.notes[0]
    reach = np.abs(normal(3, 2, 3, 3)).max(axis=(1, 2, 3))
    np.testing.assert_allclose(np.exp2(kernel["poses"]) / kernel["scales"] * 127, reach, rtol=1e-6)


def test_float_nodes_are_no_layers(tmp_path: Path) -> None:
    export = by_hand(LAYER, "cambricon", {"x": per_tensor("int8", 0.75)}, str(LAYER.graph[0].name))
    write(export, tmp_path)
    assert json.loads((tmp_path / PARAMETERS).read_text())["layers"] == {}


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (per_tensor("uint8", 0.5), "int8 or int16 with zero point 0, 'w' is of uint8"),
        (per_tensor("int8", 0.5, 2), "zero points"),
        (per_tensor("int4", 0.5), "'w' is of int4"),
        (per_channel("int16", normal(3, 2, 3, 3), 0), "of int8 one a channel; 'w' is of int16"),
    ],
)
def test_what_cannot_be_said(tmp_path: Path, weights: Encoding, said: str) -> None:
    with pytest.raises(TargetError, match=said):
        write(by_hand(LAYER, "cambricon", {"x": per_tensor("int8", 0.75), "w": weights}), tmp_path)


TENSOR = {"dtype": "DT_INT8", "position": -3, "scale": 1.5, "offset": 0}
CHANNELS = {
    "dtype": "DT_INT8", "poses": [-3, -2], "scales": [1.5, 1.2], "offsets": [0, 0], "dimValues": [2, 4],
    "channelDim": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (7, "'x': "),
        (TENSOR | {"dtype": "DT_INT4"}, "DT_INT8 or DT_INT16"),
        (TENSOR | {"position": -3.5}, "whole positions"),
        (TENSOR | {"position": 10**6}, "positions from -200 to 200"),
        (TENSOR | {"position": [1]}, "as many scales"),
        (TENSOR | {"scale": 0}, "scales from 0.99 to 2"),
        (TENSOR | {"scale": "1"}, "whole positions and as many scales"),
        (TENSOR | {"scale": float("nan")}, "scales from"),
        (TENSOR | {"offset": 1}, "offsets of 0"),
        ({"dtype": "DT_INT8"}, "key 'position' is missing"),
        (CHANNELS | {"channelDim": 1}, "as many channels"),
        (CHANNELS | {"channelDim": 2}, "as many channels"),
        (CHANNELS | {"poses": [[1], [2]]}, "as many channels"),
    ],
)
def test_refused_tensors(tmp_path: Path, tensor: Any, said: str) -> None:
    path = tmp_path / PARAMETERS
    path.write_text(json.dumps({"version": 1, "rule": RULE, "tensors": {"x": tensor}}))
    with pytest.raises(PlanError, match=said):
        read_parameters(path)
