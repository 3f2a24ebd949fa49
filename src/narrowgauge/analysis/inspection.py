"""What is in a network file, what simplification makes of it, and what a target would do with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from narrowgauge.core.plan import FloatNode
from narrowgauge.errors import ModelError
from narrowgauge.graph.edits import all_nodes
from narrowgauge.graph.engine import weight_bytes
from narrowgauge.graph.quantized import is_quantized
from narrowgauge.graph.refusals import Refusal
from narrowgauge.graph.shapes import dimensions
from narrowgauge.importers.imported import ImportedModel
from narrowgauge.importers.opening import framework_of, read, read_and_load
from narrowgauge.planning.choices import Choices
from narrowgauge.planning.place import place
from narrowgauge.targets.schema import Target


@dataclass(frozen=True, kw_only=True, slots=True)
class Port:
    """An input or output: its name, type (ONNX's name, "?" if none is declared) and shape (None: any rank)."""

    name: str
    type: str
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """What a target would do: how many nodes run in integers, per operator, and which stay float and why."""

    target: str
    integer: Mapping[str, int]
    float_nodes: tuple[FloatNode, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """What is in a network.

    Attributes:
        producer: who wrote the file, with version, "" if it does not say.
        opsets: domain -> version; the standard one is "".
        ir_version: of the file format.
        inputs: what must be fed.
        outputs: what comes out.
        parameters: how many numbers the initializers hold.
        parameter_bytes: their size.
        quantized: whether some node quantizes or computes on integers already.
        operators: operator -> how many, in the file.
        simplified: operator -> how many after simplification; of a quantized network, of the float one in it; None
            where a quantized network holds no float one that can be told.
        notes: what the import changed.
        refusals: what simplification left alone, and why.
        placed: what the target would do; None without a target.
    """

    producer: str
    opsets: Mapping[str, int]
    ir_version: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    parameters: int
    parameter_bytes: int
    quantized: bool
    operators: Mapping[str, int]
    simplified: Mapping[str, int] | None
    notes: tuple[str, ...]
    refusals: tuple[Refusal, ...]
    placed: Placed | None


def inspect(path: Path, target: Target | None = None) -> Inspection:
    """Look into the file of a network.

    A network that computes in integers alone is counted as it is; with a target it is refused, as `quantize` would.

    Raises:
        ModelError: if it cannot be read; see `importers.opening.load`.
    """
    imported: ImportedModel | None
    try:
        given, imported = read_and_load(path)
        notes = imported.notes
    except ModelError as error:
        whole = _read_quantized(path)
        if whole is None or target is not None:
            raise
        given, imported, notes = whole, None, (str(error),)
    return Inspection(
        producer=" ".join(part for part in (given.producer_name, given.producer_version) if part),
        opsets=dict(given.opset_imports),
        ir_version=given.ir_version,
        inputs=tuple(_port(value) for value in given.graph.inputs if value.name not in given.graph.initializers),
        outputs=tuple(_port(value) for value in given.graph.outputs),
        parameters=sum(v.const_value.size for v in given.graph.initializers.values() if v.const_value is not None),
        parameter_bytes=weight_bytes(given),
        quantized=is_quantized(given),
        operators=_operators(given),
        simplified=None if imported is None else _operators(imported.model),
        notes=notes,
        refusals=() if imported is None else imported.refusals,
        placed=None if target is None or imported is None else _placed(imported.model, target),
    )


def _read_quantized(path: Path) -> ir.Model | None:
    """Read a quantized ONNX network as it is; None where it is none, or cannot even be read."""
    if framework_of(path) is not None:
        return None
    try:
        model = read(path)
    except ModelError:
        return None
    return model if is_quantized(model) else None


def _port(value: ir.Value) -> Port:
    return Port(name=str(value.name), type=value.dtype.name if value.dtype else "?", shape=dimensions(value))


def _operators(model: ir.Model) -> dict[str, int]:
    counts = Counter(f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in all_nodes(model))
    return dict(counts.most_common())


def _placed(model: ir.Model, target: Target) -> Placed:
    found = place(model, target, Choices())
    integer = Counter(node.op_type for node in model.graph if node.name in found.integer_nodes)
    return Placed(target=target.name, integer=dict(integer.most_common()), float_nodes=tuple(found.float_nodes))
