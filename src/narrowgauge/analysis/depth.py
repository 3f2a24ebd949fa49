"""How the errors of all tensors together grow along a network: each value, float against quantized."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.analysis.chain import Case, Chain, Part, Streams, first_cases
from narrowgauge.analysis.energies import energy, error_energy
from narrowgauge.analysis.probability_loss import round_probabilities
from narrowgauge.analysis.records import ValueNoise
from narrowgauge.analysis.roundings import RoundedEncoding
from narrowgauge.core.arithmetic import round_trip
from narrowgauge.core.encoding import Encoding
from narrowgauge.graph.edits import is_operator
from narrowgauge.graph.roles import LAYOUT_OPERATORS, bias_addition, clips_only, is_constant, is_float

Array = npt.NDArray[Any]

# Samples that are compared: a value has many elements, and few samples tell their error.
SAMPLES = 16


def cumulative_noise(
    streams: Streams, *, samples: int = SAMPLES, progress: Callable[[int], None] = lambda count: None
) -> tuple[ValueNoise, ...]:
    """Compare every float value of the two networks on the same samples.

    The ratio is 10 log10(sum x^2 / sum (x_hat - x)^2) over all elements of all samples, x_hat the value that the
    quantized network hands on. Left out are values that no quantized network has: what only a Relu or Clip reads that
    saturation replaces, and products before their bias; and copies in another shape.

    Args:
        streams: both networks and the samples.
        samples: how many of the samples are compared.
        progress: called with a number of samples after each batch.

    Returns:
        Values in the network's order, its inputs first.
    """
    model = streams.quantized.model
    writers = {name: (number, node) for number, node in enumerate(model.graph) for name in _names(node)}
    inputs = [str(value.name) for value in model.graph.inputs if is_float(value) and not is_constant(value)]
    wanted = [*inputs, *writers]
    comparison = _Comparison(streams, wanted)
    few = first_cases(streams.cases, samples)
    signal, error = dict.fromkeys(wanted, 0.0), dict.fromkeys(wanted, 0.0)
    with ThreadPoolExecutor(streams.threads) as pool:
        for case, found in zip(streams.cases, pool.map(comparison, streams.cases[:few]), strict=False):
            for name, (one, other) in found.items():
                signal[name] += one
                error[name] += other
            progress(case.count)
    return tuple(
        ValueNoise(
            name=name,
            node=str(writers[name][1].name) if name in writers else "",
            operator=writers[name][1].op_type if name in writers else "",
            depth=writers[name][0] if name in writers else 0,
            sqnr_db=decibels(signal[name], error[name]),
        )
        for name in wanted
    )


def decibels(signal: float, error: float) -> float:
    """Ratio of two energies, dB; infinity where there is no error, minus infinity where it is not finite."""
    if error == 0:
        return math.inf
    if not math.isfinite(error) or signal == 0:
        return -math.inf
    return 10 * math.log10(signal / error)


def _names(node: ir.Node) -> list[str]:
    """Values of a node that are compared."""
    if is_operator(node, *LAYOUT_OPERATORS):
        return []
    replaced = bias_addition(node) is not None
    return [
        str(value.name)
        for value in node.outputs
        if value.name and is_float(value) and not replaced and (clips_only(value) is None or value.is_graph_output())
    ]


@dataclass(slots=True)
class _Comparison:
    """Runs both networks on a batch, segment by segment, their inner values exposed."""

    streams: Streams
    wanted: Sequence[str]
    parts: list[tuple[Part, Part]] = field(init=False)
    rounds: dict[str, RoundedEncoding] = field(init=False)

    def __post_init__(self) -> None:
        chains = (self.streams.reference, self.streams.quantized)
        self.parts = [
            (chains[0].part(*ends, also=self.wanted), chains[1].part(*ends, also=self.wanted))
            for ends in itertools.pairwise(chains[0].cuts)
        ]
        self.rounds = _rounded_by_readers(self.streams.quantized, self.wanted)

    def __call__(self, case: Case) -> dict[str, tuple[float, float]]:
        """Return energy of the signal and of the error by value."""
        first, second = dict(case.feed), dict(case.feed)
        found = {name: self.energies(name, first[name], second[name]) for name in self.wanted if name in first}
        for segment, (one, other) in enumerate(self.parts):
            floats, rounded = one(first), other(second)
            found |= {
                name: self.energies(name, floats[name], rounded[name])
                for name in self.wanted
                if name in floats and name in rounded
            }
            first = self.streams.reference.kept({**first, **floats}, segment + 1)
            second = self.streams.quantized.kept({**second, **rounded}, segment + 1)
        return found

    def energies(self, name: str, reference: Array, other: Array) -> tuple[float, float]:
        if name in self.rounds:
            other = _rounded(other, self.rounds[name]).astype(other.dtype)
        if reference.shape != other.shape:
            return 0.0, math.inf
        return energy(reference), error_energy(reference, other)


def _rounded(values: Array, encoding: RoundedEncoding) -> Array:
    if isinstance(encoding, Encoding):
        return round_trip(values, encoding)
    return round_probabilities(values, encoding)[1]


def _rounded_by_readers(chain: Chain, wanted: Sequence[str]) -> dict[str, RoundedEncoding]:
    """Values that a float node writes and each integer reader rounds."""
    float_nodes = {entry.name for entry in chain.plan.float_nodes}
    written = {str(value.name) for node in chain.nodes if node.name not in float_nodes for value in node.outputs}
    encodings = {name: chain.plan.encodings.get(name) for name in wanted if name not in written}
    return {name: encoding for name, encoding in encodings.items() if isinstance(encoding, RoundedEncoding)}
