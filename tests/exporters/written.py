"""Exports of small networks, for the tests of the files of parameters."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir

from narrowgauge.calibration.statistics import Statistics
from narrowgauge.core.encoding import AnyEncoding
from narrowgauge.core.plan import Plan
from narrowgauge.demo import digits, network_path
from narrowgauge.exporters.formats import Export
from narrowgauge.importers.onnx import load
from narrowgauge.lowering.qdq import QdqStyle, lower_to_qdq
from narrowgauge.targets.registry import load_target
from tests.lowering.networks import hand_plan
from tests.planning.networks import planned, seen


@cache
def demo(name: str) -> tuple[ir.Model, Statistics]:
    """A packaged network and what 16 images calibrate."""
    model = load(network_path(name)).model
    return model, seen(model, digits().images[:16])


def demo_export(name: str, target: str) -> Export:
    """A packaged network as planned for a target."""
    model, statistics = demo(name)
    return export_of(model, planned(model, statistics, target), target)


def export_of(model: ir.Model, plan: Plan, target: str) -> Export:
    chosen = load_target(target)
    simulated = lower_to_qdq(model, plan, QdqStyle(bias_bits=chosen.bias_bits))
    return Export(network=model, plan=plan, target=chosen, simulated=simulated)


def by_hand(model: ir.Model, target: str, encodings: Mapping[str, AnyEncoding], *floats: str) -> Export:
    """A network with encodings by hand; `floats` are names of nodes."""
    return export_of(model, hand_plan(encodings, float_nodes=floats), target)


def damaged(path: Path, size: int | None = None, byte: int | None = None) -> Path:
    """Cut a file off, or flip a bit in one byte; returns the path of the copy."""
    content = bytearray(path.read_bytes())
    if byte is not None:
        content[byte] ^= 4
    other = path.with_name(f"damaged-{size}-{byte}")
    other.write_bytes(bytes(content[:size]))
    return other


def places(path: Path, count: int) -> list[int]:
    """Places all over a file."""
    return [int(place) for place in np.linspace(1, path.stat().st_size - 2, count)]
