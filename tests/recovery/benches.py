"""Workshops of small networks for the tests of recovery: samples to choose on, and others to measure on."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from narrowgauge.recovery.workshop import State, Workshop
from narrowgauge.targets.registry import load_target
from tests.calibration.networks import batches_of
from tests.planning.networks import choices, network, normal, seen

MEASURING = 16


def workshop_of(
    model: ir.Model, feed: np.ndarray, target: str = "onnxruntime", *, measuring: int = MEASURING
) -> Workshop:
    """Part samples: the last ones measure, the others calibrate and are chosen on."""
    name = str(model.graph.inputs[0].name)
    chosen, held = feed[: len(feed) - measuring], feed[len(feed) - measuring :]
    return Workshop(
        target=load_target(target),
        calibrate=lambda changed, most=None: seen(changed, {name: chosen[:most]}),
        samples=lambda count, rows: list(batches_of(model, {name: chosen[:count]}, rows)),
        measuring=list(batches_of(model, {name: held}, 8)) if measuring else [],
        given=model,
        threads=1,
    )


def state_of(workshop: Workshop, **asked: Any) -> State:
    """The given network planned, nothing recovered yet."""
    return workshop.planned(workshop.given, workshop.calibrate(workshop.given), choices(workshop.given, **asked))


def chain(layers: int = 4, size: int = 16) -> ir.Model:
    """Products of one size, with a Relu between each two; the second one has weights of very unequal reach."""
    names = [f"h{number}" for number in range(layers - 1)]
    body, before = "", "x"
    for number, name in enumerate(names):
        body += f"g{number} = Gemm({before}, w{number}, b{number})  {name} = Relu(g{number})  "
        before = name
    body += f"y = Gemm({before}, w{layers - 1}, b{layers - 1})"
    weights = {f"w{number}": normal(size, size, seed=number) / 3 for number in range(layers)}
    weights["w1"][::4] *= 6
    biases = {f"b{number}": normal(size, seed=50 + number) / 4 for number in range(layers)}
    return network(f"float[n, {size}] x", f"float[n, {size}] y", body, **weights, **biases)


def total_noise(workshop: Workshop, state: State, *, of_activations: bool = False) -> float:
    """Noise at the output over all measuring samples."""
    return workshop.noise(state, of_activations=of_activations).total
