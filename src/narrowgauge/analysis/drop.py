"""How much accuracy a network loses against its reference, in percentage points."""

from __future__ import annotations

from collections.abc import Mapping

from narrowgauge.errors import DataError


def accuracy_drop(
    before: Mapping[str, float], after: Mapping[str, float], agreement: float | None, *, own: bool
) -> tuple[str, float]:
    """Return what is judged by, for a person, and by how much it fell; negative where it rose.

    Args:
        before: metrics of the float network; the user's own is the last.
        after: those of the other.
        agreement: share of equal answers, percent; stands in where there is no metric.
        own: whether the user's own metric is meant.

    Raises:
        DataError: if there is nothing to judge by.
    """
    if own or "top1" in before:
        name = list(before)[-1] if own else "top1"
        return name, before[name] - after[name]
    if agreement is None:
        raise DataError(
            "a bound of accuracy (--max-drop, or --budget 'drop ...') needs something to judge by: "
            "give --data with labels, or a --metric"
        )
    return "the agreement with the float network", 100.0 - agreement
