"""The causes of a loss: outliers that cost the output measurably, and what helps against them, tried and measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from narrowgauge.analysis.cause_remedies import (
    FLOAT,
    METHODS,
    TRIALS,
    Case,
    Trial,
    as_planned,
    flat_encodings,
    left_floats,
    with_encodings,
)
from narrowgauge.analysis.outlier_words import cause
from narrowgauge.analysis.outliers import find_outliers
from narrowgauge.analysis.records import Cause, CauseRemedy, Outlier
from narrowgauge.core.encoding import Encoding
from narrowgauge.errors import NarrowgaugeError
from narrowgauge.graph.block_roles import block_roles
from narrowgauge.recovery.workshop import State, Workshop

# Outliers are a cause where leaving what they stretch float lowers the noise at the output below this share: one
# decibel.
_CAUSES = 0.8

# There is something to lose where the noise at the output is more than this share of its energy, 40 dB: a hundredth of
# its magnitude, where 8 bits for an output that nothing stretches have some 50 dB.
_LOSS = 1e-4

# A remedy helps where the noise falls below this share; two that differ by less are equal. As `recovery.ladder`.
_HELPS = 0.97

# Origins of outliers that are looked into, at the most, those that stretch most: each takes one or two measurements,
# with all remedies some twenty.
_MOST = 3
_MOST_QUICKLY = 2

# Batches on which outliers are located.
_LOCATING = 4


def find_causes(workshop: Workshop, state: State, *, remedies: bool) -> tuple[Cause, ...]:
    """Find the outliers that cost accuracy, and try what helps against each, from the same state.

    What stands out in the statistics is told of only where it does harm: where the noise at the output is above -40 dB,
    and falls by a decibel or more if the values that are stretched are left float. Then the remedies are applied one by
    one, each by itself, to the state without any recovery and with one scale for each of these values:

    - *cap at the source*: the unit is cut off and all behind it calibrated anew (`recovery.cap_outliers`);
    - *migration*: its channel is scaled into the weights of the next products, or multiplied in float there
      (`recovery.smooth`, `recovery.outliers`);
    - *rotation* of the residual stream (`recovery.rotate_streams`), which spreads it over all channels;
    - *scale and zero point per channel*: powers of two of one scale where the target has them in place, a scale of its
      own for each channel elsewhere;
    - *16 bits* for the values;
    - *float*: leaving them float, which tells what there is to win.

    What the target cannot do is tried in the simulation, too, and marked.

    Args:
        workshop: the means to plan and to measure; without samples to measure on nothing is found.
        state: the network as planned before any recovery.
        remedies: try them all; else only `float`, which says whether it is a cause, and what the plan has.

    Returns:
        The causes, those first that stretch a range most.

    Raises:
        RuntimeFailure: if the engine cannot run the network on the samples.
    """
    if not workshop.measuring:
        return ()
    batches = workshop.measuring[:_LOCATING]
    found = find_outliers(state.reference, state.statistics, batches, threads=workshop.threads)
    rounded = [group for group in groups(found) if _rounded(state, group)]
    rounded = rounded[: _MOST if remedies else _MOST_QUICKLY]
    noise = workshop.noise(state).total if rounded else math.nan
    causes = (_cause(workshop, state, noise, group, remedies=remedies) for group in rounded)
    return tuple(one for one in causes if one is not None)


def groups(outliers: Sequence[Outlier]) -> list[tuple[Outlier, ...]]:
    """Put outliers of one origin together: what one unit writes into several channels, and the unit itself.

    Args:
        outliers: those that stretch most first.

    Returns:
        Groups in that order; in each the one that a unit writes first, the unit's own last.
    """
    found: dict[tuple[str, int], list[Outlier]] = {}
    units = {(one.source_value, one.unit) for one in outliers if one.unit is not None}
    for one in outliers:
        places = [(name, one.channel) for name in (one.value, *one.stretched)]
        written = (one.source_value, one.unit) if one.unit is not None else places[0]
        found.setdefault(next((place for place in places if place in units), written), []).append(one)
    return [tuple(sorted(group, key=lambda one: (one.source_value, one.unit) != unit)) for unit, group in found.items()]


def _rounded(state: State, outliers: Sequence[Outlier]) -> tuple[str, ...]:
    """What outliers stretch and the plan rounds."""
    stretched = dict.fromkeys(name for one in outliers for name in one.stretched)
    return tuple(name for name in stretched if isinstance(state.plan.encodings.get(name), Encoding))


def _cause(
    workshop: Workshop, state: State, noise: float, outliers: Sequence[Outlier], *, remedies: bool
) -> Cause | None:
    values = _rounded(state, outliers)

    def flat(one: State) -> State:
        encodings = flat_encodings(one, values, workshop.target)
        return with_encodings(one, encodings) if encodings else one

    begun = flat(state)
    before = noise if begun is state else workshop.noise(begun).total
    if not before > _LOSS:
        return None
    case = Case(workshop=workshop, planned=state, state=begun, outliers=tuple(outliers), values=values, flat=flat)
    tried = _measured(case, left_floats)
    if not any(noise < _CAUSES * before for _, noise in tried):
        return None
    tried += [(trial, noise) for trial in as_planned(case)]
    for trials in TRIALS if remedies else ():
        tried += _measured(case, trials)
    encodings = {name: one for name in values if isinstance(one := begun.plan.encodings[name], Encoding)}
    suffering = max(encodings, key=lambda name: float(encodings[name].scale.max()))
    role = block_roles(state.reference).get(suffering)
    return Cause(
        sentence=cause(outliers, encodings[suffering], suffering, role.words if role is not None else ""),
        outliers=tuple(outliers),
        sqnr_db=_decibels(before),
        remedies=_ranked(tried, before, choose=remedies),
        all_tried=remedies,
    )


def _measured(case: Case, trials: Callable[[Case], Iterable[Trial]]) -> list[tuple[Trial, float]]:
    """Trials and their noise; none that cannot be made, or that the engine or the simulation cannot run."""
    try:
        found = [(trial, case.workshop.noise(trial.state).total) for trial in trials(case)]
    except NarrowgaugeError:
        return []
    return [(trial, noise) for trial, noise in found if not math.isnan(noise)]


def _ranked(tried: Sequence[tuple[Trial, float]], before: float, *, choose: bool) -> tuple[CauseRemedy, ...]:
    """Records, the largest gain first, with the one to take marked where all were tried."""
    order = {method: number for number, method in enumerate(METHODS)}
    able = [(trial, noise) for trial, noise in tried if trial.allowed and noise < _HELPS * before]
    able = [pair for pair in able if pair[0].method != FLOAT] or able
    least = min((noise for _, noise in able), default=0.0)
    equal = [trial for trial, noise in able if choose and _HELPS * noise <= least]
    chosen = min(equal, key=lambda trial: order[trial.method], default=None)
    records = [
        CauseRemedy(
            method=trial.method, detail=trial.detail, sqnr_db=_decibels(noise),
            gain_db=_decibels(noise) - _decibels(before), allowed=trial.allowed, chosen=trial is chosen,
        )
        for trial, noise in tried
    ]  # fmt: skip
    return tuple(sorted(records, key=lambda one: -one.gain_db))


def _decibels(noise: float) -> float:
    return -10 * math.log10(noise) if noise > 0 and math.isfinite(noise) else -math.inf if noise > 0 else math.inf
