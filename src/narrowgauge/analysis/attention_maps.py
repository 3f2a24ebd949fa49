"""What quantization does to attention: weights of one sample in the float and the quantized network, head by head.

Attention is a Softmax along the last axis whose result weighs another computed value: it is the first input of a
product. Compared is what the product reads, so that the rounding of the weights themselves counts, too.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from narrowgauge.analysis.attention_pictures import AttentionPictures, FloatArray, HeadMaps, draw
from narrowgauge.analysis.records import AttentionHead
from narrowgauge.analysis.tensors import exposed
from narrowgauge.core.plan import Plan
from narrowgauge.data.batches import single_row
from narrowgauge.data.inputs import has_batch_axis, input_specs
from narrowgauge.graph.block_roles import block_roles
from narrowgauge.graph.edits import is_operator
from narrowgauge.graph.exposing import in_rounds
from narrowgauge.graph.feeds import Array, Batch
from narrowgauge.graph.roles import is_constant
from narrowgauge.graph.shapes import dimensions
from narrowgauge.lowering.qdq import QdqStyle, lower_to_qdq

# What hands each weight on as it is, and what only lays them out for a product.
_SAME_WEIGHTS = ("Cast", "Dropout", "Identity")
_LAYOUTS = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")

# Bytes of the weights that leave an engine together.
_ROUND_BYTES = 256 * 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionMaps:
    """What was found.

    Attributes:
        heads: of every attention, in the network's order.
        pictures: of those that change most.
    """

    heads: tuple[AttentionHead, ...]
    pictures: AttentionPictures


@dataclass(frozen=True, kw_only=True, slots=True)
class Attention:
    """A Softmax whose result weighs another value.

    Attributes:
        node: the Softmax.
        depth: its place in the network's order.
        reader: the first node behind it that does more than hand each weight on; they are its first input.
    """

    node: ir.Node
    depth: int
    reader: ir.Node


def attentions(model: ir.Model) -> tuple[Attention, ...]:
    """Find the attentions of a network, in its order; one that is spelled out in other operators is not found."""
    found = []
    for depth, node in enumerate(model.graph):
        if is_operator(node, "Softmax") and _along_last_axis(node):
            reader = next(_weighing(node.outputs[0]), None)
            if reader is not None:
                found.append(Attention(node=node, depth=depth, reader=reader))
    return tuple(found)


def attention_maps(
    reference: ir.Model, network: ir.Model, plan: Plan, batch: Batch, *, threads: int | None = None
) -> AttentionMaps | None:
    """Run one sample through the float and the quantized network, and compare the attention of every head.

    Args:
        reference: the float network.
        network: the one that the plan describes: the same nodes and values, other constants perhaps.
        plan: its plan.
        batch: its first sample is taken.
        threads: of an operator; None for the cores that this process may use.

    Returns:
        None where there is no attention: then nothing is run.

    Raises:
        PlanError: if the plan does not fit the network.
        RuntimeFailure: if the engine cannot run one of the networks.
    """
    found = attentions(reference)
    if not found:
        return None
    lowered = lower_to_qdq(network, plan, QdqStyle(spell_out_channels=True))
    feed = single_row(batch.feed, input_specs(reference))
    rows = len(next(array for array in feed.values() if array.ndim)) if has_batch_axis(input_specs(reference)) else 1
    longest = max((size for array in feed.values() for size in array.shape), default=1)
    runs = [(exposed(model, threads=threads), _first_inputs(model)) for model in (reference, lowered)]
    heads: list[HeadMaps] = []
    numbers = {one.depth: number for number, one in enumerate(found)}
    roles = block_roles(reference)
    for group in in_rounds(found, lambda one: _bytes(one.node.outputs[0], rows, longest), _ROUND_BYTES):
        results = []
        for expose, inputs in runs:
            names = [inputs[str(one.reader.name)] for one in group]
            values = expose(names)(feed)
            results.append([_by_head(values[name], rows) for name in names])
        for one, first, second in zip(group, *results, strict=True):
            role = roles.get(str(one.node.outputs[0].name))
            heads += _compared(one, numbers[one.depth], None if role is None else role.block, first, second)
    if not heads:
        return None
    return AttentionMaps(
        heads=tuple(head.record for head in heads), pictures=draw(heads, batch.names[0], feed)
    )  # fmt: skip


def describe_attention(heads: Sequence[AttentionHead]) -> str:
    """Say which head changes most: "attention changes most in block 7, head 2: 3.1 % of its weight moves"."""
    most = max(heads, key=lambda one: one.moved)
    share = 100 * most.moved
    said = f"{share:.1f}" if share >= 1 else f"{share:.2g}"
    place = attention_names(heads)[most.attention]
    return f"attention changes most in {place}, head {most.head}: {said} % of its weight moves"


def attention_names(heads: Sequence[AttentionHead]) -> Mapping[int, str]:
    """Name attentions by the block that they stand in, as roles and causes do.

    Args:
        heads: of every attention of a network.

    Returns:
        Number of an attention -> "block 7"; "block 7, attention 15" where the block has several (a decoder's),
        "attention 15" where it stands in no block.
    """
    inside: dict[int | None, set[int]] = defaultdict(set)
    for one in heads:
        inside[one.block].add(one.attention)
    names = {}
    for block, numbers in inside.items():
        for number in numbers:
            parts = [] if block is None else [f"block {block}"]
            names[number] = ", ".join(parts if parts and len(numbers) == 1 else [*parts, f"attention {number}"])
    return names


def _along_last_axis(node: ir.Node) -> bool:
    axis, sizes = node.attributes.get_int("axis", -1), dimensions(node.outputs[0])
    return axis == -1 or (sizes is not None and axis == len(sizes) - 1)


def _weighing(value: ir.Value) -> Iterator[ir.Node]:
    """Readers of a value by which it weighs another one, looking through what hands the weights on."""
    for node in _readers(value):
        if is_operator(node, *_SAME_WEIGHTS):
            yield from _weighing(node.outputs[0])
        elif _is_product(node) or (
            is_operator(node, *_LAYOUTS) and any(_is_product(behind) for behind in _readers(node.outputs[0]))
        ):
            yield node


def _readers(value: ir.Value) -> list[ir.Node]:
    """Nodes that read a value as their first input."""
    return [use.node for use in value.uses() if use.idx == 0]


def _is_product(node: ir.Node) -> bool:
    return is_operator(node, "MatMul") and node.inputs[1] is not None and not is_constant(node.inputs[1])


def _first_inputs(model: ir.Model) -> Mapping[str, str]:
    """Node -> name of its first input."""
    return {
        str(node.name): str(node.inputs[0].name) for node in model.graph if node.inputs and node.inputs[0] is not None
    }


def _bytes(value: ir.Value, rows: int, longest: int) -> int:
    """Bytes of a value; an open first axis counts as the batch, any other as the longest axis that is fed."""
    sizes = dimensions(value)
    if sizes is None:
        return _ROUND_BYTES
    known = (size if size is not None else longest if axis else rows for axis, size in enumerate(sizes))
    return 4 * math.prod(known)


def _by_head(array: Array, rows: int) -> FloatArray:
    """Weights of the first sample, `(windows, heads, queries, keys)`; what is not a number weighs nothing."""
    if array.ndim > 2 and len(array) % rows == 0:
        array = array[: len(array) // rows]
    array = array.reshape((1,) * (4 - array.ndim) + array.shape)
    return np.nan_to_num(array.reshape(-1, *array.shape[-3:]).astype(np.float32))


def _compared(
    one: Attention, number: int, block: int | None, first: FloatArray, second: FloatArray
) -> Iterator[HeadMaps]:
    """Compare an attention's heads; one of another shape in the quantized network is left out."""
    if first.shape != second.shape or not first.size:
        return
    # Total variation distance: half of the sum of magnitudes, of each query, `(windows, heads, queries)`.
    distances = np.abs(second - first).sum(axis=-1, dtype=np.float64) / 2
    for head in range(first.shape[1]):
        window = int(distances[:, head].mean(axis=-1).argmax())
        record = AttentionHead(
            node=str(one.node.name), value=str(one.node.outputs[0].name), depth=one.depth, attention=number,
            block=block, head=head, moved=float(distances[:, head].mean()),
        )  # fmt: skip
        both = np.stack([first[window, head], second[window, head]])
        yield HeadMaps.of(record, window if len(first) > 1 else None, both)
