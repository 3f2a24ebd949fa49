"""Bits per layer: the front is optimal at its points, a budget is kept and well used."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrowgauge.errors import RecipeError
from narrowgauge.recovery.mixed_precision import Option, pareto_front, within

LAYERS = st.dictionaries(
    st.sampled_from("abcd"),
    st.lists(
        st.builds(
            lambda bits, cost, noise: Option(bits=bits, cost=cost, noise=noise),
            st.sampled_from([4, 8, 16]), st.integers(1, 30), st.integers(0, 50),
        ),
        min_size=1, max_size=3,
    ),
    min_size=1,
)  # fmt: skip


def assignments(layers: dict[str, list[Option]]) -> list[tuple[float, float]]:
    every = itertools.product(*layers.values())
    return [(sum(one.cost for one in options), sum(one.noise for one in options)) for options in every]


@given(LAYERS)
def test_no_assignment_beats_a_point_of_the_front(layers: dict[str, list[Option]]) -> None:
    front = pareto_front(layers)
    for point in front:
        assert not any(cost <= point.cost and noise < point.noise for cost, noise in assignments(layers))
    costs = [point.cost for point in front]
    noises = [point.noise for point in front]
    assert costs == sorted(costs)
    assert noises == sorted(noises, reverse=True)
    assert noises[-1] == min(noise for _, noise in assignments(layers))


@given(LAYERS, st.integers(1, 120))
def test_a_budget_is_kept_and_at_most_one_step_is_missed(layers: dict[str, list[Option]], budget: int) -> None:
    cheapest = min(cost for cost, _ in assignments(layers))
    if budget < cheapest:
        with pytest.raises(RecipeError, match="at least"):
            within(layers, budget)
        return
    found = within(layers, budget)
    assert found.cost <= budget
    best = min(noise for cost, noise in assignments(layers) if cost <= budget)
    widest = max(max(one.noise for one in options) - min(one.noise for one in options) for options in layers.values())
    assert best <= found.noise <= best + widest


def test_the_layer_that_hurts_most_for_its_size_gets_the_bits_first() -> None:
    layers = {
        "tiny": [Option(bits=4, cost=1, noise=0.8), Option(bits=8, cost=2, noise=0.0)],
        "large": [Option(bits=4, cost=100, noise=0.9), Option(bits=8, cost=200, noise=0.0)],
    }
    assert within(layers, 150).bits == {"tiny": 8, "large": 4}
    assert [point.bits["tiny"] for point in pareto_front(layers)] == [4, 8, 8]


def test_what_a_width_breaks_hides_no_width_between() -> None:
    layers = {
        "layer": [
            Option(bits=2, cost=1, noise=float("inf")),
            Option(bits=4, cost=2, noise=0.1),
            Option(bits=8, cost=4, noise=0.0),
        ]
    }
    assert [point.bits["layer"] for point in pareto_front(layers)] == [2, 4, 8]
    assert within(layers, 3).bits == {"layer": 4}
