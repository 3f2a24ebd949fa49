"""Recovery step by step: methods are tried in turn, measured at the network's output, and kept where they win."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from narrowgauge.analysis.records import Step
from narrowgauge.calibration.ranges import estimator
from narrowgauge.errors import PlanError, RuntimeFailure, StatisticsError
from narrowgauge.recovery.measure import Noise
from narrowgauge.recovery.methods import METHODS, Method
from narrowgauge.recovery.partial_float import costliest_layers, leave_float
from narrowgauge.recovery.workshop import UNKNOWN, State, Workshop

# A method is kept where the noise at the output (`measure.Noise.judged`) falls below this share of what it was: less is
# the samples' chance.
WORTHWHILE = 0.97


@dataclass(frozen=True, kw_only=True, slots=True)
class Bound:
    """Accuracy that is asked for.

    Attributes:
        drop: measures the accuracy that a state loses against the float network, percentage points.
        most: what may be lost.
    """

    drop: Callable[[Workshop, State], float]
    most: float


@dataclass(kw_only=True, slots=True)
class Ladder:
    """One climb: where it stands and what was tried.

    Attributes:
        workshop: means to plan and to measure.
        state: the best so far.
        measured: keep a method only where it wins; False keeps all.
        bound: the accuracy asked for, None where there is none.
        tell: called with each method's name before it is tried.
        noise: of `state` at the output; NaN where it is not measured.
        drop: accuracy lost by `state`; None without a bound.
        steps: what was tried.
    """

    workshop: Workshop
    state: State
    measured: bool = True
    bound: Bound | None = None
    tell: Callable[[str], None] = lambda method: None
    noise: Noise = UNKNOWN
    drop: float | None = None
    steps: list[Step] = field(default_factory=list)

    def begin(self, name: str) -> None:
        """Measure the state to begin with, and list it as the first step."""
        start = time.perf_counter()
        self.noise = self.workshop.noise(self.state) if self.measured else UNKNOWN
        self.drop = self.bound.drop(self.workshop, self.state) if self.bound is not None else None
        self.steps.append(
            Step(
                name=name, detail="", noise_before=math.nan, noise_after=self.noise.total,
                seconds=time.perf_counter() - start, kept=True, drop=self.drop,
            )
        )  # fmt: skip

    @property
    def met(self) -> bool:
        """Whether the accuracy asked for is reached."""
        return self.bound is not None and self.drop is not None and self.drop <= self.bound.most

    def climb(self, methods: Sequence[str], *, thrifty: bool = False) -> None:
        """Try methods and keep those that win, until the bound is met or none is left.

        The workflow of Wu et al., "Integer Quantization for Deep Learning Inference", 2020, section 6, made automatic.
        Methods that change the network's structure come before those that change the numbers of its plan. Without a
        bound each is tried once, in the order of `METHODS`. With one, the climb begins with plain ranges; each method
        of a kind is first tried alone, and they are taken in the order of what they won for their cost; the layers that
        cost most are left float last.

        Args:
            methods: names, see `METHODS`.
            thrifty: leave costly methods out where the noise is low already; not with a bound.
        """
        if self.bound is None:
            self.begin("ranges")
        else:
            self.begin_plainly()
        for structural in (True, False):
            chosen = [method for name, method in METHODS.items() if name in methods and method.structural == structural]
            for method in chosen if self.bound is None else self.by_gain(chosen):
                if self.met or (thrifty and self.bound is None and not method.worthwhile(self.state, self.noise.total)):
                    continue
                self.attempt(method)
        if self.bound is not None and not self.met:
            self.leave_float()

    def begin_plainly(self) -> None:
        """Begin with the extremes that were seen as ranges; go on to the ranges that were asked for."""
        asked = self.state
        plain = replace(asked.choices, estimator=estimator("max"))
        self.state = self.workshop.planned(asked.reference, asked.statistics, plain)
        self.begin("plain ranges")
        if not self.met:
            self.attempt(Method(name="ranges", apply=lambda workshop, state: (asked, ""), meaning=""))

    def by_gain(self, methods: Sequence[Method]) -> list[Method]:
        """Order methods by what each wins alone for its cost, decibels per calibration; leave out what does nothing."""
        if self.met or len(methods) < 2:
            return list(methods)
        gains = {}
        for method in methods:
            self.tell(method.name)
            found = self.applied(method)
            if isinstance(found, tuple):
                won = _decibels(self.noise) - _decibels(self.workshop.noise(found[0]))
                gains[method.name] = won / method.cost
        # Those that choose ranges plan anew, so they come before those that choose weights.
        found_ones = [method for method in methods if method.name in gains]
        return sorted(found_ones, key=lambda one: (not one.of_activations, -gains[one.name]))

    def applied(self, method: Method) -> tuple[State, str] | str | None:
        """Apply a method: the new state and what was done, why it failed, or None where there is nothing to do."""
        try:
            return method.apply(self.workshop, self.state)
        except (PlanError, RuntimeFailure, StatisticsError) as error:
            return f"failed: {error}"

    def attempt(self, method: Method) -> bool:
        """Try one method from where the ladder stands; return whether it was kept."""
        self.tell(method.name)
        start = time.perf_counter()
        found = self.applied(method)
        if found is None:
            return False
        state, detail = found if isinstance(found, tuple) else (self.state, found)
        after = self.workshop.noise(state) if self.measured else UNKNOWN
        old, new = self.noise, after
        if self.measured and method.of_activations:
            old, new = (self.workshop.noise(one, of_activations=True) for one in (self.state, state))
        # NaN: nothing was measured, so all is kept that did something.
        wins = not new.judged >= WORTHWHILE * old.judged
        kept = isinstance(found, tuple) and wins and not after.judged > self.noise.judged / WORTHWHILE
        drop = self.bound.drop(self.workshop, state) if self.bound is not None and kept else None
        self.steps.append(
            Step(
                name=method.name, detail=detail, noise_before=self.noise.total, noise_after=after.total,
                seconds=time.perf_counter() - start, kept=kept, drop=drop, judged_db=_fallen(old.judged, new.judged),
            )
        )  # fmt: skip
        if kept:
            self.state, self.noise, self.drop = state, after, drop if self.bound is not None else None
        return kept

    def leave_float(self) -> None:
        """Leave the layers that cost most float: as few as reach the accuracy that is asked for.

        Their number is doubled until it does, then halved in between. Where none does, the best that was seen stays.
        """
        if self.bound is None or not self.workshop.measuring:
            return
        name = "leave layers float"
        self.tell(name)
        start, begun = time.perf_counter(), self.state
        order = costliest_layers(self.workshop, begun)
        drops: dict[int, float] = {0: math.inf if self.drop is None else self.drop}
        states = {0: begun}
        low, high, count = 0, len(order) + 1, 1
        while low < count < high:
            states[count] = leave_float(self.workshop, begun, order[:count])
            drops[count] = self.bound.drop(self.workshop, states[count])
            if drops[count] <= self.bound.most:
                high = count
            else:
                low = count
            count = min(2 * count, len(order)) if high > len(order) else (low + high) // 2
        best = high if high in drops else min(drops, key=lambda number: (drops[number], number))
        if best == 0:
            return
        before, self.state, self.drop = self.noise, states[best], drops[best]
        self.noise = self.workshop.noise(self.state)
        layers = f"layer {order[0]!r} is" if best == 1 else f"{best} layers are"
        self.steps.append(
            Step(
                name=name, detail=f"{layers} left float, because they cost the most accuracy for their work",
                noise_before=before.total, noise_after=self.noise.total, seconds=time.perf_counter() - start, kept=True,
                drop=self.drop,
            )
        )  # fmt: skip


def _fallen(before: float, after: float) -> float | None:
    """By how much a noise fell, decibels; None where that is no number."""
    if not (0 < before < math.inf and 0 < after < math.inf):
        return None
    return 10 * math.log10(before / after)


def _decibels(noise: Noise) -> float:
    """What is judged, in decibels; none or an unmeasured one as the most there is, for comparison only."""
    return 300.0 if math.isnan(noise.judged) else 10 * math.log10(min(max(noise.judged, 1e-30), 1e30))
