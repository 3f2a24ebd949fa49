"""Second moments of what a layer reads and of what it should write: all that least squares needs to know."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.floating]

# Share of an input's energy about 0 below which its energy about its mean is rounding of the sums, not seen.
_UNSEEN = 1e-10


@dataclass(frozen=True, kw_only=True, slots=True)
class Moments:
    """Sums over rows (samples and positions) of a layer in matrix form, real units, float64.

    Attributes:
        count: number of rows.
        inputs: sum of x, [groups, inputs].
        outputs: sum of y, [groups, outputs].
        gram: sum of x x^T, [groups, inputs, inputs].
        cross: sum of y x^T, [groups, outputs, inputs].
        energy: sum of y^2, [groups, outputs].
    """

    count: int
    inputs: Float
    outputs: Float
    gram: Float
    cross: Float
    energy: Float

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets of rows."""
        with np.errstate(invalid="ignore"):
            return Moments(
                count=self.count + other.count,
                inputs=self.inputs + other.inputs,
                outputs=self.outputs + other.outputs,
                gram=self.gram + other.gram,
                cross=self.cross + other.cross,
                energy=self.energy + other.energy,
            )

    def centered(self) -> Moments:
        """Moments of x and y less their means: of what a bias cannot correct.

        The diagonal of `gram` is raised by 1e-10 of itself, more than the difference's rounding error, so that it stays
        positive definite where an input is next to constant.
        """
        count = max(self.count, 1)
        gram = self.gram - self.inputs[:, :, None] * self.inputs[:, None, :] / count
        np.einsum("gkk->gk", gram)[...] += _UNSEEN * np.einsum("gkk->gk", self.gram)
        return replace(
            self,
            inputs=np.zeros_like(self.inputs),
            outputs=np.zeros_like(self.outputs),
            gram=gram,
            cross=self.cross - self.outputs[:, :, None] * self.inputs[:, None, :] / count,
            energy=np.maximum(self.energy - self.outputs**2 / count, 0.0),
        )

    def error(self, weights: Float) -> Float:
        """Sum of (y - w x)^2 of each output, [groups, outputs].

        Args:
            weights: [groups, outputs, inputs].
        """
        gradient = weights @ self.gram - 2 * self.cross
        found: Float = np.maximum(np.einsum("gok,gok->go", gradient, weights) + self.energy, 0.0)
        return found

    def mean_error(self, weights: Float) -> Float:
        """Mean of w x - y of each output, [groups, outputs]."""
        found: Float = (np.einsum("gok,gk->go", weights, self.inputs) - self.outputs) / max(self.count, 1)
        return found


def moments(inputs: Float, outputs: Float) -> Moments:
    """Moments of some rows.

    Products are summed in float32 about the rows' means, which large means would else drown. Those of numbers whose
    squares leave float32 are not finite.

    Args:
        inputs: x, float32, [groups, rows, inputs].
        outputs: y, float32, [groups, rows, outputs].
    """
    x, x_mean, x_sum = _about_mean(inputs)
    y, y_mean, y_sum = _about_mean(outputs)
    count = inputs.shape[1]
    with np.errstate(over="ignore", invalid="ignore"):
        return Moments(
            count=count,
            inputs=x_sum + count * x_mean,
            outputs=y_sum + count * y_mean,
            gram=_about_zero(x.transpose(0, 2, 1) @ x, (x_mean, x_sum), (x_mean, x_sum), count),
            cross=_about_zero(y.transpose(0, 2, 1) @ x, (y_mean, y_sum), (x_mean, x_sum), count),
            energy=np.einsum("gro,gro->go", outputs, outputs, dtype=np.float64),
        )


def _about_mean(rows: Float) -> tuple[Float, Float, Float]:
    """Rows less their mean (in their own type), that mean, and the sum of what is left of them."""
    mean = (rows.sum(axis=1, dtype=np.float64) / max(rows.shape[1], 1)).astype(rows.dtype)
    left = rows - mean[:, None, :]
    return left, mean.astype(np.float64), left.sum(axis=1, dtype=np.float64)


def _about_zero(products: Float, first: tuple[Float, Float], second: tuple[Float, Float], count: int) -> Float:
    """Sum of a b^T from that of (a - m)(b - n)^T, with (m, sum of a - m), (n, sum of b - n) and the number of rows."""
    (m, a), (n, b) = first, second
    moved: Float = products + a[:, :, None] * n[:, None, :] + m[:, :, None] * (b + count * n)[:, None, :]
    return moved
