"""What recovery methods work on: a network on its way from float to a plan, and the means to plan and to measure it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import onnx_ir as ir

from narrowgauge.analysis.evaluate import LabelledBatch
from narrowgauge.calibration.statistics import Statistics
from narrowgauge.core.plan import Plan
from narrowgauge.lowering.qdq import QdqStyle
from narrowgauge.planning.choices import Choices
from narrowgauge.planning.fill import fill
from narrowgauge.planning.place import Placement, place
from narrowgauge.recovery.measure import Noise, OutputNoise
from narrowgauge.targets.schema import Target

UNKNOWN = Noise(total=math.nan, typical=math.nan)


class Calibrate(Protocol):
    """Gathers statistics."""

    def __call__(self, network: ir.Model, samples: int | None = None, /) -> Statistics:
        """Run samples through a network, the first so many of those that calibrate, or all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """A network on its way.

    Attributes:
        reference: the float network after changes of its structure (scaled channels, caps), with float weights: what
            the values of the quantized network are compared with.
        network: the same with the weights and biases that recovery chose; what the plan describes.
        statistics: of `reference`.
        choices: what is asked of the planner.
        placement: where integers go.
        plan: the encodings.
    """

    reference: ir.Model
    network: ir.Model
    statistics: Statistics
    choices: Choices
    placement: Placement
    plan: Plan

    @property
    def weight_bits(self) -> int:
        """Fewest bits of a layer's weights; 8 where none is quantized."""
        return min((slot.type.bits for slot in self.placement.weights.values()), default=8)


@dataclass(kw_only=True, slots=True)
class Workshop:
    """What the methods share.

    Attributes:
        target: what the network is for.
        calibrate: gathers the statistics of a network on the calibrating samples, the first so many or all; None where
            these cannot be read again.
        samples: gives the first so many of them, in batches of at most so many rows; none where there are too few, or
            where they cannot be read twice.
        measuring: a few of them that `samples` does not give, to measure on; empty where nothing can be measured.
        given: the float network as it came.
        threads: of the engine.
        notes: what a person should know.
    """

    target: Target
    calibrate: Calibrate | None
    samples: Callable[[int, int], Sequence[LabelledBatch]]
    measuring: Sequence[LabelledBatch]
    given: ir.Model
    threads: int | None = None
    notes: list[str] = field(default_factory=list)
    _judge: OutputNoise | None = None

    def planned(self, network: ir.Model, statistics: Statistics, choices: Choices) -> State:
        """Place and fill: the state in which nothing has been recovered for this network yet."""
        placement = place(network, self.target, choices)
        plan = fill(network, placement, statistics, self.target, choices)
        return State(
            reference=network, network=network, statistics=statistics, choices=choices, placement=placement, plan=plan
        )

    def noise(self, state: State, *, of_activations: bool = False) -> Noise:
        """Noise at the output of the simulated network (see `analysis.records.Sensitivity`); NaN without samples.

        Args:
            state: what to measure.
            of_activations: leave the weights float, so that theirs does not drown that of the activations.
        """
        if not self.measuring:
            return UNKNOWN
        if self._judge is None:
            self._judge = OutputNoise(self.given, self.measuring, threads=self.threads)
        plan, network = state.plan, state.network
        if of_activations:
            rounded = {name: one for name, one in plan.encodings.items() if name not in state.placement.weights}
            plan, network = replace(plan, encodings=rounded), state.reference
        return self._judge.measure(network, plan, QdqStyle(bias_bits=self.target.bias_bits, spell_out_channels=True))
