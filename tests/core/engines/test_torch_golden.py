"""The rules of PyTorch's engines against what they once computed, where PyTorch is not installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from narrowgauge.core.engines.arithmetics import KERNELS
from narrowgauge.core.engines.kernels import UNBOUNDED, Layer, LayerKind
from tests.core.engines.torch_engines import encoding

GOLDEN = Path(__file__).parent / "golden_torch" / "torch.npz"
KINDS: dict[str, LayerKind] = {"linear": "product", "conv2d": "convolution", "depthwise": "depthwise"}
ENGINES = ["fbgemm", "qnnpack", "onednn"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", ENGINES)
def test_layers(engine: str, kind: str) -> None:
    with np.load(GOLDEN) as golden:
        sums, scales, bias, levels = (
            golden[f"{engine}/{kind}/{part}"] for part in ("sums", "scales", "bias", "levels")
        )
    held = Layer(
        kind=KINDS[kind], input=encoding(scales[0], 61), weights=encoding(scales[2:], 0, "int8"),
        output=encoding(scales[1], 77), bias=bias,
    )  # fmt: skip
    form = KERNELS[engine].layer(held)
    found = form.rescale.levels(sums.astype(np.int64) + (0 if form.bias is None else form.bias))
    np.testing.assert_array_equal(found, levels)
    assert len(np.unique(levels)) > 20


@pytest.mark.parametrize("operator", ["Add", "Mul"])
@pytest.mark.parametrize("engine", ENGINES)
def test_pairs(engine: str, operator: str) -> None:
    with np.load(GOLDEN) as golden:
        places, scales = golden[f"{engine}/pairs"], golden[f"{engine}/pairs/scales"]
        levels = golden[f"{engine}/{operator.lower()}"]
    held = [encoding(scale, zero_point) for scale, zero_point in zip(scales, (3, 200, 77), strict=True)]
    table = KERNELS[engine].binary(operator, held[0], held[1], held[2], UNBOUNDED)
    np.testing.assert_array_equal(table[places[0], places[1]], levels)
