"""Second moments of what a layer reads and of what it should write: all that least squares needs to know."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.floating]


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
        return Moments(
            count=self.count + other.count,
            inputs=self.inputs + other.inputs,
            outputs=self.outputs + other.outputs,
            gram=self.gram + other.gram,
            cross=self.cross + other.cross,
            energy=self.energy + other.energy,
        )

    def centered(self) -> Moments:
        """Moments of x and y less their means: of what a bias cannot correct."""
        count = max(self.count, 1)
        return replace(
            self,
            inputs=np.zeros_like(self.inputs),
            outputs=np.zeros_like(self.outputs),
            gram=self.gram - self.inputs[:, :, None] * self.inputs[:, None, :] / count,
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

    Args:
        inputs: x, float32, [groups, rows, inputs].
        outputs: y, float32, [groups, rows, outputs].
    """
    turned = inputs.transpose(0, 2, 1)
    return Moments(
        count=inputs.shape[1],
        inputs=inputs.sum(axis=1, dtype=np.float64),
        outputs=outputs.sum(axis=1, dtype=np.float64),
        gram=(turned @ inputs).astype(np.float64),
        cross=(outputs.transpose(0, 2, 1) @ inputs).astype(np.float64),
        energy=np.einsum("gro,gro->go", outputs, outputs, dtype=np.float64),
    )
