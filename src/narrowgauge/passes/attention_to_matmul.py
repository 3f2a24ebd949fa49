"""Write the Attention of opset 23 as the two products and the Softmax that it stands for.

softmax(scale Q K^T + mask) V; ONNX operator Attention, version 23. Each of its parts then has an encoding of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from narrowgauge.graph.constants import add_constant, constant_array
from narrowgauge.graph.edits import graph_of, is_operator, new_node, remove_unused, take_place
from narrowgauge.graph.refusals import Refusal
from narrowgauge.graph.shapes import dimensions, infer_shapes, rank

_UNREAD = -1e6
"""What is added to a score that is not to be read: its exponential is 0 beside that of any score above -999,000."""

_MASK, _PAST_KEY = 3, 4


def attention_to_matmul(model: ir.Model) -> tuple[Refusal, ...]:
    """Replace each Attention by Transpose, Mul, MatMul, Add, Softmax and MatMul, in place.

    Its operands have four axes [rows, heads, tokens, width], or three [rows, tokens, heads width]. A mask of booleans
    becomes one of numbers, a causal one a constant. Where a whole row is masked by booleans, what it attends to is not
    defined.

    Refuses: keys and values of earlier calls, fewer heads of keys than of queries, a soft cap, a second output, a
    causal mask of an unknown number of tokens, a mask that is shorter than the keys, and heads of unknown width.
    """
    found = [node for node in model.graph if is_operator(node, "Attention")]
    reasons = {node: _refusal(node) for node in found}
    for node, reason in reasons.items():
        if not reason:
            _Writer(node=node, base=node.name or str(node.outputs[0].name)).write()
    if "" in reasons.values():
        remove_unused(model)
        infer_shapes(model)
    return tuple(
        Refusal(node=node.name or "", operator="Attention", reason=reason) for node, reason in reasons.items() if reason
    )


def _refusal(node: ir.Node) -> str:
    """Why an Attention stays, "" if it does not."""
    if any(value is not None for value in node.inputs[_PAST_KEY:]):
        return "it takes keys and values of earlier calls, or how many of them count"
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        return "something reads its keys, values or scores"
    if node.attributes.get_float("softcap", 0.0):
        return "its scores have a soft cap"
    if rank(node.inputs[0]) not in (3, 4) or any(rank(value) != rank(node.inputs[0]) for value in node.inputs[:3]):
        return "its operands are not all of three axes, or all of four"
    heads = [_heads(node, number) for number in range(3)]
    if None in heads or len(set(heads)) != 1:
        return "it has fewer heads of keys than of queries, or an unknown number"
    if _width(node) is None:
        return "the width of its heads is unknown"
    queries, keys = (_sizes(node, number)[-2] for number in range(2))
    if node.attributes.get_int("is_causal", 0) and (queries is None or keys is None):
        return "its mask is causal, for an unknown number of tokens"
    mask = node.inputs[_MASK] if len(node.inputs) > _MASK else None
    last = (dimensions(mask) or (None,))[-1]
    return "its mask is shorter than the keys" if mask is not None and last not in (keys, None) else ""


def _sizes(node: ir.Node, number: int) -> tuple[int | None, ...]:
    return dimensions(node.inputs[number]) or ()


def _heads(node: ir.Node, number: int) -> int | None:
    if rank(node.inputs[number]) == 4:
        return _sizes(node, number)[1]
    return node.attributes.get_int("q_num_heads" if number == 0 else "kv_num_heads", 0) or None


def _width(node: ir.Node) -> int | None:
    width, heads = _sizes(node, 0)[-1], _heads(node, 0)
    return width if width is None or rank(node.inputs[0]) == 4 or not heads else width // heads


@dataclass(kw_only=True, slots=True)
class _Writer:
    """Writes the nodes that stand for one Attention before it."""

    node: ir.Node
    base: str

    def write(self) -> None:
        node = self.node
        scale = node.attributes.get_float("scale", 0.0) or float(_width(node) or 1) ** -0.5
        queries, keys, values = (self.by_heads(number) for number in range(3))
        turned = self.add("Transpose", [keys], "keys_turned", {"perm": [0, 1, 3, 2]})
        scaled = self.add("Mul", [queries, self.number(scale, "scale")], "queries_scaled")
        scores = self.add("MatMul", [scaled, turned], "scores")
        for name, mask in self.masks().items():
            scores = self.add("Add", [scores, mask], f"scores_{name}")
        weights = self.add("Softmax", [scores], "weights", {"axis": -1})
        last = self.add("MatMul", [weights, values], "product")
        if rank(node.inputs[0]) == 3:
            tokens = self.add("Transpose", [last], "tokens", {"perm": [0, 2, 1, 3]})
            last = self.add("Reshape", [tokens, self.shape([0, 0, -1], "joined_shape")], "joined")
        take_place(last, node.outputs[0])

    def by_heads(self, number: int) -> ir.Value | None:
        value = self.node.inputs[number]
        if rank(value) == 4:
            return value
        name = ("queries", "keys", "values")[number]
        parts = self.shape([0, 0, _heads(self.node, number) or 1, -1], f"{name}_shape")
        split = self.add("Reshape", [value, parts], f"{name}_split")
        return self.add("Transpose", [split], name, {"perm": [0, 2, 1, 3]})

    def masks(self) -> dict[str, ir.Value]:
        """What is added to the scores, by what the sums are called."""
        node = self.node
        found = {}
        mask = node.inputs[_MASK] if len(node.inputs) > _MASK else None
        if mask is not None:
            found["masked"] = self.of_numbers(mask) if mask.dtype == ir.DataType.BOOL else mask
        if node.attributes.get_int("is_causal", 0):
            queries, keys = (_sizes(node, number)[-2] or 0 for number in range(2))
            later = np.triu(np.full((queries, keys), _UNREAD), k=1)
            found["causal"] = add_constant(graph_of(node), f"{self.base}_causal", later.astype(self.dtype))
        return found

    def of_numbers(self, mask: ir.Value) -> ir.Value:
        kept = constant_array(mask)
        if kept is not None:
            numbers = np.where(kept, 0.0, _UNREAD).astype(self.dtype)
            return add_constant(graph_of(self.node), f"{self.base}_mask", numbers)
        zero, unread = self.number(0.0, "read"), self.number(_UNREAD, "unread")
        return self.add("Where", [mask, zero, unread], "mask")

    @property
    def dtype(self) -> np.dtype:
        kind = self.node.outputs[0].dtype
        return np.dtype(np.float32) if kind is None else kind.numpy()

    def number(self, real: float, name: str) -> ir.Value:
        return add_constant(graph_of(self.node), f"{self.base}_{name}", np.asarray(real, dtype=self.dtype))

    def shape(self, sizes: list[int], name: str) -> ir.Value:
        return add_constant(graph_of(self.node), f"{self.base}_{name}", np.array(sizes, dtype=np.int64))

    def add(
        self, operator: str, inputs: list[ir.Value | None], name: str, attributes: dict[str, object] | None = None
    ) -> ir.Value:
        node = new_node(operator, inputs, attributes or {}, name=f"{self.base}_{name}")
        node.outputs[0].type = self.node.outputs[0].type
        self.node.prepend(node)
        return node.outputs[0]
