import gzip
from pathlib import Path

import numpy as np
import pytest

from narrowgauge.data import open_samples
from narrowgauge.errors import DataError
from tests.data.networks import image_input

DIGITS = image_input(1, 1, 4, 5)
HEADER = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0, 5])
PIXELS = bytes(range(40))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_images_with_the_labels_beside_them(tmp_path: Path, suffix: str) -> None:
    pack = gzip.compress if suffix else bytes
    images = tmp_path / f"t10k-images-idx3-ubyte{suffix}"
    images.write_bytes(pack(HEADER + PIXELS))
    (tmp_path / f"t10k-labels-idx1-ubyte{suffix}").write_bytes(pack(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9])))
    samples = list(open_samples(images, DIGITS))
    assert [sample.label for sample in samples] == [7, 9]
    np.testing.assert_allclose(samples[1].feed["input"].ravel() * 255, np.arange(20, 40), rtol=1e-6)


@pytest.mark.parametrize(
    "content", [b"", b"\x00\x00\x0d\x03", HEADER[:9], HEADER + PIXELS[:-1], HEADER[:4] + b"\xff" * 12]
)
def test_files_that_are_no_such_thing_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t10k-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(DataError, match=path.name):
        open_samples(path, DIGITS)


def test_of_a_folder_of_such_files_the_images_are_to_be_given(tmp_path: Path) -> None:
    for name in ("t10k-labels-idx1-ubyte", "t10k-images-idx3-ubyte"):
        (tmp_path / name).write_bytes(HEADER)
    with pytest.raises(DataError, match=r"give the images' own: .*t10k-images-idx3-ubyte"):
        open_samples(tmp_path, DIGITS)
