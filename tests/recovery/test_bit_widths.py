"""Budgets for bits: what a person may write, that they are kept, and that the bits go where they are needed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrowgauge.core.numbers import integer_type
from narrowgauge.errors import RecipeError
from narrowgauge.planning.choices import NodeChoice
from narrowgauge.recovery.bit_widths import FLOAT, Budget, assign_bits, layer_options, parse_budget, with_bits
from narrowgauge.recovery.workshop import State, Workshop
from tests.planning.networks import name_of, network, normal
from tests.recovery.benches import chain, state_of, workshop_of

FEED = normal(64, 16, seed=9)
LAYERS, WEIGHTS = 4, 16 * 16


# --- what a person writes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("size 3 MB", Budget(kind="size", amount=3e6)),
        ("size 3MB", Budget(kind="size", amount=3e6)),
        ("  SIZE 1.5 kb ", Budget(kind="size", amount=1500)),
        ("size 20000", Budget(kind="size", amount=20_000)),
        ("size 15 %", Budget(kind="size", amount=0.15, share=True)),
        ("operations 20%", Budget(kind="operations", amount=0.2, share=True)),
        ("operations 5 G", Budget(kind="operations", amount=5e9)),
        ("drop 1 %", Budget(kind="drop", amount=1.0)),
        ("drop 0.5", Budget(kind="drop", amount=0.5)),
    ],
)
def test_budgets(text: str, budget: Budget) -> None:
    found = parse_budget(text)
    assert (found.kind, found.share) == (budget.kind, budget.share)
    assert found.amount == pytest.approx(budget.amount)
    assert found.unit == ("bit operations" if budget.kind == "operations" else "bytes")


@pytest.mark.parametrize(
    "text",
    ["", "size", "3 MB", "size MB", "size -3 MB", "size 0", "size 3 TB", "size 3 % %", "speed 3", "drop"],
)
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(RecipeError, match="expected a budget such as 'size 3 MB'"):
        parse_budget(text)


@given(st.text(alphabet="sizedropen 0123456789.%kMGB-", max_size=16))
def test_any_text_is_a_budget_or_an_error(text: str) -> None:
    try:
        found = parse_budget(text)
    except RecipeError:
        return
    assert found.amount > 0


# --- what a width costs ---------------------------------------------------------------------------------------


def opened() -> tuple[Workshop, State]:
    workshop = workshop_of(chain(LAYERS), FEED)
    return workshop, state_of(workshop)


def test_fewer_bits_are_smaller_and_noisier() -> None:
    workshop, state = opened()
    found = layer_options(workshop, state, "bytes", (2, 4, 8, FLOAT))
    assert set(found) == {str(node.name) for node in workshop.given.graph if node.op_type == "Gemm"}
    for options in found.values():
        assert [one.bits for one in options] == [2, 4, 8, FLOAT]
        assert [one.cost for one in options] == [WEIGHTS * bits / 8 for bits in (2, 4, 8, FLOAT)]
        noises = [one.noise for one in options]
        assert noises == sorted(noises, reverse=True)
        assert noises[-1] == 0


def test_operations_count_the_bits_of_both_factors() -> None:
    workshop, state = opened()
    found = layer_options(workshop, state, "bit operations", (4, 8, FLOAT))
    for options in found.values():
        assert [one.cost for one in options] == [WEIGHTS * 4 * 8, WEIGHTS * 8 * 8, WEIGHTS * FLOAT * FLOAT]


def test_weights_that_two_layers_read_keep_their_width() -> None:
    shared = network(
        "float[n, 16] x", "float[n, 16] y", "a = MatMul(x, w)  r = Relu(a)  b = MatMul(r, w)  s = Relu(b)"
        "  y = MatMul(s, v)",
        w=normal(16, 16) / 4, v=normal(16, 16, seed=1),
    )  # fmt: skip
    workshop = workshop_of(shared, FEED)
    assert set(layer_options(workshop, state_of(workshop), "bytes", (4, 8))) == {name_of(shared, "y")}


# --- budgets --------------------------------------------------------------------------------------------------


def bits_of(state: State) -> dict[str, int]:
    return {slot.node: slot.type.bits for slot in state.placement.weights.values()}


@pytest.mark.parametrize("share", [0.14, 0.2, 0.25, 0.4, 1.0])
def test_a_budget_of_size_is_kept_and_used(share: float) -> None:
    workshop, state = opened()
    found, front = assign_bits(workshop, state, parse_budget(f"size {100 * share} %"), widths=(4, 8, FLOAT))
    (taken,) = [point for point in front if point.chosen]
    assert taken.cost <= share * LAYERS * WEIGHTS * 4
    assert {**dict.fromkeys(taken.bits, FLOAT), **bits_of(found)} == taken.bits
    assert [point.cost for point in front] == sorted(point.cost for point in front)
    better = [point for point in front if point.cost <= share * LAYERS * WEIGHTS * 4]
    assert taken.noise <= min(point.noise for point in better)


def test_bytes_and_shares_are_the_same_budget() -> None:
    workshop, state = opened()
    share = assign_bits(workshop, state, parse_budget("size 20 %"), widths=(4, 8))
    size = assign_bits(workshop, state, parse_budget(f"size {0.2 * LAYERS * WEIGHTS * 4}"), widths=(4, 8))
    assert bits_of(share[0]) == bits_of(size[0])


def test_the_layer_that_needs_bits_gets_them() -> None:
    """Half of the layers may have 8 bits; what one is worth was measured."""
    workshop, state = opened()
    options = layer_options(workshop, state, "bytes", (4, 8))
    found, _ = assign_bits(workshop, state, parse_budget("size 18.75 %"), widths=(4, 8))
    gains = sorted(options, key=lambda name: options[name][1].noise - options[name][0].noise)
    assert {name for name, bits in bits_of(found).items() if bits == 8} == set(gains[: LAYERS // 2])


def test_a_budget_of_operations_is_kept() -> None:
    workshop, state = opened()
    found, front = assign_bits(workshop, state, parse_budget("operations 5 %"), widths=(4, 8))
    (taken,) = [point for point in front if point.chosen]
    assert taken.unit == "bit operations"
    assert taken.cost <= 0.05 * LAYERS * WEIGHTS * FLOAT * FLOAT
    assert set(bits_of(found).values()) == {4, 8}


@pytest.mark.parametrize("least", [1, 2, 3, 4])
def test_a_budget_of_accuracy_takes_the_cheapest_that_keeps_it(least: int) -> None:
    workshop, state = opened()

    def drop(workshop: Workshop, state: State) -> float:
        """Lost until so many layers have 8 bits."""
        return 3.0 * (sum(bits == 8 for bits in bits_of(state).values()) < least)

    found, front = assign_bits(workshop, state, Budget(kind="drop", amount=1.0), widths=(4, 8), drop=drop)
    assert sum(bits == 8 for bits in bits_of(found).values()) == least
    assert [point.chosen for point in front] == [number == least for number in range(LAYERS + 1)]


def test_the_widths_of_the_target_and_float_are_taken_without_others() -> None:
    workshop, state = opened()
    _, front = assign_bits(workshop, state, parse_budget("size 30 %"))
    widths = {bits for point in front for bits in point.bits.values()}
    assert widths <= {kind.bits for kind in workshop.target.weights.types} | {FLOAT}
    assert FLOAT in widths
    bytes_only = replace(workshop.target, weights=replace(workshop.target.weights, types=(integer_type("int8"),)))
    workshop.target = bytes_only
    _, front = assign_bits(workshop, state, parse_budget("size 60 %"))
    assert {bits for point in front for bits in point.bits.values()} == {8, FLOAT}


def test_budgets_that_cannot_be() -> None:
    workshop, state = opened()
    with pytest.raises(RecipeError, match="at least 512 bytes"):
        assign_bits(workshop, state, parse_budget("size 100"), widths=(4, 8))
    with pytest.raises(RecipeError, match="needs samples that did not calibrate"):
        assign_bits(workshop, state, parse_budget("drop 1 %"), widths=(4, 8))
    workshop.measuring = []
    with pytest.raises(RecipeError, match="needs samples to measure on"):
        assign_bits(workshop, state, parse_budget("size 50 %"))


def test_widths_are_asked_for_and_what_else_was_asked_stays() -> None:
    workshop, _ = opened()
    state = state_of(workshop, nodes={"g0": NodeChoice(granularity="tensor"), "y": NodeChoice(keep_float="mine")})
    names = [name_of(workshop.given, value) for value in ("g0", "g1")]
    found = with_bits(workshop, state, {names[0]: 4, names[1]: FLOAT})
    slots = {slot.node: slot for slot in found.placement.weights.values()}
    assert slots[names[0]].type == integer_type("int4")
    assert slots[names[0]].granularity == "tensor"
    kept = {node.name: node.reason for node in found.plan.float_nodes}
    assert kept[names[1]] == "kept float by the budget for bits"
    assert kept[name_of(workshop.given, "y")] == "mine"
