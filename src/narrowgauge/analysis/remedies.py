"""What would help the worst tensors: every remedy is applied to one tensor and measured at the network's output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from threadpoolctl import threadpool_limits

from narrowgauge.analysis.chain import (
    Case,
    Chain,
    Change,
    Streams,
    base_errors,
    errors,
    first_cases,
    inner_values,
)
from narrowgauge.analysis.energies import output_noise
from narrowgauge.analysis.equalized import equalized
from narrowgauge.analysis.records import Remedy
from narrowgauge.analysis.sensitivity import QuantizedTensor, difference, left_float
from narrowgauge.calibration.ranges import Range, estimator
from narrowgauge.calibration.statistics import Statistics, TensorStatistics
from narrowgauge.calibration.weights import WEIGHT_ESTIMATORS, weight_range
from narrowgauge.core.encoding import AnyEncoding, Encoding, same_encoding
from narrowgauge.core.granularity import Granularity, PerAxis, PerTensor
from narrowgauge.core.numbers import IntegerType
from narrowgauge.core.ranges import encoding_from_range
from narrowgauge.errors import NarrowgaugeError, StatisticsError
from narrowgauge.graph.constants import constant_array, set_constant
from narrowgauge.graph.edits import is_operator
from narrowgauge.graph.roles import activation_inputs, output_axis, weight_inputs
from narrowgauge.recovery.bias_correction import bias_place, has_place_for_bias, subtract_from_bias
from narrowgauge.recovery.fit_layer import FittingRules, LayerInputs, can_fit, fit_layer
from narrowgauge.recovery.range_refinement import CANDIDATES
from narrowgauge.recovery.read_positions import read_positions
from narrowgauge.targets.schema import Target

Array = npt.NDArray[Any]

# Samples that remedies are measured on, and so many that they learn from.
SAMPLES = 16

# Weights of more bits are as good when each is rounded to its nearest level.
_ROUND_BITS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Patient:
    """A tensor that costs much, and what a remedy may look at.

    Attributes:
        tensor: the tensor, or several with one encoding.
        streams: the float network and the quantized one.
        cases: the samples that a remedy learns from.
        statistics: of the quantized network's float form; None where there are none.
        target: what the chip can do.
    """

    tensor: QuantizedTensor
    streams: Streams
    cases: Sequence[Case]
    statistics: Statistics | None
    target: Target

    @property
    def network(self) -> ir.Model:
        """The float network that the plan describes."""
        return self.streams.quantized.model

    @property
    def encoding(self) -> AnyEncoding:
        """How the tensor is rounded now."""
        return self.streams.quantized.plan.encodings[self.tensor.name]

    @property
    def layer(self) -> ir.Node | None:
        """The node that reads these weights; None where several do, and for an activation."""
        layers = self.tensor.layers
        return (
            next(node for node in self.streams.quantized.nodes if node.name == layers[0]) if len(layers) == 1 else None
        )

    def encoded(self, encoding: AnyEncoding | None) -> Change:
        """Round the tensor otherwise, or not at all."""
        tensor = self.tensor
        return Change(first=tensor.first, last=tensor.last, encodings=dict.fromkeys(tensor.members, encoding))


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One thing to try.

    Attributes:
        method: as `Remedy.method` says it.
        change: what it does to the quantized network.
        detail: what it would mean, for a person.
    """

    method: str
    change: Change
    detail: str = ""


Finder = Callable[[Patient], Iterator[Trial]]


def _float(patient: Patient) -> Iterator[Trial]:
    yield Trial(method="float", change=left_float(patient.tensor, patient.streams.reference.model))


def _ranges(patient: Patient) -> Iterator[Trial]:
    """The ranges of all estimators."""
    own = patient.encoding
    if not isinstance(own, Encoding):
        return
    if patient.tensor.layers:
        for name in WEIGHT_ESTIMATORS:
            yield from _other(patient, f"range: {name}", _weight_encoding(patient, own.type, own.granularity, name))
        return
    for name in CANDIDATES:
        tensors = _seen(patient)
        if any(tensor.histogram.bins.size == 0 for tensor in tensors):
            continue
        yield from _other(patient, f"range: {name}", _activation_encoding(patient, own.type, tensors, name))


def _sixteen_bits(patient: Patient) -> Iterator[Trial]:
    own = patient.encoding
    if not isinstance(own, Encoding) or own.type.bits >= 16:
        return
    kind = IntegerType(bits=16, signed=own.type.signed)
    weights = bool(patient.tensor.layers)
    rules = patient.target.weights if weights else patient.target.activations
    detail = "" if 16 in {one.bits for one in rules.types} else f"{patient.target.name} has no such type here"
    if weights:
        encoding = _weight_encoding(patient, kind, own.granularity, "max")
    else:
        encoding = _activation_encoding(patient, kind, _seen(patient), "max")
    yield from _other(patient, "16 bits", encoding, detail)


def _per_channel(patient: Patient) -> Iterator[Trial]:
    own, tensor = patient.encoding, patient.tensor
    if not isinstance(own, Encoding) or not isinstance(own.granularity, PerTensor):
        return
    rules = patient.target.weights if tensor.layers else patient.target.activations
    what = "weights" if tensor.layers else "activations"
    detail = "" if "channel" in rules.granularity else f"{patient.target.name} takes no scale per channel of {what}"
    if tensor.layers:
        axis = _weight_axis(patient)
        if axis is not None:
            encoding = _weight_encoding(patient, own.type, PerAxis(axis), "max")
            yield from _other(patient, "per channel", encoding, detail)
        return
    seen = _seen(patient)
    if len(tensor.members) == 1 and len(seen) == 1 and seen[0].channels is not None:
        channels = seen[0].channels
        encoding = encoding_from_range(
            channels.minimum, channels.maximum, own.type, PerAxis(channels.axis),
            symmetric=patient.target.activations.is_symmetric(own.type),
            power_of_two=patient.target.activations.power_of_two,
        )  # fmt: skip
        yield from _other(patient, "per channel", encoding, detail)


def _bias(patient: Patient) -> Iterator[Trial]:
    """Take the mean error of each output channel, measured in both networks, out of the layer's bias."""
    node, nodes = patient.layer, patient.streams.quantized.nodes
    if node is None:
        return
    numbers, place = weight_inputs(node), bias_place(node)
    weights = constant_array(node.inputs[numbers[0]]) if numbers else None
    if weights is None or place is None or node.op_type not in {"Conv", "ConvTranspose", "Gemm", "MatMul"}:
        return
    count = weights.shape[output_axis(node, numbers[0])]
    count *= node.attributes.get_int("group", 1) if is_operator(node, "ConvTranspose") else 1
    if not has_place_for_bias(node, count):
        return
    axis = 1 if is_operator(node, "Conv", "ConvTranspose") else -1
    shift = _mean_error(patient, node, place[0], axis)
    if shift is not None and shift.shape == (count,) and np.isfinite(shift).all() and shift.any():

        def edit(graph: ir.Graph) -> None:
            subtract_from_bias(graph, next(one for one in graph if one.name == node.name), shift)

        last = max(patient.tensor.last, nodes.index(place[0]))
        yield Trial(
            method="bias correction", change=Change(first=patient.tensor.first, last=last, edit=edit),
            detail="the mean error of each output channel is taken out of the layer's bias",
        )  # fmt: skip


def _rounding(patient: Patient) -> Iterator[Trial]:
    """Round the layer's weights by what that does to its output, and correct its bias, as `recovery.sequential`."""
    node, streams = patient.layer, patient.streams
    plan = streams.quantized.plan
    if node is None or not can_fit(node, plan) or patient.encoding.type.bits > _ROUND_BITS:
        return
    source = next(value for _, value in activation_inputs(node))
    inputs = LayerInputs(
        rounded=_values(patient, streams.quantized, source),
        real=_values(patient, streams.reference, source),
        read=read_positions(streams.reference.model).get(str(source.name)),
    )
    wanted = streams.reference.nodes[streams.quantized.nodes.index(node)]
    rules = FittingRules(
        round_bits=_ROUND_BITS,
        bias_bits=patient.target.bias_bits,
        power_of_two=patient.target.weights.power_of_two,
    )
    with threadpool_limits(1, user_api="blas"):  # its threads wait for each other longer than these products take
        fitted = fit_layer(node, wanted, plan, inputs, rules)
    if fitted is None or fitted.weights is None or fitted.record.chosen >= fitted.record.nearest:
        return
    weights, shift = fitted.weights, fitted.shift

    def edit(graph: ir.Graph) -> None:
        layer = next(one for one in graph if one.name == node.name)
        value = layer.inputs[1]
        assert value is not None
        set_constant(value, weights)
        if shift is not None:
            subtract_from_bias(graph, layer, shift)

    tensor = patient.tensor
    yield Trial(
        method="rounding",
        change=Change(first=tensor.first, last=tensor.last, encodings={tensor.name: fitted.encoding}, edit=edit),
        detail="the weights are rounded by what that does to the layer's output, and its bias is corrected",
    )


def _equalization(patient: Patient) -> Iterator[Trial]:
    """Even out the channels of weights with one scale and those of the layers before and behind."""
    node, chain, own = patient.layer, patient.streams.quantized, patient.encoding
    if node is None or not isinstance(own, Encoding) or not isinstance(own.granularity, PerTensor):
        return
    change = equalized(patient.network, chain.plan, patient.statistics, node, patient.target)
    if change is not None:
        yield Trial(
            method="equalization", change=change,
            detail="the channels of the layer and of those before and behind it are rescaled to like ranges",
        )  # fmt: skip


REMEDIES: dict[str, Finder] = {
    "float": _float,
    "range": _ranges,
    "16 bits": _sixteen_bits,
    "per channel": _per_channel,
    "bias correction": _bias,
    "rounding": _rounding,
    "equalization": _equalization,
}
"""What is tried, one line each: the finder gives any number of trials for a tensor, none where it does not apply."""


def remedies(
    streams: Streams,
    tensors: Sequence[QuantizedTensor],
    statistics: Statistics | None,
    *,
    target: Target,
    samples: int = SAMPLES,
    progress: Callable[[int], None] = lambda count: None,
) -> tuple[Remedy, ...]:
    """Try everything of `REMEDIES` on tensors, each trial by itself, the rest of the network as the plan has it.

    What the engine or the simulation cannot do is left out.

    Args:
        streams: both networks and the samples.
        tensors: which tensors.
        statistics: of the float network that the plan describes, for other ranges; None tries none for activations.
        target: what the chip can do; what it cannot is tried, too, and said.
        samples: how many of the samples each trial is measured on, the first ones, at most half of them. What a remedy
            learns it learns from as many others, so that no gain is learnt by heart (of a single batch, from itself).
        progress: called with a number of trials.

    Returns:
        Remedies, tensor by tensor in the given order, the largest gain first.
    """
    few = min(first_cases(streams.cases, samples), max(1, len(streams.cases) // 2))
    cases = streams.cases[:few]
    trials: list[tuple[str, Trial]] = []
    for tensor in tensors:
        patient = Patient(
            tensor=tensor, streams=streams, cases=streams.cases[-few:], statistics=statistics, target=target
        )
        found = (trial for finder in REMEDIES.values() for trial in finder(patient))
        trials += [(tensor.name, trial) for trial in found if _runs(streams.quantized, trial.change, cases[0])]
    signals = np.sum([case.signals() for case in cases], axis=0)
    base = output_noise(base_errors(streams.quantized, cases, threads=streams.threads).sum(axis=0), signals)
    changes = [trial.change for _, trial in trials]
    found_errors = errors(streams.quantized, changes, cases, threads=streams.threads, progress=progress).sum(axis=1)
    results: dict[str, list[Remedy]] = {tensor.name: [] for tensor in tensors}
    for (name, trial), error in zip(trials, found_errors, strict=True):
        noise = output_noise(error, signals)
        results[name].append(
            Remedy(tensor=name, method=trial.method, noise=noise, gain=difference(base, noise), detail=trial.detail)
        )
    return tuple(one for found in results.values() for one in sorted(found, key=lambda one: -one.gain))


def _runs(chain: Chain, change: Change, case: Case) -> bool:
    """Whether the changed part can be lowered, loaded and run: not every type has its operators."""
    try:
        errors(chain, [change], [case], threads=1)
    except NarrowgaugeError:
        return False
    return True


# --- other encodings ------------------------------------------------------------------------------------------


def _other(patient: Patient, method: str, encoding: Encoding | None, detail: str = "") -> Iterator[Trial]:
    if encoding is not None and not same_encoding(encoding, patient.encoding):
        yield Trial(method=method, change=patient.encoded(encoding), detail=detail)


def _seen(patient: Patient) -> list[TensorStatistics]:
    """Statistics of the members that have some; empty unless all that moved are known."""
    if patient.statistics is None:
        return []
    found = []
    for name in patient.tensor.members:
        try:
            found.append(patient.statistics.of(name))
        except StatisticsError:  # a copy that was not observed has the range of what it was made from
            continue
    return [] if any(one.is_empty or one.nan_count or one.infinity_count for one in found) else found


def _activation_encoding(
    patient: Patient, kind: IntegerType, tensors: Sequence[TensorStatistics], name: str
) -> Encoding | None:
    """The range of an estimator that covers the tensors' own."""
    if not tensors:
        return None
    rules = patient.target.activations
    symmetric = rules.is_symmetric(kind)
    found: list[Range] = [estimator(name)(tensor, kind, symmetric=symmetric) for tensor in tensors]
    return encoding_from_range(
        min(one.minimum for one in found), max(one.maximum for one in found), kind, PerTensor(),
        symmetric=symmetric, power_of_two=rules.power_of_two,
    )  # fmt: skip


def _weight_encoding(patient: Patient, kind: IntegerType, granularity: Granularity, name: str) -> Encoding | None:
    weights = constant_array(patient.network.graph.initializers.get(patient.tensor.name))
    if weights is None or weights.size == 0:
        return None
    rules = patient.target.weights
    symmetric = rules.is_symmetric(kind)
    low, high = weight_range(weights.astype(np.float32), granularity, kind, symmetric=symmetric, estimator=name)
    return encoding_from_range(low, high, kind, granularity, symmetric=symmetric, power_of_two=rules.power_of_two)


def _weight_axis(patient: Patient) -> int | None:
    """Axis of the output channels, None where the layers that read the weights differ in it or they are a vector."""
    name, layers = patient.tensor.name, set(patient.tensor.layers)
    found = {
        (output_axis(node, number), len(constant_array(node.inputs[number]).shape))  # type: ignore[union-attr]
        for node in patient.streams.quantized.nodes
        if node.name in layers
        for number in weight_inputs(node)
        if node.inputs[number].name == name  # type: ignore[union-attr]
    }
    axis, rank = found.pop() if len(found) == 1 else (0, 0)
    return axis if rank > 1 else None


# --- what runs through a layer --------------------------------------------------------------------------------


def _mean_error(patient: Patient, node: ir.Node, last: ir.Node, axis: int) -> npt.NDArray[np.float64] | None:
    """Mean over samples and positions of what a layer writes less what the float network does, `(channels,)`."""
    streams = patient.streams
    value = str(last.outputs[0].name)
    ends = streams.quantized.nodes.index(node), streams.quantized.nodes.index(last)
    unrounded = Change(first=ends[0], last=ends[1], encodings={value: None})
    sums: npt.NDArray[np.float64] | None = None
    for chain, sign in ((streams.quantized, 1), (streams.reference, -1)):
        for case, array in zip(patient.cases, inner_values(chain, unrounded, value, patient.cases), strict=True):
            if array.ndim < 2:
                return None
            others = tuple(number for number in range(array.ndim) if number != axis % array.ndim)
            part = sign * case.count * array.mean(axis=others, dtype=np.float64)
            if sums is not None and sums.shape != part.shape:
                return None
            sums = part if sums is None else sums + part
    return None if sums is None else sums / sum(case.count for case in patient.cases)


def _values(patient: Patient, chain: Chain, value: ir.Value) -> list[Array]:
    """A value of one of the networks for each case; `value` is the quantized network's."""
    name, writer = str(value.name), value.producer()
    if writer is None:
        return [case.feed[name] for case in patient.cases]
    place = patient.streams.quantized.nodes.index(writer)
    return inner_values(chain, Change(first=place, last=place), name, patient.cases)
