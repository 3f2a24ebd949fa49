"""Mixed precision on a network: what each width costs each layer, measured, and the widths that a budget allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx_ir as ir

from narrowgauge.analysis.chain import Change, Streams, errors, open_streams
from narrowgauge.analysis.energies import output_noise
from narrowgauge.analysis.records import Choice
from narrowgauge.analysis.sensitivity import QuantizedTensor, quantized_tensors
from narrowgauge.calibration.weights import weight_range
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.numbers import IntegerType
from narrowgauge.core.ranges import encoding_from_range
from narrowgauge.errors import RecipeError
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.costs import multiply_accumulates
from narrowgauge.graph.roles import weight_inputs
from narrowgauge.planning.choices import NodeChoice
from narrowgauge.recovery.mixed_precision import Option, Unit, pareto_front, within
from narrowgauge.recovery.workshop import State, Workshop
from narrowgauge.targets.schema import Target

FLOAT = 32
WIDTHS = (4, 8, 16, FLOAT)

Kind = Literal["size", "operations", "drop"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What mixed precision may cost.

    Attributes:
        kind: `size`: bytes of the layers' weights; `operations`: bit operations, that is multiplications times the bits
            of both factors (van Baalen et al., "Bayesian Bits", 2020, section 2.3); `drop`: accuracy lost, points.
        amount: bytes or bit operations, or their share of the float network's (of 32-bit factors) where `share` is
            true; percentage points of accuracy for `drop`.
        share: whether the amount is a share, 0 to 1.
    """

    kind: Kind
    amount: float
    share: bool = False

    @property
    def unit(self) -> Unit:
        """What the layers' costs are counted in."""
        return "bit operations" if self.kind == "operations" else "bytes"


_SUFFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "kb": 1e3, "mb": 1e6, "gb": 1e9, "b": 1.0}


def parse_budget(text: str) -> Budget:
    """Read a budget: `size 3 MB`, `size 15 %`, `operations 20 %`, `operations 5 G`, `drop 1 %`.

    Raises:
        RecipeError: if it is none.
    """
    kind, _, amount = text.strip().lower().partition(" ")
    amount = amount.replace(" ", "")
    digits = amount.rstrip("%kmgb")
    suffix = amount[len(digits) :]
    try:
        number = float(digits)
    except ValueError:
        number = -1.0
    share = suffix == "%"
    fits = suffix in ("", "%") if kind == "drop" else share or suffix in _SUFFIXES
    if kind not in ("size", "operations", "drop") or not 0 < number < math.inf or not fits:
        raise RecipeError(
            f"expected a budget such as 'size 3 MB', 'size 15 %', 'operations 20 %' or 'drop 1 %', got {text!r}"
        )
    if kind == "drop":
        return Budget(kind="drop", amount=number)
    scale = 0.01 if share else _SUFFIXES[suffix]
    return Budget(kind=kind, amount=number * scale, share=share)  # type: ignore[arg-type]


def assign_bits(
    workshop: Workshop,
    state: State,
    budget: Budget,
    *,
    widths: Sequence[int] = (),
    drop: Callable[[Workshop, State], float] | None = None,
) -> tuple[State, tuple[Choice, ...]]:
    """Give each layer's weights the width that costs least accuracy under a budget.

    What a width costs a layer is measured at the network's output, with this layer's weights alone rounded to it; these
    noises are taken to add up (`mixed_precision.pareto_front`). Under a budget of accuracy the cheapest point of the
    front that keeps it is searched by halving, each point measured.

    Args:
        workshop: means to plan and to measure.
        state: planned, nothing recovered yet: recovery is to follow.
        budget: what may be spent.
        widths: bits that a layer may get; 32 leaves it float; empty for the target's and float.
        drop: measures the accuracy lost, for a budget of that kind.

    Returns:
        The state planned with these widths, and the front, the point taken marked.

    Raises:
        RecipeError: if the fewest bits are too many for the budget, or there are no samples to measure on.
    """
    if not workshop.measuring:
        raise RecipeError("a budget for bits needs samples to measure on: give more of them, 16 or more")
    layers = layer_options(workshop, state, budget.unit, widths or _widths_of(workshop.target))
    front = pareto_front(layers, budget.unit)
    if budget.kind == "drop":
        if drop is None:
            raise RecipeError("a budget of accuracy needs samples that did not calibrate: give more of them")
        state, taken = _cheapest(workshop, state, front, budget.amount, drop)
    else:
        whole = sum(_cost(node, FLOAT, budget.unit, FLOAT) for node in _nodes(state, layers))
        taken = within(layers, budget.amount * (whole if budget.share else 1.0), budget.unit)
        state = with_bits(workshop, state, taken.bits)
    others = [point for point in front if (point.cost, point.noise) != (taken.cost, taken.noise)]
    return state, tuple(sorted([*others, replace(taken, chosen=True)], key=lambda point: point.cost))


def _cheapest(
    workshop: Workshop, state: State, front: Sequence[Choice], most: float, drop: Callable[[Workshop, State], float]
) -> tuple[State, Choice]:
    low, high = -1, len(front) - 1
    states = {high: with_bits(workshop, state, front[high].bits)}
    if drop(workshop, states[high]) > most:
        workshop.notes.append(f"even the widest weights lose more than {most:g} points before recovery: they are taken")
        return states[high], front[high]
    while high - low > 1:
        middle = (low + high) // 2
        candidate = with_bits(workshop, state, front[middle].bits)
        if drop(workshop, candidate) <= most:
            high, states[middle] = middle, candidate
        else:
            low = middle
    return states[high], front[high]


def with_bits(workshop: Workshop, state: State, bits: Mapping[str, int]) -> State:
    """Plan again with these widths of the layers' weights, by node name; 32 leaves a layer float."""
    own = {str(slot.node): slot.type for slot in state.placement.weights.values()}
    asked = {
        name: NodeChoice(keep_float="kept float by the budget for bits")
        if width == FLOAT
        else NodeChoice(weights=_of_width(own[name], width, workshop.target))
        for name, width in bits.items()
    }
    nodes = {**state.choices.nodes, **{name: _over(state.choices.nodes.get(name), one) for name, one in asked.items()}}
    return workshop.planned(state.reference, state.statistics, replace(state.choices, nodes=nodes))


def _over(old: NodeChoice | None, new: NodeChoice) -> NodeChoice:
    if old is None:
        return new
    return replace(old, weights=new.weights or old.weights, keep_float=new.keep_float or old.keep_float)


def layer_options(workshop: Workshop, state: State, unit: Unit, widths: Sequence[int]) -> dict[str, tuple[Option, ...]]:
    """Measure what each width of its weights costs each layer at the network's output, alone.

    Args:
        workshop: its measuring samples are used.
        state: planned.
        unit: what to count the layers' costs in.
        widths: bits; 32 is float.

    Returns:
        Node name -> its options.
    """
    streams = open_streams(state.reference, state.network, state.plan, workshop.measuring, threads=workshop.threads)
    nodes = {str(node.name): node for node in state.network.graph}
    tensors = [one for one in quantized_tensors(state.network, state.plan) if len(one.layers) == 1]
    rounded = [(tensor, width) for tensor in tensors for width in widths if width != FLOAT]
    changes = [_alone(state, tensor, width, workshop.target) for tensor, width in rounded]
    noises = dict(zip(((one.name, width) for one, width in rounded), _noises(streams, changes), strict=True))
    found: dict[str, tuple[Option, ...]] = {}
    for name in dict.fromkeys(tensor.layers[0] for tensor in tensors):
        node = nodes[name]
        held = [tensor.name for tensor in tensors if tensor.layers == (name,)]  # several of a recurrent layer
        activations = _activation_bits(state, node)
        found[name] = tuple(
            Option(
                bits=width, cost=_cost(node, width, unit, FLOAT if width == FLOAT else activations),
                noise=sum(noises.get((tensor, width), 0.0) for tensor in held),
            )
            for width in widths
        )  # fmt: skip
    return found


def _noises(streams: Streams, changes: Sequence[Change]) -> list[float]:
    cases = streams.cases
    signals = np.sum([case.signals() for case in cases], axis=0)
    found = errors(streams.reference, changes, cases, threads=streams.threads).sum(axis=1)
    return [output_noise(row, signals) for row in found]


def _alone(state: State, tensor: QuantizedTensor, width: int, target: Target) -> Change:
    """Round one layer's weights to a width in the float network."""
    old = state.plan.encodings[tensor.name]
    weights = constant_array(state.reference.graph.initializers[tensor.name])
    assert isinstance(old, Encoding)
    assert weights is not None
    kind = _of_width(old.type, width, target)
    symmetric = bool((old.zero_point == 0).all()) and kind.signed
    low, high = weight_range(weights, old.granularity, kind, symmetric=symmetric, estimator="mse")
    encoding = encoding_from_range(
        low, high, kind, old.granularity, symmetric=symmetric, power_of_two=target.weights.power_of_two
    )
    return Change(first=tensor.first, last=tensor.last, encodings=dict.fromkeys(tensor.members, encoding))


def _widths_of(target: Target) -> tuple[int, ...]:
    return (*sorted({kind.bits for kind in target.weights.types}), FLOAT)


def _of_width(kind: IntegerType, width: int, target: Target) -> IntegerType:
    """The target's type of a width that is most like another one; where it has none, that one made as wide."""
    if width == kind.bits:
        return kind
    same = [one for one in target.weights.types if one.bits == width and one.signed == kind.signed]
    return same[0] if same else replace(kind, bits=width)


def _activation_bits(state: State, node: ir.Node) -> int:
    encoding = state.plan.encodings.get(str(node.inputs[0].name)) if node.inputs and node.inputs[0] else None
    return encoding.type.bits if encoding is not None else FLOAT


def _nodes(state: State, layers: Mapping[str, object]) -> list[ir.Node]:
    return [node for node in state.network.graph if node.name in layers]


def _cost(node: ir.Node, bits: int, unit: Unit, activation_bits: int) -> float:
    if unit == "bit operations":
        return float(multiply_accumulates(node) * bits * activation_bits)
    weights = [constant_array(node.inputs[number]) for number in weight_inputs(node)]
    return sum(array.size for array in weights if array is not None) * bits / 8
