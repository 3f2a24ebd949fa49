"""Noise at the output: how far a quantized network is from the float one on a few samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.core.plan import Plan
from narrowgauge.errors import DataError, RuntimeFailure
from narrowgauge.graph.engine import open_session
from narrowgauge.lowering.qdq import QdqStyle, lower_to_qdq

Array = npt.NDArray[Any]


class Feed(Protocol):
    """Some samples."""

    @property
    def feed(self) -> Mapping[str, Array]:
        """Input name -> array."""


class OutputNoise:
    """Measures quantized networks against one float network, whose outputs are computed once and kept.

    Noise is the energy of the error over the energy of the float output, sum (x' - x)^2 / sum x^2 over all samples: of
    each float output by its own energy, and the mean of these, so that no output is drowned by a larger one. 0 where
    the two are equal, infinity where the quantized network gives NaN or infinity and the float one does not.
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
                error, signal = _energies(reference, candidate)
                errors[number] = errors.get(number, 0.0) + error
                signals[number] = signals.get(number, 0.0) + signal
        shares = [_share(errors[number], signals[number]) for number in errors]
        return sum(shares) / max(len(shares), 1)


def _run(network: ir.Model, batches: Sequence[Feed], threads: int | None) -> list[list[Array]]:
    session = open_session(network, threads=threads, simulate=True)
    found = []
    for batch in batches:
        try:
            found.append(session.run(None, dict(batch.feed)))
        except Exception as error:  # ONNX Runtime raises bare classes of its own that share no base
            message = " ".join(str(error).split())
            raise RuntimeFailure(f"ONNX Runtime could not run the network: {message}") from None
    return found


def _energies(reference: Array, candidate: Array) -> tuple[float, float]:
    """Energy of the error and of the signal over the elements that are finite in the reference (masks are not)."""
    finite = np.isfinite(reference)
    signal = np.where(finite, reference, 0).astype(np.float64)
    difference = np.where(finite, candidate, 0).astype(np.float64) - signal
    error = float(np.square(difference).sum())
    return (error if math.isfinite(error) else math.inf), float(np.square(signal).sum())


def _share(error: float, signal: float) -> float:
    """Error over signal; of an output that is all zeros, infinity if the other's is not."""
    if error == 0:
        return 0.0
    return error / signal if signal > 0 else math.inf
