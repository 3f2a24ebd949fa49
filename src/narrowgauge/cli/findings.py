"""What an analysis found, on a screen: the tensors that cost most, why, and what would help."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rich.console import RenderableType
from rich.text import Text

from narrowgauge.analysis.attention_maps import describe_attention
from narrowgauge.analysis.cause_words import choice, other_outliers, outcomes
from narrowgauge.analysis.outlier_words import describe
from narrowgauge.analysis.records import Analysis, Cause, Remedy, TensorLoss
from narrowgauge.cli.outcome import counted, plain_table

# What fits on a screen; the report has all.
_SHOWN = 10
_SHOWN_OUTLIERS = 3


def findings(analysis: Analysis) -> list[RenderableType]:
    """Rank the tensors that cost most at the output, with the kind of their loss and the best remedy."""
    losses = {loss.name: loss for loss in analysis.losses}
    ranking = analysis.ranking()
    table = plain_table("tensor", "adds", "if float", "clipping", "remedy", right=(1, 2, 3))
    for one in ranking[:_SHOWN]:
        table.add_row(
            Text(_named(one.name, analysis.roles)), _share(one.alone, analysis.noise), _share(one.gain, analysis.noise),
            _clipping(losses.get(one.name)), Text(_remedy(analysis.remedies, one.name)),
        )  # fmt: skip
    said = f"Output SQNR {_sqnr(analysis.noise)} on {counted(analysis.samples, 'sample')}. "
    said += f"Of {counted(len(ranking), 'tensor')}, these cost most:"
    meaning = (
        "adds: error at the output, with it alone quantized, and if float: what goes if it is left float, both as "
        "shares of the whole error; clipping: its share of the tensor's own error, the rest is rounding; remedy: the "
        "best that was tried besides float, and what it takes away"
    )
    parts: list[RenderableType] = [Text(said), table, Text(meaning, style="dim")]
    if analysis.attention:
        parts.append(Text(f"On one sample, {describe_attention(analysis.attention)}."))
    parts += [part for cause in analysis.causes for part in _cause(cause)]
    if analysis.causes:
        parts += [Text(f"Recovery {said}.") for said in outcomes(analysis.steps)]
    return [*parts, *(Text(f"Outlier: {describe(outlier)}.") for outlier in other_outliers(analysis)[:_SHOWN_OUTLIERS])]


def _cause(cause: Cause) -> list[RenderableType]:
    """Say what makes outliers that cost accuracy, and what each remedy wins, tried by itself before any recovery."""
    table = plain_table("remedy", "SQNR after", "gain", "allowed on this target", "", right=(1, 2))
    for one in cause.remedies:
        marked = f"{one.method} (chosen)" if one.chosen else one.method
        gain = f"{one.gain_db:+.1f} dB" if math.isfinite(one.gain_db) else "-"
        table.add_row(marked, f"{one.sqnr_db:.1f} dB", gain, "yes" if one.allowed else "no", Text(one.detail, "dim"))
    chosen = choice(cause)
    state = "before any recovery and with one scale for each value that this stretches; with each remedy by itself:"
    return [
        Text(f"Cause: {cause.sentence}. Output SQNR {cause.sqnr_db:.1f} dB {state}"),
        table,
        *([Text(f"{chosen[:1].upper()}{chosen[1:]}.")] if chosen else []),
    ]


def _named(name: str, roles: Mapping[str, str]) -> str:
    return f"{name} ({roles[name]})" if name in roles else name


def _clipping(loss: TensorLoss | None) -> str:
    return f"{100 * loss.clipping / loss.error:.0f} %" if loss is not None and loss.error else "-"


def _sqnr(noise: float) -> str:
    if noise == 0:
        return "equal"
    return f"{-10 * math.log10(noise):.1f} dB" if math.isfinite(noise) else "-"


def _share(gain: float, noise: float) -> str:
    return f"{100 * gain / noise:.0f} %" if noise > 0 and math.isfinite(noise) and math.isfinite(gain) else "-"


def _remedy(remedies: tuple[Remedy, ...], tensor: str) -> str:
    """The best remedy but leaving it float, which always comes near to it."""
    found = [one for one in remedies if one.tensor == tensor and one.gain > 0 and one.method != "float"]
    if not found:
        return ""
    best = max(found, key=lambda one: one.gain)
    return f"{best.method} ({_share(best.gain, best.noise + best.gain)})"
