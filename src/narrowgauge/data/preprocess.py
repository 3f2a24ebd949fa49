"""Preprocessing: how an image becomes what a network was trained on.

Geometry follows torchvision, whose conventions most networks were trained with: `resize` scales the shorter side,
`crop` cuts the centre. JPEG files are decoded in full: decoding at a reduced size ("draft") is four times as fast on
two-megapixel photos, but moves pixels by up to 21 levels of 255.
"""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image
from PIL.Image import Resampling

from narrowgauge.data.inputs import Array, InputSpec, shape_fits, shape_text
from narrowgauge.data.pixels import upright_pixels
from narrowgauge.errors import DataError

PIXEL_LEVELS: Final = 256
"""Levels of one channel of a decoded image (8 bits)."""
IMAGE_RANK: Final = 3
"""Axes of one image: channels, height, width in some order."""


class Color(StrEnum):
    """Channels of the network's input, in their order."""

    RGB = "rgb"
    BGR = "bgr"
    GRAY = "gray"

    @property
    def channels(self) -> int:
        """How many channels there are."""
        return 1 if self is Color.GRAY else 3


class Layout(StrEnum):
    """Where the channel axis of the network's input stands."""

    NCHW = "nchw"
    NHWC = "nhwc"


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocess:
    """How an image becomes an input of a network, in this order: resize, crop, color, values, layout.

    Values are in the network's channel order. With `mean` or `std`: `(pixel / 255 - mean) / std`; with `scale` or
    `offset`: `pixel * scale + offset`, pixel from 0 to 255; with neither: `pixel / 255` for a network that takes
    floats, `pixel` for one that takes integers. Results for integer inputs are rounded half to even and clipped.

    Attributes:
        resize: Pixels of the shorter side, keeping the aspect; or (height, width) whatever the aspect was.
        crop: Pixels of both sides of the centre cut, or (height, width); smaller images are filled with black.
        interpolation: Pillow's filter; all but `nearest` average when they shrink.
        mean: Per channel or one for all, in units of 0..1.
        std: Per channel or one for all, in units of 0..1, above 0.
        scale: Per channel or one for all, network units per pixel level.
        offset: Per channel or one for all, in network units.
        color: Channels; None takes gray where the network has one channel, and RGB otherwise.
        layout: Channel axis; None takes the one that the network's input shows, and NCHW otherwise.
        label_offset: Added to every label: the network's output for class 0 of the labels.
    """

    resize: int | tuple[int, int] | None = None
    crop: int | tuple[int, int] | None = None
    interpolation: Resampling = Resampling.BILINEAR
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    scale: tuple[float, ...] | None = None
    offset: tuple[float, ...] | None = None
    color: Color | None = None
    layout: Layout | None = None
    label_offset: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that contradict each other or mean nothing.

        Raises:
            DataError: Both ways of scaling values, a `std` that is not positive, a size below 1, a wrong count.
        """
        unit, pixel = (self.mean, self.std), (self.scale, self.offset)
        if unit != (None, None) and pixel != (None, None):
            raise DataError("Expected mean/std or scale/offset in a preprocessing, got both; keep one pair.")
        if self.std is not None and not all(value > 0 for value in self.std):
            raise DataError(f"Expected every std of a preprocessing to be above 0, got {self.std}.")
        for name in ("resize", "crop"):
            size = getattr(self, name)
            if size is not None and min(_pair(size)) < 1:
                raise DataError(f"Expected {name} of a preprocessing to be at least 1 pixel, got {size}.")
        for name in ("mean", "std", "scale", "offset"):
            values = getattr(self, name)
            if values is not None and len(values) not in self._value_counts():
                expected = " or ".join(str(count) for count in self._value_counts())
                raise DataError(
                    f"Expected {expected} values of {name} in a preprocessing (one for all or one per channel), "
                    f"got {len(values)}: {values}."
                )

    def _value_counts(self) -> tuple[int, ...]:
        return (1, 3) if self.color is None else tuple(sorted({1, self.color.channels}))


def load_preprocess(path: str | Path) -> Preprocess:
    """Read a preprocessing from a TOML file with the fields of `Preprocess` as keys.

    `interpolation` is the name of a Pillow filter (nearest, box, bilinear, hamming, bicubic, lanczos); `mean`, `std`,
    `scale` and `offset` are a number or a list of numbers; `resize` and `crop` are a number or `[height, width]`.

    Raises:
        DataError: The file cannot be read or is no TOML, or a key or value is unknown.
    """
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"Expected a TOML file of preprocessing at {path}, got: {error}.") from error
    unknown = sorted(set(table) - set(_PARSERS))
    if unknown:
        raise DataError(f"{path}: unknown preprocessing keys {', '.join(unknown)}; allowed are {', '.join(_PARSERS)}.")
    settings: dict[str, Any] = {}
    for key, value in table.items():
        try:
            settings[key] = _PARSERS[key](value)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: expected {_EXPECTED[key]} for '{key}', got {value!r}.") from error
    try:
        return Preprocess(**settings)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def default_preprocess(model_path: str | Path) -> Preprocess | None:
    """Read `<model stem>.toml` beside a model; None where there is none.

    The networks of a folder that `quantize` wrote share its `model.toml`.

    Raises:
        DataError: The file is there and is not a valid preprocessing.
    """
    path = Path(model_path).with_suffix(".toml")
    if not path.is_file() and path.with_name("summary.json").is_file():
        path = path.with_name("model.toml")
    return load_preprocess(path) if path.is_file() else None


def preprocess_toml(preprocess: Preprocess) -> str:
    """Write a preprocessing as the TOML text that `load_preprocess` reads."""
    lines = []
    for entry in fields(preprocess):
        value = getattr(preprocess, entry.name)
        if value is None:
            continue
        if isinstance(value, Resampling):
            value = value.name.lower()
        text = f'"{value}"' if isinstance(value, str) else str(list(value) if isinstance(value, tuple) else value)
        lines.append(f"{entry.name} = {text}\n")
    return "".join(lines)


def fit_preprocess(preprocess: Preprocess | None, spec: InputSpec) -> tuple[Preprocess, tuple[str, ...]]:
    """Settle what a preprocessing leaves open from the input that it feeds.

    With no preprocessing at all, the size comes from the input too: a square one is reached by resizing the shorter
    side and cutting the centre, another one by resizing to it.

    Returns:
        The preprocessing with `color` and `layout` set, and notes on what was assumed.

    Raises:
        DataError: The input cannot be an image.
    """
    if len(spec.shape) not in (IMAGE_RANK, IMAGE_RANK + 1):
        raise DataError(
            f"Expected a network input of rank 4 (batch and image) for images, got input {spec}; "
            "give arrays (.npy, .npz) or module:callable as data."
        )
    settled = preprocess or Preprocess()
    last, first = spec.shape[-1], spec.shape[-IMAGE_RANK]
    layout = settled.layout or (Layout.NHWC if last in (1, 3) and first not in (1, 3) else Layout.NCHW)
    channels = last if layout is Layout.NHWC else first
    color = settled.color or (Color.GRAY if channels == 1 else Color.RGB)
    if channels not in (None, color.channels):
        raise DataError(
            f"Expected {color.channels} channels for color '{color}' and layout '{layout}', got input {spec}; "
            "correct `color` or `layout` in the preprocessing."
        )
    settled = replace(settled, color=color, layout=layout)
    if preprocess is not None:
        return settled, ()
    height, width = spec.shape[-3:-1] if layout is Layout.NHWC else spec.shape[-2:]
    if height is None or width is None:
        size = "images keep their own size"
    elif height == width:
        settled = replace(settled, resize=height, crop=height)
        size = f"shorter side resized to {height}, centre cut to {height} x {width}"
    else:
        settled = replace(settled, resize=(height, width))
        size = f"resized to {height} x {width}"
    values = "values scaled to 0..1" if spec.dtype.kind not in "iub" else "values 0..255"
    note = (
        f"no preprocessing was given: taken from input {spec}: {size}, {settled.interpolation.name.lower()}, {values}, "
        f"{color}, {layout}; give --preprocess if the network was trained otherwise"
    )
    return settled, (note,)


def apply(image: Image.Image, preprocess: Preprocess, dtype: np.dtype[Any] | type = np.float32) -> Array:
    """Turn an image into one row of a network's input.

    Args:
        image: Any image that Pillow reads; its EXIF orientation is applied first, see `upright_pixels`.
        preprocess: What to do.
        dtype: Type of the network's input: a float, or an integer (rounded half to even, clipped).

    Returns:
        channels x height x width, or height x width x channels, without batch axis.
    """
    color, layout = preprocess.color or Color.RGB, preprocess.layout or Layout.NCHW
    upright = upright_pixels(image, gray=color is Color.GRAY)
    if preprocess.resize is not None:
        upright = _resized(upright, preprocess.resize, preprocess.interpolation)
    if preprocess.crop is not None:
        upright = _centre(upright, *_pair(preprocess.crop))
    pixels = np.asarray(upright)
    pixels = pixels.reshape(*pixels.shape[:2], color.channels)  # height x width x channels
    if color is Color.BGR:
        pixels = pixels[:, :, ::-1]
    table = value_table(preprocess, color.channels, np.dtype(dtype))
    result = np.empty((color.channels, *pixels.shape[:2]), dtype=table.dtype)
    for channel in range(color.channels):
        np.take(table[channel], pixels[:, :, channel], out=result[channel], mode="clip")  # clip: no check, no buffer
    return result if layout is Layout.NCHW else np.ascontiguousarray(result.transpose(1, 2, 0))


def value_table(preprocess: Preprocess, channels: int, dtype: np.dtype[Any]) -> Array:
    """Tabulate what each pixel level becomes, calculated in float64 and rounded once.

    Returns:
        channels x 256, of type `dtype`.
    """
    levels = np.broadcast_to(np.arange(PIXEL_LEVELS, dtype=np.float64), (channels, PIXEL_LEVELS))
    if preprocess.mean is not None or preprocess.std is not None:
        values = (levels / (PIXEL_LEVELS - 1) - _column(preprocess.mean, 0.0)) / _column(preprocess.std, 1.0)
    elif preprocess.scale is not None or preprocess.offset is not None:
        values = levels * _column(preprocess.scale, 1.0) + _column(preprocess.offset, 0.0)
    else:
        values = levels if dtype.kind in "iu" else levels / (PIXEL_LEVELS - 1)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return values.astype(dtype)


def as_feed(pixels: Array, spec: InputSpec, where: str) -> tuple[Array, bool]:
    """Give a preprocessed image the batch axis that an input has, and check that it fits.

    Returns:
        The array, and whether it is the input as a whole (the input has no batch axis).

    Raises:
        DataError: The size or the number of channels does not fit.
    """
    if len(spec.shape) == pixels.ndim + 1 and shape_fits(pixels.shape, spec.shape[1:]):
        return pixels[None], False
    if shape_fits(pixels.shape, spec.shape):
        return pixels, True
    expected = spec.shape[1:] if len(spec.shape) == pixels.ndim + 1 else spec.shape
    raise DataError(
        f"{where}: expected an image of {shape_text(expected)} for input {spec}, got {shape_text(pixels.shape)} after "
        "preprocessing; set `resize`, `crop`, `color` or `layout` in the preprocessing."
    )


def resized_size(width: int, height: int, shorter: int) -> tuple[int, int]:
    """Return (width, height) with the shorter side of `shorter` pixels.

    The longer side is truncated to an integer, as torchvision.transforms.Resize does:
    `int(size * longer / shorter)`.
    """
    if width <= height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


def _resized(image: Image.Image, resize: int | tuple[int, int], interpolation: Resampling) -> Image.Image:
    size = resized_size(*image.size, resize) if isinstance(resize, int) else (resize[1], resize[0])
    return image if size == image.size else image.resize(size, interpolation)


def _centre(image: Image.Image, height: int, width: int) -> Image.Image:
    """Cut the centre; where the image is smaller, fill with black (torchvision.transforms.CenterCrop, both rules)."""
    extra_width, extra_height = max(0, width - image.width), max(0, height - image.height)
    left, top = -(extra_width // 2), -(extra_height // 2)
    if not extra_width:
        left = round((image.width - width) / 2)
    if not extra_height:
        top = round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _column(values: tuple[float, ...] | None, neutral: float) -> Array:
    """Stand the values upright, (channels or 1) x 1, to meet channels x levels."""
    return np.asarray(values or (neutral,), dtype=np.float64)[:, None]


def _parse_size(value: object) -> int | tuple[int, int]:
    if isinstance(value, list):
        height, width = value
        return _parse_integer(height), _parse_integer(width)
    return _parse_integer(value)


def _parse_integer(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(value)
    return value


def _parse_numbers(value: object) -> tuple[float, ...]:
    numbers: list[object] = value if isinstance(value, list) else [value]
    parsed = tuple(float(number) for number in numbers if isinstance(number, int | float))
    if len(parsed) != len(numbers) or not parsed or any(isinstance(number, bool) for number in numbers):
        raise TypeError(value)
    if not all(map(math.isfinite, parsed)):
        raise ValueError(value)
    return parsed


def _parse_interpolation(value: object) -> Resampling:
    return Resampling[str(value).upper()]


_PARSERS: Final[Mapping[str, Any]] = {
    "resize": _parse_size,
    "crop": _parse_size,
    "interpolation": _parse_interpolation,
    "mean": _parse_numbers,
    "std": _parse_numbers,
    "scale": _parse_numbers,
    "offset": _parse_numbers,
    "color": Color,
    "layout": Layout,
    "label_offset": _parse_integer,
}

_NUMBERS: Final = "a finite number or a list of finite numbers, one per channel,"
_EXPECTED: Final = {
    "resize": "an integer (shorter side) or [height, width]",
    "crop": "an integer or [height, width]",
    "interpolation": f"one of {', '.join(sorted(name.lower() for name in Resampling.__members__))}",
    "mean": _NUMBERS,
    "std": _NUMBERS,
    "scale": _NUMBERS,
    "offset": _NUMBERS,
    "color": f"one of {', '.join(Color)}",
    "layout": f"one of {', '.join(Layout)}",
    "label_offset": "an integer",
}
