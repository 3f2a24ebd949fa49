"""Which values of two networks are the same: by name, by the name of the float value behind Q/DQ, or by structure."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import onnx_ir as ir

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import Granularity, PerAxis, PerBlock, PerTensor
from narrowgauge.core.numbers import integer_type
from narrowgauge.errors import PlanError
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.edits import is_operator
from narrowgauge.graph.pieces import outer_inputs
from narrowgauge.graph.roles import CLIPPING_OPERATORS, LAYOUT_OPERATORS
from narrowgauge.graph.shapes import dimensions, infer_shapes
from narrowgauge.lowering.qdq import saturates_like

Matched = Literal["name", "structure", "position"]

_ROUNDINGS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})

# Number of the input that holds the scale of what an operator writes; the zero point is the next one. The operators'
# inputs are listed in the ONNX operator schemas and in onnxruntime's docs/ContribOperators.md.
_OUTPUT_SCALE = {
    "QuantizeLinear": 1, "QLinearConv": 6, "QLinearMatMul": 6, "QLinearAdd": 6, "QLinearMul": 6, "QLinearConcat": 0,
    "QLinearSigmoid": 3, "QLinearLeakyRelu": 3, "QLinearSoftmax": 3, "QLinearAveragePool": 3, "QLinearReduceMean": 3,
    "QLinearGlobalAveragePool": 3, "QLinearWhere": 7, "QGemm": 7,
}  # fmt: skip

# Operators that hand levels on as they are, besides those that only lay them out anew.
_SAME_LEVELS = LAYOUT_OPERATORS | {"MaxPool", "Slice", "Split", "Gather", "Expand", "Tile", "Clip", "Relu"}

# Operators whose output is the input in another layout, or the input itself.
_SAME_NUMBERS = frozenset({"Transpose", "Identity", "Dropout"})

_COMMUTATIVE = frozenset({"Add", "Mul", "Max", "Min", "Sum"})

_OTHER_NAMES = {"QGemm": "Gemm", "FusedConv": "Conv", "FusedMatMul": "MatMul", "FusedGemm": "Gemm"}

# What quantizers put behind the name of a float value: ours; ONNX Runtime's for Q/DQ and for integer operators.
_SUFFIX = re.compile(
    r"(_(de)?quantized(_per_channel)?|_before_rounding|_(Dequantize|Quantize)Linear_(Output|Input)|_(de)?quantize)(_\d+)?$"
)

# Types of which an engine's Python interface has arrays.
_RETURNED = frozenset(ir.DataType) - {
    ir.DataType.STRING, ir.DataType.BFLOAT16, ir.DataType.INT4, ir.DataType.UINT4,
    *(kind for kind in ir.DataType if kind.name.startswith(("FLOAT8", "FLOAT4", "INT2", "UINT2"))),
}  # fmt: skip

_LEVEL_TYPES = frozenset({
    ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16, ir.DataType.INT32
})  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
    """A value of one network as it can be compared.

    Attributes:
        name: of the float value that it stands for.
        value: the name of what is looked at: the float value, or the levels that stand for it.
        encoding: what those levels mean; None where it is no levels.
        node: name of the node that writes it, "" for an input of the network.
        operator: of that node.
        depth: place of that node in the network's order, -1 for an input.
        shape: sizes of its axes, None for each that is unknown; None where even the rank is.
    """

    name: str
    value: str
    encoding: Encoding | None
    node: str
    operator: str
    depth: int
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """The same value in two networks.

    Attributes:
        first: in the first.
        second: in the second.
        matched: by what the two were found to be the same; position is that among the networks' outputs.
    """

    first: Tensor
    second: Tensor
    matched: Matched


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairing:
    """Which values two networks have in common.

    Attributes:
        pairs: in the first network's order.
        only_first: names of the first one's values that the second lacks.
        only_second: likewise.
    """

    pairs: tuple[Pair, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]


def pair_values(
    first: ir.Model,
    second: ir.Model,
    inputs: Mapping[str, str],
    *,
    encodings: tuple[Mapping[str, Encoding], Mapping[str, Encoding]] = ({}, {}),
) -> Pairing:
    """Find the values that two networks have in common, float or quantized, by whatever tool.

    A float value, its levels and what is dequantized from them are one value: they are found by following
    QuantizeLinear and DequantizeLinear. Where it has levels with constant scales, they are what is compared. Values are
    paired by any of their names; then by these names without what quantizers put behind them; then by structure: the
    same operator on values that are already paired, whatever their layout, in the networks' order where
    several fit; last, outputs by their position. A Relu or Clip that saturation does in one of the two is passed over.

    Constants, values that depend on no input, inputs that are float in both, and integers that are neither levels nor
    outputs (shapes, indices, accumulators) are left out.

    Args:
        first: a network; it is not changed.
        second: the other one.
        inputs: input of the first -> input of the second.
        encodings: of each network's float values by name, where more is known than its file says: integers named
            NAME_quantized, of the type that NAME has there, are its levels.
    """
    networks = _Network.of(first, encodings[0]), _Network.of(second, encodings[1])
    matching = _Matching(*networks)
    matching.by_inputs(inputs)
    matching.by_names()
    matching.by_structure()
    matching.by_position()
    return matching.pairing()


# --- one network ------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True, slots=True, eq=False)
class _Chain:
    """A value with its roundings: what a node writes, its levels, what is dequantized from them.

    Attributes:
        number: place in the network's order.
        depth: place of the node that writes its first member, -1 for an input.
        members: in the network's order; the first is not written by Q or DQ.
        levels: the member that holds levels of constant scale, None if none does.
        encoding: theirs.
    """

    number: int
    depth: int
    members: list[ir.Value]
    levels: ir.Value | None = None
    encoding: Encoding | None = None

    @property
    def root(self) -> ir.Value:
        return self.members[0]

    @property
    def operator(self) -> str:
        node = self.root.producer()
        return node.op_type if node is not None else ""

    @property
    def names(self) -> list[str]:
        return [str(member.name) for member in self.members]

    @property
    def shown(self) -> ir.Value:
        """The member that is compared: levels, else what is rounded, else the float value."""
        if self.levels is not None:
            return self.levels
        written = [member for member in self.members if _is_rounding(member.producer(), "DequantizeLinear")]
        return written[-1] if written else self.root

    @property
    def is_output(self) -> bool:
        return any(member.is_graph_output() for member in self.members)

    @property
    def is_compared(self) -> bool:
        kind = self.shown.dtype
        if kind is not None and (kind not in _RETURNED or not isinstance(self.shown.type, ir.TensorType)):
            return False
        return self.levels is not None or self.is_output or kind is None or kind.is_floating_point()

    def tensor(self) -> Tensor:
        node = self.root.producer()
        return Tensor(
            name=_stripped(str(self.root.name)),
            value=str(self.shown.name),
            encoding=self.encoding,
            node=str(node.name or "") if node is not None else "",
            operator=self.operator,
            depth=self.depth,
            shape=dimensions(self.shown),
        )


@dataclass(kw_only=True, slots=True)
class _Network:
    graph: ir.Graph
    known: Mapping[str, Encoding]
    chains: list[_Chain] = field(default_factory=list)
    chain_of: dict[ir.Value, _Chain] = field(default_factory=dict)

    @classmethod
    def of(cls, model: ir.Model, known: Mapping[str, Encoding]) -> _Network:
        model = model.clone()
        infer_shapes(model)
        network = cls(graph=model.graph, known=known)
        for value in model.graph.inputs:
            if not value.is_initializer():
                network.begin(value, -1)
        for depth, node in enumerate(model.graph):
            if any(value in network.chain_of for value in outer_inputs(node)):
                network.add(node, depth)
        return network

    def begin(self, value: ir.Value, depth: int) -> None:
        chain = _Chain(number=len(self.chains), depth=depth, members=[value])
        self.chains.append(chain)
        self.chain_of[value] = chain
        self.note_levels(chain, value)

    def add(self, node: ir.Node, depth: int) -> None:
        source = node.inputs[0] if node.inputs else None
        for number, value in enumerate(node.outputs):
            if not value.name:
                continue
            chain = self.chain_of.get(source) if source is not None and number == 0 else None
            if chain is None or not _is_rounding(node) or self.rounds_anew(chain, value):
                self.begin(value, depth)
                continue
            chain.members.append(value)
            self.chain_of[value] = chain
            self.note_levels(chain, value)

    def rounds_anew(self, chain: _Chain, value: ir.Value) -> bool:
        """Whether these are other levels of a value than those that it already has."""
        found = self.encoding_of(value)
        return found is not None and chain.encoding is not None and not found.same_as(chain.encoding)

    def note_levels(self, chain: _Chain, value: ir.Value) -> None:
        if chain.levels is None and (encoding := self.encoding_of(value)) is not None:
            chain.levels, chain.encoding = value, encoding

    def encoding_of(self, value: ir.Value) -> Encoding | None:
        """What levels mean: who writes them says it, or who dequantizes them, or where they come from."""
        node = value.producer()
        if node is not None and node.op_type in _OUTPUT_SCALE and value is node.outputs[0]:
            return _encoding(node, _OUTPUT_SCALE[node.op_type], None)
        for reader, number in value.uses():
            if number == 0 and _is_rounding(reader, "DequantizeLinear"):
                return _encoding(reader, 1, value.dtype)
        name = str(value.name)
        if name.endswith("_quantized") and (known := self.known.get(name.removesuffix("_quantized"))) is not None:
            return _of_levels(value, known)
        source = node.inputs[0] if node is not None and node.op_type in _SAME_LEVELS and node.inputs else None
        chain = self.chain_of.get(source) if source is not None else None
        if chain is None or chain.levels is not source or chain.encoding is None:
            return None
        return chain.encoding if isinstance(chain.encoding.granularity, PerTensor) else None

    def sources(self, chain: _Chain) -> list[_Chain]:
        """Values that the writer of a chain computes it from, whatever their layout."""
        node = chain.root.producer()
        read = outer_inputs(node) if node is not None else []
        found = dict.fromkeys(self.source(self.chain_of[value]) for value in read if value in self.chain_of)
        return list(found)

    def source(self, chain: _Chain) -> _Chain:
        """Go back over operators that only lay a value out anew."""
        while chain.operator in _SAME_NUMBERS:
            node = chain.root.producer()
            value = node.inputs[0] if node is not None else None
            if value is None or value not in self.chain_of:
                return chain
            chain = self.chain_of[value]
        return chain

    def clipped(self, chain: _Chain) -> _Chain | None:
        """What a Relu or Clip, the only reader of a value, makes of it."""
        readers = [use.node for member in chain.members for use in member.uses() if not _is_rounding(use.node)]
        if len(readers) != 1 or not is_operator(readers[0], *CLIPPING_OPERATORS):
            return None
        return self.chain_of.get(readers[0].outputs[0])

    def outputs(self) -> list[_Chain]:
        return [self.chain_of[value] for value in self.graph.outputs if value in self.chain_of]


def _is_rounding(node: ir.Node | None, *operators: str) -> bool:
    return node is not None and node.op_type in (operators or _ROUNDINGS)


def _of_levels(value: ir.Value, encoding: Encoding) -> Encoding | None:
    """What integers mean that an encoding is known of, as a DequantizeLinear says it; None where it cannot be theirs.

    That is told by their type and the size of the axis along which scales differ.
    """
    if value.dtype is None or value.dtype.name.lower() != encoding.type.name:
        return None
    if isinstance(encoding.granularity, PerTensor):
        return encoding
    shape = dimensions(value)
    if not isinstance(encoding.granularity, PerAxis) or shape is None:
        return None
    axis = encoding.granularity.axis
    if not -len(shape) <= axis < len(shape) or shape[axis] != encoding.scale.size:
        return None
    return replace(encoding, granularity=PerAxis(axis))


def _encoding(node: ir.Node, number: int, kind: ir.DataType | None) -> Encoding | None:
    """Read the scale at an input and the zero point behind it; None where they are no constants or no valid ones."""
    scale = _constant(node.inputs[number]) if number < len(node.inputs) else None
    given = node.inputs[number + 1] if number + 1 < len(node.inputs) else None
    zero_point = _constant(given)
    kind = (given.dtype if given is not None else None) or kind or _output_type(node)
    if scale is None or (zero_point is None and given is not None) or kind not in _LEVEL_TYPES:
        return None
    if scale.size == 1:
        scale, zero_point = scale.reshape(()), None if zero_point is None else zero_point.reshape(())
    levels = np.zeros(scale.shape, dtype=np.int32) if zero_point is None else zero_point.astype(np.int32)
    try:
        return Encoding(
            type=integer_type(kind.name), granularity=_granularity(node, scale), scale=scale, zero_point=levels
        )
    except PlanError:  # a scale of 0 or below, say: what is dequantized is compared
        return None


def _constant(value: ir.Value | None) -> np.ndarray | None:
    """The array of a constant, also of an initializer that old files list among the inputs: nobody feeds it here."""
    if value is not None and value.is_initializer() and value.const_value is not None:
        return value.const_value.numpy()
    return constant_array(value)


def _output_type(node: ir.Node) -> ir.DataType:
    """Type of the levels of a QuantizeLinear without a zero point."""
    return ir.DataType(node.attributes.get_int("output_dtype", 0) or ir.DataType.UINT8)


def _granularity(node: ir.Node, scale: np.ndarray) -> Granularity:
    if scale.ndim == 0:
        return PerTensor()
    axis, block = node.attributes.get_int("axis", 1), node.attributes.get_int("block_size", 0)
    return PerBlock(axis, block) if block else PerAxis(axis)


# --- two networks -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Matching:
    first: _Network
    second: _Network
    partner: dict[_Chain, _Chain] = field(default_factory=dict)
    matched: dict[_Chain, Matched] = field(default_factory=dict)
    taken: set[_Chain] = field(default_factory=set)

    def claim(self, one: _Chain | None, other: _Chain | None, matched: Matched) -> None:
        if one is not None and other is not None and one not in self.partner and other not in self.taken:
            self.partner[one] = other
            self.matched[one] = matched
            self.taken.add(other)

    def free(self) -> Iterator[_Chain]:
        return (chain for chain in list(self.first.chains) if chain not in self.partner)

    def by_inputs(self, inputs: Mapping[str, str]) -> None:
        others = {str(value.name): value for value in self.second.graph.inputs}
        for value in self.first.graph.inputs:
            other = others.get(inputs.get(str(value.name), ""))
            if value in self.first.chain_of and other in self.second.chain_of:
                self.claim(self.first.chain_of[value], self.second.chain_of[other], "name")

    def by_names(self) -> None:
        exact = {name: chain for chain in self.second.chains for name in chain.names}
        bare: dict[str, _Chain] = {}
        for chain in self.second.chains:
            for name in chain.names:
                bare.setdefault(_stripped(name), chain)
        for is_bare, known in itertools.product((False, True), (exact, bare)):
            for chain in self.free():
                for name in chain.names:
                    other = known.get(_stripped(name) if is_bare else name)
                    if other is not None:
                        self.claim(*self.behind_clips(chain, other), "name")

    def by_structure(self) -> None:
        known: dict[tuple[object, ...], list[_Chain]] = {}
        for chain in self.second.chains:
            known.setdefault(_key(self.second, chain, self.second.sources(chain)), []).append(chain)
        for chain in self.first.chains:
            sources = [self.partner.get(source) for source in self.first.sources(chain)]
            found = [self.second.source(source) for source in sources if source is not None]
            if chain in self.partner or not sources or len(found) < len(sources):
                continue
            candidates = known.get(_key(self.first, chain, found), [])
            other = next((candidate for candidate in candidates if candidate not in self.taken), None)
            if other is not None:
                self.claim(*self.behind_clips(chain, other), "structure")

    def behind_clips(self, one: _Chain, other: _Chain) -> tuple[_Chain, _Chain]:
        """Pass over a Relu or Clip that only one of two has, where the other's levels saturate like it.

        Quantizers that leave such an operator out give its value the name of what it read.
        """
        clips = self.first.clipped(one), self.second.clipped(other)
        if clips[1] is None and _is_clipped_by(clips[0], other.encoding):
            return clips[0] or one, other
        if clips[0] is None and _is_clipped_by(clips[1], one.encoding):
            return one, clips[1] or other
        return one, other

    def by_position(self) -> None:
        one, other = self.first.outputs(), self.second.outputs()
        if len(one) == len(other):
            for pair in zip(one, other, strict=True):
                self.claim(*pair, "position")

    def pairing(self) -> Pairing:
        pairs = [
            Pair(first=one.tensor(), second=other.tensor(), matched=self.matched[one])
            for one in self.first.chains
            if (other := self.partner.get(one)) is not None and _tells(one, other)
        ]
        left = [chain for chain in self.second.chains if chain not in self.taken]
        return Pairing(pairs=tuple(pairs), only_first=_names(self.free()), only_second=_names(left))


def _is_clipped_by(clipped: _Chain | None, encoding: Encoding | None) -> bool:
    """Whether a Relu or Clip cuts where levels end."""
    node = clipped.root.producer() if clipped is not None else None
    return node is not None and encoding is not None and saturates_like(node, encoding)


def _names(chains: Iterator[_Chain] | Sequence[_Chain]) -> tuple[str, ...]:
    return tuple(chain.tensor().name for chain in chains if chain.is_compared)


def _tells(one: _Chain, other: _Chain) -> bool:
    """Whether comparing two values tells something: inputs that are float in both are the same."""
    fed = one.depth == other.depth == -1 and one.shown is one.root and other.shown is other.root
    return not fed and one.is_compared and other.is_compared


def _key(network: _Network, chain: _Chain, sources: Sequence[_Chain]) -> tuple[object, ...]:
    """What a value is apart from names: its operator, what that reads (as numbers of the second network), which output.

    Constants with two axes or more (weights) are told apart by their sizes in any order: layouts may differ.
    """
    node = chain.root.producer()
    operator = _OTHER_NAMES.get(chain.operator, chain.operator.removeprefix("QLinear"))
    numbers = [source.number for source in sources]
    read = [] if node is None else [value for value in node.inputs if value is not None]
    shapes = [dimensions(value) or () for value in read if value not in network.chain_of]
    weights = sorted(tuple(sorted(size or 0 for size in shape)) for shape in shapes if len(shape) > 1)
    return (
        operator,
        tuple(sorted(numbers) if operator in _COMMUTATIVE else numbers),
        chain.root.index(),
        tuple(weights),
    )


def _stripped(name: str) -> str:
    """Take off what quantizers put behind the name of a float value; a name that is nothing else stays."""
    while (shorter := _SUFFIX.sub("", name)) not in (name, ""):
        name = shorter
    return name
