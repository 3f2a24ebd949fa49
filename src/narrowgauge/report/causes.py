"""What the page says of the causes of a loss: a sentence, the remedies that were measured, and what recovery did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from narrowgauge.analysis.cause_words import choice, outcomes
from narrowgauge.analysis.records import Analysis, Step
from narrowgauge.report import figures


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One remedy, as the table shows it."""

    method: str
    detail: str
    sqnr: str
    gain: str
    allowed: str
    chosen: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """One cause.

    Attributes:
        sentence: what it is.
        sqnr: at the output before any recovery.
        rows: remedies, the largest gain first.
        choice: which one is to be taken, a sentence; "" where not all were tried.
    """

    sentence: str
    sqnr: str
    rows: tuple[Row, ...]
    choice: str


def read_causes(analysis: Analysis | None) -> tuple[Told, ...]:
    """Put the causes of an analysis into words."""
    return tuple(
        Told(
            sentence=sentence(cause.sentence), sqnr=figures.decibels(cause.sqnr_db),
            rows=tuple(
                Row(
                    method=one.method, detail=one.detail, sqnr=figures.decibels(one.sqnr_db),
                    gain=figures.gained(0, one.gain_db), allowed="yes" if one.allowed else "no", chosen=one.chosen,
                )
                for one in cause.remedies
            ),
            choice=sentence(choice(cause)),
        )
        for cause in (analysis.causes if analysis is not None else ())
    )  # fmt: skip


def told_outcomes(causes: Sequence[Told], steps: Sequence[Step]) -> list[str]:
    """What recovery did against the causes; nothing where there are none."""
    return [sentence(one) for one in outcomes(steps)] if causes else []


def sentence(text: str) -> str:
    """Begin with a capital and end with a full stop; nothing of nothing."""
    return f"{text[:1].upper()}{text[1:]}." if text else ""
