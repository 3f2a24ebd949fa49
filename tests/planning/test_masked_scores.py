"""Masks that are added to scores leave the scores their levels, and no softmax changes by it."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrowgauge.calibration.collect import collect
from narrowgauge.core.encoding import Encoding
from narrowgauge.lowering.qdq import lower_to_qdq
from narrowgauge.planning.masked_scores import MARGIN, above, score_floors
from tests.calibration.networks import batches_of
from tests.planning.networks import network, normal, planned, run, seen, sqnr

TOKENS = 6
WEIGHTS = normal(8, 8, seed=1)
SCORES = "k = MatMul(x, e)  t = Transpose<perm = [0, 2, 1]>(k)  l = MatMul(k, t)"
ATTEND = "a = Softmax<axis = -1>(s)  y = MatMul(a, k)"


def mask(lowest: float) -> np.ndarray:
    """Two windows: each token is to read those of its own half."""
    half = np.arange(TOKENS) < TOKENS // 2
    return np.where(half[:, None] == half[None], 0, lowest).astype(np.float32)[None]


def model_of(body: str, **weights: np.ndarray) -> ir.Model:
    read = f"{SCORES} {body} {ATTEND}"
    return network(f"float[n, {TOKENS}, 8] x", "float[n, k, j] y", read, e=WEIGHTS, **weights)


def feed() -> np.ndarray:
    return normal(60, TOKENS, 8, seed=2) * 0.7


@pytest.mark.parametrize("lowest", [-100.0, -10000.0, -1e6])
@pytest.mark.parametrize("target", ["integer-only", "tflite"])
def test_scores_keep_their_levels(lowest: float, target: str) -> None:
    model = model_of("s = Add(l, m)", m=mask(lowest))
    statistics = seen(model, feed())
    plan = planned(model, statistics, target)
    encoding = plan.encodings["s"]
    assert isinstance(encoding, Encoding)
    read = statistics.of("l")
    span = float(encoding.maximum) - float(encoding.minimum)
    assert span <= (read.maximum - read.minimum + MARGIN) * 1.1
    found = run(lower_to_qdq(model, plan), feed())
    assert sqnr(run(model, feed()), found) > (24 if target == "integer-only" else 15)


def weights_of(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


ORDERS = {
    "mask last": ("b = Add(l, r)  s = Add(b, m)", {"b": ("l", "r"), "s": ("b", "m")}),
    "mask first": ("b = Add(l, m)  s = Add(r, b)", {"b": ("l", "m"), "s": ("r", "b")}),
    "bias in the mask": ("s = Add(l, m)", {"s": ("l", "m")}),
}


@settings(max_examples=25)
@given(
    lowest=st.sampled_from([-30.0, -100.0, -1e4, -1e6]), spread=st.floats(0.1, 6), bias=st.floats(0, 4),
    order=st.sampled_from(list(ORDERS)), seed=st.integers(0, 99),
)  # fmt: skip
def test_no_softmax_changes_where_values_saturate_at_their_floors(
    lowest: float, spread: float, bias: float, order: str, seed: int
) -> None:
    table = (normal(1, TOKENS, TOKENS, seed=seed) * bias).astype(np.float32)
    body, sums = ORDERS[order]
    constants = {"m": mask(lowest) + table} if order == "bias in the mask" else {"m": mask(lowest), "r": table}
    model = model_of(body, **constants)
    numbers = (feed()[:8] * spread).astype(np.float32)
    floors = score_floors(model, collect(model, batches_of(model, {"x": numbers})))
    k = numbers @ WEIGHTS
    exact = {"l": k @ k.transpose(0, 2, 1), **constants}
    saturated = {name: array if name not in floors else np.maximum(array, floors[name].lowest)
                 for name, array in exact.items()}  # fmt: skip
    for name, (first, second) in sums.items():
        exact[name] = exact[first] + exact[second]
        saturated[name] = np.maximum(
            saturated[first] + saturated[second], floors[name].lowest if name in floors else -np.inf
        )
    assert np.abs(weights_of(saturated["s"]) - weights_of(exact["s"])).max() <= TOKENS * np.exp(-MARGIN)


def test_a_mask_that_something_else_reads_keeps_its_range() -> None:
    model = network(
        f"float[n, {TOKENS}, 8] x", f"float[n, k, j] y, float[1, {TOKENS}, {TOKENS}] z",
        f"{SCORES} s = Add(l, m)  {ATTEND}  z = Neg(m)", e=WEIGHTS, m=mask(-1e4),
    )  # fmt: skip
    assert "m" not in score_floors(model, seen(model, feed()))
    assert "s" in score_floors(model, seen(model, feed()))


def test_scores_without_a_mask_have_no_floor() -> None:
    model = model_of("s = Add(l, m)", m=normal(1, TOKENS, TOKENS, seed=4))
    assert not score_floors(model, seen(model, feed()))
    # Scores themselves may have outliers: these are no mask.
    outlier = feed()
    outlier[0, 0] *= 30
    model = model_of("s = Add(l, m)", m=np.zeros((1, TOKENS, TOKENS), np.float32))
    assert not score_floors(model, seen(model, outlier))


def test_a_constant_with_rows_that_are_all_low_is_no_mask() -> None:
    rows = np.zeros((1, TOKENS, TOKENS), np.float32)
    rows[0, 2] = -40
    model = model_of("s = Add(l, m)", m=rows)
    assert not score_floors(model, seen(model, feed()))


def test_a_mask_of_an_input_is_found_behind_its_arithmetic() -> None:
    body = "c = Cast<to = 1>(mask)  d = Sub(one, c)  w = Mul(d, low)  s = Add(l, w)"
    model = network(
        f"float[n, {TOKENS}, 8] x, int64[n, 1, {TOKENS}] mask", "float[n, k, j] y", f"{SCORES} {body} {ATTEND}",
        e=WEIGHTS, one=np.float32(1), low=np.float32(-10000),
    )  # fmt: skip
    kept = (np.arange(TOKENS) < np.arange(60)[:, None, None] % TOKENS + 1).astype(np.int64)
    statistics = seen(model, {"x": feed(), "mask": kept})
    floors = score_floors(model, statistics)
    assert set(floors) == {"s", "w"}
    assert -500 < floors["w"].lowest < -MARGIN
    assert floors["w"].lowest + statistics.of("l").maximum <= floors["s"].lowest + 1e-5


@pytest.mark.parametrize("move", ["Identity(b)", "Dropout(b)", "Cast<to = 1>(b)"])
def test_a_mask_is_found_behind_what_hands_it_on(move: str) -> None:
    model = model_of(f"b = Add(l, m)  s = {move}", m=mask(-10000.0))
    floors = score_floors(model, seen(model, feed()))
    assert floors["s"].lowest == floors["b"].lowest > -100


DIRECT = {
    "as they come": "s = Identity(x)",
    "scaled": "s = Mul(x, half)",
    "with a bias": "s = Add(x, r)",
    "of two inputs": "s = Add(x, z)",
    "cut": "b = Add(x, r)  s = Clip(b, low)",
}


@pytest.mark.parametrize("body", DIRECT)
def test_scores_that_are_inputs_are_no_masks(body: str) -> None:
    """Rows that are low as a whole attend to what is greatest among the low ones."""
    constants = {"half": np.float32(0.5), "low": np.float32(-1000), "r": normal(TOKENS, TOKENS, seed=5)}
    model = network(
        f"float[n, {TOKENS}, {TOKENS}] x, float[n, {TOKENS}, {TOKENS}] z", "float[n, k, j] y",
        f"{DIRECT[body]}  y = Softmax<axis = -1>(s)",
        **{name: array for name, array in constants.items() if name in DIRECT[body]},
    )  # fmt: skip
    scores = normal(60, TOKENS, TOKENS, seed=3)
    scores[:, ::2] -= 60
    both = {"x": scores, "z": normal(60, TOKENS, TOKENS, seed=4)}
    statistics = seen(model, both)
    assert not score_floors(model, statistics)
    found = run(lower_to_qdq(model, planned(model, statistics, "integer-only")), both)
    assert sqnr(run(model, both), found) > 15


def test_a_wide_bin_is_no_gap() -> None:
    """At 2048 and beyond a bin of the histogram is as wide as a gap."""
    model = network(
        f"float[n, {TOKENS}, 8] x, float[n, {TOKENS}, {TOKENS}] z", "float[n, k, j] y",
        f"{SCORES} m = Neg(z)  s = Add(l, m)  {ATTEND}", e=WEIGHTS,
    )  # fmt: skip
    numbers = np.linspace(-5000, 5000, 60 * TOKENS * TOKENS, dtype=np.float32).reshape(60, TOKENS, TOKENS)
    assert not score_floors(model, seen(model, {"x": feed(), "z": numbers}))
    masked = np.where(np.arange(TOKENS) < TOKENS // 2, numbers, 30_000).astype(np.float32)
    assert set(score_floors(model, seen(model, {"x": feed(), "z": masked}))) == {"s", "m"}


def test_statistics_above_a_number() -> None:
    model = network("float[n, 4] x", "float[n, 4] y", "y = Neg(x)")
    numbers = np.array([[-300, -100, -3, -1], [0, 1, 5, 9]], np.float32)
    tensor = seen(model, numbers).of("x")
    kept = above(tensor, -4.0)
    assert (kept.minimum, kept.maximum) == (-4.0, 9.0)
    assert kept.histogram.total == 6
