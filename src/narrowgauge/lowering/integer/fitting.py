"""Integer forms of rescales, proved: two rules are one if their levels change at the same sums.

Every rescale never falls as its sum grows. So it is said completely by the least sum of each level, its thresholds,
which bisection finds; and whatever has the same thresholds is equal to it, for every sum that can occur.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from narrowgauge.core.engines.rescale import IntegerRescale, Rescale
from narrowgauge.errors import PlanError

Integers = npt.NDArray[np.int64]

_MOST_THRESHOLDS = 2**22
"""Of one layer: more take too long (16-bit levels of many channels)."""

_MOST_RAISED = 5
"""Sums that are raised cost three short steps each; comparing with what comes next as much as five of them."""

_CLOSE = 1e-4
"""How near a line without room may come to a level that it must not reach, in sums."""

_FAR = 1.0

_BITS = 63
"""Within which every number of the arithmetic stays."""


def thresholds(rescale: Rescale, levels: Integers, least: Integers, greatest: Integers) -> Integers:
    """Return the least sum that reaches each level.

    Args:
        rescale: the rule.
        levels: shape (levels,).
        least: least sum that can occur, shape (channels,).
        greatest: the greatest one.

    Returns:
        Sums, shape (levels, channels); `greatest + 1` where no sum reaches the level.
    """
    wanted = levels[:, None]
    low = np.broadcast_to(least, (len(levels), len(least))).copy()
    high = np.broadcast_to(greatest + 1, low.shape).copy()
    while (low < high).any():
        middle = low + ((high - low) >> 1)
        open_ = low < high
        reached = rescale.levels(np.minimum(middle, greatest)) >= wanted
        high = np.where(open_ & reached, middle, high)
        low = np.where(open_ & ~reached, middle + 1, low)
    return low


def saturation(rescale: Rescale, least: Integers, greatest: Integers) -> tuple[Integers, Integers]:
    """Return sums, shape (channels,), that all lower and all higher ones may be cut to: their level is the same."""
    if rescale.low >= rescale.high:
        return least, least
    ends = np.array([rescale.low + 1, rescale.high], dtype=np.int64)
    first, last = thresholds(rescale, ends, least, greatest)
    return np.clip(first - 1, least, greatest), np.clip(last, least, greatest)


def within_62_bits(rescale: Rescale, least: Integers, greatest: Integers) -> tuple[Integers, Integers]:
    """Cut sums to those whose product with an integer multiplier has 62 bits.

    Args:
        rescale: the rule.
        least: least sum that can occur, shape (channels,).
        greatest: the greatest one.

    Returns:
        The least and the greatest that are left; all beyond have the level of these.

    Raises:
        PlanError: levels still change beyond; or the engine's own int32 overflows there, since a multiplier of 31 bits
            that is greater than 1 shifts the sum to the left first (`core.engines.fixed_point`).
    """
    if not isinstance(rescale, IntegerRescale):
        return least, greatest
    low, high = np.maximum(least, -rescale.room), np.minimum(greatest, rescale.room)
    ends = rescale.levels(np.stack([low, high]))
    changes = ((low > least) & (ends[0] > rescale.low)) | ((high < greatest) & (ends[1] < rescale.high))
    overflows = ((low > least) | (high < greatest)) & (rescale.multiplier >= 2**31) & (rescale.shift == 31)
    if (changes | overflows).any():
        channel = int(np.argmax(changes | overflows))
        factor = float(np.broadcast_to(rescale.multiplier / 2.0**rescale.shift, low.shape)[channel])
        raise PlanError(
            f"a unit of the sum is {factor:g} steps of the output and sums reach "
            f"{int(max(-least[channel], greatest[channel]))}: their product exceeds the engine's integers; give the "
            "output a coarser scale"
        )
    return low, high


@dataclass(frozen=True, kw_only=True, slots=True)
class IntegerForm:
    """A rescale in integers.

    A rule that computes in float32 reaches a level a sum earlier, here and there, than any straight line. Where that
    are few sums of a channel, 1 is added to these first; where they are many, the line's level is compared with where
    the next one begins.

    Attributes:
        rescale: each number of shape (channels,).
        raised: sums to which 1 is added first, shape (at most 5, channels). Where a channel has fewer, a sum that does
            not occur stands.
        begins: least sum of each level above the lowest, and one beyond all sums, shape (levels, channels): a level
            whose successor begins at or below the sum becomes that. None where the line is never late.
    """

    rescale: IntegerRescale
    raised: Integers
    begins: Integers | None = None

    def levels(self, sums: Integers) -> Integers:
        """Write sums, shape [rows, channels], as levels."""
        found = self.rescale.levels(sums + (sums == self.raised[:, None]).any(axis=0))
        if self.begins is None:
            return found
        following = np.take_along_axis(self.begins, found - self.rescale.low, axis=0)
        return np.asarray(found + (sums >= following))


def integer_form(rescale: Rescale, least: Integers, greatest: Integers) -> IntegerForm:
    """Find integers that give the same levels, the simplest that do.

    Args:
        rescale: the rule.
        least: least sum that is to be written, shape (channels,): the lower of `saturation`'s.
        greatest: the greatest one, the higher of these.

    Returns:
        A form of which no step exceeds 63 bits.

    Raises:
        PlanError: none was found.
    """
    if isinstance(rescale, IntegerRescale):
        simple = _without_inner_clip(_per_channel(rescale, least, greatest), least, greatest)
        if _fits(simple, least, greatest) and _by_sign(simple):
            return IntegerForm(rescale=simple, raised=np.zeros((0, len(least)), dtype=np.int64))
    fitted = _fitted(rescale, least, greatest)
    if fitted is None or not _fits(fitted.rescale, least, greatest + 1):
        raise PlanError("no arithmetic in 64-bit integers gives the engine's levels for every sum that can occur")
    return fitted


def _per_channel(form: IntegerRescale, least: Integers, greatest: Integers) -> IntegerRescale:
    """Give each channel its own numbers; one whose sums all become one level has that level as a constant."""
    first, last = form.levels(least[None])[0], form.levels(greatest[None])[0]
    constant = first == last
    zero = np.zeros_like(first)
    return replace(
        form,
        multiplier=np.where(constant, zero, form.multiplier),
        addend=np.where(constant, first - form.zero_point, form.addend),
        shift=np.where(constant, zero, form.shift),
        below=np.where(constant, zero, form.below),
        above=np.where(constant, zero, form.above),
        fraction=np.where(constant, zero, form.fraction),
    )


def _without_inner_clip(form: IntegerRescale, least: Integers, greatest: Integers) -> IntegerRescale:
    """Replace the inner clip by one of its ends, or 0, where that makes no difference."""
    if not (form.below.any() or form.above.any()):
        return form
    count = form.high - form.low
    if not 0 < count * len(least) <= _MOST_THRESHOLDS:
        return form
    levels = np.arange(form.low + 1, form.high + 1, dtype=np.int64)
    known = thresholds(form, levels, least, greatest)
    zero = np.zeros_like(form.below)
    for addend in (form.above, form.below, zero):
        simple = replace(form, addend=form.addend + addend, below=zero, above=zero)
        if _has_thresholds(simple, known, levels, least, greatest).all():
            return simple
    return form


def _has_thresholds(
    rescale: IntegerRescale | IntegerForm, known: Integers, levels: Integers, least: Integers, greatest: Integers
) -> npt.NDArray[np.bool_]:
    """Tell for each channel whether a form reaches each level at these sums, and not at the sums before."""
    reached = (known > greatest) | (rescale.levels(np.minimum(known, greatest)) >= levels[:, None])
    before = (known <= least) | (rescale.levels(np.maximum(known - 1, least)) < levels[:, None])
    return np.asarray((reached & before).all(axis=0))


def unbounded(form: IntegerRescale) -> IntegerRescale:
    """Return the same arithmetic without saturation."""
    return replace(form, low=-(2**62), high=2**62)


def _fits(form: IntegerRescale, least: Integers, greatest: Integers) -> bool:
    """Whether no step of the arithmetic exceeds 63 bits, levels that are negative made positive."""
    magnitude = np.maximum(np.abs(least), np.abs(greatest)).astype(np.float64)
    product = magnitude * (np.abs(form.multiplier.astype(np.float64)) + np.sign(form.fraction))
    product += np.maximum(form.above, -form.below).astype(np.float64) + np.abs(form.addend.astype(np.float64))
    if not (product < 2.0 ** (_BITS - 1)).all():
        return False
    ends = unbounded(form).levels(np.stack([least, greatest])).astype(np.float64)
    levels = float(max(form.high, ends.max()) - min(form.low, ends.min(), 0) + 1)
    return bool((product + np.ldexp(levels, form.shift.astype(np.int32)) < 2.0**_BITS).all())


def _by_sign(form: IntegerRescale) -> bool:
    """Whether the inner clip of each product, but for that of 0, is one of its ends, both alike or one of them 0.

    Then it is the sum's sign times a number: ONNX Runtime (1.31) compares int64 numbers wrongly in Max, Min, Clip and
    Sign (https://github.com/microsoft/onnxruntime/pull/25280).
    """
    reach = np.maximum(form.above, -form.below)
    alike = np.array_equal(form.above, -form.below) or not form.above.any() or not form.below.any()
    return bool(alike and ((form.multiplier >= reach) | (reach == 0)).all())


def _fitted(rescale: Rescale, least: Integers, greatest: Integers) -> IntegerForm | None:
    """Find a line for each channel, `sum * multiplier + addend >> shift`, that changes levels where the rule does.

    A line with slope `s` and intercept `c` reaches level `k` first at sum `t` if `s t + c >= k > s (t - 1) + c`. For a
    slope the intercepts that do so for every level lie between the greatest `k - s t` and the least `k - s t + s`; how
    far apart these are is a concave function of the slope, and the slope that maximizes it is searched for. Where even
    that leaves no intercept, one is taken that reaches no level too early, and the sums that come too late are raised.
    """
    count = rescale.high - rescale.low
    if not 0 < count * len(least) <= _MOST_THRESHOLDS:
        return None
    levels = np.arange(rescale.low + 1, rescale.high + 1, dtype=np.int64)
    known = thresholds(rescale, levels, least, greatest)
    inside = (known > least) & (known <= greatest)
    slope = _best_slope(known, levels, least, greatest)
    from_, to = _intercepts(slope, known, levels, least, greatest)
    constant = rescale.levels(least[None])[0] + 0.5  # of channels that have one level only
    middle = np.where(from_ < to - slope * _CLOSE, (from_ + to) / 2, to - slope * _CLOSE)
    intercept = np.where(inside.any(axis=0), middle, constant)
    slope = np.where(inside.any(axis=0), slope, 0.0)
    line = _in_integers(slope, intercept, rescale, (least, greatest))
    late = inside & (line.levels(known) < levels[:, None])
    raised = _gathered(late, known, least)
    begins = np.concatenate([known, np.broadcast_to(greatest + 1, (1, len(greatest)))])
    forms = [IntegerForm(rescale=line, raised=raised)] if len(raised) <= _MOST_RAISED else []
    forms.append(IntegerForm(rescale=line, raised=raised[:0], begins=begins))
    ends = (known, levels, least, greatest)
    return next((form for form in forms if _has_thresholds(form, *ends).all()), None)


def _gathered(late: npt.NDArray[np.bool_], known: Integers, least: Integers) -> Integers:
    """Return each channel's sums that come too late, below each other."""
    order = np.argsort(~late, axis=0, kind="stable")[: int(late.sum(axis=0).max(initial=0))]
    return np.where(np.take_along_axis(late, order, axis=0), np.take_along_axis(known, order, axis=0), least - 1)


def _best_slope(known: Integers, levels: Integers, least: Integers, greatest: Integers) -> npt.NDArray[np.float64]:
    """Search the slope that leaves intercepts the most room by thirds, shape (channels,)."""
    low, high = np.zeros(len(least)), np.full(len(least), len(levels) + 1.0)
    for _ in range(120):  # (2 / 3)^120 is less than a float64 tells apart
        one, other = low + (high - low) / 3, high - (high - low) / 3
        (first, second), (third, fourth) = (
            _intercepts(slope, known, levels, least, greatest) for slope in (one, other)
        )
        better = second - first > fourth - third
        low, high = np.where(better, low, one), np.where(better, other, high)
    return np.asarray((low + high) / 2)


def _intercepts(
    slope: npt.NDArray[np.float64], known: Integers, levels: Integers, least: Integers, greatest: Integers
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the least intercept that reaches every level in time, and the one that reaches some too early."""
    rest = levels[:, None] - slope * known
    in_time = np.where(known <= greatest, rest, -np.inf).max(axis=0)
    too_early = np.where(known > least, rest + slope, np.inf).min(axis=0)
    # Where no level limits it on one side, any intercept far enough away from the other does.
    return np.maximum(in_time, too_early - _FAR), np.minimum(too_early, in_time + _FAR)


def _in_integers(
    slope: npt.NDArray[np.float64],
    intercept: npt.NDArray[np.float64],
    rescale: Rescale,
    ends: tuple[Integers, Integers],
) -> IntegerRescale:
    """Write lines with as many bits as leave room for every product."""
    most_levels = rescale.high - min(rescale.low, 0) + 1
    reach = np.maximum(np.abs(ends[0]), np.abs(ends[1])) * slope + np.abs(intercept) + most_levels
    shift = np.clip(_BITS - 3 - np.ceil(np.log2(reach)), 0, _BITS - 3).astype(np.int64)
    zero = np.zeros_like(shift)
    return IntegerRescale(
        multiplier=np.rint(np.ldexp(slope, shift.astype(np.int32))).astype(np.int64),
        addend=np.rint(np.ldexp(intercept, shift.astype(np.int32))).astype(np.int64),
        shift=shift, below=zero, above=zero, zero_point=0, low=rescale.low, high=rescale.high,
    )  # fmt: skip
