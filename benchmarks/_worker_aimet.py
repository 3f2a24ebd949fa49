"""Worker: AIMET on the ONNX network, see `_worker.py`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aimet_onnx
import onnx
from _worker import Array, feeds, work
from aimet_onnx.cross_layer_equalization import equalize_model


def run(model: Path, images: Array, output: Path, options: Mapping[str, Any]) -> None:
    """Quantize to W8A8 by the default configuration (weights per channel); biases are exported as int32."""
    network = onnx.load(model)
    name = network.graph.input[0].name
    if options.get("equalize"):
        equalize_model(network)
    simulation = aimet_onnx.QuantizationSimModel(
        network,
        param_type="int8",
        activation_type="int8",
        quant_scheme=options["scheme"],
        dummy_input={name: images[:1]},
    )
    simulation.compute_encodings(feeds(images, name))
    onnx.save(simulation.to_onnx_qdq(export_int32_bias=True, prequantize_constants=True), output)


if __name__ == "__main__":
    work(run)
