"""Causes in words: what was chosen, what recovery did about them, and which outliers are none."""

from __future__ import annotations

import math
from collections.abc import Sequence

from narrowgauge.analysis.records import Analysis, Cause, Outlier, Step

# Recovery methods that take outliers away, as the table of remedies calls them.
_AGAINST = {
    "migrate": "migration",
    "widen-streams": "16 bits",
    "rotate-streams": "rotation",
    "cap-outliers": "cap at the source",
}

_CAPPED = "outliers were cut off where they arise: "


def choice(cause: Cause) -> str:
    """Say which remedy is to be taken, "" where not all were tried."""
    chosen = cause.chosen
    if chosen is not None:
        detail = f" ({chosen.detail})" if chosen.detail else ""
        return f"best by measured gain: {chosen.method}{detail}, {chosen.gain_db:+.1f} dB"
    return "no remedy that the target allows helps" if cause.all_tried else ""


def outcomes(steps: Sequence[Step]) -> tuple[str, ...]:
    """Say what recovery did against outliers, one sentence for each method that it tried: "kept: ...: +9.1 dB"."""
    return tuple(
        f"{'kept' if step.kept else 'tried, not kept'}: {_AGAINST[step.name]}{_detail(step)}{_gain(step)}"
        for step in steps
        if step.name in _AGAINST
    )


def other_outliers(analysis: Analysis) -> tuple[Outlier, ...]:
    """Outliers that no cause tells of."""
    told = {(one.value, one.channel) for cause in analysis.causes for one in cause.outliers}
    told |= {(name, one.channel) for cause in analysis.causes for one in cause.outliers for name in one.stretched}
    return tuple(one for one in analysis.outliers if (one.value, one.channel) not in told)


def _detail(step: Step) -> str:
    detail = step.detail.removeprefix(_CAPPED)
    return f" ({detail})" if detail else ""


def _gain(step: Step) -> str:
    before, after = step.noise_before, step.noise_after
    if not (math.isfinite(before) and math.isfinite(after) and before > 0 and after > 0):
        return ""
    return f": {10 * math.log10(before / after):+.1f} dB"
