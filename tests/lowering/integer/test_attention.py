"""Softmax in levels that are not affine, and the product behind it, against `core.integer_softmax`, level for level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrowgauge.core.encoding import AnyEncoding, Encoding, LogEncoding, NormalizedEncoding
from narrowgauge.core.engines.arithmetics import KERNELS
from narrowgauge.core.engines.kernels import UNBOUNDED, Layer
from narrowgauge.core.integer_exponential import code_weights, exponential_codes, exponential_table
from narrowgauge.core.integer_logarithm import Threshold
from narrowgauge.core.integer_softmax import UniformSoftmax, attention_by_shifts, deferred_softmax, log_int_softmax
from narrowgauge.core.numbers import integer_type
from narrowgauge.core.plan import Plan
from narrowgauge.graph.engine import open_session
from narrowgauge.importers.onnx import load
from narrowgauge.lowering.integer.attention import share_levels, share_weights
from narrowgauge.lowering.qdq import QdqStyle, lower_to_qdq
from tests.lowering.integer.networks import encoding, levels_of, lowered, random_levels, real
from tests.passes.networks import network, node

INTEGER_ONLY = KERNELS["integer-only"]
UINT4, UINT8 = integer_type("uint4"), integer_type("uint8")
SHARES = NormalizedEncoding(type=UINT8)
CODES_4 = LogEncoding(type=UINT4, threshold="square_root_of_two", normalized=True)
CODES_8 = LogEncoding(type=UINT8, octave_bits=4, threshold="square_root_of_two", normalized=True)
THREE_HALVES = LogEncoding(type=UINT4, normalized=True)
NORMALIZED: list[LogEncoding | NormalizedEncoding] = [
    SHARES, NormalizedEncoding(type=UINT4), NormalizedEncoding(type=integer_type("uint15")), CODES_4, CODES_8,
    THREE_HALVES,
]  # fmt: skip
ATTENTION = [node("Softmax", "x", "p", axis=-1), node("MatMul", "p v", "y")]


def simulated(
    encodings: Mapping[str, AnyEncoding], inputs: Mapping[str, Sequence[int | str]],
    nodes: Sequence[onnx.NodeProto] = ATTENTION, constants: Mapping[str, np.ndarray] | None = None,
    outputs: Sequence[str] = ("y",),
) -> Any:  # fmt: skip
    model = load(network(nodes, inputs, list(outputs), dict(constants or {})), simplify=False).model
    return lower_to_qdq(model, Plan(target="by hand", encodings=encodings), QdqStyle(drop_clips=False))


def computed(
    encodings: Mapping[str, AnyEncoding], levels: Mapping[str, np.ndarray],
    nodes: Sequence[onnx.NodeProto] = ATTENTION, constants: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Run attention in integers, the batch unknown, and return all levels."""
    found = lowered(
        simulated(encodings, {name: ["n", *one.shape[1:]] for name, one in levels.items()}, nodes, constants),
        INTEGER_ONLY,
    )
    assert found.refusals == ()
    kinds = {name: one for name, one in encodings.items() if isinstance(one, Encoding)}
    result = levels_of(found.model, {name: real(one, kinds[name]) for name, one in levels.items()})
    for name, one in levels.items():
        np.testing.assert_array_equal(result[f"{name}_quantized"], one)
    return result


def logits(generator: np.random.Generator, shape: Sequence[int], kind: Encoding) -> np.ndarray:
    """Draw levels; the first row's are all equal, the second one's at both ends."""
    limits = np.iinfo(kind.type.storage)
    levels = random_levels(generator, shape, kind)
    spread = generator.normal(0, 0.1, shape) * (limits.max - limits.min)
    levels = np.where(generator.random() < 0.5, levels, np.clip(spread, limits.min, limits.max)).astype(levels.dtype)
    rows = levels.reshape(-1, shape[-1])
    rows[0] = rows[0, 0]
    rows[-1], rows[-1, -1] = limits.min, limits.max
    return rows.reshape(shape)


@st.composite
def cases(draw: st.DrawFn) -> tuple[dict[str, np.ndarray], dict[str, Encoding]]:
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    leading = draw(st.sampled_from([(1,), (3,), (2, 3), (1, 2, 2)]))
    queries, tokens = draw(st.integers(1, 9)), draw(st.sampled_from([1, 2, 5, 49, 197, 257, 300]))
    kind = draw(st.sampled_from(["uint8", "int8", "int16"]))
    input = encoding(kind, draw(st.floats(0.01, 0.3)) / (200 if kind == "int16" else 1), 3)
    kind = draw(st.sampled_from(["uint8", "int8"]))
    values = encoding(kind, draw(st.sampled_from([0.05, 0.0021])), draw(st.sampled_from([-7, 0, 100])) % 128)
    kind = draw(st.sampled_from(["uint8", "int8", "int16"]))
    output = encoding(kind, float(values.scale) * draw(st.sampled_from([0.02, 0.3, 1.0, 7.0])), 11)
    levels = {
        "x": logits(generator, (*leading, queries, tokens), input),
        "v": random_levels(generator, (*leading, tokens, draw(st.integers(1, 5))), values),
    }
    return levels, {"x": input, "v": values, "y": output}


def steps(levels: np.ndarray, kind: Encoding) -> np.ndarray:
    return levels.astype(np.int64) - int(kind.zero_point)


def shares(scale: float, kind: LogEncoding | NormalizedEncoding, differences: np.ndarray) -> np.ndarray:
    """The levels of exponentials, by the definitions of the core."""
    if isinstance(kind, NormalizedEncoding):
        return exponential_table(scale, bits=kind.type.bits, count=2**16)[differences]
    codes = exponential_codes(scale, bits=kind.type.bits, octave_bits=kind.octave_bits, count=2**16)
    return np.minimum(codes, kind.type.maximum)[differences]


@settings(max_examples=40)
@given(cases(), st.sampled_from([one for one in NORMALIZED if one is not THREE_HALVES]))
def test_shares_times_values_are_those_of_the_definition(
    case: tuple[dict[str, np.ndarray], dict[str, Encoding]], kind: LogEncoding | NormalizedEncoding
) -> None:
    levels, encodings = case
    tokens = levels["x"].shape[-1]
    if isinstance(kind, NormalizedEncoding) and kind.type.bits == 15 and tokens > 257:
        return
    found = computed({**encodings, "p": kind}, levels)
    wide = levels["x"].astype(np.int64)
    scale = float(encodings["x"].scale)
    expected = shares(scale, kind, wide.max(axis=-1, keepdims=True) - wide)
    np.testing.assert_array_equal(found["p_quantized"], expected)
    exponentials = share_weights(kind, tokens)[shares(scale, kind, np.arange(2**16))]
    form = deferred_softmax(exponentials, encodings["v"], encodings["y"])
    np.testing.assert_array_equal(found["y_quantized"], form.levels(wide, steps(levels["v"], encodings["v"])))


@pytest.mark.parametrize("kind", NORMALIZED)
def test_levels_are_those_of_the_simulation_but_for_ties(kind: LogEncoding | NormalizedEncoding) -> None:
    generator = np.random.default_rng(4)
    encodings = {"x": encoding("uint8", 0.07, 100), "v": encoding("uint8", 0.02, 120), "y": encoding("uint8", 0.01, 99)}
    levels = {
        "x": logits(generator, (2, 3, 50, 197), encodings["x"]),
        "v": random_levels(generator, (2, 3, 197, 8), encodings["v"]),
    }
    shapes = {name: ["n", *one.shape[1:]] for name, one in levels.items()}
    qdq = simulated({**encodings, "p": kind}, shapes)
    feed = {name: real(one, encodings[name]) for name, one in levels.items()}
    names = ["p_quantized", "y_quantized"]
    values = {str(value.name): value for one in qdq.graph for value in one.outputs}
    qdq.graph.outputs.extend(values[name] for name in names)
    wanted = dict(zip(names, open_session(qdq, threads=1).run(names, feed), strict=True))
    found = computed({**encodings, "p": kind}, levels)
    for name, share in zip(names, (0.002, 0.02), strict=True):
        difference = np.abs(found[name].astype(int) - wanted[name].astype(int))
        assert difference.max() <= 1
        assert difference.mean() < share


def test_codes_weigh_all_that_int32_sums_hold() -> None:
    np.testing.assert_array_equal(share_weights(CODES_4, 257)[:-1], code_weights()[:15])
    assert [int(share_weights(CODES_4, tokens).max()) for tokens in (257, 258, 1028, 1029)] == [
        2**15, 2**14, 2**13, 2**12
    ]  # fmt: skip
    assert share_weights(CODES_8, 10)[-1] == 0
    assert share_levels(0.1, THREE_HALVES, count=256)[:9].tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("factors", ["x factor", "factor x"])
def test_a_constant_factor_counts_into_the_scale(factors: str) -> None:
    generator = np.random.default_rng(5)
    kinds = {"x": encoding("uint8", 0.5, 3), "v": encoding("uint8", 0.02, 120), "y": encoding("uint8", 0.01, 99)}
    levels = {"x": logits(generator, (2, 4, 9), kinds["x"]), "v": random_levels(generator, (2, 9, 3), kinds["v"])}
    nodes = [node("Mul", factors, "z"), node("Softmax", "z", "p"), node("MatMul", "p v", "y")]
    found = computed({**kinds, "p": SHARES}, levels, nodes, {"factor": np.float32(0.125)})
    wide = levels["x"].astype(np.int64)
    table = exponential_table(0.0625, bits=8)
    np.testing.assert_array_equal(found["p_quantized"], table[wide.max(axis=-1, keepdims=True) - wide])


def test_values_may_be_constant_and_several_products_have_their_own() -> None:
    generator = np.random.default_rng(6)
    kinds = {"x": encoding("uint8", 0.05, 3), "v": encoding("uint8", 0.02, 120), "y": encoding("uint8", 0.01, 99)}
    levels = {"x": logits(generator, (2, 4, 9), kinds["x"])}
    numbers = random_levels(generator, (9, 3), kinds["v"])
    nodes = [
        node("Softmax", "x", "p"), node("MatMul", "p v", "a"), node("Softmax", "x", "q"), node("MatMul", "q v", "b"),
        node("Add", "a b", "y"),
    ]  # fmt: skip
    encodings = {**kinds, "p": SHARES, "q": CODES_4, "a": kinds["y"], "b": kinds["y"]}
    found = computed(encodings, levels, nodes, {"v": real(numbers, kinds["v"])})
    for name, kind in (("a", SHARES), ("b", CODES_4)):
        exponentials = share_weights(kind, 9)[share_levels(float(np.float32(0.05)), kind, count=256)]
        form = deferred_softmax(exponentials, kinds["v"], kinds["y"])
        expected = form.levels(levels["x"].astype(np.int64), steps(numbers, kinds["v"]))
        np.testing.assert_array_equal(found[f"{name}_quantized"], expected)


@pytest.mark.parametrize("kind", [SHARES, CODES_4, CODES_8, NormalizedEncoding(type=integer_type("uint12"))])
def test_the_number_of_tokens_may_be_unknown(kind: LogEncoding | NormalizedEncoding) -> None:
    generator = np.random.default_rng(9)
    kinds = {"x": encoding("uint8", 0.05, 3), "v": encoding("int8", 0.02, -20), "y": encoding("uint8", 0.01, 99)}
    shapes = {"x": ["n", 4, "t"], "v": ["n", "t", 3]}
    found = lowered(simulated({**kinds, "p": kind}, shapes), INTEGER_ONLY)
    assert found.refusals == ()
    exponentials = share_weights(kind, None)[share_levels(float(np.float32(0.05)), kind, count=256)]
    form = deferred_softmax(exponentials, kinds["v"], kinds["y"])
    for tokens in (1, 7, 257):
        levels = {
            "x": logits(generator, (2, 4, tokens), kinds["x"]),
            "v": random_levels(generator, (2, tokens, 3), kinds["v"]),
        }
        result = levels_of(found.model, {name: real(one, kinds[name]) for name, one in levels.items()})
        expected = form.levels(levels["x"].astype(np.int64), steps(levels["v"], kinds["v"]))
        np.testing.assert_array_equal(result["y_quantized"], expected)
    feed = {"x": np.ones((1, 4, 33026), np.float32), "v": np.ones((1, 33026, 3), np.float32)}
    with pytest.raises(Exception, match="dimension"):
        open_session(found.model, threads=1).run(["y"], feed)


@pytest.mark.parametrize("kind", [SHARES, CODES_4])
def test_probabilities_may_have_fewer_axes_than_values(kind: LogEncoding | NormalizedEncoding) -> None:
    generator = np.random.default_rng(10)
    kinds = {"x": encoding("uint8", 0.05, 3), "v": encoding("uint8", 0.02, 120), "y": encoding("uint8", 0.01, 99)}
    levels = {"x": logits(generator, (5, 20), kinds["x"]), "v": random_levels(generator, (2, 3, 20, 4), kinds["v"])}
    qdq = simulated({**kinds, "p": kind}, {"x": [5, 20], "v": ["n", 3, 20, 4]})
    found = lowered(qdq, INTEGER_ONLY)  # every shape in it is checked
    assert found.refusals == ()
    result = levels_of(found.model, {name: real(one, kinds[name]) for name, one in levels.items()})
    exponentials = share_weights(kind, 20)[share_levels(float(np.float32(0.05)), kind, count=256)]
    form = deferred_softmax(exponentials, kinds["v"], kinds["y"])
    expected = form.levels(levels["x"].astype(np.int64), steps(levels["v"], kinds["v"]))
    np.testing.assert_array_equal(result["y_quantized"], expected)


@pytest.mark.parametrize("kind", ["uint8", "int8", "int16"])
def test_an_activation_function_behind_the_product_cuts_its_levels(kind: str) -> None:
    generator = np.random.default_rng(11)
    kinds = {"x": encoding("uint8", 0.05, 3), "v": encoding("uint8", 0.02, 120), "y": encoding(kind, 0.01, 99)}
    levels = {"x": logits(generator, (2, 4, 9), kinds["x"]), "v": random_levels(generator, (2, 9, 3), kinds["v"])}
    found = computed(
        {**kinds, "p": SHARES}, levels, [*ATTENTION[:1], node("MatMul", "p v", "m"), node("Relu", "m", "y")]
    )
    form = deferred_softmax(exponential_table(float(np.float32(0.05)), bits=8), kinds["v"], kinds["y"])
    expected = form.levels(levels["x"].astype(np.int64), steps(levels["v"], kinds["v"]))
    assert (expected < 99).any()
    np.testing.assert_array_equal(found["y_quantized"], np.maximum(expected, 99))


@pytest.mark.parametrize("output", ["uint8", "uint16"])
def test_an_affine_softmax_takes_rows_of_any_extent(output: str) -> None:
    kinds = {"x": encoding("uint8", 0.05, 3), "y": encoding(output, 1 / (2 ** integer_type(output).bits - 1))}
    found = lowered(simulated(kinds, {"x": ["n", 4, "t"]}, [node("Softmax", "x", "y")]), INTEGER_ONLY)
    assert found.refusals == ()
    table, most = exponential_table(float(kinds["x"].scale), count=256), integer_type(output).maximum
    generator = np.random.default_rng(12)
    for tokens in (1, 7, 300, 70_000):
        wide = (levels := logits(generator, (1, 4, tokens), kinds["x"])).astype(np.int64)
        result = levels_of(found.model, {"x": real(levels, kinds["x"])})
        parts = table[wide.max(axis=-1, keepdims=True) - wide]
        total = parts.sum(axis=-1, keepdims=True)
        quotient, rest = np.divmod(2 * most * parts + total, 2 * total)
        expected = quotient - ((rest == 0) & (quotient % 2 == 1))  # half to even
        np.testing.assert_array_equal(result["y_quantized"], expected)


def test_engines_with_exponentials_in_real_numbers_refuse_rows_of_unknown_extent() -> None:
    kinds = {"x": encoding("uint8", 0.05, 3), "y": encoding("uint8", 1 / 256)}
    found = lowered(simulated(kinds, {"x": ["n", "t"]}, [node("Softmax", "x", "y")]), KERNELS["xnnpack"])
    assert [one.reason for one in found.refusals] == ["the extent of its axis is not known"]


@pytest.mark.parametrize("kind", ["uint8", "int16"])
def test_an_affine_softmax_stays_one(kind: str) -> None:
    kinds = {
        "x": encoding(kind, 0.05 if kind == "uint8" else 0.0002, 3), "p": encoding("uint8", 1 / 255),
        "v": encoding("uint8", 0.02, 120), "y": encoding("uint8", 0.01, 99),
    }  # fmt: skip
    generator = np.random.default_rng(7)
    levels = {"x": logits(generator, (2, 4, 9), kinds["x"]), "v": random_levels(generator, (2, 9, 3), kinds["v"])}
    found = computed(kinds, levels)
    wide = levels["x"].astype(np.int64)
    expected = UniformSoftmax(exponentials=exponential_table(float(kinds["x"].scale), count=2**16)).levels(wide)
    np.testing.assert_array_equal(found["p_quantized"], expected)  # no ties, which fall on even levels here


# --- logarithms of probabilities


@settings(max_examples=40)
@given(cases(), st.sampled_from(["three_halves", "square_root_of_two"]), st.sampled_from([2, 3, 4, 5, 8]))
def test_log_int_softmax_is_that_of_the_definition(
    case: tuple[dict[str, np.ndarray], dict[str, Encoding]], threshold: Threshold, bits: int
) -> None:
    levels, encodings = case
    kind = LogEncoding(type=integer_type(f"uint{bits}"), threshold=threshold)
    found = computed({**encodings, "p": kind}, levels)
    wide, scale = levels["x"].astype(np.int64), float(encodings["x"].scale)
    table = exponential_table(scale, count=2**16)
    form = log_int_softmax(table, bits=bits, threshold=threshold, tokens=wide.shape[-1])
    codes = np.minimum(form.codes(wide), kind.type.maximum)
    np.testing.assert_array_equal(found["p_quantized"], codes)
    codes = np.where(codes == kind.type.maximum, 2**bits, codes)  # the last level means 0
    sums = attention_by_shifts(codes, steps(levels["v"], encodings["v"]), bits=bits)
    layer = Layer(
        kind="batch_product", input=encoding("uint16", 2.0**-15), weights=encodings["v"], output=encodings["y"],
        bounds=UNBOUNDED,
    )  # fmt: skip
    np.testing.assert_array_equal(found["y_quantized"], INTEGER_ONLY.layer(layer).rescale.levels(sums))


# --- what cannot be done

CODES_4_OF_ALL = LogEncoding(type=UINT4)
PARTED = LogEncoding(type=UINT8, octave_bits=4, threshold="square_root_of_two")


@pytest.mark.parametrize(
    ("change", "operator", "reason"),
    [
        ({"v": encoding("int16", 0.001)}, "MatMul", "expected values of 8 bits"),
        ({"y": encoding("uint8", 1e-12)}, "MatMul", "proportion"),
        ({"p": PARTED}, "Softmax", "codes of whole octaves"),
        ({"axis": 1}, "Softmax", "its rows lie along axis 1"),
        ({"tokens": "t", "p": CODES_4_OF_ALL}, "Softmax", "the number of its tokens is not known"),
        ({"tokens": 40000}, "MatMul", "do not fit int32"),
        ({"rule": "xnnpack"}, "Softmax", "xnnpack has no integer arithmetic for Softmax in levels of uint8"),
    ],
)
def test_what_cannot_be_computed_says_why(change: dict[str, Any], operator: str, reason: str) -> None:
    change = dict(change)
    tokens, axis = change.pop("tokens", 9), change.pop("axis", -1)
    kernels = KERNELS[change.pop("rule", "integer-only")]
    encodings = {
        "x": encoding("uint8", 0.05, 3), "p": SHARES, "v": encoding("uint8", 0.02, 120), "y": encoding("uint8", 0.01),
        **change,
    }  # fmt: skip
    nodes = [node("Softmax", "x", "p", axis=axis), node("MatMul", "p v", "y")]
    found = lowered(simulated(encodings, {"x": ["n", 4, tokens], "v": ["n", tokens, 3]}, nodes), kernels)
    reasons = {one.operator: one.reason for one in found.refusals}
    assert reason in reasons[operator]


@pytest.mark.parametrize("change", [{"v": encoding("int16", 0.001)}, {"x": encoding("int16", 0.001)}, {"p": PARTED}])
def test_what_is_left_in_real_numbers_is_what_it_was(change: dict[str, AnyEncoding]) -> None:
    generator = np.random.default_rng(8)
    kinds = {"x": encoding("uint8", 0.05, 3), "v": encoding("uint8", 0.02, 99), "y": encoding("uint8", 0.01, 120)}
    kinds.update({name: one for name, one in change.items() if isinstance(one, Encoding)})
    levels = {"x": logits(generator, (2, 4, 9), kinds["x"]), "v": random_levels(generator, (2, 9, 3), kinds["v"])}
    encodings = {**kinds, "p": SHARES, **change}
    qdq = simulated(encodings, {name: ["n", *one.shape[1:]] for name, one in levels.items()})
    found = lowered(qdq, INTEGER_ONLY)
    feed = {name: real(one, kinds[name]) for name, one in levels.items()}
    results = [open_session(model, threads=1).run(["y"], feed)[0] for model in (qdq, found.model)]
    assert np.abs(results[0] - results[1]).max() <= 0.0101
    assert np.abs(results[0]).max() > 0.1


@pytest.mark.parametrize("shape", [(5, 20), (1, 20), (4, 5, 20), (5, 5, 20)])
def test_a_product_with_a_vector_is_left_in_real_numbers(shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(13)
    kinds = {"x": encoding("uint8", 0.05, 3), "v": encoding("uint8", 0.02, 99), "y": encoding("uint8", 0.01, 120)}
    levels = {"x": logits(generator, shape, kinds["x"]), "v": random_levels(generator, (20,), kinds["v"])}
    qdq = simulated({**kinds, "p": SHARES}, {"x": ["n", *shape[1:]], "v": [20]})
    found = lowered(qdq, INTEGER_ONLY)
    reasons = {one.operator: one.reason for one in found.refusals}
    assert reasons["MatMul"] == "its values have no axis of channels"
    feed = {name: real(one, kinds[name]) for name, one in levels.items()}
    results = [open_session(model, threads=1).run(["y"], feed)[0] for model in (qdq, found.model)]
    assert results[1].shape == shape[:-1]
    assert np.abs(results[0] - results[1]).max() <= 0.0101


def test_a_factor_of_more_axes_is_left_in_real_numbers() -> None:
    generator = np.random.default_rng(14)
    kinds = {"x": encoding("uint8", 0.05, 3), "v": encoding("uint8", 0.02, 99), "y": encoding("uint8", 0.01, 120)}
    levels = {"x": logits(generator, (2, 4, 9), kinds["x"]), "v": random_levels(generator, (2, 9, 3), kinds["v"])}
    nodes = [node("Mul", "x factor", "z"), node("Softmax", "z", "p"), node("MatMul", "p v", "y")]
    shapes = {name: ["n", *one.shape[1:]] for name, one in levels.items()}
    qdq = simulated({**kinds, "p": SHARES}, shapes, nodes, {"factor": np.full((1, 1, 1, 1), 0.125, np.float32)})
    found = lowered(qdq, INTEGER_ONLY)
    assert {"Mul", "Softmax"} <= {one.operator for one in found.refusals}
    feed = {name: real(one, kinds[name]) for name, one in levels.items()}
    results = [open_session(model, threads=1).run(["y"], feed)[0] for model in (qdq, found.model)]
    assert results[1].shape == (1, 2, 4, 3)
    assert np.abs(results[0] - results[1]).max() <= 0.0101
