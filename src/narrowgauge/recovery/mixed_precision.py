"""Mixed precision: how many bits each layer gets, from what each costs in noise and in size, under a budget."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from narrowgauge.analysis.records import Choice
from narrowgauge.errors import RecipeError

Unit = Literal["bytes", "bit operations"]

# More than any finite noise of a network that still computes something.
_HUGE = 1e30


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """What a layer could be.

    Attributes:
        bits: of its weights; 32 is float.
        cost: bytes of its weights, or bit operations of one sample.
        noise: what that adds to the noise at the network's output, measured with it alone changed.
    """

    bits: int
    cost: float
    noise: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _Step:
    """From one option of a layer to the next better one."""

    layer: str
    option: Option
    cost: float
    gain: float


def pareto_front(layers: Mapping[str, Sequence[Option]], unit: Unit = "bytes") -> tuple[Choice, ...]:
    """Assignments of bits that no other beats in both cost and predicted noise, the cheapest first.

    Noise of the layers is taken to add up, so the best assignment for a price per unit of cost takes, layer by layer,
    the option with the least noise + price * cost: the Lagrangian of the integer program (Everett 1963; Shoham and
    Gersho, "Efficient bit allocation for an arbitrary set of quantizers", 1988). All prices are swept at once: each
    layer's options on the lower convex hull of (cost, noise) become steps, taken in the order of what they gain per
    cost. Each point is optimal for its cost; assignments between two points are not listed (`within` fills them up).

    Args:
        layers: layer -> its options, at least one.
        unit: of the costs.
    """
    chosen = {layer: _hull(options)[0] for layer, options in layers.items()}
    points = [_point(chosen, unit)]
    for step in _steps(layers):
        chosen = chosen | {step.layer: step.option}
        points.append(_point(chosen, unit))
    return tuple(points)


def within(layers: Mapping[str, Sequence[Option]], budget: float, unit: Unit = "bytes") -> Choice:
    """Assignment of least predicted noise that costs no more than a budget.

    The steps of `pareto_front` are taken as long as they fit; one that does not is left out with those of its layer
    behind it. That is at most one step short of the optimum of the integer program, and usually it.

    Args:
        layers: layer -> its options.
        budget: in the unit of the costs.
        unit: of the costs.

    Raises:
        RecipeError: if even the cheapest options cost more.
    """
    chosen = {layer: _hull(options)[0] for layer, options in layers.items()}
    cost = sum(option.cost for option in chosen.values())
    if cost > budget:
        raise RecipeError(f"expected a budget of at least {cost:.4g} {unit}, with the fewest bits, got {budget:.4g}")
    closed: set[str] = set()
    for step in _steps(layers):
        if step.layer in closed or cost + step.cost > budget:
            closed.add(step.layer)
            continue
        cost += step.cost
        chosen[step.layer] = step.option
    return _point(chosen, unit, taken=True)


def _point(chosen: Mapping[str, Option], unit: Unit, *, taken: bool = False) -> Choice:
    return Choice(
        cost=sum(option.cost for option in chosen.values()),
        unit=unit,
        noise=sum(option.noise for option in chosen.values()),
        bits={layer: option.bits for layer, option in chosen.items()},
        chosen=taken,
    )


def _steps(layers: Mapping[str, Sequence[Option]]) -> list[_Step]:
    """Every layer's steps along its hull, most gain per cost first; a layer's own keep their order."""
    steps = [
        _Step(layer=layer, option=after, cost=after.cost - before.cost, gain=before.noise - after.noise)
        for layer, options in layers.items()
        for before, after in itertools.pairwise(_hull(options))
    ]
    return sorted(steps, key=lambda step: -step.gain / step.cost)


def _hull(options: Sequence[Option]) -> list[Option]:
    """Options on the lower convex hull of (cost, noise), cheapest first, noise falling."""
    hull: list[Option] = []
    for option in sorted(options, key=lambda one: (one.cost, one.noise)):
        if hull and option.noise >= hull[-1].noise:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-2], option):
            hull.pop()
        hull.append(option)
    return hull


def _slope(before: Option, after: Option) -> float:
    """Noise saved per cost; what an infinite noise saves is told apart by the cost."""
    return (min(before.noise, _HUGE) - after.noise) / (after.cost - before.cost)
