"""Decoded images of any kind -> upright 8-bit gray or RGB."""

from typing import Final

import numpy as np
from PIL import Image, ImageOps

_FULL_16_BIT: Final = 65535
_LEVELS_PER_BYTE: Final = 257
"""65535 / 255: steps of a 16-bit pixel in one step of an 8-bit one."""


def upright_pixels(image: Image.Image, *, gray: bool) -> Image.Image:
    """Turn an image upright (EXIF orientation) and convert it to 8-bit gray (mode L) or RGB.

    16-bit gray is divided by 257 and rounded, so that white stays white. Palettes, CMYK and YCbCr become RGB by
    Pillow's rules, gray from RGB by ITU-R 601 luma. Transparency is dropped, not blended, as usual in training.

    Raises:
        ValueError: The image has no 8-bit form (floating point pixels, or 32-bit ones beyond 16 bits).
    """
    turned = ImageOps.exif_transpose(image)
    if turned.mode.startswith("I"):
        turned = _eight_bits(turned)
    elif turned.mode == "F":
        raise ValueError("floating point pixels have no known white; convert the image to 8 or 16 bits")
    if turned.mode in ("P", "PA"):
        turned = turned.convert("RGBA")  # straight to RGB, Pillow warns of transparency that it cannot keep
    wanted = "L" if gray else "RGB"
    return turned if turned.mode == wanted else turned.convert(wanted)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Bring gray of 16 bits (modes I;16, I;16B, and I of older files) to 8 bits."""
    levels = np.asarray(image).astype(np.int64)
    if levels.size and (levels.min() < 0 or levels.max() > _FULL_16_BIT):
        raise ValueError(f"expected 16-bit pixels, got values from {levels.min()} to {levels.max()}")
    return Image.fromarray(((levels + _LEVELS_PER_BYTE // 2) // _LEVELS_PER_BYTE).astype(np.uint8))
