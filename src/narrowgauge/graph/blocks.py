"""The repeated blocks of a transformer, found from structure alone: residual sums, and what each of them adds.

No name that an exporter gave is looked at. A residual sum is an Add one of whose inputs is the stream and the other is
computed from that stream by products with constant weights: the branch. A branch with a Softmax between two products of
activations is an attention, one with an activation function between two products is an MLP (a perceptron); pre-norm,
post-norm, windows and parallel branches differ in what stands around these, not in them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from narrowgauge.graph.edits import is_operator
from narrowgauge.graph.lineage import Lineage
from narrowgauge.graph.moves import MOVES
from narrowgauge.graph.pieces import outer_inputs
from narrowgauge.graph.roles import activation_inputs, is_constant, weight_inputs
from narrowgauge.graph.shapes import dimensions

# Between two products one of them makes a perceptron of them; so does a product of two activations (a gate).
_ACTIVATION_FUNCTIONS = frozenset({
    "Relu", "Gelu", "Clip", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "HardSwish", "HardSigmoid", "Mish", "Softplus",
    "Swish", "Sigmoid", "Tanh", "Erf", "ThresholdedRelu", "FastGelu", "QuickGelu", "BiasGelu",
})  # fmt: skip

# So many nodes behind a sum a Softmax is looked for, at the most.
_FAR = 8

# One node for a whole attention: ONNX operator set 23, and ONNX Runtime's own.
FUSED_ATTENTION = frozenset({"Attention", "MultiHeadAttention"})


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Attention:
    """An attention: softmax(q k) v.

    Attributes:
        softmax: the node of the probabilities; that of the whole attention where one node computes all of it.
        scores: products of two activations that its scores come from; empty for a node of a whole attention.
        contexts: products of two activations that read its probabilities; likewise.
    """

    softmax: ir.Node
    scores: tuple[ir.Node, ...]
    contexts: tuple[ir.Node, ...]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Perceptron:
    """Two products with constant weights and an activation function between them.

    Attributes:
        first: the products that write the hidden units; two where one is the gate of the other.
        last: the product that reads them.
        between: nodes from the first ones to the last, both left out.
    """

    first: tuple[ir.Node, ...]
    last: ir.Node
    between: tuple[ir.Node, ...]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Branch:
    """What a residual sum adds to its stream.

    Attributes:
        sum: the addition.
        start: the value of the stream that the branch is computed from.
        skip: what it is added to: the same stream, moved perhaps.
        end: what is added.
        nodes: those between the two, in the network's order.
        attentions: found in it.
        perceptrons: found in it.
    """

    sum: ir.Node
    start: ir.Value
    skip: ir.Value
    end: ir.Value
    nodes: tuple[ir.Node, ...]
    attentions: tuple[Attention, ...]
    perceptrons: tuple[Perceptron, ...]

    @property
    def kind(self) -> str:
        """What it is, for a person: "attention", "MLP", "attention and MLP", or "" for anything else."""
        parts = ["attention"] if self.attentions else []
        return " and ".join([*parts, *(["MLP"] if self.perceptrons else [])])


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Block:
    """Branches that repeat together, an attention and an MLP as a rule.

    Attributes:
        number: from 0, in the network's order.
        branches: one or more, in the network's order.
    """

    number: int
    branches: tuple[Branch, ...]


def find_blocks(model: ir.Model) -> tuple[Block, ...]:
    """Find the blocks of a transformer: encoder, decoder or both, with any stem before and head behind it.

    A network without any attention has no blocks here: what a residual branch of convolutions is, nobody calls by one
    name. Branches that are neither attention nor MLP are left out, and so is a sum around several blocks.

    Blocks are counted by the shortest order of attentions and MLPs that the network repeats; where it repeats none
    (an encoder and a decoder), a block begins with the first attention behind an MLP.

    Args:
        model: the float network; shapes need not be known, but fewer sums of masks are mistaken where they are.

    Returns:
        The blocks, in the network's order.
    """
    if not any(is_operator(node, "Softmax") or node.op_type in FUSED_ATTENTION for node in model.graph):
        return ()
    branches = residual_branches(model, Lineage.of(model.graph))
    known = [branch for branch in branches if branch.kind]
    if not any(branch.attentions for branch in known):
        return ()
    starts = _starts([(bool(branch.attentions), bool(branch.perceptrons)) for branch in known])
    ends = [*starts[1:], len(known)]
    return tuple(
        Block(number=number, branches=tuple(known[start:end]))
        for number, (start, end) in enumerate(zip(starts, ends, strict=True))
    )


def _starts(kinds: Sequence[tuple[bool, bool]]) -> list[int]:
    """Which branches blocks begin with, by whether each branch has an attention and an MLP."""
    count = len(kinds)
    behind = [0, *(place for place in range(1, count) if kinds[place][0] and kinds[place - 1][1])]
    if len(behind) == 1:  # one block, or attentions alone
        return list(range(count)) if not any(perceptron for _, perceptron in kinds) else behind
    for length in range(1, count):
        if count % length == 0 and all(kinds[place] == kinds[place % length] for place in range(count)):
            return list(range(0, count, length))
    return behind


# --- branches ---------------------------------------------------------------------------------------------------


def residual_branches(model: ir.Model, lineage: Lineage) -> tuple[Branch, ...]:
    """Find what every residual sum of the main graph adds; sums around other sums are left out.

    Args:
        model: the network.
        lineage: of its graph.
    """
    skips: dict[ir.Node, ir.Value] = {}
    found: list[Branch] = []
    for node in model.graph:
        branch = _branch(node, skips, lineage) if is_operator(node, "Add") else None
        if branch is not None:
            skips[node] = branch.skip
            found.append(branch)
    sums = {branch.sum for branch in found}
    return tuple(branch for branch in found if not sums.intersection(branch.nodes))


def _branch(addition: ir.Node, skips: dict[ir.Node, ir.Value], lineage: Lineage) -> Branch | None:
    first, second = addition.inputs
    if first is None or second is None or first is second or is_constant(first) or is_constant(second):
        return None
    if not _same_sizes(first, second) or _leads_to_softmax(addition.outputs[0]):
        return None
    for skip, end in ((first, second), (second, first)):
        for start in _stream(skip, skips):
            if start is not end and lineage.comes_from(end, start):
                nodes = _between(start, end, lineage)
                if any(is_layer(node) for node in nodes):
                    attentions = tuple(_attentions(nodes, lineage))
                    return Branch(
                        sum=addition, start=start, skip=skip, end=end, nodes=nodes, attentions=attentions,
                        perceptrons=tuple(_perceptrons(nodes, attentions, lineage)),
                    )  # fmt: skip
    return None


def _same_sizes(first: ir.Value, second: ir.Value) -> bool:
    """Whether two values may have one shape, as far as sizes are known: a sum with a mask or a table is no residual."""
    one, other = dimensions(first), dimensions(second)
    if one is None or other is None:
        return True
    pairs = zip(one, other, strict=False)
    return len(one) == len(other) and all(a is None or b is None or a == b for a, b in pairs)


def _leads_to_softmax(value: ir.Value) -> bool:
    """Whether a Softmax reads a value at once or behind moves, factors and masks: a sum of scores and a mask."""
    seen: set[ir.Node] = set()
    waiting = [value]
    while waiting and len(seen) < _FAR:
        for node, _ in waiting.pop().uses():
            if is_operator(node, "Softmax"):
                return True
            if is_operator(node, *MOVES, "Mul", "Div", "Add", "Where", "Clip") and node not in seen:
                seen.add(node)
                waiting += node.outputs
    return False


def _stream(skip: ir.Value, skips: dict[ir.Node, ir.Value]) -> Iterator[ir.Value]:
    """Values that hold the same stream: before moves and factors, and before one sum whose branch runs beside."""
    value, sums = skip, 0
    while True:
        yield value
        node = value.producer()
        if node is None:
            return
        if node in skips and sums == 0:
            value, sums = skips[node], 1
            continue
        moving = [one for one in node.inputs if one is not None and not is_constant(one)]
        scaled = is_operator(node, "Mul", "Div") and len(moving) == 1
        if not moving or not (scaled or is_operator(node, *MOVES)) or moving[0] is not node.inputs[0]:
            return
        value = moving[0]


def _between(start: ir.Value, end: ir.Value, lineage: Lineage) -> tuple[ir.Node, ...]:
    """Nodes on the ways from one value to another, in the network's order."""
    found: set[ir.Node] = set()
    waiting = [end]
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if node is None or value is start or node in found:
            continue
        found.add(node)
        waiting += [one for one in outer_inputs(node) if lineage.comes_from(one, start)]
    numbers = lineage.numbers
    return tuple(sorted(found, key=lambda node: numbers[node.outputs[0]]))


# --- what a branch holds ----------------------------------------------------------------------------------------


def is_layer(node: ir.Node) -> bool:
    """Whether a node is a product with constant weights."""
    return is_operator(node, "MatMul", "Gemm", "Conv") and bool(weight_inputs(node))


def is_pointwise(node: ir.Node) -> bool:
    """Whether a node is a product with constant weights that computes each position by itself."""
    if not is_layer(node):
        return False
    weights = dimensions(node.inputs[1]) or ()
    return node.op_type != "Conv" or (
        all(size == 1 for size in weights[2:]) and node.attributes.get_int("group", 1) == 1
    )


def _is_product_of_activations(node: ir.Node) -> bool:
    moving = [value for value in node.inputs if value is not None and not is_constant(value)]
    return is_operator(node, "MatMul", "Gemm", "Einsum") and len(moving) >= 2


def _attentions(nodes: Sequence[ir.Node], lineage: Lineage) -> Iterator[Attention]:
    products = [node for node in nodes if _is_product_of_activations(node)]
    for node in nodes:
        if node.op_type in FUSED_ATTENTION:
            yield Attention(softmax=node, scores=(), contexts=())
        elif is_operator(node, "Softmax"):
            before = tuple(one for one in products if lineage.comes_from_any(node.outputs[0], [one]))
            behind = tuple(one for one in products if lineage.comes_from(one.outputs[0], node.outputs[0]))
            if before and behind:
                yield Attention(softmax=node, scores=before[-1:], contexts=behind[:1])


def _perceptrons(nodes: Sequence[ir.Node], attentions: Sequence[Attention], lineage: Lineage) -> Iterator[Perceptron]:
    """Pairs of products around an activation function; what feeds an attention belongs to that."""
    inside = set(nodes)
    ends = [node for one in attentions for node in (*one.scores, *one.contexts, one.softmax)]
    for node in nodes:
        if not is_pointwise(node) or any(lineage.comes_from_any(end.outputs[0], [node]) for end in ends):
            continue
        between, first = _hidden(node, inside)
        spatial = [one for one in between if is_layer(one)]
        # An inverted residual of convolutions (1x1, depthwise, 1x1) is none; an MLP of matrices around one is.
        if spatial and any(is_operator(one, "Conv") for one in (node, *first)):
            continue
        active = any(
            one.op_type in _ACTIVATION_FUNCTIONS or (is_operator(one, "Mul") and not any(map(is_constant, one.inputs)))
            for one in between
        )
        if first and active:
            yield Perceptron(first=first, last=node, between=between)


def _hidden(last: ir.Node, inside: set[ir.Node]) -> tuple[tuple[ir.Node, ...], tuple[ir.Node, ...]]:
    """Nodes before a product, back to the products before it, and those; nothing where one way has none of these."""
    between: dict[ir.Node, None] = {}
    first: dict[ir.Node, None] = {}
    waiting = [last.inputs[0]]
    while waiting:
        value = waiting.pop()
        node = value.producer() if value is not None else None
        if node is None or node not in inside:
            return (), ()
        if node in between or node in first:
            continue
        if is_operator(node, "Softmax") or node.op_type in FUSED_ATTENTION or _is_product_of_activations(node):
            return (), ()
        if is_pointwise(node):
            first[node] = None
            continue
        between[node] = None
        waiting += [one for _, one in activation_inputs(node) if not is_constant(one)]
    return tuple(between), tuple(first)
