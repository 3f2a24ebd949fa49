"""The graph of an MXNet symbol file, a JSON text.

    nodes     [{op, name, attrs, inputs: [[node, output, version], ...], subgraphs: [graph, ...]}, ...], in an order in
              which they can run; op "null" is a variable
    heads     [[node, output, version], ...]: what the network returns

Older spellings of `attrs`: `attr`, and `param` for an operator's own attributes (before MXNet 0.9; the two lie side by
side); `inputs` and `heads` then have two numbers instead of three. Source: MXNet 1.9.1, 3rdparty/tvm/nnvm/src/pass/
saveload_json.cc and src/nnvm/legacy_json_util.cc.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from narrowgauge.errors import ModelError

VARIABLE = "null"

_Entry = tuple[int, int]

_WITH_RUNNING_STATISTICS = ("BatchNorm", "BatchNorm_v1", "CuDNNBatchNorm")


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """One node.

    Attributes:
        operator: MXNet's name of it, `VARIABLE` for a variable.
        name: of the node.
        attributes: as MXNet writes them, text each.
        inputs: number of a node before this one, and of its output.
        subgraphs: graphs that the operator runs as one.
    """

    operator: str
    name: str
    attributes: Mapping[str, str]
    inputs: tuple[_Entry, ...]
    subgraphs: tuple[Symbol, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Symbol:
    """A graph.

    Attributes:
        nodes: each reads only nodes before it.
        heads: what the graph returns: number of a node, and of its output.
        version: of the MXNet that wrote it, 10901 of 1.9.1; 0 where the file does not say.
    """

    nodes: tuple[Node, ...]
    heads: tuple[_Entry, ...]
    version: int = 0

    def needed(self, dropped: Mapping[str, int]) -> list[int]:
        """List the nodes that the heads need, in order.

        Args:
            dropped: operator -> number of an input from which on nothing is needed (the labels of losses).
        """
        alive = {number for number, _ in self.heads}
        for number in range(len(self.nodes) - 1, -1, -1):
            if number in alive:
                node = self.nodes[number]
                alive.update(source for source, _ in node.inputs[: dropped.get(node.operator)])
        return sorted(alive)

    def readers(self) -> dict[int, list[tuple[int, int]]]:
        """Return who reads each node's first output: number of the reader and of its input."""
        found: dict[int, list[tuple[int, int]]] = {number: [] for number in range(len(self.nodes))}
        for number, node in enumerate(self.nodes):
            for place, (source, output) in enumerate(node.inputs):
                if output == 0:
                    found[source].append((number, place))
        return found


def read_symbol(path: Path) -> Symbol:
    """Read a symbol file.

    Raises:
        ModelError: the file cannot be read, is no JSON text, or no graph of MXNet; the message says where.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ModelError(f"{path}: expected the JSON text of an MXNet symbol, got bytes that are no text") from error
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"{path} is truncated or damaged, or no JSON text ({error}); expected an MXNet symbol, as "
            "`symbol.save` or `HybridBlock.export` writes it; copy or save it again"
        ) from error
    return _graph(content, str(path))


def _graph(content: Any, where: str) -> Symbol:
    if not isinstance(content, dict) or not isinstance(content.get("nodes"), list) or "heads" not in content:
        raise ModelError(
            f"{where}: expected a JSON object with `nodes` and `heads`, an MXNet symbol, got "
            f"{_what(content)}; a Keras or tokenizer .json is none: give the file that `symbol.save` wrote"
        )
    nodes: list[Node] = []
    for number, entry in enumerate(content["nodes"]):
        nodes.append(_node(entry, number, where))
    nodes, moved = _with_statistics(nodes)
    heads = _entries(content["heads"], len(content["nodes"]), f"{where}: heads")
    if not heads:
        raise ModelError(f"{where}: the network returns nothing (`heads` is empty); save the symbol again")
    return Symbol(
        nodes=tuple(nodes),
        heads=tuple((moved[number], output) for number, output in heads),
        version=_version(content.get("attrs")),
    )


def _version(attributes: Any) -> int:
    """Return the number in `{"mxnet_version": ["int", 10901]}`, 0 where it is not there."""
    entry = attributes.get("mxnet_version") if isinstance(attributes, dict) else None
    if isinstance(entry, list) and len(entry) == 2 and type(entry[1]) is int:
        return entry[1]
    return 0


def _what(content: Any) -> str:
    if isinstance(content, dict):
        return f"an object with {', '.join(map(repr, list(content)[:5])) or 'nothing'}"
    return type(content).__name__


def _node(entry: Any, number: int, where: str) -> Node:
    place = f"{where}: node {number}"
    if not isinstance(entry, dict):
        raise ModelError(f"{place}: expected an object, got {type(entry).__name__}; the file is damaged")
    operator, name = entry.get("op"), entry.get("name")
    if not isinstance(operator, str) or not isinstance(name, str):
        raise ModelError(f"{place}: expected `op` and `name`, two texts, got {operator!r} and {name!r}")
    attributes: dict[str, str] = {}
    for key in ("attr", "attrs", "param"):
        found = entry.get(key, {})
        if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
            raise ModelError(f"{place} ({operator} {name!r}): expected texts by name in `{key}`, got {found!r}")
        attributes |= found
    inner = entry.get("subgraphs", [])
    if not isinstance(inner, list):
        raise ModelError(f"{place} ({operator} {name!r}): expected a list in `subgraphs`, got {type(inner).__name__}")
    return Node(
        operator=operator,
        name=name,
        attributes=attributes,
        inputs=_entries(entry.get("inputs", []), number, f"{place} ({operator} {name!r})"),
        subgraphs=tuple(_graph(graph, f"{place} ({operator} {name!r})") for graph in inner),
    )


def _entries(content: Any, limit: int, where: str) -> tuple[_Entry, ...]:
    def checked() -> Iterator[_Entry]:
        if not isinstance(content, list):
            raise ModelError(f"{where}: expected a list of inputs, got {type(content).__name__}; the file is damaged")
        for entry in content:
            good = isinstance(entry, list) and len(entry) in (2, 3) and all(type(part) is int for part in entry)
            if not good or not 0 <= entry[0] < limit or entry[1] < 0:
                raise ModelError(
                    f"{where}: expected [node, output, version] with a node before this one (0 to {limit - 1}), got "
                    f"{entry!r}; the file is damaged"
                )
            yield entry[0], entry[1]

    return tuple(checked())


def _with_statistics(nodes: list[Node]) -> tuple[list[Node], dict[int, int]]:
    """Add the running statistics of normalizations as variables, which files before MXNet 0.9 leave out.

    Returns:
        The nodes, and the new number of each old one.
    """
    added: list[Node] = []
    moved: dict[int, int] = {}
    for number, node in enumerate(nodes):
        inputs = tuple((moved[source], output) for source, output in node.inputs)
        if node.operator in _WITH_RUNNING_STATISTICS and len(inputs) == 3:
            for suffix in ("moving_mean", "moving_var"):
                inputs = (*inputs, (len(added), 0))
                added.append(Node(operator=VARIABLE, name=f"{node.name}_{suffix}", attributes={}, inputs=()))
        moved[number] = len(added)
        added.append(
            Node(
                operator=node.operator, name=node.name, attributes=node.attributes, inputs=inputs,
                subgraphs=node.subgraphs,
            )
        )  # fmt: skip
    return added, moved
