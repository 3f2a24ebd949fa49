"""What a network takes: the name, shape and type of each input, and whether an array fits it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from narrowgauge.errors import DataError
from narrowgauge.graph.shapes import dimensions

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Shape: TypeAlias = tuple[int | None, ...]

IMAGE_CHANNELS = (1, 3)
"""Channel counts by which an axis is recognised as the channels of an image."""
_IMAGES_RANK = 4
"""Axes of a batch of images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InputSpec:
    """One input of a network.

    Attributes:
        name: Name of the input in the network.
        shape: Its shape; None where the network takes any extent. () is a scalar.
        dtype: Type of its elements.
    """

    name: str
    shape: Shape
    dtype: np.dtype[Any]

    def __post_init__(self) -> None:
        """Take `np.float32` for `np.dtype("float32")` and a list for a tuple."""
        object.__setattr__(self, "dtype", np.dtype(self.dtype))
        object.__setattr__(self, "shape", tuple(self.shape))

    def __str__(self) -> str:
        """Describe the input for a message, for example `'input' (float32, ? x 3 x 224 x 224)`."""
        return f"'{self.name}' ({self.dtype}, {shape_text(self.shape)})"


def input_specs(model: ir.Model) -> tuple[InputSpec, ...]:
    """List the inputs that must be fed: graph inputs without those that an initializer already fills.

    Raises:
        DataError: An input declares no type or no shape.
    """
    return tuple(_spec(value) for value in model.graph.inputs if value.name not in model.graph.initializers)


def output_names(model: ir.Model) -> tuple[str, ...]:
    """List the names of the outputs, in the network's order."""
    return tuple(str(value.name) for value in model.graph.outputs)


def _spec(value: ir.Value) -> InputSpec:
    shape = dimensions(value)
    if value.dtype is None or shape is None:
        raise DataError(
            f"Expected a type and a shape for the network's input '{value.name}', but the model declares none; "
            "declare them (dimensions may be symbolic) when exporting the model."
        )
    return InputSpec(name=str(value.name), shape=shape, dtype=value.dtype.numpy())


def has_batch_axis(inputs: Sequence[InputSpec]) -> bool:
    """Tell whether the first axis of every input that is not a scalar is one common batch axis.

    It is where all of them are dynamic, or all have the same fixed extent. A network with inputs `[batch, time]` and
    `[2, batch, 128]` has none: its feeds are neither cut nor joined.
    """
    return len({spec.shape[0] for spec in inputs if spec.shape}) == 1


def rows_per_run(inputs: Sequence[InputSpec]) -> int | None:
    """Return how many rows one run takes; None where any number does; 1 where there is no common batch axis."""
    if not has_batch_axis(inputs):
        return 1
    return next(spec.shape[0] for spec in inputs if spec.shape)


def shape_text(shape: Sequence[int | None]) -> str:
    """Write a shape for a message: `? x 3 x 224 x 224`, or `scalar`."""
    return " x ".join("?" if extent is None else str(extent) for extent in shape) or "scalar"


def shape_fits(shape: Sequence[int], expected: Sequence[int | None]) -> bool:
    """Tell whether a shape is one that the network takes."""
    return len(shape) == len(expected) and all(
        wanted in (None, extent) for extent, wanted in zip(shape, expected, strict=True)
    )


def layout_hint(shape: Sequence[int], expected: Sequence[int | None]) -> str:
    """Guess from channel extents whether an array has its channels on the wrong side; "" where nothing shows.

    Args:
        shape: Shape that came.
        expected: Shape that the network takes; both of rank 4, or of rank 3 where the batch axis is left out.
    """
    if len(shape) != len(expected) or len(expected) not in (3, 4):
        return ""
    first, last = len(expected) - 3, len(expected) - 1
    if shape[last] == expected[first] and expected[first] in IMAGE_CHANNELS and shape[first] != expected[first]:
        return " The array looks like NHWC, the network takes NCHW: transpose it with array.transpose(0, 3, 1, 2)."
    if shape[first] == expected[last] and expected[last] in IMAGE_CHANNELS and shape[last] != expected[last]:
        return " The array looks like NCHW, the network takes NHWC: transpose it with array.transpose(0, 2, 3, 1)."
    if shape[first] != expected[first] and expected[first] in IMAGE_CHANNELS:
        return f" The network takes {expected[first]} channels, the array has {shape[first]}."
    if shape[last] != expected[last] and expected[last] in IMAGE_CHANNELS:
        return f" The network takes {expected[last]} channels, the array has {shape[last]}."
    return ""


def cast(array: Array, spec: InputSpec, where: str) -> Array:
    """Convert an array to the type of an input where no value can change its meaning.

    Floats become other floats, integers and booleans become floats, and integers become other integers (or booleans)
    where every value fits.

    Args:
        array: The values, any shape.
        spec: The input that they feed.
        where: File or sample, for the message.

    Raises:
        DataError: The types do not go together, or an integer does not fit.
    """
    if array.dtype == spec.dtype:
        return np.ascontiguousarray(array).reshape(array.shape)  # reshape: ascontiguousarray makes a scalar 1-D
    if not _castable(array.dtype, spec.dtype):
        raise DataError(
            f"{where}: expected {spec.dtype} for input {spec}, got {array.dtype}; convert the array to {spec.dtype}."
        )
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinity, which statistics report by name
        converted = array.astype(spec.dtype)
    if spec.dtype.kind in "iub" and not np.array_equal(converted, array):
        raise DataError(
            f"{where}: expected values of {spec.dtype} for input {spec}, got {array.dtype} values from {array.min()} "
            f"to {array.max()}, which do not fit."
        )
    return converted


def _castable(have: np.dtype[Any], want: np.dtype[Any]) -> bool:
    """Numbers become floats and integers become integers; `V` is how NumPy sees bfloat16 and 8-bit floats."""
    if want.kind in "iub":
        return have.kind in "iub"
    return have.kind in "fiubV" and want.kind in "fV" and have.fields is None


def is_raw_pixels(array_dtype: np.dtype[Any], spec: InputSpec) -> bool:
    """Tell whether bytes feed a float input, or integers a batch of images: most likely pixels that nobody scaled."""
    pixels = array_dtype == np.uint8 or (array_dtype.kind in "iu" and len(spec.shape) == _IMAGES_RANK)
    return pixels and spec.dtype.kind == "f"
