"""What the values of a transformer are, in words: "block 7, MLP hidden", "block 0, q", "final LayerNorm"."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import onnx_ir as ir

from narrowgauge.graph.blocks import Attention, Branch, Perceptron, find_blocks, is_layer
from narrowgauge.graph.edits import is_operator
from narrowgauge.graph.lineage import Lineage
from narrowgauge.graph.roles import FLOATS, activation_inputs, is_constant
from narrowgauge.graph.shapes import dimensions

_NORMALIZATIONS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")

# They leave numbers as they are, or add a bias: a value behind them is still before the activation function.
_STRAIGHT = ("Add", "Sub", "Reshape", "Transpose", "Split", "Slice", "Gather", "Identity", "Cast", "Dropout", "Conv")


class Part(Enum):
    """What a value of a transformer is; its value is said of it."""

    PATCHES = "patch embedding"
    EMBEDDING = "embedding"
    STEM = "stem"
    STREAM = "residual stream"
    NORMALIZED = "LayerNorm"
    PROJECTED = "q/k/v"
    SCORES = "attention scores"
    PROBABILITIES = "attention (softmax)"
    CONTEXT = "attention context"
    ATTENTION_OUTPUT = "attention output"
    BEFORE_ACTIVATION = "MLP hidden before the activation"
    HIDDEN = "MLP hidden"
    MLP_OUTPUT = "MLP output"
    HEAD = "head"


# One channel of these is a unit of the MLP, one of those a channel of the residual stream.
_UNITS = {Part.BEFORE_ACTIVATION, Part.HIDDEN}
_RESIDUAL = {Part.STREAM, Part.ATTENTION_OUTPUT, Part.MLP_OUTPUT}


@dataclass(frozen=True, kw_only=True, slots=True)
class Role:
    """What one value is.

    Attributes:
        part: what kind of value.
        block: the number of its block, from 0; None before and behind all blocks.
        detail: what more is to be said, instead of the part's own words: "q/k", "LayerNorm before attention"; "" for
            nothing.
    """

    part: Part
    block: int | None = None
    detail: str = ""

    @property
    def words(self) -> str:
        """Say it: "block 7, MLP hidden"."""
        return _in_block(self.block, self.detail or self.part.value)

    def channel_words(self, channel: int) -> str:
        """Name one of its channels: "block 7, MLP unit 417", "block 7, residual channel 41"."""
        if self.part in _UNITS:
            return _in_block(self.block, f"MLP unit {channel}")
        if self.part in _RESIDUAL:
            return _in_block(self.block, f"residual channel {channel}")
        return _in_block(self.block, f"channel {channel} of {self.detail or self.part.value}")


def _in_block(block: int | None, words: str) -> str:
    return words if block is None else f"block {block}, {words}"


def block_roles(model: ir.Model) -> Mapping[str, Role]:
    """Say what the values of a transformer are.

    Args:
        model: the float network.

    Returns:
        Value name -> role, of the values that have one; nothing for a network without blocks.
    """
    blocks = find_blocks(model)
    if not blocks:
        return {}
    lineage = Lineage.of(model.graph)
    branches = [(block.number, branch) for block in blocks for branch in block.branches]
    found: dict[str, Role] = {}
    for value, role in _around(model.graph, branches, lineage):
        found.setdefault(str(value.name), role)
    for number, branch in branches:
        for value, role in _within(branch, number, lineage):
            found[str(value.name)] = role
    for number, branch in branches:  # the stream moved: another layout, or some of its tokens
        moved = Role(part=Part.STREAM, block=number, detail=f"residual stream before {branch.kind}")
        found.setdefault(str(branch.skip.name), moved)
    numbers = {str(value.name) for node in model.graph for value in node.outputs if value.dtype in (None, *FLOATS)}
    return {name: role for name, role in found.items() if name in numbers}  # sizes that are computed have none


# --- within a branch --------------------------------------------------------------------------------------------


def _within(branch: Branch, block: int, lineage: Lineage) -> Iterator[tuple[ir.Value, Role]]:
    yield branch.sum.outputs[0], Role(part=Part.STREAM, block=block, detail=f"residual stream after {branch.kind}")
    for attention in branch.attentions:
        yield from _of_attention(branch, attention, block, lineage)
    for perceptron in branch.perceptrons:
        yield from _of_perceptron(branch, perceptron, block, lineage)
    layers = [node for node in branch.nodes if is_layer(node)]
    for node in branch.nodes:
        if is_operator(node, *_NORMALIZATIONS):
            output = node.outputs[0]
            if not lineage.comes_from_any(output, layers):
                yield output, Role(part=Part.NORMALIZED, block=block, detail=f"LayerNorm before {branch.kind}")
            elif not any(lineage.comes_from(layer.outputs[0], output) for layer in layers):
                yield output, Role(part=Part.NORMALIZED, block=block, detail=f"LayerNorm after {branch.kind}")


def _of_perceptron(
    branch: Branch, perceptron: Perceptron, block: int, lineage: Lineage
) -> Iterator[tuple[ir.Value, Role]]:
    bent = [node for node in perceptron.between if not is_operator(node, *_STRAIGHT)]
    beside = [node for one in branch.attentions for node in (one.contexts or (one.softmax,))]
    beside = [node for node in beside if not lineage.comes_from_any(perceptron.last.outputs[0], [node])]
    for node in (*perceptron.first, *perceptron.between):
        for value in node.outputs:
            before = not lineage.comes_from_any(value, bent)
            yield value, Role(part=Part.BEFORE_ACTIVATION if before else Part.HIDDEN, block=block)
    for node in branch.nodes:
        for value in node.outputs:
            if lineage.comes_from_any(value, [perceptron.last]):
                both = "attention and MLP output" if lineage.comes_from_any(value, beside) else ""
                yield value, Role(part=Part.MLP_OUTPUT, block=block, detail=both)


def _of_attention(
    branch: Branch, attention: Attention, block: int, lineage: Lineage
) -> Iterator[tuple[ir.Value, Role]]:
    letters: dict[ir.Value, set[str]] = {}
    for letter, operand in _operands(attention, lineage):
        for value in _projected(operand, lineage):
            letters.setdefault(value, set()).add(letter)
    for value, found in letters.items():
        detail = "/".join(letter for letter in "qkv" if letter in found)
        yield value, Role(part=Part.PROJECTED, block=block, detail=detail)
    contexts = attention.contexts or (attention.softmax,)
    behind = [node for node in branch.nodes if is_layer(node) and lineage.comes_from_any(node.outputs[0], contexts)]
    for node in branch.nodes:
        for value in node.outputs:
            if lineage.comes_from_any(value, behind):
                yield value, Role(part=Part.ATTENTION_OUTPUT, block=block)
            elif lineage.comes_from_any(value, contexts):
                yield value, Role(part=Part.CONTEXT, block=block)
            elif lineage.comes_from(value, attention.softmax.outputs[0]):
                yield value, Role(part=Part.PROBABILITIES, block=block)
            elif lineage.comes_from_any(value, attention.scores):
                yield value, Role(part=Part.SCORES, block=block)


def _operands(attention: Attention, lineage: Lineage) -> Iterator[tuple[str, ir.Value]]:
    """What is multiplied: (q, k, v) each with its value."""
    if not attention.scores:
        yield from ((letter, value) for letter, value in zip("qkv", attention.softmax.inputs, strict=False) if value)
    for product in attention.scores:
        moving = [value for value in product.inputs if value is not None and not is_constant(value)]
        swapped = _keys_first(product, attention.softmax)
        yield from zip("kq" if swapped else "qk", moving, strict=False)
    for product in attention.contexts:
        for value in product.inputs:
            if value is not None and not lineage.comes_from(value, attention.softmax.outputs[0]):
                yield "v", value


def _keys_first(product: ir.Node, softmax: ir.Node) -> bool:
    """Whether scores are turned before Softmax takes their last axis: then the first factor holds the keys."""
    turned, value = False, softmax.inputs[0]
    while value is not None and (node := value.producer()) is not None and node is not product:
        if is_operator(node, "Transpose"):
            order = node.attributes.get_ints("perm", [])
            turned ^= not order or order[-1] != len(order) - 1
        value = next((one for _, one in activation_inputs(node) if not is_constant(one)), None)
    return turned


def _projected(operand: ir.Value, lineage: Lineage) -> Iterator[ir.Value]:
    """Values from a projection to what is multiplied, both among them; nothing where no projection is before it."""
    passed: dict[ir.Value, None] = {}
    layers: dict[ir.Node, None] = {}
    waiting = [operand]
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if value in passed or node is None:
            continue
        passed[value] = None
        if is_layer(node):
            layers[node] = None
        else:
            waiting += [one for _, one in activation_inputs(node) if not is_constant(one)]
    return (value for value in passed if lineage.comes_from_any(value, layers))


# --- around the blocks ------------------------------------------------------------------------------------------


def _around(
    graph: ir.Graph, branches: Sequence[tuple[int, Branch]], lineage: Lineage
) -> Iterator[tuple[ir.Value, Role]]:
    """Roles before the first block, of the stream's own normalizations, and behind the last block."""
    start, last = branches[0][1].start, branches[-1][1].sum.outputs[0]
    yield from _normalizations(graph, branches, lineage)
    yield start, Role(part=Part.STREAM, detail="residual stream before block 0")
    before = [node for node in graph if lineage.comes_from_any(start, [node])]
    layers = [node for node in before if is_layer(node)]
    part = _embedding(graph.inputs, start, layers, lineage)
    for node in before:
        for value in node.outputs:
            if part is Part.EMBEDDING or lineage.comes_from_any(value, layers):
                yield value, Role(part=part)
    for node in graph:
        for value in node.outputs:
            if value is not last and lineage.comes_from(value, last):
                yield value, Role(part=Part.HEAD)


def _embedding(inputs: Iterable[ir.Value], start: ir.Value, layers: Sequence[ir.Node], lineage: Lineage) -> Part:
    """What stands before the first block: one product of an image's patches, a whole stem, or anything else."""
    images = [value for value in inputs if len(dimensions(value) or ()) == 4 and lineage.comes_from(start, value)]
    if not images:
        return Part.EMBEDDING
    return Part.PATCHES if len(layers) == 1 else Part.STEM


def _normalizations(
    graph: ir.Graph, branches: Sequence[tuple[int, Branch]], lineage: Lineage
) -> Iterator[tuple[ir.Value, Role]]:
    """Normalizations of the stream itself (post-norm), that of the embedding, and the one behind all blocks."""
    starts = {branch.start for _, branch in branches}
    sums = {branch.sum.outputs[0]: (block, branch) for block, branch in branches}
    inside = {node for _, branch in branches for node in branch.nodes}
    outer = [node for node in graph if is_operator(node, *_NORMALIZATIONS) and node not in inside]
    post_norm = any(node.outputs[0] in starts and node.inputs[0] in sums for node in outer)
    for node in outer:
        source, output = node.inputs[0], node.outputs[0]
        if source in sums and post_norm:
            block, branch = sums[source]
            yield output, Role(part=Part.NORMALIZED, block=block, detail=f"LayerNorm after {branch.kind}")
        elif output is branches[0][1].start:
            yield output, Role(part=Part.NORMALIZED, detail="LayerNorm of the embedding")
        elif lineage.comes_from_any(output, [branches[-1][1].sum]):
            yield output, Role(part=Part.NORMALIZED, detail="final LayerNorm")
