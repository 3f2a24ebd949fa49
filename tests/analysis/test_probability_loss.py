"""What rounding shares loses, beside the lowered network and sums over the elements."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrowgauge.analysis.loss import loss_from_statistics, measured_loss
from narrowgauge.analysis.loss_sums import entropy_bits
from narrowgauge.analysis.probability_loss import probability_sums, round_probabilities
from narrowgauge.core.encoding import LogEncoding, NormalizedEncoding
from narrowgauge.core.numbers import integer_type
from narrowgauge.core.plan import Plan
from narrowgauge.lowering.qdq import lower_to_qdq
from tests.analysis.exact import batched
from tests.planning.networks import network, normal, run, seen

UINT4, UINT8 = integer_type("uint4"), integer_type("uint8")
LOGARITHM = LogEncoding(type=UINT4)
PARTED = LogEncoding(type=UINT8, octave_bits=4, threshold="square_root_of_two")
SHARES = NormalizedEncoding(type=UINT8)
ALL = [LOGARITHM, PARTED, SHARES, *(dataclasses.replace(one, normalized=True) for one in (LOGARITHM, PARTED))]


def softmax(logits: np.ndarray) -> np.ndarray:
    parts = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.float32(parts / parts.sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("encoding", ALL)
def test_numbers_become_those_of_the_lowered_network(encoding: LogEncoding | NormalizedEncoding) -> None:
    x = softmax(normal(400, 6) * 5)
    x[7] = 0
    lowered = lower_to_qdq(
        network("float[n, 6] x", "float[n, k] y", "y = Abs(x)"), Plan(target="t", encodings={"x": encoding})
    )
    np.testing.assert_allclose(round_probabilities(x, encoding)[1], run(lowered, x), rtol=1e-6)


ROWS = st.lists(st.lists(st.floats(-30, 30), min_size=6, max_size=6), min_size=1, max_size=8)


@pytest.mark.parametrize("encoding", ALL)
@given(rows=ROWS)
def test_both_errors_add_up_to_that_of_the_elements(rows: list[list[float]], encoding: LogEncoding) -> None:
    x = softmax(np.array(rows))
    levels, meant = round_probabilities(x, encoding)
    sums = probability_sums(x, encoding)
    squares = (meant.astype(np.float64) - x) ** 2
    assert sums.rounding + sums.clipping == pytest.approx(squares.sum())
    assert sums.signal == pytest.approx(np.sum(x.astype(np.float64) ** 2))
    assert (sums.minimum, sums.maximum, sums.elements) == (x.min(), x.max(), x.size)
    np.testing.assert_array_equal(sums.levels, np.bincount(levels.reshape(-1), minlength=encoding.type.levels))
    parts = [probability_sums(row[np.newaxis], encoding) for row in x]
    assert sum(part.rounding for part in parts) == pytest.approx(sums.rounding)


@given(rows=ROWS)
def test_shares_are_never_clipped_and_logarithms_where_they_become_zero(rows: list[list[float]]) -> None:
    x = softmax(np.array(rows))
    shares = probability_sums(x, SHARES)
    assert (shares.clipping, shares.clipped) == (0, 0)
    logarithms = probability_sums(x, LOGARITHM)
    lost = x[(round_probabilities(x, LOGARITHM)[1] == 0) & (x > 0)].astype(np.float64)
    assert logarithms.clipped == lost.size
    assert logarithms.clipping == pytest.approx((lost**2).sum())
    assert (lost < LOGARITHM.values[-2]).all()


def test_an_exact_zero_is_no_loss() -> None:
    x = np.float32([[0.5, 0.5, 0, 0]])
    for encoding in ALL:
        sums = probability_sums(x, encoding)
        assert (sums.rounding, sums.clipping, sums.clipped) == (0, 0, 0)


@pytest.mark.parametrize(("encoding", "name"), [(LOGARITHM, "log2 4 bits"), (SHARES, "shares 8 bits")])
def test_a_softmax_has_a_loss_beside_affine_tensors(encoding: LogEncoding | NormalizedEncoding, name: str) -> None:
    model = network("float[n, 8] x", "float[n, 8] y", "p = Softmax(x) y = Neg(p)")
    samples = normal(40, 8) * 4
    plan = Plan(target="t", encodings={"p": encoding})
    (loss,) = measured_loss(model, plan, batched(model, {"x": samples}))
    p = softmax(samples)
    levels, meant = round_probabilities(p, encoding)
    assert (loss.name, loss.operator, loss.type, loss.measured) == ("p", "Softmax", name, True)
    assert loss.error == pytest.approx(float(np.mean((meant - p) ** 2)), rel=1e-3)
    assert loss.levels_used == len(np.unique(levels))
    counts = np.bincount(levels.reshape(-1)).astype(np.float64)
    assert loss.entropy_bits == pytest.approx(entropy_bits(counts), rel=1e-3)
    assert loss.entropy_bits + loss.wasted_bits == encoding.type.bits
    assert loss.range == ((2**-14, 1) if encoding is LOGARITHM else (0, 1))
    assert loss_from_statistics(model, plan, seen(model, samples)) == ()
