"""Pieces of a network: runs of its nodes as networks of their own, computed one after the other on many batches."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.core.plan import Plan
from narrowgauge.graph.engine import open_session, run_session
from narrowgauge.graph.shapes import dimensions

Array = npt.NDArray[Any]


def piece(model: ir.Model, nodes: Sequence[ir.Node], outputs: Iterable[str]) -> ir.Model:
    """Build a network of some nodes of another one.

    Its inputs are the values that they read and none of them writes, under their own names; constants come along
    (their numbers are shared, not copied).

    Args:
        model: the network; it is not changed.
        nodes: nodes of its main graph, in its order.
        outputs: names of the values to return; each is written by one of the nodes.
    """
    written = {value.name: value for node in nodes for value in node.outputs}
    read = dict.fromkeys(value for node in nodes for value in outer_inputs(node) if value.name not in written)
    view = ir.GraphView(
        [value for value in read if not value.is_initializer()],
        [written[name] for name in outputs],
        nodes=nodes,
        initializers=[value for value in read if value.is_initializer()],
        opset_imports=model.graph.opset_imports,
        name=model.graph.name,
    )
    functions = [function.clone() for function in model.functions.values()]
    return ir.Model(view.clone(), ir_version=model.ir_version, functions=functions)


def plan_for(part: ir.Model, plan: Plan) -> Plan:
    """Cut a plan down to what a piece of its network has.

    A piece is to be fed with values as the stream of the quantized network has them: rounded where an integer operator
    wrote them. Rounding such a value once more changes nothing.
    """
    values = {value.name for value in part.graph.inputs} | set(part.graph.initializers)
    values |= {value.name for node in part.graph for value in node.outputs}
    nodes = {node.name for node in part.graph}
    return replace(
        plan,
        encodings={name: encoding for name, encoding in plan.encodings.items() if name in values},
        float_nodes=tuple(entry for entry in plan.float_nodes if entry.name in nodes),
        float_outputs=tuple(name for name in plan.float_outputs if name in values),
    )


def outer_inputs(node: ir.Node) -> list[ir.Value]:
    """Values of its own graph that a node reads, those that the bodies of If, Loop and Scan read included."""
    found = {value: None for value in node.inputs if value is not None}
    for attribute in node.attributes.values():
        for inner in ir.traversal.RecursiveGraphIterator(attribute.as_graph()) if _is_graph(attribute) else ():
            found |= {value: None for value in inner.inputs if value is not None and value.graph is node.graph}
    return list(found)


def _is_graph(attribute: ir.Attr) -> bool:
    return attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref()


def alive_after(model: ir.Model) -> list[set[str]]:
    """Names of the values that are still needed behind each node of the main graph, in its order.

    Those are what a later node reads and the network's outputs; constants are not among them.
    """
    needed = {str(value.name) for value in model.graph.outputs}
    found = []
    for node in reversed(model.graph):
        found.append(set(needed))
        needed -= {str(value.name) for value in node.outputs}
        needed |= {str(value.name) for value in outer_inputs(node) if not value.is_initializer()}
    return found[::-1]


def alive_bytes(model: ir.Model) -> int:
    """Largest size of the values that are needed behind a node, of one sample (axes of unknown length count 1)."""
    values = {value.name: value for value in model.graph.inputs}
    values |= {value.name: value for node in model.graph for value in node.outputs}
    sizes = {name: 4 * math.prod(size or 1 for size in dimensions(value) or ()) for name, value in values.items()}
    return max((sum(sizes[name] for name in alive) for alive in alive_after(model)), default=0)


@dataclass(kw_only=True, slots=True)
class Stream:
    """Values of one network for several batches, computed piece by piece.

    Attributes:
        values: value name -> its array in each batch.
        threads: of the engine; None for the cores that this process may use.
    """

    values: dict[str, list[Array]] = field(default_factory=dict)
    threads: int | None = None

    @classmethod
    def start(cls, feeds: Sequence[Mapping[str, Array]], *, threads: int | None = None) -> Stream:
        """Begin with what the network is fed with, batch by batch."""
        names = list(feeds[0]) if feeds else []
        return cls(values={name: [feed[name] for feed in feeds] for name in names}, threads=threads)

    def run(self, part: ir.Model) -> dict[str, list[Array]]:
        """Run a piece on every batch and return its outputs, which are not kept.

        Q/DQ pairs are computed as they are written, in float.

        Args:
            part: the piece; its inputs are values of the stream.

        Raises:
            RuntimeFailure: if the engine refuses the piece or fails to run it.
        """
        inputs = [str(value.name) for value in part.graph.inputs]
        outputs = [str(value.name) for value in part.graph.outputs]
        session = open_session(part, threads=self.threads, simulate=True, arena=False)
        count = len(next(iter(self.values.values()), ()))
        results: dict[str, list[Array]] = {name: [] for name in outputs}
        for batch in range(count):
            feed = {name: self.values[name][batch] for name in inputs}
            for name, array in run_session(session, outputs, feed, what="a part of the network").items():
                results[name].append(array)
        return results

    def advance(self, part: ir.Model, keep: Collection[str]) -> None:
        """Run a piece, keep its outputs, and forget what is not needed any more.

        Args:
            part: the piece.
            keep: names of the values that are needed behind it.
        """
        self.values |= self.run(part)
        self.values = {name: arrays for name, arrays in self.values.items() if name in keep}
