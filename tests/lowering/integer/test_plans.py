"""Networks as they are planned for a target, in its integers: no real number inside, in any of the rules it has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from narrowgauge.core.numbers import integer_type
from narrowgauge.importers.onnx import load
from narrowgauge.lowering.lower import lower, lower_by_rule
from narrowgauge.targets.registry import load_target
from tests.lowering.integer.networks import real_numbers_inside
from tests.passes.networks import network, node
from tests.planning.networks import planned, run, seen, sqnr

RULES = {
    "xnnpack": "tflite", "tflite-reference": "tflite", "tflite-neon": "tflite", "fbgemm": "pytorch-fbgemm",
    "qnnpack": "pytorch-qnnpack", "x86": "pytorch-fbgemm", "onednn": "pytorch-fbgemm", "integer-only": "integer-only",
}  # fmt: skip
"""Rule -> target whose plans it computes."""

Made = tuple[list[onnx.NodeProto], Sequence[int | str], dict[str, np.ndarray]]


class Writer:
    """Writes layers with random weights, one after the other."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}

    def layer(self, operator: str, source: str, output: str, shape: Sequence[int], channels: int, **given: Any) -> None:
        weights = self.rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
        self.constants |= {
            f"{output}_w": weights.astype(np.float32), f"{output}_b": self.rng.normal(size=channels).astype(np.float32)
        }  # fmt: skip
        self.add(operator, f"{source} {output}_w {output}_b", output, **given)

    def add(self, operator: str, inputs: str, output: str, **given: Any) -> None:
        self.nodes.append(node(operator, inputs, output, **given))


def mobile(activation: str = "HardSwish") -> Made:
    """An inverted residual block, squeeze and excitation, pools."""
    made = Writer()
    made.constants |= {"low": np.array(0, np.float32), "high": np.array(6, np.float32)}
    made.layer("Conv", "x", "a", (8, 3, 3, 3), 8, pads=[1] * 4)
    made.add("Clip", "a low high", "a6")
    made.layer("Conv", "a6", "wide", (24, 8, 1, 1), 24)
    made.add(activation, "wide", "swish")
    made.layer("Conv", "swish", "deep", (24, 1, 3, 3), 24, pads=[1] * 4, group=24)
    made.add("GlobalAveragePool", "deep", "squeezed")
    made.layer("Conv", "squeezed", "e1", (6, 24, 1, 1), 6)
    made.add("Relu", "e1", "e2")
    made.layer("Conv", "e2", "e3", (24, 6, 1, 1), 24)
    made.add("Sigmoid", "e3", "gate")
    made.add("Mul", "deep gate", "scaled")
    made.layer("Conv", "scaled", "narrow", (8, 24, 1, 1), 8)
    made.add("Add", "narrow a6", "sum")
    made.add("MaxPool", "sum", "greatest", kernel_shape=[2, 2], strides=[2, 2])
    made.add("AveragePool", "sum", "means", kernel_shape=[2, 2], strides=[2, 2])
    made.add("Concat", "greatest means", "both", axis=1)
    made.add("GlobalAveragePool", "both", "pooled")
    made.add("Flatten", "pooled", "flat")
    made.layer("Gemm", "flat", "y", (10, 16), 10, transB=1)
    return made.nodes, ["n", 3, 12, 12], made.constants


def mobile_of_16_bits() -> Made:
    """The same without HardSwish, which LiteRT has of 8 bits alone."""
    return mobile("LeakyRelu")


def decoder() -> Made:
    """Transposed convolutions."""
    made = Writer()
    made.layer("Conv", "x", "a", (8, 3, 3, 3), 8, pads=[1] * 4, strides=[2, 2])
    made.add("Relu", "a", "ar")
    made.layer("ConvTranspose", "ar", "b", (8, 9, 3, 3), 9, pads=[1] * 4, strides=[2, 2], output_padding=[1, 1])
    made.add("Relu", "b", "br")
    made.layer("ConvTranspose", "br", "c", (9, 4, 2, 2), 4, strides=[2, 2], auto_pad="SAME_UPPER")
    made.add("Tanh", "c", "y")
    return made.nodes, ["n", 3, 8, 8], made.constants


def attention() -> Made:
    """Products of two activations, and a softmax."""
    made = Writer()
    made.constants |= {"heads": np.array([0, 6, 2, 4]), "flat": np.array([0, 6, 8]), "half": np.array(0.5, np.float32)}
    for name, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        made.constants[f"{name}_w"] = made.rng.normal(size=(8, 8)).astype(np.float32) / 3
        made.add("MatMul", f"x {name}_w", name)
        made.add("Reshape", f"{name} heads", f"{name}_heads")
        made.add("Transpose", f"{name}_heads", f"{name}_turned", perm=order)
    made.add("MatMul", "q_turned k_turned", "scores")
    made.add("Mul", "scores half", "scaled")
    made.add("Softmax", "scaled", "shares", axis=-1)
    made.add("MatMul", "shares v_turned", "mixed")
    made.add("Transpose", "mixed", "back", perm=[0, 2, 1, 3])
    made.add("Reshape", "back flat", "joined")
    made.add("Add", "joined x", "y")
    return made.nodes, ["n", 6, 8], made.constants


def recurrent() -> Made:
    """An LSTM and a product with its last state."""
    made = Writer()
    for name, shape in (("w", (1, 20, 4)), ("r", (1, 20, 5)), ("b", (1, 40))):
        made.constants[name] = (made.rng.normal(size=shape) / 3).astype(np.float32)
    made.constants |= {"axis": np.array([1])}
    made.add("LSTM", "x w r b", "states", hidden_size=5)
    made.add("Squeeze", "states axis", "flat")
    made.constants["m"] = made.rng.normal(size=(5, 3)).astype(np.float32)
    made.add("MatMul", "flat m", "y")
    return made.nodes, [7, "n", 4], made.constants


CASES: list[tuple[Callable[[], Made], str, str]] = [
    *((mobile, rule, "") for rule in RULES),
    *((decoder, rule, "") for rule in RULES),
    *((attention, rule, "") for rule in ("xnnpack", "tflite-reference", "tflite-neon", "integer-only")),
    *((recurrent, rule, "") for rule in ("xnnpack", "tflite-reference")),
    *(
        (one, rule, "int16")
        for one in (mobile_of_16_bits, decoder, attention)
        for rule in ("xnnpack", "tflite-reference", "integer-only")
    ),
]
"""Network, rule, type of activations; PyTorch multiplies two activations in real numbers."""


def planned_network(write: Callable[[], Made], samples: int | str = "n") -> tuple[ir.Model, np.ndarray]:
    """A network and 16 samples."""
    nodes, shape, constants = write()
    given = [samples if size == "n" else size for size in shape]
    model = load(network(nodes, {"x": given}, ["y"], constants)).model
    feed = np.random.default_rng(1).normal(size=[16 if size == "n" else size for size in shape])
    return model, feed.astype(np.float32)


@pytest.mark.parametrize(
    ("write", "rule", "type"), [pytest.param(*one, id=f"{one[0].__name__}-{one[1]}-{one[2]}") for one in CASES]
)
def test_networks_have_no_real_numbers_inside(write: Callable[[], Made], rule: str, type: str) -> None:
    model, feed = planned_network(write)
    target = load_target(RULES[rule])
    plan = planned(model, seen(model, feed), target, activations=integer_type(type) if type else None)
    assert plan.float_nodes == ()
    found = lower_by_rule(model, plan, target, arithmetic=rule)
    assert found.refusals == ()
    assert real_numbers_inside(found.model) == []
    assert sqnr(run(model, feed), run(found.model, feed)) > 15
    assert sqnr(run(lower(model, plan, target), feed), run(found.model, feed)) > 25
