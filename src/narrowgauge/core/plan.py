"""The plan: every quantized tensor's encoding, what stays float and why. Plain data, hand-editable JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from narrowgauge.core.encoding import AnyEncoding, encoding_from_json, encoding_to_json, same_encoding
from narrowgauge.errors import PlanError

VERSION = 1

Mode = Literal["static", "dynamic", "weight-only"]
MODES: tuple[Mode, ...] = ("static", "dynamic", "weight-only")


@dataclass(frozen=True, kw_only=True, slots=True)
class FloatNode:
    """A node that stays float, and why."""

    name: str
    operator: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How a network is quantized.

    Attributes:
        target: name of the target it was made for.
        mode: when activations are rounded: with ranges known beforehand, at run time, or never.
        encodings: value name (activations and weights) -> encoding. A bias is not listed: its scale is the product
            of its input's and weight's, so it follows from them.
        float_nodes: nodes that compute in float, each with the reason.
        float_outputs: values that an integer operator writes in float (its accumulator, scaled), because the target
            can and no integer operator reads them.
        notes: what was changed or could not be done, for the person.
        network: digest of the weights of the network that the plan belongs to, "" if unknown.
    """

    target: str
    mode: Mode = "static"
    encodings: Mapping[str, AnyEncoding]
    float_nodes: tuple[FloatNode, ...] = ()
    float_outputs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    network: str = ""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise PlanError(f"expected mode {', '.join(MODES)}, got {self.mode!r}")
        object.__setattr__(self, "encodings", MappingProxyType(dict(self.encodings)))

    def same_as(self, other: Plan) -> bool:
        """Whether both quantize alike, encoding for encoding and node for node."""
        return (
            self.mode == other.mode
            and self.encodings.keys() == other.encodings.keys()
            and all(same_encoding(encoding, other.encodings[name]) for name, encoding in self.encodings.items())
            and {node.name for node in self.float_nodes} == {node.name for node in other.float_nodes}
            and set(self.float_outputs) == set(other.float_outputs)
        )


def plan_to_json(plan: Plan) -> str:
    """Write a plan as JSON text, one encoding a line, so that a person can edit it and a diff can be read."""
    head = {
        "version": VERSION,
        "target": plan.target,
        "mode": plan.mode,
        "network": plan.network,
        "notes": list(plan.notes),
        "float_outputs": list(plan.float_outputs),
        "float_nodes": [
            {"name": node.name, "operator": node.operator, "reason": node.reason} for node in plan.float_nodes
        ],
    }
    lines = [f"  {json.dumps(key)}: {_list_json(value)}" for key, value in head.items()]
    encodings = [f"    {json.dumps(name)}: {json.dumps(encoding_to_json(e))}" for name, e in plan.encodings.items()]
    body = "{\n" + ",\n".join(encodings) + "\n  }" if encodings else "{}"
    return "{\n" + ",\n".join([*lines, f'  "encodings": {body}']) + "\n}\n"


def plan_from_json(text: str, *, source: str = "plan") -> Plan:
    """Read a plan, the inverse of `plan_to_json`.

    Args:
        text: the JSON text.
        source: file name for the error message.

    Raises:
        PlanError: if it is not JSON, or a key or a value is not what it should be; the message names it.
    """
    try:
        record = json.loads(text)
    except ValueError as error:
        raise PlanError(f"{source}: expected JSON, got {error}") from None
    try:
        return _plan_from_record(record)
    except PlanError as error:
        raise PlanError(f"{source}: {error}") from None


def load_plan(path: Path) -> Plan:
    """Read a plan from a file.

    Raises:
        PlanError: if the file cannot be read or is no plan.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{path}: expected a plan in JSON, could not read it: {error}") from None
    return plan_from_json(text, source=str(path))


def _plan_from_record(record: Any) -> Plan:
    if not isinstance(record, dict) or not isinstance(record.get("encodings"), dict):
        raise PlanError("expected an object with an object 'encodings'")
    if record.get("version") != VERSION:
        raise PlanError(f"expected version {VERSION}, got {record.get('version')!r}")
    allowed = {"version", "target", "mode", "network", "notes", "float_outputs", "float_nodes", "encodings"}
    unknown = sorted(set(record) - allowed)
    if unknown:
        raise PlanError(f"unknown key {unknown[0]!r}; expected some of {', '.join(sorted(allowed))}")
    return Plan(
        target=str(record.get("target", "")),
        mode=record.get("mode", "static"),
        encodings={name: _encoding(name, entry) for name, entry in record["encodings"].items()},
        float_nodes=tuple(_float_node(node) for node in _list(record, "float_nodes")),
        float_outputs=tuple(str(name) for name in _list(record, "float_outputs")),
        notes=tuple(str(note) for note in _list(record, "notes")),
        network=str(record.get("network", "")),
    )


def _encoding(name: str, entry: Any) -> AnyEncoding:
    if not isinstance(entry, dict):
        raise PlanError(f"encoding of {name!r}: expected an object, got {type(entry).__name__}")
    return encoding_from_json(entry, name=name)


def _list(record: Mapping[str, Any], key: str) -> list[Any]:
    value = record.get(key, [])
    if not isinstance(value, list):
        raise PlanError(f"expected {key!r} to be a list, got {type(value).__name__}")
    return value


def _float_node(node: Any) -> FloatNode:
    if not isinstance(node, dict) or "name" not in node:
        raise PlanError(f"expected float_nodes to be objects with a 'name', got {node!r}")
    return FloatNode(
        name=str(node["name"]), operator=str(node.get("operator", "")), reason=str(node.get("reason", "by hand"))
    )


def _list_json(value: object) -> str:
    """JSON with one list item a line."""
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(f"    {json.dumps(item)}" for item in value) + "\n  ]"
    return json.dumps(value)
