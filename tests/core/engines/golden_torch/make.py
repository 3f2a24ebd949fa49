"""Write torch.npz: what PyTorch 2.13's engines computed on x86-64 with AVX-512 and VNNI, for machines without it.

python -m tests.core.engines.golden_torch.make
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from narrowgauge.core.engines.kernels import Layer
from tests.core.engines.test_torch_layers import KINDS, sums_of, torch_levels
from tests.core.engines.torch_engines import Array, Scales, encoding, quantized, use

FILE = Path(__file__).with_name("torch.npz")


def main() -> None:
    """Write the file."""
    found: dict[str, Array] = {}
    for engine in ("fbgemm", "qnnpack", "onednn"):
        with use(engine) as torch:
            for seed, kind in enumerate(("linear", "conv2d", "depthwise")):
                name, window, groups = KINDS[kind]
                rng = np.random.default_rng(seed)
                weight_scale = (rng.integers(1, 5, 16) / 64).astype(np.float32)
                base = np.float32(rng.uniform(0.001, 0.01))
                input_scale, output_scale = base * np.float32(3), base * np.float32(7 * 8)
                weights = rng.integers(-40, 41, (16, 16 // groups, *window)).astype(np.int8)
                levels = rng.integers(0, 128, (1, 16, *(6 for _ in window)) if window else (12, 16)).astype(np.uint8)
                bias = (rng.integers(-500, 500, 16) * input_scale * weight_scale).astype(np.float32)
                held = Layer(
                    kind=name, input=encoding(input_scale, 61), weights=encoding(weight_scale, 0, "int8"),
                    output=encoding(output_scale, 77), bias=bias,
                )  # fmt: skip
                key = f"{engine}/{kind}"
                found[f"{key}/sums"] = sums_of(torch, levels, weights, 61, groups).reshape(-1, 16).astype(np.int32)
                found[f"{key}/scales"] = np.concatenate([[input_scale, output_scale], weight_scale]).astype(np.float32)
                found[f"{key}/bias"] = bias
                found[f"{key}/levels"] = torch_levels(torch, levels, weights, bias, held, groups).reshape(-1, 16)
            scales = Scales("near", seed=5)
            one, other, output = encoding(scales.one(), 3), encoding(scales.one(), 200), encoding(scales.one() * 2, 77)
            places = np.random.default_rng(6).integers(0, 256, (2, 1024)).astype(np.uint8)
            target = (float(output.scale), int(output.zero_point))
            found[f"{engine}/pairs"] = places
            found[f"{engine}/pairs/scales"] = np.array([one.scale, other.scale, output.scale], np.float32)
            for operator in ("add", "mul"):
                result = getattr(torch.ops.quantized, operator)(
                    quantized(places[0], one), quantized(places[1], other), *target
                )
                found[f"{engine}/{operator}"] = result.int_repr().numpy()
    np.savez_compressed(FILE, **found)


if __name__ == "__main__":
    main()
