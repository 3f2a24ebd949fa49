"""How fast networks that compute as a target does run in ONNX Runtime, beside the float ones.

    python benchmarks/integer_speed.py [--networks resnet20 ...] [--rules xnnpack tflite-reference ...] [--rounds 200]

Asked for: a third of the float network's speed, for TFLite's reference rule a fifteenth.
"""

from __future__ import annotations

import argparse
import statistics
import time
from itertools import islice

import numpy as np
from _common import (
    MOBILENET_V1,
    MOBILENET_V2,
    RESNET20,
    Network,
    interleaved,
    paired_ratio,
    report,
    samples,
    table,
    zoo,
)

from narrowgauge.calibration.collect import collect
from narrowgauge.calibration.ranges import estimator
from narrowgauge.data.batches import Batch
from narrowgauge.graph.engine import open_session
from narrowgauge.importers.onnx import load
from narrowgauge.lowering.lower import lower
from narrowgauge.planning.choices import Choices
from narrowgauge.planning.fill import fill
from narrowgauge.planning.place import place
from narrowgauge.targets.registry import load_target

RESNET56 = Network(name="resnet56", path="models/cifar_resnet/resnet56.onnx", images="images/cifar10/test.zip")
NETWORKS = {one.name: one for one in (RESNET20, RESNET56, MOBILENET_V1, MOBILENET_V2)}

TARGETS = {
    "onnxruntime": "onnxruntime", "xnnpack": "tflite", "tflite-reference": "tflite", "fbgemm": "pytorch-fbgemm",
    "qnnpack": "pytorch-qnnpack", "x86": "pytorch-fbgemm", "onednn": "pytorch-fbgemm",
}  # fmt: skip
"""Rule -> target whose plans it computes."""

CALIBRATING = 8


def measured(network: Network, rule: str, rounds: int) -> dict[str, float]:
    """Lower a network by a rule and run it and the float one in turns, one thread, one image."""
    model = load(zoo() / network.path).model
    target, choices = load_target(TARGETS[rule]), Choices(mode="static", estimator=estimator("max"))
    name = str(model.graph.inputs[0].name)
    images = [image[None] if image.ndim == 3 else image for image, _ in islice(samples(network), CALIBRATING)]
    batches = [Batch(feed={name: image}, count=1, names=("",), labels=(None,)) for image in images]
    plan = fill(model, place(model, target, choices), collect(model, batches), target, choices)
    start = time.perf_counter()
    integer = lower(model, plan, target, form="integer", arithmetic=rule)
    lowering = time.perf_counter() - start
    feed = {name: np.ascontiguousarray(images[0])}
    sessions = {key: open_session(one, threads=1) for key, one in (("float", model), ("integer", integer))}
    times = interleaved({key: lambda one=one: one.run(None, feed) for key, one in sessions.items()}, rounds)
    return {
        "float_ms": 1e3 * statistics.median(times["float"]), "integer_ms": 1e3 * statistics.median(times["integer"]),
        "ratio": paired_ratio(times["integer"], times["float"]), "lowering_seconds": lowering,
    }  # fmt: skip


def main() -> None:
    """Print a table and keep it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--rules", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args()
    found = {
        (name, rule): measured(NETWORKS[name], rule, options.rounds)
        for name in options.networks
        for rule in options.rules
    }
    rows = [
        (name, rule, f"{one['float_ms']:.2f}", f"{one['integer_ms']:.2f}", f"{one['ratio']:.2f}",
         f"{one['lowering_seconds']:.1f}")
        for (name, rule), one in found.items()
    ]  # fmt: skip
    head = ("network", "rule", "float ms", "integer ms", "integer / float", "lowering s")
    data = [{"network": name, "rule": rule, **one} for (name, rule), one in found.items()]
    report(
        "integer_speed", "Networks in a target's integers, ONNX Runtime, one thread", table(head, rows), {"rows": data}
    )


if __name__ == "__main__":
    main()
