"""What the page's scripts draw, as small JSON values: the network's layers and each tensor's details.

Numbers are shortened to what a picture can show, so that a page with hundreds of tensors stays small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from narrowgauge.analysis.encoding_words import channel_shifts
from narrowgauge.analysis.records import Analysis, Choice, Distribution, Sensitivity
from narrowgauge.core.encoding import LogEncoding, NormalizedEncoding
from narrowgauge.core.plan import Plan
from narrowgauge.report import figures
from narrowgauge.report.tensors import Tensor, error_change, role, words

# Tensors with a picture of their distribution, the most costly ones: some 2 kB each.
PICTURES = 500

# Digits that a picture needs, and hundredths of a power of ten of a density on its logarithmic axis.
_DIGITS = 4
_DENSITY_STEPS = 100


def pictures(plan: Plan, analysis: Analysis | None, rows: Sequence[Tensor]) -> dict[str, Any]:
    """Return all that the scripts need, as JSON values without NaN or infinity."""
    found = analysis or Analysis()
    reasons = {node.name: node.reason for node in plan.float_nodes}
    return {
        "tensors": [
            _tensor(row, found.distributions.get(row.name) if place < PICTURES else None)
            for place, row in enumerate(rows)
        ],
        "layers": _layers(found),
        "values": [
            {
                "name": one.name, "node": one.node, "operator": one.operator, "depth": one.depth,
                "sqnr": _short(one.sqnr_db), "text": figures.decibels(one.sqnr_db), "reason": reasons.get(one.node, ""),
            }
            for one in found.depth
        ],
        "front": [_choice(one) for one in sorted(found.front, key=lambda one: one.cost)],
    }  # fmt: skip


def _tensor(row: Tensor, distribution: Distribution | None) -> dict[str, Any]:
    return {
        "name": row.name,
        "role": role(row),
        "node": row.node,
        "words": words(row),
        "facts": [[title, [list(fact) for fact in facts]] for title, facts in _facts(row).items() if facts],
        "range": _numbers(row.range) if row.range else None,
        "sampled": row.kind == "activation",
        "step": _uniform_step(row),
        "levels": row.levels,
        "places": _places(row),
        "unequal": _unequal(row),
        "split": _short(row.clipping_share),
        "distribution": _distribution(distribution) if distribution and _can_be_drawn(distribution) else None,
        "channels": _channels(distribution) if distribution and distribution.channel_index else None,
        "remedies": [
            [
                one.method,
                figures.percent(error_change(one)),
                _decibels(one.noise),
                one.detail,
                _short(error_change(one)),
            ]
            for one in row.remedies
        ],
    }


def _facts(row: Tensor) -> dict[str, list[tuple[str, str]]]:
    """The tensor's numbers by subject, each with its label."""
    encoding = [("Number type", row.type), ("One scale covers", row.granularity)]
    shifts = channel_shifts(row.encoding)
    if shifts is not None:
        counts = np.bincount(shifts)
        counted = ", ".join(f"{shift}: {counts[shift]:,}" for shift in np.flatnonzero(counts))
        encoding.append(("Channels with each shift", counted))
    if row.range and row.scales:
        encoding.append(("Representable range", figures.interval(*row.range)))
        low, high = row.scales
        encoding.append(("Step", figures.real(low) if low == high else figures.interval(low, high)))
    loss, own, cost = row.loss, [], []
    if loss is not None:
        encoding += [("Numbers seen", figures.interval(*loss.seen)), ("Shape", loss.shape or figures.UNKNOWN)]
        own = [
            ("SQNR of the tensor", figures.decibels(row.sqnr_db)),
            ("Rounding: mean of DX_r²", figures.real(loss.rounding)),
            ("Clipping: mean of DX_c²", figures.real(loss.clipping)),
            ("Elements beyond the range", figures.percent(loss.clipped_share)),
            ("Levels used", f"{loss.levels_used:,} of {loss.levels:,}"),
            ("Entropy of the levels", f"{loss.entropy_bits:.2f} bits"),
            ("Wasted", f"{loss.wasted_bits:.2f} bits"),
            ("Taken from", "the elements" if loss.measured else "the calibration histogram"),
        ]
    if row.sensitivity is not None:
        cost = [
            ("Error that it adds by itself", figures.percent(row.cost)),
            ("SQNR then", _decibels(row.sensitivity.alone)),
            ("Error that goes away if it is left float", figures.percent(row.saved)),
            ("SQNR then", _decibels(row.sensitivity.without)),
        ]
        if row.sensitivity.samples:
            cost.append(("Measured on", figures.counted(row.sensitivity.samples, "sample")))
    return {"Encoding": encoding, "Its own error": own, "At the network’s output": cost}


def _places(row: Tensor) -> list[float | None] | None:
    """Where levels lie that are no equal steps, ascending, where that is the same for every row."""
    if not isinstance(row.encoding, LogEncoding) or row.encoding.normalized:
        return None
    return _numbers(row.encoding.values[::-1])


def _unequal(row: Tensor) -> str:
    """Say where levels lie that are no equal steps; "" where they are."""
    if isinstance(row.encoding, NormalizedEncoding):
        return "Levels are equal steps in each row: its greatest number has the highest level."
    if isinstance(row.encoding, LogEncoding):
        below = "below the greatest number of each row" if row.encoding.normalized else "below 1"
        part = f" parted into {2**row.encoding.octave_bits}" if row.encoding.octave_bits else ""
        return f"Levels are the powers of two{part} {below}, and 0."
    return ""


def _uniform_step(row: Tensor) -> float | None:
    """The step, where there is a single one."""
    return _short(row.scales[0]) if row.scales and row.scales[0] == row.scales[1] else None


def _can_be_drawn(distribution: Distribution) -> bool:
    """Whether there is an element, and all ends of bins are numbers that an axis can hold."""
    return any(share > 0 for share in distribution.density) and all(map(math.isfinite, distribution.edges))


def _distribution(distribution: Distribution) -> dict[str, Any]:
    """Edges (two if equally spaced), and densities as hundredths of powers of ten; 1 stands for an empty bin."""
    edges = np.asarray(distribution.edges)
    density = np.asarray(distribution.density)
    with np.errstate(divide="ignore"):
        logarithms = np.where(density > 0, np.rint(_DENSITY_STEPS * np.log10(density)), 1)
    spaced = len(edges) > 1 and np.allclose(np.diff(edges), (edges[-1] - edges[0]) / (len(edges) - 1), rtol=1e-3)
    kept = edges[[0, -1]] if spaced else edges
    return {"edges": _numbers(kept), "density": np.minimum(logarithms, 1).astype(int).tolist()}


def _channels(distribution: Distribution) -> dict[str, Any]:
    """Ranges per channel; a representable range that is the same for all is written once."""
    low, high = _numbers(distribution.channel_range_low), _numbers(distribution.channel_range_high)
    return {
        "axis": distribution.channel_axis,
        "index": list(distribution.channel_index),
        "low": _numbers(distribution.channel_low),
        "high": _numbers(distribution.channel_high),
        "rangeLow": low if len(set(low)) > 1 else low[:1],
        "rangeHigh": high if len(set(high)) > 1 else high[:1],
    }


def _layers(analysis: Analysis) -> list[dict[str, Any]]:
    """Cost of each layer, and of each tensor that belongs to none: activations that no layer writes."""
    layers = [one for one in analysis.sensitivities if one.kind == "layer"]
    nodes = {one.node for one in layers}
    held = {name for one in layers for name in one.tensors}
    others = [
        one for one in analysis.sensitivities if one.kind != "layer" and one.name not in held and one.node not in nodes
    ]
    operators = _operators(analysis)
    return [_layer(one, operators, analysis.noise) for one in sorted([*layers, *others], key=lambda one: one.depth)]


def _operators(analysis: Analysis) -> Mapping[str, str]:
    """Node -> operator, as far as the records say."""
    found = {one.node: one.operator for one in analysis.depth}
    return found | {one.node: one.operator for one in analysis.losses}


def _layer(one: Sensitivity, operators: Mapping[str, str], noise: float) -> dict[str, Any]:
    known = 0 < noise < math.inf
    return {
        "name": one.name,
        "node": one.node,
        "operator": operators.get(one.node, ""),
        "depth": one.depth,
        "cost": _short(one.alone / noise) if known else None,
        "saved": _short(one.gain / noise) if known else None,
        "costText": figures.percent(one.alone / noise if known else None),
        "savedText": figures.percent(one.gain / noise if known else None),
    }


def _choice(one: Choice) -> dict[str, Any]:
    unit = figures.size(one.cost) if one.unit == "bytes" else f"{figures.real(one.cost)} bit operations"
    counts: dict[int, int] = {}
    for bits in one.bits.values():
        counts[bits] = counts.get(bits, 0) + 1
    layers = ", ".join(
        f"{figures.counted(count, 'layer')} {'float' if bits == 32 else f'{bits} bits'}"
        for bits, count in sorted(counts.items())
    )
    return {
        "cost": _short(one.cost), "unit": one.unit, "costText": unit, "sqnr": _short(figures.noise_decibels(one.noise)),
        "sqnrText": _decibels(one.noise), "layers": layers, "chosen": one.chosen,
    }  # fmt: skip


def _decibels(noise: float) -> str:
    return figures.decibels(figures.noise_decibels(noise))


def _numbers(values: Sequence[float] | np.ndarray[Any, Any]) -> list[float | None]:
    return [_short(float(value)) for value in values]


def _short(value: float | None) -> float | None:
    """A number with the digits a picture needs; None for what JSON cannot hold."""
    if value is None or not math.isfinite(value):
        return None
    short = float(f"{value:.{_DIGITS}g}")
    return int(short) if short.is_integer() and abs(short) < 1e9 else short
