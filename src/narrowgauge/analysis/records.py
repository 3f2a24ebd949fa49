"""What an analysis found, as plain records: the loss of each tensor, what it costs at the output, what would help."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["activation", "weights"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorLoss:
    """What rounding a tensor loses, apart from what that does to the network.

    The error of an element x is DX = DX_r + DX_c: the rounding error of an element within the range, the clipping error
    of one beyond it (one of the two is 0 for each element, so mean squares add up).

    Attributes:
        name: the value's name (activation) or the initializer's (weights).
        kind: which of the two.
        node: name of the node that writes the activation ("" for an input of the network) or reads the weights.
        operator: that node's operator.
        depth: place of that node in the network's order, from 0.
        type: name of the number type; "log2 4 bits", "shares 8 bits" where levels are no equal steps.
        granularity: what one scale covers, for a person: "tensor", "axis 0", ...
        shape: of the tensor as far as it is known, e.g. "1x24x56x56".
        range: smallest and largest representable number, real units (of all channels); of logarithms the smallest
            above 0.
        seen: smallest and largest number of the tensor, real units.
        scales: smallest and largest scale factor (one step in real units); of logarithms and shares the smallest and
            the largest distance that neighbouring levels can have.
        signal: mean of x^2.
        rounding: mean of DX_r^2.
        clipping: mean of DX_c^2.
        clipped_share: share of the elements beyond the range, 0 to 1; of logarithms those that become 0.
        levels: how many levels the type has.
        levels_used: how many of them occur.
        entropy_bits: entropy of the levels, bits; of the levels of all channels counted together.
        wasted_bits: bits of the type minus `entropy_bits`.
        measured: False where it was computed from histograms (what calibration saw), True where on the elements.
    """

    name: str
    kind: Kind
    node: str
    operator: str
    depth: int
    type: str
    granularity: str
    shape: str
    range: tuple[float, float]
    seen: tuple[float, float]
    scales: tuple[float, float]
    signal: float
    rounding: float
    clipping: float
    clipped_share: float
    levels: int
    levels_used: int
    entropy_bits: float
    wasted_bits: float
    measured: bool

    @property
    def error(self) -> float:
        """Mean of DX^2."""
        return self.rounding + self.clipping


@dataclass(frozen=True, kw_only=True, slots=True)
class Distribution:
    """What a picture of a tensor is drawn from.

    Attributes:
        name: the tensor's.
        edges: bin edges, real units, ascending, at most some 200.
        density: share of the elements per bin, one fewer than edges.
        channel_axis: axis of the channels, None where there are none.
        channel_low: smallest number per channel, real units; empty without channels; long lists are thinned to those
            that matter (the widest and the narrowest), see `channel_index`.
        channel_high: largest number per channel.
        channel_index: which channels those are.
        channel_range_low: representable range per listed channel (equal for all where one scale covers the tensor).
        channel_range_high: likewise.
    """

    name: str
    edges: tuple[float, ...]
    density: tuple[float, ...]
    channel_axis: int | None = None
    channel_low: tuple[float, ...] = ()
    channel_high: tuple[float, ...] = ()
    channel_index: tuple[int, ...] = ()
    channel_range_low: tuple[float, ...] = ()
    channel_range_high: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Sensitivity:
    """What one tensor's (or layer's) rounding costs at the network's output.

    Noise is the energy of the error of a float output relative to its energy in the float network, the mean over the
    float outputs; 0 where they are equal (its decibels are -10 log10).

    Attributes:
        name: the tensor's name, or the layer's (node's) name.
        kind: activation, weights, or layer (its weights and what it writes together).
        node: the node that writes or reads it.
        depth: place of the node in the network's order.
        alone: output noise when it alone is quantized.
        without: output noise of the quantized network when it alone is left float.
        gain: output noise of the whole quantized network minus `without`; negative where leaving it float hurts.
        samples: how many samples it was measured on; the costly ones are measured on more.
        tensors: names of the tensors that a layer is made of; empty for a tensor.
    """

    name: str
    kind: Literal["activation", "weights", "layer"]
    node: str
    depth: int
    alone: float
    without: float
    gain: float
    samples: int = 0
    tensors: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ValueNoise:
    """How far a value of the quantized network has come away from the float one: all errors before it together.

    Attributes:
        name: the value.
        node: who writes it, "" for an input.
        operator: its operator.
        depth: its place in the network's order.
        sqnr_db: signal-to-quantization-noise ratio, decibels; infinity where nothing differs.
    """

    name: str
    node: str
    operator: str
    depth: int
    sqnr_db: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Remedy:
    """What a change to one tensor does to the quantized network's output, measured.

    Attributes:
        tensor: the tensor's name.
        method: what was tried: "float", "16 bits", "per channel", "range: percentile:99.99", "equalization",
            "bias correction", "rounding", ...
        noise: output noise with it (see `Sensitivity`).
        gain: output noise before minus `noise`.
        detail: what it would mean, for a person; "" if there is nothing to add.
    """

    tensor: str
    method: str
    noise: float
    gain: float
    detail: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outlier:
    """A few elements that stretch a range.

    Attributes:
        value: where they are.
        channel: their channel.
        positions: on which tokens or positions, those that they fall on most, most frequent first; empty if anywhere.
        reach: largest magnitude there, real units.
        others: largest magnitude of the other channels.
        source: node that writes them.
        unit: channel of the source's own input (a hidden unit) that they come from, None if not one alone.
        source_value: the value of that unit, "" if unknown.
        low: 10th percentile of the numbers there, of the samples that were looked at; NaN where none were.
        high: 90th percentile, likewise.
        ordinary: median magnitude of the same channel elsewhere, likewise.
        words: what the channel is, "block 7, residual channel 41"; "" where no block of a transformer holds it.
        source_words: what the unit is, "block 7, MLP unit 417"; likewise.
        tokens: whether the positions are tokens of a sequence.
        read: positions that the network's end reads alone, the class token as a rule; empty where it reads all.
        stretched: all values that these elements stretch, in the network's order.
    """

    value: str
    channel: int
    positions: tuple[int, ...]
    reach: float
    others: float
    source: str
    unit: int | None
    source_value: str
    low: float = math.nan
    high: float = math.nan
    ordinary: float = math.nan
    words: str = ""
    source_words: str = ""
    tokens: bool = False
    read: tuple[int, ...] = ()
    stretched: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class CauseRemedy:
    """What one remedy against a cause does, measured at the output before any recovery.

    Attributes:
        method: "cap at the source", "migration", "rotation", "scale and zero point per channel", "16 bits" or
            "float".
        detail: what it did, for a person; "" if there is nothing to add.
        sqnr_db: at the output with it, decibels.
        gain_db: more than without it; negative where it hurts.
        allowed: whether the target can do it.
        chosen: whether it is the one to take: of those that are allowed the one of the largest gain, of equal ones the
            cheapest; leaving values float only where nothing else helps.
    """

    method: str
    detail: str
    sqnr_db: float
    gain_db: float
    allowed: bool
    chosen: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Cause:
    """Outliers that cost the output measurably, followed to the unit that makes them.

    Attributes:
        sentence: what it is, where it is, how large, and what that does to a range, for a person.
        outliers: those that come of it, the one that stretches most first.
        sqnr_db: at the output before any recovery, decibels.
        remedies: tried, the largest gain first; where not all were, leaving the values float and what the plan has.
        all_tried: whether all were, and the best was chosen.
    """

    sentence: str
    outliers: tuple[Outlier, ...]
    sqnr_db: float
    remedies: tuple[CauseRemedy, ...]
    all_tried: bool = False

    @property
    def chosen(self) -> CauseRemedy | None:
        """The remedy to take, None where none helps or not all were tried."""
        return next((one for one in self.remedies if one.chosen), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionHead:
    """How far quantization moves what one head of an attention looks at, on one sample.

    Attributes:
        node: the Softmax that writes its weights.
        value: what that writes.
        depth: the node's place in the network's order.
        attention: number of the attention in the network's order, from 0.
        block: number of the transformer's block that it stands in, from 0, as roles and causes count them; None where
            it stands in none.
        head: number of the head, from 0.
        moved: total variation distance of the weights in both networks, half of the sum of the magnitudes of their
            differences, the mean over all queries: the share of its weight that lies elsewhere, 0 to 1.
    """

    node: str
    value: str
    depth: int
    attention: int
    block: int | None
    head: int
    moved: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step of recovery: a method was tried, measured, and kept or not.

    Attributes:
        name: the method's, as recipes write it: "equalize", "refine ranges", ...
        detail: what it did, for a person.
        noise_before: output noise without it (see `Sensitivity`); NaN where nothing was measured.
        noise_after: output noise with it; NaN where nothing was measured.
        seconds: what it took, measuring included.
        kept: whether it stayed.
        drop: accuracy lost against the float network with it, percentage points; None where it was not measured.
        judged_db: by how much what decides falls with it, decibels, negative where it rises: the noise over all samples
            and that of the typical sample together, of a method that chooses ranges that of the activations alone; None
            where nothing was measured or the noise is 0 or not finite.
    """

    name: str
    detail: str
    noise_before: float
    noise_after: float
    seconds: float
    kept: bool
    drop: float | None = None
    judged_db: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One point of the Pareto front of mixed precision: no other assignment is smaller and better.

    Attributes:
        cost: bytes of the weights, or bit operations, of one sample.
        unit: "bytes" or "bit operations".
        noise: predicted output noise.
        bits: layer -> bits of its weights (32: float).
        chosen: whether it is the one that was taken.
    """

    cost: float
    unit: Literal["bytes", "bit operations"]
    noise: float
    bits: dict[str, int]
    chosen: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Analysis:
    """Where a quantized network loses its accuracy.

    Attributes:
        losses: of every quantized tensor, in the network's order.
        roles: what tensors of a transformer are, by name: "block 7, MLP hidden"; of weights what their layer writes.
        distributions: by tensor name, for pictures.
        sensitivities: of every quantized tensor and layer; see `ranking`.
        depth: cumulative error along the network.
        remedies: tried for the worst tensors.
        outliers: found in the network as it is quantized.
        causes: outliers of the network as it came that cost it accuracy, with what helps against them.
        attention: how far each head's attention moves, in the network's order.
        steps: what recovery tried before, in its order.
        front: what mixed precision could choose from, the cheapest first.
        noise: output noise of the whole quantized network (see `Sensitivity`).
        samples: how many samples were measured on.
        seconds: per part of the analysis.
        notes: what a person should know.
    """

    losses: tuple[TensorLoss, ...] = ()
    roles: dict[str, str] = field(default_factory=dict)
    distributions: dict[str, Distribution] = field(default_factory=dict)
    sensitivities: tuple[Sensitivity, ...] = ()
    depth: tuple[ValueNoise, ...] = ()
    remedies: tuple[Remedy, ...] = ()
    outliers: tuple[Outlier, ...] = ()
    causes: tuple[Cause, ...] = ()
    attention: tuple[AttentionHead, ...] = ()
    steps: tuple[Step, ...] = ()
    front: tuple[Choice, ...] = ()
    noise: float = 0.0
    samples: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def ranking(self) -> tuple[Sensitivity, ...]:
        """Tensors (not layers) in the order in which to leave them float, best first: by `alone`, then by `gain`.

        Errors of different tensors hardly correlate, so that what several of them add by themselves adds up to what
        leaving them all float wins. The gain of a single one also holds its chance correlation with all others, and the
        change of every rounding behind it: of ten small networks, each with four plans, the five largest gains
        recovered 50 to 100 % of what the best five could, by brute force, the five that add most 81 to 100 %.
        """
        tensors = [one for one in self.sensitivities if one.kind != "layer"]
        return tuple(sorted(tensors, key=lambda one: (one.alone, one.gain), reverse=True))
