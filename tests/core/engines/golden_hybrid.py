"""Make golden_hybrid.npz: what LiteRT 2.3 computes of fully connected layers with float activations.

    python -m tests.core.engines.golden_hybrid

Rows lie near ties (`hybrid_layers.near_ties`); the test that reads them needs no LiteRT.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from tests.core.engines.hybrid_layers import Layer, near_ties, spread

ENGINES = ("xnnpack", "tflite-neon", "tflite-reference")
FILE = Path(__file__).with_name("golden_hybrid.npz")


def main() -> None:
    rng = np.random.default_rng(11)
    arrays = {
        "values": near_ties(11, 120, 21), "weights": rng.integers(-127, 128, (5, 21)).astype(np.int8),
        "scale": (rng.uniform(0.5, 2, 5) / 100).astype(np.float32), "bias": spread(11, 5),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for engine in ENGINES:
            for symmetric in (False, True):
                layer = Layer(
                    "FULLY_CONNECTED", arrays["values"], arrays["weights"], arrays["scale"], (120, 5), arrays["bias"],
                    options={"asymmetricQuantizeInputs": not symmetric},
                )  # fmt: skip
                name = f"{engine} {'symmetric' if symmetric else 'asymmetric'}"
                arrays[name] = layer.results(Path(folder), engine)
    np.savez_compressed(FILE, **arrays)


if __name__ == "__main__":
    main()
