"""OpenVINO's own integers beside the ones that its rules give, on scales that bring many ties."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("openvino", reason="OpenVINO is the judge")

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.engines.openvino import OPENVINO, rounded
from narrowgauge.core.granularity import PerAxis
from narrowgauge.core.numbers import integer_type
from narrowgauge.exporters.onnx import write_onnx
from narrowgauge.importers.onnx import load
from narrowgauge.lowering.integer.network import integer_network
from narrowgauge.lowering.qdq import QdqStyle, lower_to_qdq
from narrowgauge.runtimes.inner import open_inner
from narrowgauge.runtimes.onnxruntime import open_inner as open_ours
from tests.lowering.networks import hand_plan, per_tensor
from tests.passes.networks import network, node


def scale(generator: np.random.Generator, family: str, unit: float) -> np.float32:
    """A scale that is a power of two, a small multiple of one number, or any."""
    if family == "power":
        return np.float32(2.0 ** generator.integers(-8, -2))
    return np.float32(unit * generator.integers(1, 9) if family == "near" else generator.uniform(0.01, 0.2))


def compared(folder: Path, model: ir.Model, encodings: dict[str, Encoding], feed: dict[str, np.ndarray]) -> int:
    """Compare every tensor of levels; return how many elements that were."""
    plan = hand_plan(encodings)
    write_onnx(lower_to_qdq(model, plan, QdqStyle(bias_bits=0)), folder / "m.onnx")
    lowered = integer_network(lower_to_qdq(model, plan, QdqStyle(bias_bits=0, drop_clips=False)), OPENVINO)
    assert lowered.refusals == ()
    theirs = open_inner(folder / "m.onnx", runtime="openvino", threads=1).run(feed)
    ours = open_ours(lowered.model, threads=1).run(feed)
    assert set(theirs) == set(ours)
    for name, levels in ours.items():
        np.testing.assert_array_equal(theirs[name], levels, name)
    return sum(levels.size for levels in ours.values())


@pytest.mark.parametrize("family", ["power", "near", "any"])
@pytest.mark.parametrize("seed", range(4))
def test_layers_round_by_the_bounds_of_the_range(tmp_path: Path, family: str, seed: int) -> None:
    generator = np.random.default_rng([seed, len(family)])
    unit = float(np.float32(generator.uniform(0.004, 0.02)))
    weights = {
        "w": generator.integers(-127, 128, (8, 3, 3, 3)), "d": generator.integers(-127, 128, (8, 1, 3, 3)),
        "g": generator.integers(-127, 128, (5, 8)),
    }  # fmt: skip
    kinds = {name: np.float32([scale(generator, family, unit) / 8 for _ in array]) for name, array in weights.items()}
    spread = {
        name: (array * kinds[name].reshape(-1, *(1,) * (array.ndim - 1))).astype(np.float32)
        for name, array in weights.items()
    }
    biases = {f"{name}_bias": generator.normal(size=len(array)).astype(np.float32) for name, array in weights.items()}
    nodes = [
        node("Conv", "x w w_bias", "c", pads=[1, 1, 1, 1]), node("Relu", "c", "r"),
        node("Conv", "r d d_bias", "e", pads=[1, 1, 1, 1], group=8), node("Clip", "e zero six", "f"),
        node("GlobalAveragePool", "f", "p"), node("Flatten", "p", "v"), node("Gemm", "v g g_bias", "y", transB=1),
    ]  # fmt: skip
    constants = {**spread, **biases, "zero": np.float32(0), "six": np.float32(6)}
    model = load(network(nodes, {"x": ["n", 3, 9, 9]}, ["y"], constants), simplify=False).model
    encodings = {
        name: Encoding(
            type=integer_type("int8"), granularity=PerAxis(0), scale=one, zero_point=np.zeros(len(one), np.int32)
        )
        for name, one in kinds.items()
    }
    point = {"x": int(generator.integers(0, 256)), "r": 0, "f": 0, "p": 0, "y": int(generator.integers(0, 256))}
    encodings |= {name: per_tensor("uint8", scale(generator, family, unit), zero) for name, zero in point.items()}
    encodings["v"] = encodings["p"]
    reach = encodings["x"].scale
    x = (generator.integers(-300, 600, (4, 3, 9, 9)) - point["x"]) * reach * np.float32(0.5)
    assert compared(tmp_path, model, encodings, {"x": x.astype(np.float32)}) > 4000


@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_ties_of_inputs_follow_the_bounds(tmp_path: Path, kind: str) -> None:
    """Images from -1 to 1 in steps of 2 / 255 lie on ties of the scale 2 / 255 with an odd zero point."""
    zero_point = 127 if kind == "uint8" else -1
    model = load(network([node("Relu", "x", "y")], {"x": ["n", 256]}, ["y"]), simplify=False).model
    encodings = {
        "x": per_tensor(kind, 2 / 255, zero_point), "y": per_tensor(kind, 2 / 255, 0 if kind == "uint8" else -128),
    }  # fmt: skip
    x = (np.arange(256, dtype=np.float32) / np.float32(127.5) - 1).reshape(1, 256)
    compared(tmp_path, model, encodings, {"x": x})
    plain = np.rint(x / encodings["x"].scale) + zero_point
    assert (rounded(x, encodings["x"]) != plain).sum() > 20
