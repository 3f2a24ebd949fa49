"""Feeds of one network for another: names, layouts, fixed numbers of rows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from narrowgauge.data.inputs import InputSpec
from narrowgauge.errors import DataError
from narrowgauge.runtimes.feeding import routes, taking
from narrowgauge.runtimes.program import Array, Program

F = np.dtype(np.float32)


def spec(name: str, *shape: int | None) -> InputSpec:
    return InputSpec(name=name, shape=shape, dtype=F)


def program(*inputs: InputSpec, outputs: tuple[str, ...] = ("y",), runs: list[Mapping[str, Array]]) -> Program:
    """A program whose n-th output is the sum of each row of all inputs, plus n; what it is fed is remembered."""

    def run(feed: Mapping[str, Array]) -> dict[str, Array]:
        runs.append(feed)
        total = sum(array.reshape(len(array), -1).sum(1) for array in feed.values())
        return {name: np.asarray(total + number) for number, name in enumerate(outputs)}

    return Program(inputs=inputs, outputs=outputs, run=run)


def test_images_are_turned_where_only_the_other_layout_fits() -> None:
    runs: list[Mapping[str, Array]] = []
    images = np.random.default_rng(0).random((2, 3, 4, 5), dtype=np.float32)
    run = taking(program(spec("i", None, 4, 5, 3), runs=runs), [spec("x", None, 3, 4, 5)], ["y"])
    run({"x": images})
    np.testing.assert_array_equal(runs[0]["i"], images.transpose(0, 2, 3, 1))
    back = taking(program(spec("i", None, 3, 4, 5), runs=runs), [spec("x", None, 4, 5, 3)], ["y"])
    back({"x": images.transpose(0, 2, 3, 1)})
    np.testing.assert_array_equal(runs[1]["i"], images)


def test_a_layout_that_fits_as_it_is_is_left() -> None:
    assert routes(program(spec("i", 1, 3, 3, 3), runs=[]), [spec("x", None, 3, 3, 3)])["x"].axes is None


def test_inputs_are_paired_by_name_before_order() -> None:
    other = program(spec("b", None, 2), spec("a", None, 3), runs=[])
    assert {name: route.name for name, route in routes(other, [spec("a", None, 3), spec("b", None, 2)]).items()} == {
        "a": "a", "b": "b",
    }  # fmt: skip
    assert routes(other, [spec("x", None, 2), spec("z", None, 3)])["x"].name == "b"


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 8])
@pytest.mark.parametrize("fixed", [1, 4])
def test_a_fixed_number_of_rows_takes_any(rows: int, fixed: int) -> None:
    runs: list[Mapping[str, Array]] = []
    array = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
    found = taking(program(spec("i", fixed, 2), runs=runs), [spec("x", None, 2)], ["y"])({"x": array})
    np.testing.assert_array_equal(found["y"], array.sum(1))
    assert {len(feed["i"]) for feed in runs} == {fixed}
    assert len(runs) == -(-rows // fixed)


def test_outputs_come_in_the_order_that_is_asked_for() -> None:
    array = np.zeros((1, 2), np.float32)
    first = taking(program(spec("x", None, 2), outputs=("p", "q"), runs=[]), [spec("x", None, 2)], ["q", "p"])
    assert list(first({"x": array})) == ["q", "p"]
    renamed = taking(program(spec("x", None, 2), outputs=("p", "q"), runs=[]), [spec("x", None, 2)], ["a", "b"])
    assert {name: value.item() for name, value in renamed({"x": array}).items()} == {"a": 0, "b": 1}


@pytest.mark.parametrize(
    "inputs", [[spec("x", None, 3, 4, 6)], [spec("x", None, 3)], [spec("x", None, 2), spec("z", None, 2)]]
)
def test_other_inputs_are_refused(inputs: list[InputSpec]) -> None:
    with pytest.raises(DataError, match="expected two networks with the same inputs"):
        routes(program(spec("i", None, 4, 5, 3), runs=[]), inputs)


@pytest.mark.parametrize(("have", "want"), [("float16", "float32"), ("float32", "float16"), ("int64", "int32")])
def test_numbers_pass_between_types_of_one_kind(have: str, want: str) -> None:
    runs: list[Mapping[str, Array]] = []
    one, other = (InputSpec(name="i", shape=(None, 3), dtype=np.dtype(kind)) for kind in (have, want))
    taking(program(other, runs=runs), [one], ["y"])({"i": np.arange(6, dtype=have).reshape(2, 3)})
    assert runs[0]["i"].dtype == want
    np.testing.assert_array_equal(runs[0]["i"], np.arange(6).reshape(2, 3))


def test_numbers_of_another_kind_or_too_large_are_refused() -> None:
    wide, narrow = (InputSpec(name="i", shape=(None, 1), dtype=np.dtype(kind)) for kind in ("int64", "int32"))
    with pytest.raises(DataError, match=r"the first takes 'i' \(int64, .*the second 'i' \(float32"):
        taking(program(spec("i", None, 1), runs=[]), [wide], ["y"])
    with pytest.raises(DataError, match="input 'i': expected values of int32"):
        taking(program(narrow, runs=[]), [wide], ["y"])({"i": np.array([[2**40]])})
