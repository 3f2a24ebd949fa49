"""Where a target of integers alone puts power-of-two factors, wide sums, shares and logarithms."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.calibration.statistics import Statistics
from narrowgauge.core.encoding import Encoding, LogEncoding, NormalizedEncoding
from narrowgauge.core.granularity import PerTensor, PowerOfTwoFactor
from narrowgauge.core.numbers import integer_type
from narrowgauge.core.plan import Plan, plan_from_json, plan_to_json
from narrowgauge.lowering.qdq import lower_to_qdq
from narrowgauge.planning.choices import NodeChoice
from narrowgauge.planning.support import unsupported
from narrowgauge.targets.registry import load_target
from tests.planning.networks import choices, name_of, network, normal, placed, planned, run, seen, sqnr

D, T = 8, 5
WEIGHTS = {
    "e": normal(D, D, seed=1), "p": normal(1, T, D, seed=2), "g": 1 + normal(D, seed=3) / 4, "o": normal(D, seed=4),
    "w1": normal(D, 24, seed=5) / 3, "b1": normal(24, seed=6), "w2": normal(24, D, seed=7) / 4, "b2": normal(D, seed=8),
    "h": normal(D, 3, seed=9), "flat": np.array([-1, D]), "whole": np.array([0, T, D]),
    "start": np.array([0]), "end": np.array([1]), "axis": np.array([1]), "last": np.array([2]), "two": np.array([2]),
    "cls": normal(1, 1, D, seed=10), "swap": np.array([0, D, T]),
}  # fmt: skip
BLOCK = (
    "k = LayerNormalization<axis = -1>(s, g, o)  q = MatMul(k, e)  t = Transpose<perm = [0, 2, 1]>(k)"
    "  l = MatMul(q, t)  a = Softmax<axis = -1>(l)  v = MatMul(a, k)  r = Add(s, v)"
    "  n = LayerNormalization<axis = -1>(r, g, o)  m = MatMul(n, w1)  c = Add(m, b1)  f = Gelu(c)  d = MatMul(f, w2)"
    "  i = Add(d, b2)  z = Add(r, i)"
)
BODY = f"x0 = MatMul(x, e)  s = Add(x0, p)  {BLOCK}  u = LayerNormalization<axis = -1>(z, g, o)  y = MatMul(u, h)"


def model_of(body: str = BODY) -> ir.Model:
    return network(f"float[n, {T}, D] x".replace("D", str(D)), "float[n, k, j] y", body, **WEIGHTS)


# One channel of one token reaches far, as behind a unit that fires on few tokens.
WEIGHTS["p"][0, -1, 3] = 90


def feed() -> np.ndarray:
    return normal(40, T, D, seed=20)


def plan_of(body: str = BODY, **asked: object) -> tuple[ir.Model, Plan]:
    model = model_of(body)
    return model, planned(model, seen(model, feed()), "integer-only", **asked)


def kind(plan: Plan, name: str) -> str:
    encoding = plan.encodings[name]
    assert isinstance(encoding, Encoding)
    return f"{encoding.type.name} {type(encoding.granularity).__name__}"


def test_streams_have_factors_and_sums_before_an_addition_are_wide() -> None:
    model, plan = plan_of()
    assert not plan.float_nodes
    assert {kind(plan, name) for name in ("s", "r", "z", "n", "u", "c", "f")} == {"uint8 PowerOfTwoFactor"}
    assert {kind(plan, name) for name in ("x0", "p", "v", "i")} == {"int16 PerTensor"}
    assert kind(plan, "y") == "int16 PerTensor"  # the network's output: nothing computes with it
    # Products of two activations take one scale, so what they read has one.
    assert {kind(plan, name) for name in ("x", "k", "t", "q", "l")} == {"uint8 PerTensor"}
    assert plan.encodings["a"] == NormalizedEncoding(type=integer_type("uint8"))
    assert "m" not in plan.encodings
    assert not unsupported(model, plan, load_target("integer-only"))
    assert sqnr(run(model, feed()), run(lower_to_qdq(model, plan), feed())) > 20
    assert plan_from_json(plan_to_json(plan)).same_as(plan)


def test_a_factor_is_finer_than_one_scale_where_channels_differ() -> None:
    model, plan = plan_of()
    factor = plan.encodings["s"]
    assert isinstance(factor, Encoding)
    assert factor.scale.max() > 4 * factor.scale.min()
    single = planned(model, seen(model, feed()), "tflite")
    reference = run(model, feed())
    noises = [sqnr(reference, run(lower_to_qdq(model, one), feed())) for one in (single, plan)]
    assert noises[1] > noises[0] + 3


def test_a_recipe_takes_logarithms_and_wider_streams() -> None:
    wide = NodeChoice(activations=integer_type("int16"))
    model, plan = plan_of(nodes={"a": NodeChoice(activations=integer_type("uint4")), "r": wide})
    assert plan.encodings["a"] == LogEncoding(
        type=integer_type("uint4"), threshold="square_root_of_two", normalized=True
    )
    assert kind(plan, "r") == "int16 PerTensor"
    assert not unsupported(model, plan, load_target("integer-only"))
    assert np.isfinite(run(lower_to_qdq(model, plan), feed())).all()


def test_softmax_that_no_product_reads_has_its_fixed_encoding() -> None:
    body = "k = MatMul(x, e)  y = Softmax<axis = -1>(k)"
    _, plan = plan_of(body)
    encoding = plan.encodings["y"]
    assert isinstance(encoding, Encoding)
    assert float(encoding.scale) == 2.0**-15
    _, plan = plan_of("k = MatMul(x, e)  a = Softmax<axis = 1>(k)  y = MatMul(a, h)")
    assert isinstance(plan.encodings["a"], Encoding)


MOVED = {
    "slice of tokens": ("m = Slice(s, start, end, axis)", True),
    "slice of channels": ("m0 = Slice(s, start, two, last)  m = MatMul(e, m0)", None),
    "reshape that keeps channels": ("m0 = Reshape(s, flat)  m = Unsqueeze(m0, start)", True),
    "reshape that mixes channels": ("m0 = Reshape(s, swap)  m = Reshape(m0, whole)", False),
    "transposed": ("m0 = Transpose<perm = [0, 2, 1]>(s)  m = Transpose<perm = [0, 2, 1]>(m0)", False),
    "tokens exchanged": ("m = Transpose<perm = [1, 0, 2]>(s)", True),
}


@pytest.mark.parametrize("moved", [name for name, (_, kept) in MOVED.items() if kept is not None])
def test_a_factor_passes_what_keeps_the_channels(moved: str) -> None:
    body, kept = MOVED[moved]
    head = "u = LayerNormalization<axis = -1>(m, g, o)  y = MatMul(u, h)"
    model, plan = plan_of(f"x0 = MatMul(x, e)  s = Add(x0, p)  {body}  {head}")
    assert (kind(plan, "s") == "uint8 PowerOfTwoFactor") == kept
    assert plan.encodings["m"] is plan.encodings["s"]
    assert np.isfinite(run(lower_to_qdq(model, plan), feed())).all()


def test_a_class_token_that_is_only_moved_is_held_in_levels() -> None:
    body = "x0 = MatMul(x, e)  shape = Shape<start = 0, end = 1>(x)  rest = Concat<axis = 0>(shape, one, one)"
    body += "  t = Expand(cls, rest)  j = Concat<axis = 1>(t, x0)  s = LayerNormalization<axis = -1>(j, g, o)"
    model = network(
        f"float[n, {T}, {D}] x", "float[n, k, j] y", f"{body}  y = MatMul(s, h)", one=np.array([1]), **WEIGHTS
    )
    plan = planned(model, seen(model, feed()), "integer-only")
    floats = {node.name for node in plan.float_nodes}
    assert name_of(model, "t") not in floats
    assert plan.encodings["t"] is plan.encodings["cls"]
    assert kind(plan, "j") == "uint8 PowerOfTwoFactor"
    assert sqnr(run(model, feed()), run(lower_to_qdq(model, plan), feed())) > 25


def test_what_stays_float_asks_for_no_factor() -> None:
    model = model_of()
    placement = placed(model, "integer-only", nodes={"n": NodeChoice(keep_float="by hand")})
    assert not placement.activations["r"].factor
    assert placement.activations["s"].factor
    assert choices(model).keep_float("x") is None


def test_other_targets_have_none_of_it() -> None:
    model = model_of()
    for target in ("tflite", "onnxruntime", "openvino"):
        plan = planned(model, seen(model, feed()), target)
        granularities = {
            type(one.granularity) for name, one in plan.encodings.items()
            if isinstance(one, Encoding) and name not in model.graph.initializers
        }  # fmt: skip
        assert granularities <= {PerTensor}
        assert all(isinstance(one, Encoding) for one in plan.encodings.values())
        assert PowerOfTwoFactor not in granularities


def test_extremes_of_few_numbers_are_widened() -> None:
    model = model_of()
    statistics = seen(model, feed())
    few, many = (
        planned(model, with_count(statistics, "s", count), "integer-only").encodings["s"] for count in (100, 10**6)
    )
    assert isinstance(few, Encoding)
    assert isinstance(many, Encoding)
    channels = statistics.of("s").channels
    assert channels is not None
    assert (many.minimum <= np.minimum(channels.minimum, 0) + many.scale).all()
    assert (many.maximum >= np.maximum(channels.maximum, 0) - many.scale).all()
    spans = [one.maximum.astype(float) - one.minimum for one in (few, many)]
    assert np.median(spans[0] / spans[1]) > 1.2


def with_count(statistics: Statistics, name: str, count: int) -> Statistics:
    """The same statistics as of so many numbers of each channel."""
    tensor = statistics.of(name)
    assert tensor.channels is not None
    share = count / tensor.channels.count
    channels = replace(tensor.channels, count=count, total=tensor.channels.total * share)
    return replace(statistics, tensors={**statistics.tensors, name: replace(tensor, channels=channels)})


PATCHES = (
    "t = Transpose<perm = [0, 2, 3, 1]>(x)  r = Reshape(t, patches)  m = MatMul(r, w)"
    "  s = LayerNormalization<axis = -1>(m, g, o)  y = MatMul(s, h)"
)


def patches(body: str = PATCHES, outputs: str = "float[n, k, j] y") -> ir.Model:
    return network(
        "float[n, 2, 4, 4] x", outputs, body, patches=np.array([0, 4, 8]), w=normal(8, D, seed=30),
        g=WEIGHTS["g"], o=WEIGHTS["o"], h=WEIGHTS["h"],
    )  # fmt: skip


def test_an_input_is_rounded_before_it_is_moved_to_products() -> None:
    model = patches()
    plan = planned(model, seen(model, normal(40, 2, 4, 4, seed=31)), "integer-only")
    assert not plan.float_nodes
    assert plan.encodings["x"] is plan.encodings["r"]
    # Where floats stay in between it costs a conversion.
    floats = {node.name for node in placed(model, "onnxruntime").float_nodes}
    assert {name_of(model, "t"), name_of(model, "r")} <= floats


def test_an_input_that_something_else_reads_is_moved_in_float() -> None:
    model = patches(f"{PATCHES}  e = Exp(t)  z = Neg(e)", "float[n, k, j] y, float[n, a, b, c] z")
    floats = {node.name for node in placed(model, "integer-only").float_nodes}
    assert {name_of(model, "t"), name_of(model, "r")} <= floats


def test_who_asks_for_sizes_reads_no_numbers() -> None:
    sizes = "sizes = Shape(r)  rows = Gather(sizes, start)  number = Cast<to = 1>(rows)  w = Neg(number)"
    model = network(
        f"float[n, {T}, {D}] x", "float[n, k, j] y, float[a] w", f"{BODY}  {sizes}", start=np.array([0]),
        **{name: array for name, array in WEIGHTS.items() if name not in {"start", "w"}},
    )  # fmt: skip
    placement = placed(model, "integer-only")
    assert placement.activations["r"].factor
    assert name_of(model, "sizes") not in {node.name for node in placement.float_nodes} | placement.integer_nodes


def test_rows_of_a_table_are_levels_of_it() -> None:
    model = network(
        "int64[n, 5] x", "float[n, k, j] y",
        "t = Gather(words, x)  s = Add(t, p)  u = LayerNormalization<axis = -1>(s, g, o)  y = MatMul(u, h)",
        words=normal(20, D, seed=32), **{name: WEIGHTS[name] for name in ("p", "g", "o", "h")},
    )  # fmt: skip
    numbers = np.arange(200).reshape(40, 5) % 20
    plan = planned(model, seen(model, {"x": numbers}), "integer-only")
    assert not plan.float_nodes
    assert plan.encodings["words"] is plan.encodings["t"]
    assert kind(plan, "t") == "int16 PerTensor"
    assert sqnr(run(model, {"x": numbers}), run(lower_to_qdq(model, plan), {"x": numbers})) > 25


def test_wide_levels_leave_room_for_what_calibration_did_not_see() -> None:
    model, plan = plan_of()
    encoding, found = plan.encodings["y"], seen(model, feed()).of("y")
    assert isinstance(encoding, Encoding)
    reach = max(-found.minimum, found.maximum)
    assert float(encoding.maximum) == pytest.approx(2 * reach, rel=1e-3)
