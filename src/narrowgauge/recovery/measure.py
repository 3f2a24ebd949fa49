"""Noise at the output: how far a quantized network is from the float one on a few samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.analysis.energies import energy, error_energy, output_noise
from narrowgauge.core.plan import Plan
from narrowgauge.errors import DataError, RuntimeFailure
from narrowgauge.graph.engine import open_session, run_session
from narrowgauge.graph.feeds import Feed
from narrowgauge.lowering.qdq import QdqStyle, lower_to_qdq

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Noise:
    """Noise at the output on some samples (see `OutputNoise`).

    Attributes:
        total: over all samples: that of the worst ones, as a rule.
        typical: geometric mean of the samples' own.
    """

    total: float
    typical: float

    @property
    def judged(self) -> float:
        """What decides between two networks: both count alike, so that neither one bad sample does nor many good."""
        return math.sqrt(self.total * self.typical)


class OutputNoise:
    """Measures quantized networks against one float network, whose outputs are computed once and kept.

    Noise is the energy of the error over the energy of the float output, sum (x' - x)^2 / sum x^2 over all samples: of
    each float output by its own energy, and the mean of these, so that no output is drowned by a larger one. 0 where
    the two are equal, infinity where the quantized network gives NaN or infinity and the float one does not, NaN where
    no output holds floating-point numbers (class indices alone): nothing tells then.
    """

    def __init__(self, reference: ir.Model, batches: Sequence[Feed], *, threads: int | None = None) -> None:
        """Run the float network.

        Args:
            reference: what is aimed at.
            batches: a few samples; they are kept, and so are the outputs.
            threads: of the engine; None for the cores that this process may use.

        Raises:
            DataError: if there is no sample.
            RuntimeFailure: if the engine refuses the network or fails to run it.
        """
        if not batches:
            raise DataError("expected samples to measure the noise at the output on, got none")
        self._batches = batches
        self._threads = threads
        self._outputs = _run(reference, batches, threads)

    def of(self, network: ir.Model, plan: Plan, style: QdqStyle | None = None) -> float:
        """Simulate a plan and measure it.

        Args:
            network: the float network that the plan describes; its outputs are in the reference's order.
            plan: the encodings.
            style: how it is lowered; None for `QdqStyle()`.

        Raises:
            PlanError: if the plan does not fit the network.
            RuntimeFailure: if the engine fails to run it.
        """
        return self.of_network(lower_to_qdq(network, plan, style))

    def of_network(self, network: ir.Model) -> float:
        """Measure a network as it is, float or with Q/DQ pairs, which are computed as they are written.

        Raises:
            RuntimeFailure: if the engine fails to run it, or its outputs are not shaped as the reference's.
        """
        return self._measured(network).total

    def measure(self, network: ir.Model, plan: Plan, style: QdqStyle | None = None) -> Noise:
        """Simulate a plan and measure the noise over all samples and that of a typical one; see `of`."""
        return self._measured(lower_to_qdq(network, plan, style))

    def _measured(self, network: ir.Model) -> Noise:
        samples = [
            (errors, signals)
            for batch, references, candidates in zip(
                self._batches, self._outputs, _run(network, self._batches, self._threads), strict=True
            )
            for errors, signals in _by_sample(batch, references, candidates)
        ]
        if not any(errors for errors, _ in samples):
            return Noise(total=math.nan, typical=math.nan)
        errors, signals = (np.sum([sample[which] for sample in samples], axis=0).tolist() for which in (0, 1))
        each = [output_noise(*sample) for sample in samples]
        typical = math.exp(sum(math.log(min(max(noise, 1e-12), 1e12)) for noise in each) / len(each))
        return Noise(total=output_noise(errors, signals), typical=typical)


def _by_sample(
    batch: Feed, references: Sequence[Array], candidates: Sequence[Array]
) -> Iterator[tuple[list[float], list[float]]]:
    """Energies of the errors and of the signals of a batch's float outputs, row by row where they have its rows."""
    pairs = [pair for pair in zip(references, candidates, strict=True) if pair[0].dtype.kind == "f"]
    for number, (reference, candidate) in enumerate(pairs):
        if reference.shape != candidate.shape:
            raise RuntimeFailure(
                f"output {number}: expected shape {reference.shape} as in the float network, got {candidate.shape}"
            )
    rows = {len(array) for array in (*batch.feed.values(), *(one for one, _ in pairs)) if array.ndim}
    count = rows.pop() if len(rows) == 1 and all(one.ndim for one, _ in pairs) else 0
    parts = [[(one[row], other[row]) for one, other in pairs] for row in range(count)] if count else [pairs]
    for part in parts:
        yield (
            [error_energy(*map(np.atleast_1d, pair)) for pair in part],
            [energy(np.atleast_1d(one)) for one, _ in part],
        )


def _run(network: ir.Model, batches: Sequence[Feed], threads: int | None) -> list[list[Array]]:
    session = open_session(network, threads=threads, simulate=True)
    names = [output.name for output in session.get_outputs()]
    return [list(run_session(session, names, batch.feed).values()) for batch in batches]
