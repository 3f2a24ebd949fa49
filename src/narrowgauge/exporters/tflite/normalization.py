"""Normalizations, which TFLite has no operators for: means, squared differences and products of real numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from narrowgauge.exporters.tflite.call import Call
from narrowgauge.exporters.tflite.forms import Extents, Order, permuted


def layer_normalization(call: Call) -> None:
    """LayerNormalization over the axes from `axis` on, with a factor and a shift for each of their entries."""
    if any(value.uses() for value in call.node.outputs[1:]):
        raise call.refusal("something reads the mean or the deviation that it gives besides")
    rank, home = call.rank(), call.home()
    axes = list(range(call.from_front(call.whole("axis", -1), rank), rank))
    _normalized(call, home, axes, call.real("epsilon", 1e-5), [_spread(call, number, home) for number in (1, 2)])


def instance_normalization(call: Call) -> None:
    """InstanceNormalization over the spatial axes, with a factor and a shift for each channel."""
    order = call.last()
    parameters = [call.array(number) for number in (1, 2)]
    if any(array is None for array in parameters):
        raise call.refusal("its factor or its shift is computed")
    numbers = [call.emitter.float_constant(array, call.name) for array in parameters if array is not None]
    _normalized(call, order, list(range(2, call.rank())), call.real("epsilon", 1e-5), numbers)


def batch_normalization(call: Call) -> None:
    """BatchNormalization with constant statistics: one product and one sum for each channel."""
    arrays = [call.array(number) for number in range(1, 5)]
    if any(array is None for array in arrays) or call.whole("training_mode", 0):
        raise call.refusal("expected constant statistics")
    scale, shift, mean, variance = (np.asarray(array, np.float64) for array in arrays)
    factor = scale / np.sqrt(variance + call.real("epsilon", 1e-5))
    rest = (shift - mean * factor).astype(np.float32)
    order = call.last()
    inputs = [call.read(0, order), call.emitter.float_constant(factor.astype(np.float32), f"{call.name}_factor")]
    product = call.between("MUL", inputs, permuted(call.extents(), order))
    added = call.emitter.float_constant(rest, f"{call.name}_shift")
    call.emit("ADD", [product, added], {"pot_scale_int16": False}, order=order)


def local_response(call: Call) -> None:
    """LRN: `x / (bias + alpha * sum) ^ beta` over neighbouring channels; ONNX divides alpha by their number."""
    size = call.whole("size", 1)
    if size % 2 == 0:
        raise call.refusal(f"expected an odd number of channels, got {size}")
    options = {
        "radius": size // 2, "bias": call.real("bias", 1.0), "alpha": call.real("alpha", 1e-4) / size,
        "beta": call.real("beta", 0.75),
    }  # fmt: skip
    order = call.last()
    call.emit("LOCAL_RESPONSE_NORMALIZATION", [call.read(0, order)], options, order=order)


def _spread(call: Call, number: int, order: Order) -> int | None:
    """Return a factor or shift that broadcasts from the last axes, in the order of the input."""
    array = call.array(number)
    if not call.given(number):
        return None
    if array is None:
        raise call.refusal("its factor or its shift is computed")
    wide: npt.NDArray[np.float32] = array.reshape((1,) * (len(order) - array.ndim) + array.shape).transpose(order)
    while wide.ndim > 1 and wide.shape[0] == 1:
        wide = wide[0]
    return call.emitter.float_constant(np.ascontiguousarray(wide), str(call.input(number).name))


def _normalized(
    call: Call, order: Order, axes: Sequence[int], epsilon: float, parameters: Sequence[int | None]
) -> None:
    """`(x - mean) / sqrt(variance + epsilon) * factor + shift`."""
    extents = permuted(call.extents(), order)
    places = call.constant(sorted(order.index(axis) for axis in axes), "axes")
    reduced: Extents = tuple(1 if order[k] in axes else extent for k, extent in enumerate(extents))
    keep, plain = {"keep_dims": True}, {"pot_scale_int16": False}
    source = call.read(0, order)
    mean = call.between("MEAN", [source, places], reduced, keep)
    centered = call.between("SUB", [source, mean], extents, plain)
    squares = call.between("MUL", [centered, centered], extents)
    variance = call.between("MEAN", [squares, places], reduced, keep)
    small = call.constant(epsilon, "epsilon", np.float32)
    deviation = call.between("RSQRT", [call.between("ADD", [variance, small], reduced, plain)], reduced)
    factor, shift = (*parameters, None)[:2]
    last = [("MUL", deviation, {}), ("MUL", factor, {}), ("ADD", shift, plain)]
    done = [(name, other, options) for name, other, options in last if other is not None]
    value = centered
    for place, (name, other, options) in enumerate(done):
        if place == len(done) - 1:
            call.emit(name, [value, other], options, order=order)
        else:
            value = call.between(name, [value, other], extents, options)
