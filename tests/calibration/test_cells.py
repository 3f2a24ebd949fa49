"""Cells of LSTMs against the ones that ONNX Runtime gives out at the end of sequences of every length."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.calibration.cells import cell_magnitudes, keep_cells
from narrowgauge.graph.engine import open_session
from narrowgauge.graph.recurrent import CELL_SCALE
from tests.passes.recurrent_networks import recurrent

STEPS = 5


def sequences(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(STEPS, 2, 3)).astype(np.float32) * 3


def reached(direction: str, **attributes: Any) -> float:
    """The greatest cell after any step."""
    greatest = 0.0
    for length in range(1, STEPS + 1):
        model = recurrent("LSTM", direction=direction, steps=length, outputs=(2,), **attributes)
        session = open_session(model, threads=1)
        part = sequences()[:length] if direction == "forward" else sequences()[-length:]
        greatest = max(greatest, float(np.abs(session.run(None, {"x": part})[0]).max()))
    return greatest


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("attributes", [{}, {"peepholes": True}, {"bias": False}])
def test_what_cells_reach(direction: str, attributes: dict[str, Any]) -> None:
    model = recurrent("LSTM", direction=direction, steps=STEPS, outputs=(0,), **attributes)
    found = cell_magnitudes(model, [{"x": sequences()}], threads=1)
    assert found["layer"] == pytest.approx(reached(direction, **attributes), rel=1e-5)


def test_both_directions_count() -> None:
    model = recurrent("LSTM", direction="bidirectional", steps=STEPS, outputs=(1,))
    names = [value.name for value in model.graph.outputs]
    found = cell_magnitudes(model, [{"x": sequences()}, {"x": sequences(1)}], threads=1)
    session = open_session(recurrent("LSTM", direction="bidirectional", steps=STEPS, outputs=(2,)), threads=1)
    assert found["layer"] >= np.abs(session.run(None, {"x": sequences()})[0]).max() * 0.99999
    assert [value.name for value in model.graph.outputs] == names


def test_layers_without_a_kernel_are_left_out() -> None:
    feeds: list[dict[str, np.ndarray]] = [{"x": sequences()}]
    assert cell_magnitudes(recurrent("GRU", steps=STEPS), feeds) == {}
    assert cell_magnitudes(recurrent("LSTM", steps=STEPS, clip=1.0), feeds) == {}


@pytest.mark.parametrize(("magnitude", "scale"), [(0.7, 2.0**-15), (7.9, 2.0**-12), (500.0, 2.0**-9)])
def test_the_scale_is_kept_with_the_node(magnitude: float, scale: float) -> None:
    model = recurrent("LSTM")
    keep_cells(model, {"layer": magnitude, "other": 1.0})
    again = ir.from_proto(ir.to_proto(model))
    assert float(again.graph[0].metadata_props[CELL_SCALE]) == scale
