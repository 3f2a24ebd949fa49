"""Worker of `aimet_outputs.py`: AIMET's simulated outputs of a network with encodings, in AIMET's own environment.

Started with the paths of the network, the encodings, the inputs (.npy, a sample a row) and the outputs to write (.npy).
"""

from __future__ import annotations

import sys

import numpy as np
import onnx
from aimet_onnx import QuantizationSimModel
from aimet_onnx.quantsim import load_encodings_to_sim


def main(network: str, encodings: str, inputs: str, outputs: str) -> None:
    """Load, simulate sample by sample, write the first output."""
    model, samples = onnx.load(network), np.load(inputs)
    name = model.graph.input[0].name
    simulation = QuantizationSimModel(model, dummy_input={name: samples[:1]})
    load_encodings_to_sim(simulation, encodings, strict=False)
    runs = [simulation.session.run(None, {name: samples[row : row + 1]})[0] for row in range(len(samples))]
    np.save(outputs, np.concatenate(runs))


if __name__ == "__main__":
    main(*sys.argv[1:])
