"""How engines' own integers lie to ours, as `summary.json` says it (`bit_exact`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from narrowgauge.runtimes.engines import ENGINES


@dataclass(frozen=True, kw_only=True, slots=True)
class DifferingTensor:
    """A tensor in which integers differ.

    Attributes:
        name: of the value.
        writer: operator and name of the node that writes it.
        elements: how many were compared.
        different: how many of them differ.
        own: how many of them differ though all that they are computed from is equal; None if unknown.
        largest: the largest difference.
    """

    name: str
    writer: str
    elements: int
    different: int
    own: int | None
    largest: int


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineIntegers:
    """What was found inside one engine.

    Attributes:
        engine: its title.
        elements: how many integers were compared.
        different: how many of them differ.
        tensors: in how many tensors they are.
        samples: of how many samples.
        off_by: by how much -> how many: ("1", 12), ("2", 3), ("more", 1).
        largest: the largest difference.
        first: tensors that differ, the first ones in the network's order.
        reasons: why, a sentence each.
    """

    engine: str
    elements: int
    different: int
    tensors: int
    samples: int
    off_by: tuple[tuple[str, int], ...]
    largest: int
    first: tuple[DifferingTensor, ...]
    reasons: tuple[str, ...]

    @property
    def share(self) -> float:
        """Share of the integers that differ, 1 for all."""
        return self.different / self.elements if self.elements else 0.0


def read_integers(summary: Mapping[str, Any]) -> tuple[EngineIntegers, ...]:
    """Take what is there from a summary; what is of another kind is taken as not measured."""
    found = summary.get("bit_exact")
    if not isinstance(found, Mapping):
        return ()
    return tuple(_engine(str(name), one) for name, one in found.items() if isinstance(one, Mapping))


def _engine(name: str, record: Mapping[str, Any]) -> EngineIntegers:
    histogram, rows, reasons = record.get("off_by"), record.get("first_different_tensors"), record.get("reasons")
    off_by = histogram.items() if isinstance(histogram, Mapping) else ()
    return EngineIntegers(
        engine=next((engine.title for engine in ENGINES if engine.name == name), name),
        elements=_count(record.get("elements")),
        different=_count(record.get("different")),
        tensors=_count(record.get("tensors")),
        samples=_count(record.get("samples")),
        off_by=tuple((str(distance), _count(count)) for distance, count in off_by),
        largest=_count(record.get("max")),
        first=tuple(_tensor(row) for row in rows if isinstance(row, Mapping)) if isinstance(rows, list) else (),
        reasons=tuple(str(one).removeprefix("WARNING: ") for one in reasons) if isinstance(reasons, list) else (),
    )


def _tensor(record: Mapping[str, Any]) -> DifferingTensor:
    own = record.get("own")
    return DifferingTensor(
        name=str(record.get("name") or ""),
        writer=" ".join(str(record.get(key) or "") for key in ("operator", "node")).strip(),
        elements=_count(record.get("elements")),
        different=_count(record.get("different")),
        own=_count(own.get("different")) if isinstance(own, Mapping) else None,
        largest=_count(record.get("max")),
    )


def _count(value: Any) -> int:
    return max(value, 0) if isinstance(value, int) and not isinstance(value, bool) else 0
