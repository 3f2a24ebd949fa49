"""Outliers in one sentence each: what they are, where they fall, and what they do to a range."""

from __future__ import annotations

import math
from collections.abc import Sequence

from narrowgauge.analysis.records import Outlier
from narrowgauge.core.encoding import Encoding


def describe(outlier: Outlier) -> str:
    """Say of an outlier which channel it is, how far that reaches, and who writes it."""
    value = f"channel {outlier.channel} of {outlier.value!r}"
    named = f"{outlier.words} ({value})" if outlier.words else value
    sentence = f"{named} reaches {_number(outlier.reach)}{where(outlier)}, the other channels {_number(outlier.others)}"
    if not outlier.source:
        return f"{sentence}: the samples bring it"
    sentence = f"{sentence}: {outlier.source!r} writes it"
    return sentence if outlier.unit is None else f"{sentence}, from {_unit(outlier)}"


def cause(outliers: Sequence[Outlier], encoding: Encoding, value: str, role: str = "") -> str:
    """Say what makes some outliers of one origin, what it writes where, and what that does to the worst range.

    Args:
        outliers: those of one origin; the first one is told of, one at its unit says how far the unit reaches.
        encoding: of the value that suffers most, with one scale, as the plan had it before any recovery.
        value: that value's name.
        role: what it is, in words, "" if nothing is known.
    """
    first = outliers[0]
    said = _written(first)
    if first.unit is None:
        sentence = f"{_channel(first)} holds {said}{where(first)}{_ordinary(first)}, the other channels up to "
        sentence += f"{_number(first.others)}: {first.source!r} writes it" if first.source else _brought(first)
    else:
        unit = next((one for one in outliers[1:] if _is_unit_of(one, first)), None)
        own = f": up to {_number(unit.reach)}, the other channels up to {_number(unit.others)}" if unit else ""
        sentence = f"{_unit(first, own)}{where(first)} writes {said} into {_into(first)}{_ordinary(first)}, "
        sentence += f"where the other channels reach {_number(first.others)}"
    there = "there" if value == first.value else f"of {role} ({value!r})" if role else f"of {value!r}"
    return f"{sentence}; one step of {encoding.type.name} {there} is {_number(float(encoding.scale.max()))}"


def where(outlier: Outlier) -> str:
    """Say on which positions an outlier falls: " at tokens 0 (the class token), 14"; "" where on none in particular."""
    if not outlier.positions:
        return ""
    noun = "token" if outlier.tokens else "position"
    numbers = [
        f"{position} (the class token)" if position == 0 and outlier.read == (0,) else str(position)
        for position in sorted(outlier.positions)
    ]
    return f" at {noun}{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"


def _is_unit_of(unit: Outlier, outlier: Outlier) -> bool:
    return outlier.unit == unit.channel and outlier.source_value in (unit.value, *unit.stretched)


def _unit(outlier: Outlier, more: str = "") -> str:
    channel = f"channel {outlier.unit} of {outlier.source_value!r}"
    if outlier.source_words:
        return f"{outlier.source_words} ({channel}{more})"
    return f"{channel} ({more.removeprefix(': ')})" if more else channel


def _channel(outlier: Outlier) -> str:
    value = f"channel {outlier.channel} of {outlier.value!r}"
    return f"{outlier.words} ({value})" if outlier.words else value


def _into(outlier: Outlier) -> str:
    """Name the channel that is written, without the block where the unit is of the same one."""
    if not outlier.words:
        return f"channel {outlier.channel} of {outlier.value!r}"
    block, comma, channel = outlier.words.partition(", ")
    return channel if comma and outlier.source_words.startswith(f"{block}, ") else outlier.words


def _written(outlier: Outlier) -> str:
    """How large it is: both ends where samples were looked at, else its reach."""
    if not (math.isfinite(outlier.low) and math.isfinite(outlier.high)):
        return f"up to {_number(outlier.reach)}"
    ends = sorted((outlier.low, outlier.high), key=abs)
    low, high = (_number(end) for end in ends)
    return high if low == high else f"{low} to {high}"


def _ordinary(outlier: Outlier) -> str:
    if not math.isfinite(outlier.ordinary):
        return ""
    return f" (ordinary values there: median {_number(outlier.ordinary)})"


def _brought(outlier: Outlier) -> str:
    return f"{_number(outlier.others)}: the samples bring it"


def _number(value: float) -> str:
    text = f"{value:.3g}"
    return f"{value:.0f}" if "e" in text and abs(value) < 1e6 else text
