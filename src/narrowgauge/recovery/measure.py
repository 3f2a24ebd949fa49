"""Noise at the output: how far a quantized network is from the float one on a few samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.analysis.energies import energy, error_energy, output_noise
from narrowgauge.core.plan import Plan
from narrowgauge.errors import DataError, RuntimeFailure
from narrowgauge.graph.engine import open_session, run_session
from narrowgauge.graph.feeds import Feed
from narrowgauge.lowering.qdq import QdqStyle, lower_to_qdq

Array = npt.NDArray[Any]


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
        errors: dict[int, float] = {}
        signals: dict[int, float] = {}
        for references, candidates in zip(self._outputs, _run(network, self._batches, self._threads), strict=True):
            for number, (reference, candidate) in enumerate(zip(references, candidates, strict=True)):
                if reference.dtype.kind != "f":
                    continue
                if reference.shape != candidate.shape:
                    raise RuntimeFailure(
                        f"output {number}: expected shape {reference.shape} as in the float network, got "
                        f"{candidate.shape}"
                    )
                errors[number] = errors.get(number, 0.0) + error_energy(reference, candidate)
                signals[number] = signals.get(number, 0.0) + energy(reference)
        return output_noise(errors.values(), signals.values()) if errors else math.nan


def _run(network: ir.Model, batches: Sequence[Feed], threads: int | None) -> list[list[Array]]:
    session = open_session(network, threads=threads, simulate=True)
    names = [output.name for output in session.get_outputs()]
    return [list(run_session(session, names, batch.feed).values()) for batch in batches]
