"""Tensor by tensor against numpy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrowgauge.analysis import tensors
from narrowgauge.analysis.pairing import Pair, Tensor, pair_values
from narrowgauge.analysis.tensors import TensorRow, compare_values, exposed, first_difference, to_json, worst
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import PerAxis, PerTensor
from narrowgauge.core.numbers import integer_type
from narrowgauge.errors import RuntimeFailure
from tests.planning.networks import network, normal


@dataclass(frozen=True, kw_only=True)
class Fed:
    feed: Mapping[str, np.ndarray]
    count: int

    @property
    def names(self) -> list[str]:
        return ["sample"] * self.count

    @property
    def labels(self) -> list[None]:
        return [None] * self.count


def encoding(type: str = "uint8", scale: Any = 0.5, zero_point: Any = 0, axis: int | None = None) -> Encoding:
    granularity = PerTensor() if axis is None else PerAxis(axis)
    return Encoding(
        type=integer_type(type), granularity=granularity, scale=np.float32(scale), zero_point=np.int32(zero_point)
    )


def tensor(of: Encoding | None = None) -> Tensor:
    return Tensor(name="t", value="t", encoding=of, node="node", operator="Conv", depth=0, shape=None)


def row(
    ones: Sequence[np.ndarray], others: Sequence[np.ndarray], one: Encoding | None = None, other: Encoding | None = None
) -> TensorRow:
    """Compare arrays as if two networks had computed them, a pair for each batch."""

    def table(arrays: Sequence[np.ndarray]) -> Any:
        return lambda names: lambda feed: {"t": arrays[int(feed["number"])]}

    batches = [Fed(feed={"number": np.array(number)}, count=1) for number in range(len(ones))]
    pair = Pair(first=tensor(one), second=tensor(other), matched="name")
    return compare_values(table(ones), table(others), batches, [pair])[0]


def test_real_numbers() -> None:
    one, other = normal(6, 4), normal(6, 4) + normal(6, 4)[::-1] / 50
    found = row([one[:4], one[4:]], [other[:4], other[4:]])
    a, b = one.astype(np.float64), other.astype(np.float64)
    assert found.elements == 24
    assert found.sqnr_db == pytest.approx(10 * np.log10(np.sum(a**2) / np.sum((a - b) ** 2)))
    assert found.max_difference == pytest.approx(np.abs(a - b).max())
    assert found.cosine == pytest.approx(np.sum(a * b) / np.sqrt(np.sum(a**2) * np.sum(b**2)))
    assert found.integers is None
    assert found.differs
    assert found.remark == ""


@given(
    st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), min_size=1, max_size=30),
    st.integers(1, 4),
)
def test_integers_of_one_scale(pairs: list[tuple[int, int]], pieces: int) -> None:
    """However the elements are cut into batches; int8 whose zero point lies 128 lower holds the same numbers."""
    one, other = np.array(pairs, dtype=np.uint8).T
    shifted = (other.astype(int) - 128).astype(np.int8)
    difference = np.abs(one.astype(int) - other)
    for second, of in ((other, encoding(zero_point=100)), (shifted, encoding("int8", zero_point=-28))):
        found = row(np.array_split(one, pieces), np.array_split(second, pieces), encoding(zero_point=100), of)
        assert found.integers is not None
        assert found.integers.different == np.count_nonzero(difference)
        assert found.integers.by_1 == np.count_nonzero(difference == 1)
        assert found.integers.by_2 == np.count_nonzero(difference == 2)
        assert found.integers.by_3_to_10 == np.count_nonzero((difference >= 3) & (difference <= 10))
        assert found.integers.by_more == np.count_nonzero(difference > 10)
        assert found.integers.largest == difference.max()
        assert found.max_difference == 0.5 * difference.max()
        assert found.differs == bool(difference.any())


def test_integers_of_other_scales_are_compared_as_real_numbers() -> None:
    found = row([np.uint8([[0, 10]])], [np.uint8([[0, 20]])], encoding(scale=0.5), encoding(scale=0.25))
    assert found.integers is None
    assert found.sqnr_db == math.inf
    assert not found.differs
    assert found.remark == "other scales: real numbers are compared"


def test_levels_beside_real_numbers_one_scale_per_channel() -> None:
    levels = np.arange(12, dtype=np.int8).reshape(2, 3, 2)
    of = encoding("int8", [0.5, 0.25, 2], [0, 1, 2], axis=1)
    real = (levels - np.array([0, 1, 2]).reshape(1, 3, 1)) * np.array([0.5, 0.25, 2]).reshape(1, 3, 1)
    found = row([real.astype(np.float32)], [levels], None, of)
    assert found.sqnr_db == math.inf
    assert found.encoding_b is of


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 5), (1, 4, 4, 4), (2, 6, 6), (1, 3, 2, 4, 5)])
def test_another_layout_is_found_and_said(shape: tuple[int, ...]) -> None:
    """Also where sizes do not give it away; a difference by one stays to be seen."""
    first = np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)
    for moved, axes in (
        (np.moveaxis(first, 1, -1), (0, len(shape) - 1, *range(1, len(shape) - 1))),
        (np.moveaxis(first, -1, 1), (0, *range(2, len(shape)), 1)),
    ):
        second = moved.copy()
        second.flat[7] ^= 1
        found = row([first], [second], encoding(), encoding())
        assert found.axes == axes or (len(shape) == 3 and found.axes == (0, 2, 1))
        assert found.integers is not None
        assert found.integers.different == found.integers.by_1 == 1
        assert found.remark.startswith("another layout")


def test_networks_that_differ_are_not_taken_for_another_layout() -> None:
    one, other = np.random.default_rng(0).standard_normal((2, 2, 4, 4, 4))
    found = row([one], [other])
    assert found.axes is None
    assert found.sqnr_db == pytest.approx(10 * np.log10(np.sum(one**2) / np.sum((one - other) ** 2)))


def test_axes_of_size_1_and_shapes_that_do_not_fit() -> None:
    found = row([normal(2, 6)], [normal(2, 6).reshape(2, 6, 1, 1)])
    assert found.sqnr_db == math.inf
    assert "2 x 6 x 1 x 1" in found.remark
    found = row([normal(2, 6)], [normal(2, 7)])
    assert (found.elements, found.sqnr_db, found.max_difference, found.cosine) == (0, None, None, None)
    assert "not compared: the shapes 2 x 6 and 2 x 7 do not fit" in found.remark
    assert to_json(found)["sqnr_db"] is None


def test_nan_infinity_zeros_and_nothing() -> None:
    holed = np.float32([1, np.nan, np.inf])
    assert row([holed], [holed]).sqnr_db == math.inf
    found = row([holed], [np.float32([1, 2, np.inf])])
    assert (found.sqnr_db, found.max_difference, found.cosine) == (-math.inf, math.inf, None)
    assert found.differs
    assert to_json(found)["max_difference"] is None
    assert row([np.zeros(3)], [np.zeros(3)]).cosine == 1
    assert row([np.zeros(3)], [np.ones(3)]).cosine == 0
    nothing = row([np.zeros((2, 0))], [np.zeros((2, 0))])
    assert (nothing.elements, nothing.sqnr_db, nothing.differs) == (0, None, False)


# --- networks ---------------------------------------------------------------------------------------------------------

LAYERS = "q = QuantizeLinear(x, s, z)  c = QLinearConv<pads = [1, 1, 1, 1]>(q, s, z, w, s, wz, s, z, %s)  " \
    "m = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(c)  y = DequantizeLinear(m, s, z)"  # fmt: skip


def integers(bias: np.ndarray | None = None) -> ir.Model:
    weights = 2 * np.random.default_rng(3).integers(-3, 4, (4, 2, 3, 3)).astype(np.int8)  # even sums: no ties
    held = {"s": np.float32(0.5), "z": np.uint8(128), "w": weights, "wz": np.int8(0)}
    bias = np.zeros(4, dtype=np.int32) if bias is None else bias
    return network("float[n, 2, 6, 6] x", "float[n, 4, 3, 3] y", LAYERS % "b", b=bias, **held)


def rows_of(
    one: ir.Model, other: ir.Model, feeds: list[dict[str, np.ndarray]], **options: Any
) -> tuple[TensorRow, ...]:
    names = {name: name for name in feeds[0]}
    batches = [Fed(feed=feed, count=options.get("count", len(next(iter(feed.values()))))) for feed in feeds]
    return compare_values(
        exposed(one, threads=1), exposed(other, threads=1), batches, pair_values(one, other, names).pairs
    )


@pytest.mark.parametrize("bound", [1, 10**9])
def test_a_planted_step_is_where_it_was_planted(bound: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bias of 2 in units of 0.25 is one step of 0.5, in one channel of four; whether in one round or in many."""
    monkeypatch.setattr(tensors, "_ROUND_BYTES", bound)
    found = rows_of(
        integers(), integers(np.int32([0, 2, 0, 0])), [{"x": normal(3, 2, 6, 6)}, {"x": normal(2, 2, 6, 6)}]
    )
    by_name = {each.name: each for each in found}
    assert list(by_name) == ["x", "c", "m"]
    assert not by_name["x"].differs
    assert by_name["c"].integers is not None
    assert by_name["c"].integers.by_1 == by_name["c"].integers.different == 5 * 36
    assert by_name["m"].integers is not None
    assert by_name["m"].integers.by_1 == 5 * 9
    first, lowest = first_difference(found), worst(found)
    assert first is not None
    assert lowest is not None
    assert first.name == "c"
    assert lowest.sqnr_db == min(each.sqnr_db for each in found)


def test_values_are_those_of_the_file_whatever_is_returned() -> None:
    """QuantizeLinear between float operators: fusing them would move ties."""
    model = network(
        "float[n, 16] x", "float[n, 8] y",
        "m = MatMul(x, w)  q = QuantizeLinear(m, s, z)  d = DequantizeLinear(q, s, z)  y = Relu(d)",
        w=normal(16, 8), s=np.float32(0.25), z=np.int8(0),
    )  # fmt: skip
    feed = {"x": normal(4, 16)}
    alone = exposed(model, threads=1)(["y"])(feed)["y"]
    together = exposed(model, threads=1)(["x", "m", "q", "d", "y"])(feed)
    np.testing.assert_array_equal(alone, together["y"])
    np.testing.assert_array_equal(together["q"], np.clip(np.rint(together["m"] / np.float32(0.25)), -128, 127))
    np.testing.assert_array_equal(together["x"], feed["x"])
    assert [value.name for value in model.graph.outputs] == ["y"]


def test_rows_that_fill_a_batch_do_not_count() -> None:
    samples = normal(3, 2, 6, 6)
    found = rows_of(integers(), integers(), [{"x": np.concatenate([samples, samples[-1:]])}], count=3)
    assert found[1].elements == 3 * 4 * 36


def test_a_feed_that_does_not_fit_is_one_clear_error() -> None:
    with pytest.raises(RuntimeFailure, match="ONNX Runtime could not run the network with its inner values"):
        rows_of(integers(), integers(), [{"x": normal(4, 3, 6, 6)}])


def test_scales_that_do_not_fit_are_refused() -> None:
    with pytest.raises(RuntimeFailure, match="do not fit"):
        row([np.zeros((2, 3), np.int8)], [np.zeros((2, 3), np.int8)], encoding("int8", [1, 2], [0, 0], axis=1), None)


def test_equal_but_for_the_order_of_sums() -> None:
    one = normal(50)
    assert not row([one], [one * np.float32(1 + 1e-7)]).differs
    assert row([one], [one * np.float32(1.001)]).differs
    assert first_difference([row([one], [one])]) is worst([row([one], [one])]) is None
