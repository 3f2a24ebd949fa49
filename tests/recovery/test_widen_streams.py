"""Which sums get wider levels: those that a normalization reads, where all that reads them takes these."""

import numpy as np
import onnx_ir as ir

from narrowgauge.core.numbers import integer_type
from narrowgauge.planning.choices import Choices, NodeChoice
from narrowgauge.recovery.widen_streams import widen_streams
from narrowgauge.targets.registry import load_target
from tests.planning.networks import choices, name_of, network, normal, placed

INT16 = integer_type("int16")
WEIGHTS = {
    "w": normal(8, 8), "v": normal(8, 8, seed=1), "g": np.ones(8, np.float32), "o": normal(8, seed=2),
    "start": np.array([0]), "end": np.array([1]), "axis": np.array([1]),
}  # fmt: skip
HEAD = "n = LayerNormalization<axis = -1>({}, g, o)  y = MatMul(n, v)"


def model_of(body: str) -> ir.Model:
    return network("float[n, 4, 8] x", "float[n, k, 8] y", body, **WEIGHTS)


def widened(body: str, target: str = "integer-only", **asked: object) -> tuple[ir.Model, Choices, tuple[str, ...]]:
    model = model_of(body)
    found = widen_streams(model, placed(model, target, **asked), load_target(target), choices(model, **asked))
    return model, *found


def test_a_stream_is_widened_also_where_tokens_are_selected_from_it() -> None:
    body = "a = MatMul(x, w)  s = Add(a, x)  k = Slice(s, start, end, axis)  b = MatMul(x, v)"
    model, asked, names = widened(f"{body}  c = Slice(b, start, end, axis)  r = Add(k, c)  {HEAD.format('r')}")
    assert names == ("r",)
    model, asked, names = widened(
        f"a = MatMul(x, w)  s = Add(a, x)  m = LayerNormalization<axis = -1>(s, g, o)  b = MatMul(m, w)"
        f"  k = Slice(s, start, end, axis)  c = Slice(b, start, end, axis)  r = Add(k, c)  {HEAD.format('r')}"
    )
    assert names == ("s", "r")
    assert asked.activations(name_of(model, "s")) == INT16
    placement = placed(model, "integer-only", nodes={name: NodeChoice(activations=INT16) for name in names})
    assert placement.activations["s"].type == INT16
    assert placement.root("k") == "s"


def test_what_a_product_reads_stays() -> None:
    body = f"a = MatMul(x, w)  s = Add(a, x)  b = MatMul(s, w)  r = Add(s, b)  {HEAD.format('r')}"
    assert widened(body)[2] == ("r",)


def test_what_was_asked_for_stays() -> None:
    body = f"a = MatMul(x, w)  r = Add(a, x)  {HEAD.format('r')}"
    assert widened(body, nodes={"r": NodeChoice(activations=integer_type("uint8"))})[2] == ()
    assert widened(body, activations=integer_type("uint8"))[2] == ()


def test_targets_without_wider_sums_have_none() -> None:
    body = f"a = MatMul(x, w)  r = Add(a, x)  {HEAD.format('r')}"
    assert widened(body, "tflite")[2] == ()
    assert widened(body, "onnxruntime")[2] == ()
