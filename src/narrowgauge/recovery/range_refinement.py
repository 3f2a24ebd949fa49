"""Each activation's range is chosen by the error that it makes behind the layers that read it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.calibration.ranges import Range, estimator
from narrowgauge.calibration.statistics import Statistics, TensorStatistics
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import PerTensor
from narrowgauge.core.numbers import IntegerType
from narrowgauge.core.plan import Plan
from narrowgauge.core.ranges import encoding_from_range
from narrowgauge.errors import StatisticsError
from narrowgauge.graph.edits import is_operator, new_node
from narrowgauge.graph.engine import open_session, run_session
from narrowgauge.graph.feeds import Feed
from narrowgauge.graph.roles import activation_inputs, is_constant, is_float, weight_inputs

# What competes with the plan's own range. A tensor without a histogram has only its extremes: parts of them compete.
CANDIDATES = ("max", "mse", "percentile:99.99", "percentile:99.9", "aciq", "entropy")
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)

# Two ranges closer than this are the same one.
_SAME = 0.02

# A range is changed only where the error falls below this share: the measure is local, the plan's range is not blind.
_WORTHWHILE = 0.8

# Elements counted of a tensor below which its range is not narrowed.
_FEWEST_ELEMENTS = 1_000

# Additions and the like that an error is followed through before it is measured.
_DEPTH = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Refinement:
    """What was chosen for one value.

    Attributes:
        value: its name.
        before: relative error behind the next layers with the plan's range.
        after: with the chosen one.
    """

    value: str
    before: float
    after: float


def refine_ranges(  # noqa: PLR0913 - what the target says of activations, each by name
    model: ir.Model,
    plan: Plan,
    statistics: Statistics,
    batches: Sequence[Feed],
    *,
    symmetric: Callable[[IntegerType], bool],
    power_of_two: bool = False,
    fixed: Collection[str] = (),
    threads: int | None = None,
) -> tuple[Plan, tuple[Refinement, ...]]:
    """Try several ranges for each activation and keep the one with the least error behind the next layers.

    The error is measured where it counts: the value alone is rounded, the layers that read it (with their activation
    functions, which may cut off what a range clips) are run on it in float, and the squared difference to their float
    output is taken, relative to that output's energy: the geometric mean over the samples, which a few extreme ones
    do not decide. All values are measured in the same runs. (Output-error range
    setting as in Wu et al. 2020, section 3.2, and Nagel et al., "A White Paper on Neural Network Quantization", 2021,
    section 3.1, "cross entropy"; differs: local, so that one run serves all values.)

    Values that share an encoding keep one. Each choice is no worse than the plan's by this measure.

    Args:
        model: the float network that the plan describes.
        plan: encodings; only static ones per tensor are refined.
        statistics: of this network.
        batches: a few samples that calibrated.
        symmetric: whether encodings of a type have no zero point.
        power_of_two: whether scales are powers of two.
        fixed: names of values whose encoding the target fixes.
        threads: of the engine.

    Returns:
        The plan with the chosen encodings, and what was chosen where it differs.

    Raises:
        RuntimeFailure: if the engine cannot run the network on a sample.
    """
    groups = {root: members for root, members in _groups(model, plan).items() if not set(members) & set(fixed)}
    heads = {root: _heads(model, members) for root, members in groups.items()}
    candidates = {
        root: [plan_encoding, *_candidates(statistics, found, plan_encoding, symmetric, power_of_two)]
        for root, found in heads.items()
        if isinstance(plan_encoding := plan.encodings[root], Encoding)
    }
    open_ones = {root: found for root, found in candidates.items() if len(found) > 1}
    if not open_ones or not batches:
        return plan, ()
    errors = _measured(model, plan, heads, open_ones, batches, threads)
    encodings = dict(plan.encodings)
    done = []
    for root, found in open_ones.items():
        scores = errors.get(root, [])
        if not scores or not all(math.isfinite(score) for score in scores):
            continue
        best = int(np.argmin(scores))
        if best and scores[best] < _WORTHWHILE * scores[0]:
            encodings |= dict.fromkeys(groups[root], found[best])
            done.append(Refinement(value=root, before=scores[0], after=scores[best]))
    return replace(plan, encodings=encodings), tuple(done)


def _groups(model: ir.Model, plan: Plan) -> dict[str, list[str]]:
    """Activations by the encoding object that they share, each group under its first member in the network's order.

    Left out are groups that a constant belongs to.
    """
    names = [str(value.name) for value in model.graph.inputs]
    names += [str(value.name) for node in model.graph for value in node.outputs]
    groups: dict[int, list[str]] = {}
    for name in names:
        encoding = plan.encodings.get(name)
        if isinstance(encoding, Encoding) and isinstance(encoding.granularity, PerTensor):
            groups.setdefault(id(encoding), []).append(name)
    for name in model.graph.initializers:
        groups.pop(id(plan.encodings.get(name)), None)
    return {members[0]: members for members in groups.values()}


def _heads(model: ir.Model, members: Sequence[str]) -> list[str]:
    """Members of a group that no other member is handed on to: the group's levels come from these."""
    handed_on = {
        str(value.name)
        for node in model.graph
        if any(value is not None and value.name in members for value in node.inputs)
        for value in node.outputs
    }
    return [name for name in members if name not in handed_on]


def _candidates(
    statistics: Statistics,
    heads: Sequence[str],
    own: Encoding,
    symmetric: Callable[[IntegerType], bool],
    power_of_two: bool,
) -> list[Encoding]:
    try:
        tensors = [statistics.of(name) for name in heads]
    except StatisticsError:  # a value without statistics has nothing to choose from
        return []
    found: list[Encoding] = []
    for one in _ranges(tensors, own.type, symmetric(own.type)):
        encoding = encoding_from_range(
            one.minimum, one.maximum, own.type, PerTensor(), symmetric=symmetric(own.type), power_of_two=power_of_two
        )
        if not any(_alike(encoding, other) for other in [own, *found]):
            found.append(encoding)
    return found


def _ranges(tensors: Sequence[TensorStatistics], kind: IntegerType, symmetric: bool) -> list[Range]:
    """Ranges that compete for tensors of one encoding: of each estimator, the one that covers all of theirs."""
    if not tensors or any(tensor.is_empty for tensor in tensors):
        return []
    if any(0 < tensor.histogram.total < _FEWEST_ELEMENTS for tensor in tensors):
        return []  # the tails of so few elements say nothing about other samples
    if any(tensor.histogram.bins.size == 0 for tensor in tensors):
        whole = _covering([Range(minimum=tensor.minimum, maximum=tensor.maximum) for tensor in tensors])
        return [Range(minimum=share * whole.minimum, maximum=share * whole.maximum) for share in SHARES]
    chosen = [estimator(name) for name in CANDIDATES]
    return [_covering([choose(tensor, kind, symmetric=symmetric) for tensor in tensors]) for choose in chosen]


def _covering(ranges: Sequence[Range]) -> Range:
    return Range(minimum=min(one.minimum for one in ranges), maximum=max(one.maximum for one in ranges))


def _alike(first: Encoding, second: Encoding) -> bool:
    ends = [np.array([float(one.minimum), float(one.maximum)]) for one in (first, second)]
    return bool(np.abs(ends[0] - ends[1]).max() <= _SAME * max(float(np.ptp(ends[0])), 1e-30))


# --- measurement ----------------------------------------------------------------------------------------------


def _measured(
    model: ir.Model, plan: Plan, heads: Mapping[str, list[str]], candidates: Mapping[str, list[Encoding]],
    batches: Sequence[Feed], threads: int | None,
) -> dict[str, list[float]]:  # fmt: skip
    """Relative error of each candidate of each value: one network per place in the lists, run over all batches."""
    rounds = max(len(found) for found in candidates.values())
    errors: dict[str, list[float]] = {root: [] for root in candidates}
    for number in range(rounds):
        trial = {root: found[number] for root, found in candidates.items() if number < len(found)}
        network, outputs = _trial_network(model, plan, heads, trial)
        session = open_session(network, threads=threads, simulate=True)
        names = list(dict.fromkeys(name for pairs in outputs.values() for pair in pairs for name in pair))
        if not names:
            return {}
        logs: dict[str, list[float]] = {root: [] for root in outputs}
        for batch in batches:
            values = run_session(session, names, batch.feed)
            for root, pairs in outputs.items():
                shares = [_shares(values[noise], values[signal]) for noise, signal in pairs]
                size = min(share.size for share in shares)
                logs[root].extend(np.log(sum(share[:size] for share in shares) + 1e-30))
        for root in outputs:
            errors[root].append(float(np.exp(np.mean(logs[root]))))
    return errors


def _shares(noise: npt.NDArray[np.float32], signal: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Error energy over signal energy, sample by sample; NaN (no choice) where both leave float32."""
    with np.errstate(invalid="ignore"):
        return np.atleast_1d(noise.astype(np.float64) / np.maximum(signal.astype(np.float64), 1e-30)).reshape(-1)


def _trial_network(
    model: ir.Model, plan: Plan, heads: Mapping[str, list[str]], trial: Mapping[str, Encoding]
) -> tuple[ir.Model, dict[str, list[tuple[str, str]]]]:
    """The float network with a rounded branch beside each value; outputs are the branches' errors and signals."""
    copy = model.clone()
    builder = _Branches(copy.graph, {entry.name for entry in plan.float_nodes})
    values = {str(value.name): value for value in copy.graph.inputs}
    values |= {str(value.name): value for node in copy.graph for value in node.outputs}
    outputs = {}
    for root, encoding in trial.items():
        pairs = [pair for head in heads[root] for pair in builder.measure(values[head], encoding)]
        if pairs:
            outputs[root] = pairs
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(builder.outputs)
    return copy, outputs


@dataclass(slots=True)
class _Branches:
    graph: ir.Graph
    float_nodes: set[str]
    outputs: list[ir.Value] = field(default_factory=list)
    number: int = 0
    readers: dict[ir.Value, list[tuple[ir.Node, int]]] = field(default_factory=dict)
    signals: dict[ir.Value, ir.Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node in list(self.graph):
            for number, value in enumerate(node.inputs):
                if value is not None:
                    self.readers.setdefault(value, []).append((node, number))

    def measure(self, value: ir.Value, encoding: Encoding) -> list[tuple[str, str]]:
        """Round a value and follow it; return names of (error, signal) outputs."""
        whole = value.producer() is not None and str(value.producer().name) not in self.float_nodes  # type: ignore[union-attr]
        rounded = self.rounded(value, encoding)
        pairs: list[tuple[str, str]] = []
        self.follow(value, rounded, _DEPTH, pairs, whole=whole)
        return pairs

    def follow(
        self, value: ir.Value, rounded: ir.Value, depth: int, pairs: list[tuple[str, str]], *, whole: bool
    ) -> None:
        for node, number in self.readers.get(value, []):
            if not whole and str(node.name) in self.float_nodes:
                continue
            if number not in {position for position, _ in activation_inputs(node)} or not is_float(node.outputs[0]):
                continue  # a shape or an index does not round
            self.follow_into(node, number, rounded, depth, pairs)

    def follow_into(
        self, node: ir.Node, number: int, rounded: ir.Value, depth: int, pairs: list[tuple[str, str]]
    ) -> None:
        result, branch = node.outputs[0], self.copied(node, number, rounded)
        layer = bool(weight_inputs(node))
        for follower in self.followers(result):
            position = next(p for p, value in enumerate(follower.inputs) if value is result)
            branch = self.copied(follower, position, branch)
            result = follower.outputs[0]
        if layer or depth == 0 or str(node.name) in self.float_nodes or not self.readers.get(result):
            pairs.append(self.compared(result, branch))
        else:
            self.follow(result, branch, depth - 1, pairs, whole=True)

    def followers(self, value: ir.Value) -> Iterable[ir.Node]:
        """The addition of a constant and the activation function behind a layer, if they alone read it."""
        while True:
            readers = self.readers.get(value, [])
            if len(readers) != 1 or value in self.graph.outputs:
                return
            node = readers[0][0]
            constant_addition = is_operator(node, "Add") and any(is_constant(other) for other in node.inputs)
            if not constant_addition and not is_operator(node, "Relu", "Clip", "HardSwish", "Sigmoid", "Gelu"):
                return
            yield node
            value = node.outputs[0]

    # --- nodes ---

    def name(self) -> str:
        self.number += 1
        return f"narrowgauge_refine_{self.number}"

    def add(self, operator: str, inputs: list[ir.Value], **attributes: object) -> ir.Value:
        node = new_node(operator, inputs, attributes, name=self.name())
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        self.graph.append(node)
        return node.outputs[0]

    def constant(self, array: npt.NDArray[np.generic]) -> ir.Value:
        name = self.name()
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
        self.graph.register_initializer(value)
        return value

    def rounded(self, value: ir.Value, encoding: Encoding) -> ir.Value:
        """Round as the encoding does: by Q/DQ where the type fills its container, else in float operators."""
        scale = self.constant(encoding.scale)
        if encoding.type.bits in (8, 16) and not encoding.type.narrow:
            zero_point = self.constant(encoding.zero_point.astype(encoding.type.storage))
            levels = self.add("QuantizeLinear", [value, scale, zero_point])
            levels.type = ir.TensorType(ir.DataType.from_numpy(encoding.type.storage))
            return self.add("DequantizeLinear", [levels, scale, zero_point])
        low = self.constant(np.asarray(encoding.type.minimum - encoding.zero_point, dtype=np.float32))
        high = self.constant(np.asarray(encoding.type.maximum - encoding.zero_point, dtype=np.float32))
        steps = self.add("Round", [self.add("Div", [value, scale])])
        return self.add("Mul", [self.add("Clip", [steps, low, high]), scale])

    def copied(self, node: ir.Node, number: int, replacement: ir.Value) -> ir.Value:
        inputs = [replacement if position == number else value for position, value in enumerate(node.inputs)]
        twin = ir.Node(
            node.domain, node.op_type, inputs, list(node.attributes.values()), num_outputs=len(node.outputs),
            name=self.name(),
        )  # fmt: skip
        for old, new in zip(node.outputs, twin.outputs, strict=True):
            new.name = self.name() if old.name else ""
            new.type, new.shape = old.type, old.shape
        self.graph.append(twin)
        return twin.outputs[0]

    def compared(self, reference: ir.Value, branch: ir.Value) -> tuple[str, str]:
        if reference not in self.signals:
            self.signals[reference] = self.energy(reference, reference)
        noise = self.energy(self.add("Sub", [branch, reference]), reference)
        return str(noise.name), str(self.signals[reference].name)

    def energy(self, value: ir.Value, like: ir.Value) -> ir.Value:
        """Sum of squares, per sample where the first axis counts samples."""
        rank = like.shape.rank() if like.shape is not None else 0
        axes = [self.constant(np.arange(1, rank, dtype=np.int64))] if rank > 1 else []
        total = self.add("ReduceSumSquare", [value, *axes], keepdims=0)
        self.outputs.append(total)
        return total
