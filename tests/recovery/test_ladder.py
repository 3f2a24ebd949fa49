"""The climb: in which order methods are tried, which are kept, when it stops, what is left float at the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from narrowgauge.core.numbers import integer_type
from narrowgauge.errors import PlanError
from narrowgauge.planning.choices import Choices
from narrowgauge.recovery import ladder as module
from narrowgauge.recovery.ladder import WORTHWHILE, Bound, Ladder
from narrowgauge.recovery.measure import Noise
from narrowgauge.recovery.methods import METHODS, Method
from narrowgauge.recovery.partial_float import REASON
from narrowgauge.recovery.workshop import State, Workshop
from tests.planning.networks import normal
from tests.recovery.benches import chain, state_of, total_noise, workshop_of

# --- a climb over made-up methods -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Stand:
    """A state that knows its noise; what was done to it on the way."""

    noise: float
    typical: float | None = None
    done: tuple[str, ...] = ()
    of_activations: float = 1.0
    drop: float = math.inf
    choices: Choices = field(default_factory=Choices)
    reference: None = None
    statistics: None = None


class Bench:
    """Measures what the states say, and counts."""

    measuring = ("some",)

    def __init__(self) -> None:
        self.measured = 0

    def noise(self, state: Stand, *, of_activations: bool = False) -> Noise:
        self.measured += 1
        total = state.of_activations if of_activations else state.noise
        return Noise(total=total, typical=total if state.typical is None else state.typical)

    def planned(self, reference: object, statistics: object, choices: Choices) -> Stand:
        return Stand(noise=2.0, done=(choices.estimator.__name__,))


def method(name: str, share: float | None, **row: Any) -> Method:
    """A method that multiplies the noise by a share; None does nothing."""

    def apply(workshop: Bench, state: Stand) -> tuple[Stand, str] | None:
        if share is None:
            return None
        return replace(state, noise=state.noise * share, done=(*state.done, name)), f"did {name}"

    return Method(name=name, apply=apply, meaning="", **row)  # type: ignore[arg-type]


@pytest.fixture
def climbed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ladder]:
    """Climb over a table of methods from noise 1."""

    def climb(
        table: Sequence[Method], names: Sequence[str] | None = None, *, thrifty: bool = False, **fields: Any
    ) -> Ladder:
        monkeypatch.setattr(module, "METHODS", {one.name: one for one in table})
        fields = {"workshop": Bench(), "state": Stand(noise=1.0), **fields}
        ladder = Ladder(**fields)
        ladder.climb([one.name for one in table] if names is None else names, thrifty=thrifty)
        return ladder

    return climb


def tried(ladder: Ladder) -> list[str]:
    return [step.name for step in ladder.steps]


Climb = Callable[..., Ladder]


def test_structure_comes_first_then_the_tables_order_whatever_the_recipe_says(climbed: Climb) -> None:
    table = [method("a", 0.5), method("b", 0.5, structural=True), method("c", 0.5), method("d", 0.5, structural=True)]
    ladder = climbed(table, ["c", "d", "a", "b"])
    assert tried(ladder) == ["ranges", "b", "d", "a", "c"]
    assert ladder.state.done == ("b", "d", "a", "c")
    assert tried(climbed(table, ["c", "b"])) == ["ranges", "b", "c"]


def test_only_what_wins_is_kept_and_every_try_is_listed(climbed: Climb) -> None:
    table = [method("worse", 2.0), method("chance", (1 + WORTHWHILE) / 2), method("better", 0.5), method("same", 1.0)]
    ladder = climbed(table)
    assert [(step.name, step.kept) for step in ladder.steps] == [
        ("ranges", True), ("worse", False), ("chance", False), ("better", True), ("same", False)
    ]  # fmt: skip
    assert ladder.state.done == ("better",)
    assert ladder.noise.total == 0.5
    assert [step.noise_before for step in ladder.steps[1:]] == [1.0, 1.0, 1.0, 0.5]
    assert [step.noise_after for step in ladder.steps] == [1.0, 2.0, (1 + WORTHWHILE) / 2, 0.5, 0.5]
    assert ladder.steps[3].detail == "did better"


def test_a_few_bad_samples_and_many_good_ones_count_alike(climbed: Climb) -> None:
    """The total, which the worst samples make, and the typical sample's noise: the product decides."""

    def better_and_worse(typical: float) -> Method:
        def apply(workshop: Bench, state: Stand) -> tuple[Stand, str]:
            return replace(state, noise=0.5, typical=typical, done=("mixed",)), ""

        return Method(name="mixed", apply=apply, meaning="")  # type: ignore[arg-type]

    ladder = climbed([better_and_worse(1.5)])
    assert ladder.state.done == ("mixed",)
    assert ladder.steps[0].judged_db is None
    assert ladder.steps[1].judged_db == pytest.approx(-5 * math.log10(0.5 * 1.5))  # not that of the total, 3 dB
    assert climbed([better_and_worse(2.5)]).state.done == ()


def test_what_has_nothing_to_do_is_no_step(climbed: Climb) -> None:
    assert tried(climbed([method("idle", None), method("better", 0.5)])) == ["ranges", "better"]


def test_unmeasured_methods_are_all_kept(climbed: Climb) -> None:
    bench = Bench()
    ladder = climbed([method("worse", 2.0), method("better", 0.5)], measured=False, workshop=bench)
    assert ladder.state.done == ("worse", "better")
    assert bench.measured == 0
    assert all(math.isnan(step.noise_after) for step in ladder.steps)


def test_what_chooses_ranges_is_judged_by_the_activations(climbed: Climb) -> None:
    def narrower(total: float, *, of_activations: bool = True) -> Method:
        def apply(workshop: Bench, state: Stand) -> tuple[Stand, str]:
            return replace(state, noise=total, of_activations=0.1, done=("narrower",)), ""

        return Method(name="narrower", apply=apply, meaning="", of_activations=of_activations)

    assert climbed([narrower(1.02)]).state.done == ("narrower",)
    assert climbed([narrower(1.02, of_activations=False)]).state.done == ()
    assert climbed([narrower(1.2)]).state.done == ()  # the whole must not get clearly worse for it


def test_a_thrifty_climb_leaves_out_what_is_not_worth_its_time(climbed: Climb) -> None:
    table = [method("cheap", 0.5), method("costly", 0.5, worthwhile=lambda state, noise: noise > 0.9)]
    assert tried(climbed(table, thrifty=True)) == ["ranges", "cheap"]
    assert tried(climbed(table)) == ["ranges", "cheap", "costly"]
    assert tried(climbed(table[::-1], thrifty=True)) == ["ranges", "costly", "cheap"]


def test_those_who_wait_are_told(climbed: Climb) -> None:
    told: list[str] = []
    climbed([method("a", 0.5), method("b", None)], tell=told.append)
    assert told == ["a", "b"]


# --- with a bound ---------------------------------------------------------------------------------------------


def bound(most: float, share: float = 1.0) -> tuple[Bound, list[Stand]]:
    """Points that are lost: the noise times a share; and the states that were asked for."""
    asked: list[Stand] = []

    def drop(workshop: Bench, state: Stand) -> float:
        asked.append(state)
        return share * state.noise

    return Bound(drop=drop, most=most), asked  # type: ignore[arg-type]


def test_a_bound_that_plain_ranges_meet_ends_it_at_once(climbed: Climb) -> None:
    wanted, asked = bound(3.0)
    ladder = climbed([method("a", 0.5)], bound=wanted)
    assert tried(ladder) == ["plain ranges"]
    assert ladder.state.done == ("max_range",)
    assert ladder.drop == ladder.steps[0].drop == 2.0
    assert len(asked) == 1


def test_the_ranges_that_were_asked_for_come_next(climbed: Climb) -> None:
    wanted, _ = bound(1.0)
    ladder = climbed([method("a", 0.5)], bound=wanted)
    assert tried(ladder) == ["plain ranges", "ranges"]
    assert ladder.state.done == ()
    assert ladder.drop == 1.0


def test_it_stops_as_soon_as_the_bound_is_met(climbed: Climb) -> None:
    wanted, _ = bound(0.3)
    ladder = climbed([method("a", 0.5), method("b", 0.4), method("c", 0.1)], bound=wanted)
    assert ladder.met
    assert ladder.drop is not None
    assert ladder.drop <= 0.3
    assert [step.drop for step in ladder.steps[:-1] if step.kept] == [2.0, 1.0]


def test_a_drop_is_measured_only_of_what_wins(climbed: Climb) -> None:
    wanted, asked = bound(0.6)
    ladder = climbed([method("worse", 3.0, structural=True), method("better", 0.5)], bound=wanted)
    assert [state.noise for state in asked] == [2.0, 1.0, 0.5]
    assert next(step for step in ladder.steps if step.name == "worse").drop is None


def test_methods_are_taken_by_what_they_win_for_their_cost(climbed: Climb, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is tried alone first: a wins most, c nearly as much at a tenth of the cost."""
    monkeypatch.setattr(Ladder, "leave_float", lambda self: None)
    wanted, _ = bound(1e-9)
    table = [method("a", 0.1, cost=10.0), method("b", 0.9), method("c", 0.2), method("idle", None)]
    assert tried(climbed(table, bound=wanted))[2:] == ["c", "a", "b"]
    structural = [replace(one, structural=True) for one in table[:2]]
    assert tried(climbed([*structural, table[2]], bound=wanted))[2:] == ["a", "b", "c"]


@pytest.mark.parametrize("noise", [0.0, math.inf, math.nan])
def test_any_noise_can_be_ordered(climbed: Climb, monkeypatch: pytest.MonkeyPatch, noise: float) -> None:
    monkeypatch.setattr(Ladder, "leave_float", lambda self: None)
    wanted = Bound(drop=lambda workshop, state: 9.0, most=1.0)
    ladder = climbed([method("a", 0.5), method("b", 0.1)], bound=wanted, state=Stand(noise=noise))
    assert {"a", "b"} <= set(tried(ladder))


def test_a_method_that_fails_is_listed_and_left(climbed: Climb) -> None:
    def fail(workshop: Bench, state: Stand) -> None:
        raise PlanError("expected something else")

    table = [Method(name="broken", apply=fail, meaning=""), method("better", 0.5)]  # type: ignore[arg-type]
    for fields in ({}, {"measured": False}):
        ladder = climbed(table, **fields)
        assert ladder.state.done == ("better",)
        assert (ladder.steps[1].kept, ladder.steps[1].detail) == (False, "failed: expected something else")


def test_with_a_bound_costly_methods_are_tried_too(climbed: Climb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ladder, "leave_float", lambda self: None)
    wanted, _ = bound(1e-9)
    table = [method("costly", 0.5, worthwhile=lambda state, noise: False)]
    assert "costly" in tried(climbed(table, bound=wanted, thrifty=True))


# --- layers left float ----------------------------------------------------------------------------------------


def layers_left(state: State) -> set[str]:
    return {node.name for node in state.plan.float_nodes if node.reason == REASON}


FEED = normal(64, 16, seed=9)


@pytest.mark.parametrize("needed", range(1, 6))
def test_the_fewest_layers_that_reach_it_are_left_float(needed: int) -> None:
    """The accuracy asked for is there once so many layers are float, the most costly of the five first."""
    workshop = workshop_of(chain(5), FEED)
    asked: list[int] = []

    def drop(workshop: Workshop, state: State) -> float:
        asked.append(len(layers_left(state)))
        return float(needed - len(layers_left(state)))

    ladder = Ladder(
        workshop=workshop, state=state_of(workshop, weights=integer_type("int4")), bound=Bound(drop=drop, most=0)
    )
    ladder.climb(())
    assert ladder.met
    assert len(layers_left(ladder.state)) == needed
    assert len(asked) <= 2 + 5  # the ranges twice, then fewer than one for each layer
    assert ladder.steps[-1].name == "leave layers float"
    assert ladder.steps[-1].drop == ladder.drop == 0
    assert ladder.steps[-1].noise_after == pytest.approx(total_noise(workshop, ladder.state))
    assert ladder.noise.total < ladder.steps[-1].noise_before


def test_where_no_number_of_layers_reaches_it_the_best_stays() -> None:
    workshop = workshop_of(chain(5), FEED)

    def drop(workshop: Workshop, state: State) -> float:
        return 5.0 + abs(2 - len(layers_left(state)))

    ladder = Ladder(
        workshop=workshop, state=state_of(workshop, weights=integer_type("int4")), bound=Bound(drop=drop, most=0)
    )
    ladder.climb(())
    assert not ladder.met
    assert (len(layers_left(ladder.state)), ladder.drop) == (2, 5.0)


def test_without_samples_to_measure_on_no_layer_is_left_float() -> None:
    workshop = workshop_of(chain(5), FEED, measuring=0)
    ladder = Ladder(workshop=workshop, state=state_of(workshop), bound=Bound(drop=lambda workshop, state: 9.0, most=0))
    ladder.climb(())
    assert not layers_left(ladder.state)
    assert not ladder.met


# --- the real table -------------------------------------------------------------------------------------------


def test_a_real_climb_never_ends_worse_than_it_began() -> None:
    workshop = workshop_of(chain(), FEED)
    ladder = Ladder(workshop=workshop, state=state_of(workshop, weights=integer_type("int4")))
    ladder.climb(tuple(METHODS))
    assert ladder.noise.total == pytest.approx(total_noise(workshop, ladder.state))
    assert ladder.noise.total < 0.5 * ladder.steps[0].noise_after
    assert not ladder.met
