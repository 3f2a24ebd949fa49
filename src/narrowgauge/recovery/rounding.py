"""Weights rounded so that the layer's output, not each weight, is as near as it can be to what it should be.

Everything is least squares: with H the second moments of the layer's (rounded) input and t the real weights that would
be best, rounded weights w cost (t - w)^T H (t - w) beyond the best. Arrays are [groups, inputs, outputs]: each output's
weights are rounded by themselves. `scale`, `lowest` and `highest` have size 1 along axes that share them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from narrowgauge.recovery.moments import Moments

Float = npt.NDArray[np.floating]

# Shares of the scale that reaches every weight. Few weights decide the reach; 4 bits want about 0.6 of it, 2 bits 0.4.
_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
_FINE_SHARES = tuple(1.0 - 0.03 * number for number in range(22))
_POWERS = (1.0, 0.5, 0.25)
_TRIAL_SHARE = 0.7

# Up to so many inputs (a depthwise kernel) the search keeps several roundings of the weights before each.
_FEW_INPUTS = 32
_WIDTH = 8

# Columns that are worked on before their effect on all others is added up in one matrix product.
_BLOCK = 64

_REFITS = 2
_SWEEPS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """What weights may be written as: `scale * level`, level an integer from `lowest` to `highest`.

    Attributes:
        scale: real units, [groups or 1, inputs or 1, outputs or 1].
        lowest: levels less the zero point, of a shape that the scale's spreads to.
        highest: likewise.
    """

    scale: Float
    lowest: Float
    highest: Float


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaleRule:
    """What is allowed of a scale.

    Attributes:
        free: whether it may change at all.
        power_of_two: whether it is a power of two.
        smallest: its least value, above 0, of a shape that broadcasts to the scale's.
    """

    free: bool = True
    power_of_two: bool = False
    smallest: Float


@dataclass(frozen=True, kw_only=True, slots=True)
class Ridge:
    """How far second moments of a few samples are trusted, each in units of the mean energy of an input.

    Attributes:
        target: added to the moments where the real weights are moved to the best ones for the rounded input.
        feedback: added to the moments by which a column's error is made up for by the others.
    """

    target: float
    feedback: float


# From little trust (many inputs, few rows) to much.
RIDGES = (Ridge(target=1.0, feedback=1.0), Ridge(target=0.3, feedback=0.1), Ridge(target=0.1, feedback=0.01))


def best_ridge(weights: Float, halves: Sequence[Moments], grid: Grid, rule: ScaleRule) -> Ridge:
    """Choose the ridge with which weights rounded on half of the samples do best on the other half.

    Args:
        weights: [groups, outputs, inputs], real units.
        halves: moments of two sets of samples; of one alone nothing can be told, and the first ridge is taken.
        grid: the plan's scale and levels.
        rule: what is allowed of scales.
    """
    if len(halves) < 2 or min(half.count for half in halves) == 0:
        return RIDGES[0]
    errors = []
    for ridge in RIDGES:
        problem = _problem(weights, halves[0], ridge)
        scale = _candidates(problem.target, grid, rule, (_TRIAL_SHARE,))[0] if rule.free else grid.scale
        bounds = _ordered(grid.lowest, problem.order), _ordered(grid.highest, problem.order)
        ordered = _ordered(scale, problem.order)
        levels, _ = _rounded(problem, ordered, bounds)
        errors.append(float(halves[1].error(_restored(ordered * levels, problem)).sum()))
    return RIDGES[int(np.argmin(errors))]


def round_to_moments(
    weights: Float, seen: Moments, grid: Grid, rule: ScaleRule, *, ridge: Ridge
) -> tuple[Float, Float]:
    """Choose scales and levels that make E (y - s q x)^2 small.

    The real weights W are first moved to those that are best for the rounded input, t = (Y + l W)(G + l I)^-1 with
    Y = E y x^T, G = E x x^T and the ridge l: they make up for errors of the layers before. They are rounded column by
    column, each column's error made up for by those not rounded yet (Frantar et al., "GPTQ", 2023, section 3; the same
    as Babai's nearest plane), for several scales, of which each row keeps the best. Then single levels move while
    that helps, and the scale that suits the levels best is taken, twice.

    Differs from GPTQ: the target is the float network's output (asymmetric calibration), scales are searched, columns
    are ordered by their energy, and kernels of few taps keep several roundings at each column (a beam). Differs from
    AdaRound (Nagel et al., "Up or Down?", 2020), which has the same aim: levels need not be next to the float weight,
    and no gradients are needed.

    Args:
        weights: [groups, outputs, inputs], real units.
        seen: of the layer's input and wanted output.
        grid: the plan's scale and levels.
        rule: what is allowed of scales.
        ridge: how far the moments are trusted, see `best_ridge`.

    Returns:
        The scale, float32, of the grid's shape, and the levels [groups, outputs, inputs].
    """
    problem = _problem(weights, seen, ridge)
    scale, levels = _best_scale(problem, grid, rule)
    bounds = _ordered(grid.lowest, problem.order), _ordered(grid.highest, problem.order)
    levels = _descended(problem, levels, scale, bounds)
    for _ in range(_REFITS if rule.free and not rule.power_of_two else 0):
        scale = _refitted(problem, levels, scale, rule)
        levels = _descended(problem, levels, scale, bounds)
    return _ordered(scale, np.argsort(problem.order, axis=1)), _restored(levels, problem)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Problem:
    """Least squares in the order in which columns are rounded; H are the second moments with the ridge.

    Attributes:
        order: input number of each column, [groups, inputs].
        target: t, float32, [groups, inputs, outputs].
        moments: H, in units of the largest energy of an input, float32, [groups, inputs, inputs].
        feedback: U with H^-1 = U^T U, upper triangular, float32.
    """

    order: npt.NDArray[np.int64]
    target: Float
    moments: Float
    feedback: Float


def _problem(weights: Float, seen: Moments, ridge: Ridge) -> _Problem:
    energy = np.einsum("gkk->gk", seen.gram)
    largest = float(energy.max(initial=0.0)) or 1.0  # numbers near 1 suit float32, and a layer that reads only zeros
    order = np.argsort(-energy, axis=1, kind="stable")
    gram = np.take_along_axis(np.take_along_axis(seen.gram, order[:, :, None], 1), order[:, None, :], 2) / largest
    unit = np.maximum(energy.mean(axis=1) / largest, 1e-9)[:, None, None]
    identity = np.eye(gram.shape[1])
    wanted = seen.cross.transpose(0, 2, 1) / largest + ridge.target * unit * weights.transpose(0, 2, 1)
    target = np.linalg.solve(gram + ridge.target * unit * identity, np.take_along_axis(wanted, order[:, :, None], 1))
    regular = gram + ridge.feedback * unit * identity
    inverse = np.linalg.inv(regular)
    feedback = np.linalg.cholesky((inverse + inverse.transpose(0, 2, 1)) / 2).transpose(0, 2, 1)
    return _Problem(
        order=order,
        target=target.astype(np.float32),
        moments=regular.astype(np.float32),
        feedback=feedback.astype(np.float32),
    )


def _restored(ordered: Float, problem: _Problem) -> Float:
    """Bring [groups, inputs, outputs] back to the inputs' own order, as [groups, outputs, inputs]."""
    back = np.argsort(problem.order, axis=1)[:, :, None]
    return np.take_along_axis(ordered, back, axis=1).transpose(0, 2, 1)


def _ordered(values: Float, order: npt.NDArray[np.int64]) -> Float:
    """Put what has one number for each input in another order; [groups or 1, inputs or 1, ...]."""
    if values.shape[1] == 1:
        return values
    spread = np.broadcast_to(values, (len(order), *values.shape[1:]))
    return np.take_along_axis(spread, order[:, :, None], axis=1)


# --- scales ---------------------------------------------------------------------------------------------------


def _best_scale(problem: _Problem, grid: Grid, rule: ScaleRule) -> tuple[Float, Float]:
    """Round for several scales and keep, for weights that share a scale, the one of least error."""
    bounds = _ordered(grid.lowest, problem.order), _ordered(grid.highest, problem.order)
    few = problem.target.shape[1] <= _FEW_INPUTS
    if not rule.free:
        candidates = [_ordered(grid.scale, problem.order)]
    else:
        candidates = _candidates(problem.target, grid, rule, _FINE_SHARES if few else _SHARES)
    best_loss, best_scale, best_levels = None, candidates[0], None
    for scale in candidates:
        levels, loss = _searched(problem, scale, bounds) if few else _rounded(problem, scale, bounds)
        axes = tuple(axis for axis, size in enumerate(scale.shape) if axis != 1 and size == 1)
        loss = loss[:, None, :].sum(axis=axes, keepdims=True) if axes else loss[:, None, :]
        if best_loss is None or best_levels is None:
            best_loss, best_scale, best_levels = loss, scale, levels
            continue
        better = loss < best_loss
        best_loss = np.where(better, loss, best_loss)
        best_scale = np.where(better, scale, best_scale)
        best_levels = np.where(better, levels, best_levels)
    assert best_levels is not None
    return best_scale, best_levels


def _candidates(target: Float, grid: Grid, rule: ScaleRule, shares: Sequence[float]) -> list[Float]:
    """Shares of the scale that reaches every weight of the target."""
    ends = np.where(target >= 0, np.maximum(grid.highest, 0), np.minimum(grid.lowest, 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        needed = np.where(target == 0, 0.0, target / ends)
    needed = np.where(np.isfinite(needed), needed, 0.0)  # no level on that side of 0
    axes = tuple(axis for axis, size in enumerate(grid.scale.shape) if size == 1)
    reach = needed.max(axis=axes, keepdims=True)
    reach = np.where(reach > 0, reach, grid.scale)
    if rule.power_of_two:
        reach = np.exp2(np.ceil(np.log2(reach)))
        smallest = np.exp2(np.ceil(np.log2(rule.smallest)))
        return [np.maximum(reach * power, smallest).astype(np.float32) for power in _POWERS]
    return [np.maximum(reach * share, rule.smallest).astype(np.float32) for share in shares]


def _refitted(problem: _Problem, levels: Float, scale: Float, rule: ScaleRule) -> Float:
    """Scale of least error for given levels: s = t H q / q H q, summed over what shares it."""
    image = problem.moments @ levels
    axes = tuple(axis for axis, size in enumerate(scale.shape) if size == 1)
    above = (image * problem.target).sum(axis=axes, keepdims=True, dtype=np.float64)
    below = (image * levels).sum(axis=axes, keepdims=True, dtype=np.float64)
    fitted = np.where((below > 0) & (above > 0), above / np.where(below > 0, below, 1.0), scale)
    return np.maximum(fitted, rule.smallest).astype(np.float32)


# --- levels ---------------------------------------------------------------------------------------------------


def _rounded(problem: _Problem, scale: Float, bounds: tuple[Float, Float]) -> tuple[Float, Float]:
    """Round column by column, each column's error fed to the later ones.

    Returns:
        Levels [groups, inputs, outputs] and the error (t - w)^T H (t - w) of each row, [groups, outputs].
    """
    target = problem.target.copy()
    inputs = target.shape[1]
    levels = np.empty_like(target)
    errors = np.empty_like(target)
    for start in range(0, inputs, _BLOCK):
        end = min(start + _BLOCK, inputs)
        for column in range(start, end):
            step = _column(scale, column)
            found = np.rint(target[:, column] / step)
            np.clip(found, _column(bounds[0], column), _column(bounds[1], column), out=found)
            levels[:, column] = found
            error = (target[:, column] - found * step) / problem.feedback[:, column, column, None]
            errors[:, column] = error
            later = problem.feedback[:, column, column + 1 : end, None]
            target[:, column + 1 : end] -= later * error[:, None, :]
        target[:, end:] -= problem.feedback[:, start:end, end:].transpose(0, 2, 1) @ errors[:, start:end]
    return levels, np.einsum("gko,gko->go", errors, errors)


def _column(values: Float, column: int) -> Float:
    """One input's numbers out of [groups or 1, inputs or 1, outputs or 1]: [groups or 1, outputs or 1]."""
    return values[:, column if values.shape[1] > 1 else 0]


def _searched(problem: _Problem, scale: Float, bounds: tuple[Float, Float]) -> tuple[Float, Float]:
    """Round as `_rounded` does, but keep the best few roundings of the columns so far, not one.

    Each may round the next column to the nearest level or to one beside it. (The K-best search for the closest point
    of a lattice.)
    """
    groups, inputs, outputs = problem.target.shape
    target = np.repeat(problem.target[:, :, :, None], _WIDTH, axis=3)  # [groups, inputs, outputs, kept]
    levels = np.zeros_like(target)
    loss = np.full((groups, outputs, _WIDTH), np.inf, dtype=np.float32)
    loss[:, :, 0] = 0
    moves = np.array([0, 1, -1], dtype=np.float32)
    for column in range(inputs):
        step, lowest, highest = (_column(values, column)[:, :, None] for values in (scale, *bounds))
        nearest = np.clip(np.rint(target[:, column] / step), lowest, highest)
        tried = nearest[..., None] + moves  # [groups, outputs, kept, moves]
        error = target[:, column, :, :, None] - tried * step[..., None]
        error /= problem.feedback[:, column, column, None, None, None]
        cost: Float = loss[..., None] + error**2
        cost[(tried < lowest[..., None]) | (tried > highest[..., None])] = np.inf
        flat = cost.reshape(groups, outputs, -1)
        chosen = np.argpartition(flat, _WIDTH - 1, axis=2)[:, :, :_WIDTH]
        loss = np.take_along_axis(flat, chosen, axis=2)
        parents = (chosen // len(moves))[:, None]
        target = np.take_along_axis(target, parents, axis=3)
        levels = np.take_along_axis(levels, parents, axis=3)
        levels[:, column] = np.take_along_axis(tried.reshape(flat.shape), chosen, axis=2)
        kept = np.take_along_axis(error.reshape(flat.shape), chosen, axis=2)
        target[:, column + 1 :] -= problem.feedback[:, column, column + 1 :, None, None] * kept[:, None]
    best = loss.argmin(axis=2)
    found = np.take_along_axis(levels, best[:, None, :, None], axis=3)[..., 0]
    return found, np.take_along_axis(loss, best[:, :, None], axis=2)[..., 0]


def _descended(problem: _Problem, levels: Float, scale: Float, bounds: tuple[Float, Float]) -> Float:
    """Move each level in turn to the best one for the others as they are (coordinate descent)."""
    levels = levels.copy()
    inputs = levels.shape[1]
    gradient = problem.moments @ (problem.target - scale * levels)
    diagonal = np.einsum("gkk->gk", problem.moments)[:, :, None]
    for _ in range(_SWEEPS):
        for start in range(0, inputs, _BLOCK):
            end = min(start + _BLOCK, inputs)
            moved = np.empty_like(levels[:, start:end])
            for column in range(start, end):
                step = _column(scale, column)
                found = np.rint(levels[:, column] + gradient[:, column] / (diagonal[:, column] * step))
                np.clip(found, _column(bounds[0], column), _column(bounds[1], column), out=found)
                change = (found - levels[:, column]) * step
                levels[:, column] = found
                moved[:, column - start] = change
                within = problem.moments[:, start:end, column, None]
                gradient[:, start:end] -= within * change[:, None]
            gradient[:, :start] -= problem.moments[:, :start, start:end] @ moved
            gradient[:, end:] -= problem.moments[:, end:, start:end] @ moved
    return levels
