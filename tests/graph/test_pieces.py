"""A network computed piece by piece gives what it gives as a whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.errors import RuntimeFailure
from narrowgauge.graph.engine import open_session
from narrowgauge.graph.pieces import Stream, alive_after, piece, plan_for
from narrowgauge.importers.onnx import load
from narrowgauge.lowering.qdq import lower_to_qdq
from tests.planning.networks import network, normal, planned, seen

BRANCHES = network(
    "float[n, 6] x", "float[n, 6] y, float[n, 4] z",
    "a = MatMul(x, w)  b = Relu(a)  c = Add(b, x)  d = Tanh(c)  y = Mul(d, b)  z = MatMul(c, v)",
    w=normal(6, 6), v=normal(6, 4, seed=1),
)  # fmt: skip

CONDITION = """<ir_version: 9, opset_import: ["" : 17]>
agraph (float[n, 6] x, bool c) => (float[n, 6] y)
<float[6] one = {1, 1, 1, 1, 1, 1}>
{
  a = Neg(x)
  b = Abs(x)
  s = If(c) <
    then_branch = g1 () => (float[n, 6] t) { t = Mul(a, b) },
    else_branch = g2 () => (float[n, 6] e) { e = Add(a, one) }
  >
  y = Neg(s)
}
"""


def whole(model: ir.Model, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = open_session(model, simulate=True)
    return dict(zip([value.name for value in session.get_outputs()], session.run(None, feed), strict=True))


def by_node(model: ir.Model, feeds: list[dict[str, np.ndarray]]) -> dict[str, list[np.ndarray]]:
    stream = Stream.start(feeds)
    for node, alive in zip(list(model.graph), alive_after(model), strict=True):
        kept = [str(value.name) for value in node.outputs if value.name in alive]
        if kept:
            stream.advance(piece(model, [node], kept), alive)
    return stream.values


def test_node_by_node_equals_the_whole_network() -> None:
    feeds = [{"x": normal(3, 6, seed=seed)} for seed in range(3)]
    values = by_node(BRANCHES, feeds)
    for number, feed in enumerate(feeds):
        for name, expected in whole(BRANCHES, feed).items():
            np.testing.assert_allclose(values[name][number], expected, rtol=1e-6, atol=1e-6)


def test_only_what_is_needed_later_is_kept() -> None:
    alive = dict(zip([node.outputs[0].name for node in BRANCHES.graph], alive_after(BRANCHES), strict=True))
    assert alive["a"] == {"a", "x"}
    assert alive["c"] == {"b", "c"}
    assert alive["z"] == {"y", "z"}
    assert by_node(BRANCHES, [{"x": normal(3, 6)}]).keys() == {"y", "z"}


def test_bodies_of_control_flow_read_values_from_outside(tmp_path: Path) -> None:
    import onnx

    file = tmp_path / "condition.onnx"
    onnx.save(onnx.parser.parse_model(CONDITION), file)
    model = load(file).model
    assert "If" in [node.op_type for node in model.graph]
    feeds = [{"x": normal(2, 6), "c": np.array(flag)} for flag in (True, False)]
    values = by_node(model, feeds)
    for number, feed in enumerate(feeds):
        np.testing.assert_array_equal(values["y"][number], whole(model, feed)["y"])


def test_quantized_pieces_equal_the_quantized_network() -> None:
    plan = planned(BRANCHES, seen(BRANCHES, normal(64, 6)), "tflite")
    feed = {"x": normal(5, 6, seed=3)}
    expected = whole(lower_to_qdq(BRANCHES, plan), feed)
    nodes = list(BRANCHES.graph)
    alive = alive_after(BRANCHES)
    stream = Stream.start([feed])
    for part, end in ((nodes[:2], 1), (nodes[2:3], 2), (nodes[3:], len(nodes) - 1)):
        written = [str(value.name) for node in part for value in node.outputs if value.name in alive[end]]
        cut = piece(BRANCHES, part, written)
        stream.advance(lower_to_qdq(cut, plan_for(cut, plan)), alive[end])
    for name, array in expected.items():
        np.testing.assert_allclose(stream.values[name][0], array, rtol=1e-6, atol=1e-6)


def test_a_feed_that_does_not_fit_is_one_clear_error() -> None:
    stream = Stream.start([{"x": normal(3, 5)}])
    with pytest.raises(RuntimeFailure, match="part of the network"):
        stream.run(piece(BRANCHES, list(BRANCHES.graph)[:1], ["a"]))
