"""One quantized folder that many tests read and none changes."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from narrowgauge.demo import digits, network_path
from tests.cli.running import done


class Digits(NamedTuple):
    folder: Path
    network: Path
    data: Path
    quantized: Path


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    """The demo's convolutional network, 120 of its images with labels, and what `quantize` made of them."""
    folder = tmp_path_factory.mktemp("digits")
    network, data, quantized = folder / "digits.onnx", folder / "digits.npz", folder / "int8"
    network.write_bytes(network_path("digits_conv").read_bytes())
    images, labels, trained = digits()
    used = np.r_[:40, trained : trained + 80]
    np.savez(data, image=images[used], labels=labels[used])
    done("quantize", network, "--data", data, "--samples", 40, "--out", quantized, "--quiet")
    return Digits(folder, network, data, quantized)
