"""Worker: NNCF on the ONNX network, see `_worker.py`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nncf
import onnx
from _worker import Array, feeds, work


def run(model: Path, images: Array, output: Path, options: Mapping[str, Any]) -> None:
    """Quantize with every image; fast bias correction is on, as it is by default."""
    network = onnx.load(model)
    dataset = nncf.Dataset(list(feeds(images, network.graph.input[0].name)))
    quantized = nncf.quantize(
        network,
        dataset,
        subset_size=len(images),
        preset=nncf.QuantizationPreset(options["preset"]) if "preset" in options else None,
        model_type=nncf.ModelType.TRANSFORMER if options.get("transformer") else None,
    )
    onnx.save(quantized, output)


if __name__ == "__main__":
    work(run)
