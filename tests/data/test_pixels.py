import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from narrowgauge.data.pixels import upright_pixels

GRADIENT = np.arange(256, dtype=np.uint8).reshape(16, 16)


def reopened(image: Image.Image, kind: str, **options: object) -> Image.Image:
    """The image as it comes back from a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    buffer.seek(0)
    return Image.open(buffer)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation: int) -> None:
    stored = np.array([[0, 80, 160], [200, 230, 255]], dtype=np.uint8)
    upright = {  # EXIF 2.3, tag 0x0112: where the visual top left stands
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.T,
        6: np.rot90(stored, -1),
        7: np.rot90(stored, 2).T,
        8: np.rot90(stored),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = reopened(Image.fromarray(stored), "PNG", exif=exif)
    np.testing.assert_array_equal(np.asarray(upright_pixels(image, gray=True)), upright)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_keep_black_gray_and_white(kind: str) -> None:
    image = reopened(Image.fromarray(GRADIENT.astype(np.uint16) * 257), kind)
    assert image.mode != "L"
    np.testing.assert_array_equal(np.asarray(upright_pixels(image, gray=True)), GRADIENT)
    np.testing.assert_array_equal(np.asarray(upright_pixels(image, gray=False))[..., 1], GRADIENT)


def test_palette_with_and_without_transparency() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    for options in ({}, {"transparency": 0}, {"transparency": b"\x00\x80"}):
        image = reopened(palette, "PNG", **options)
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(upright_pixels(image, gray=False)), [[[255, 0, 0], [0, 0, 255]]])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "1", "CMYK", "YCbCr", "HSV", "L"])
def test_other_modes_keep_their_colors(mode: str) -> None:
    gray = Image.fromarray(np.where(GRADIENT < 128, 0, 255).astype(np.uint8))
    converted = upright_pixels(gray.convert("RGB").convert(mode), gray=False)
    assert converted.mode == "RGB"
    np.testing.assert_allclose(np.asarray(converted), np.asarray(gray.convert("RGB")), atol=1)


def test_cmyk_jpeg_is_not_inverted(tmp_path: Path) -> None:
    red = reopened(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")
    assert red.mode == "CMYK"
    np.testing.assert_allclose(np.asarray(upright_pixels(red, gray=False))[4, 4], [255, 0, 0], atol=8)


def test_pixels_without_a_known_white_are_refused() -> None:
    with pytest.raises(ValueError, match="floating point"):
        upright_pixels(Image.new("F", (2, 2)), gray=False)
    with pytest.raises(ValueError, match="16-bit"):
        upright_pixels(Image.new("I", (2, 2), 70000), gray=False)
