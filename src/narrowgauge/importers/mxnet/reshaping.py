"""Rules for operators that move, choose and join numbers.

Their definitions are those of MXNet 1.9.1, src/operator/tensor/matrix_op.cc, indexing_op.cc and dot.cc.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from narrowgauge.importers.mxnet.builder import sizes_of
from narrowgauge.importers.mxnet.call import Call, Item, Rule, integers

_FURTHEST = np.iinfo(np.int64).max
"""An end of a slice that means: to the last one."""

_MOST_ELEMENTS = 1 << 24
"""Of a constant that the file does not have but describes: 64 MiB, far more than a state or a range of positions."""


def identity(call: Call) -> list[Item]:
    """What changes nothing."""
    return [call.items[0]]


def flatten(call: Call) -> list[Item]:
    """Flatten to two axes."""
    return [call.add("Flatten", [call.value()], axis=1)]


# --- reshape ---


@dataclass(frozen=True, slots=True)
class _Axes:
    """A wanted axis: the product of axes of the input, divided by numbers."""

    sources: tuple[int, ...]
    divisor: int = 1


_Wanted = int | _Axes  # a length, -1 for the rest, or axes of the input


def reshape(call: Call) -> list[Item]:
    """Reshape with MXNet's codes 0, -1, -2, -3 and -4 (matrix_op-inl.h: InferReshapeShape)."""
    attributes = call.attributes
    codes = attributes.sizes("shape", ())
    if not codes:  # MXNet before 0.9
        codes = attributes.sizes("target_shape")
    data = call.value()
    constant = call.constant(0)
    if constant is not None and codes == (-1,):
        return [call.builder.constant(f"{data.name}_flat", constant.reshape(-1))]
    if all(code >= -1 for code in codes) and not attributes.boolean("reverse", default=False):
        return [call.add("Reshape", [data, integers(codes)])]
    wanted = _wanted(call, codes, reverse=attributes.boolean("reverse", default=False))
    return [call.add("Reshape", [data, _target(call, wanted)])]


def _wanted(call: Call, codes: Sequence[int], *, reverse: bool) -> list[_Wanted]:
    sizes = call.sizes()
    order = list(range(len(sizes)))
    if reverse:
        # The codes are read from the right; the two lengths behind a -4 stay in their order behind it.
        codes, order = _reversed(codes), order[::-1]
    wanted: list[_Wanted] = []
    place = position = 0
    try:
        while position < len(codes):
            code = codes[position]
            if code == 0:
                wanted.append(_Axes((order[place],)))
                place += 1
            elif code == -2:
                wanted += [_Axes((axis,)) for axis in order[place:]]
                place = len(order)
            elif code == -3:
                wanted.append(_Axes((order[place], order[place + 1])))
                place += 2
            elif code == -4:
                wanted += _split(order[place], codes[position + 1], codes[position + 2])
                place += 1
                position += 2
            else:
                wanted.append(code)
                place += 1
            position += 1
    except IndexError as error:
        raise call.refusal(f"the shape {tuple(codes)} asks for more axes than the input {sizes} has") from error
    return wanted[::-1] if reverse else wanted


def _reversed(codes: Sequence[int]) -> list[int]:
    parts: list[list[int]] = []
    position = 0
    while position < len(codes):
        length = 3 if codes[position] == -4 else 1
        part = list(codes[position : position + length])
        parts.append([part[0], *part[:0:-1]])
        position += length
    return [code for part in parts[::-1] for code in part]


def _split(axis: int, first: int, second: int) -> list[_Wanted]:
    if first == -1:
        return [_Axes((axis,), second), second]
    return [first, _Axes((axis,), first) if second == -1 else second]


def _target(call: Call, wanted: Sequence[_Wanted]) -> ir.Value | np.ndarray:
    """Return the shape to reshape to: constant where one axis at most is unknown, else computed."""
    sizes = call.sizes()
    lengths: list[int | None] = []
    for place, one in enumerate(wanted):
        if isinstance(one, int):
            lengths.append(one)
            continue
        known = [sizes[axis] for axis in one.sources]
        if None not in known:
            lengths.append(math.prod(size or 0 for size in known) // one.divisor)
        else:
            lengths.append(0 if one == _Axes((place,)) else None)
    if lengths.count(None) + lengths.count(-1) <= 1:
        return integers([-1 if length is None else length for length in lengths])
    shape = call.add("Shape", [call.value()])
    parts: list[ir.Value | np.ndarray] = []
    for one, length in zip(wanted, lengths, strict=True):
        if length is not None and not (isinstance(one, _Axes) and length == 0):
            parts.append(integers([length]))
            continue
        assert isinstance(one, _Axes)
        factors = call.add("Gather", [shape, integers(one.sources)])
        product = call.add("ReduceProd", [factors, integers([0])], keepdims=1)
        parts.append(call.add("Div", [product, integers([one.divisor])]))
    return call.add("Concat", parts, axis=0)


def reshape_like(call: Call) -> list[Item]:
    """reshape_like, of the whole shape."""
    if any(call.attributes.has(name) for name in ("lhs_begin", "lhs_end", "rhs_begin", "rhs_end")):
        raise call.refusal("reshape_like of some axes is not supported")
    return [call.add("Reshape", [call.value(0), call.add("Shape", [call.value(1)])])]


# --- axes ---


def transpose(call: Call) -> list[Item]:
    """Transpose; all axes reversed where none are given."""
    axes = call.attributes.sizes("axes", ())
    return [call.add("Transpose", [call.value()], **({"perm": axes} if axes else {}))]


def swap_axes(call: Call) -> list[Item]:
    """SwapAxis of two axes."""
    order = list(range(call.rank()))
    first, second = call.attributes.integer("dim1", 0), call.attributes.integer("dim2", 0)
    order[first], order[second] = order[second], order[first]
    return [call.add("Transpose", [call.value()], perm=order)]


def expand_dims(call: Call) -> list[Item]:
    """expand_dims."""
    return [call.add("Unsqueeze", [call.value(), integers([call.attributes.integer("axis")])])]


def squeeze(call: Call) -> list[Item]:
    """Squeeze of some axes, or of all of length 1."""
    axes = call.attributes.sizes("axis", ())
    return [call.add("Squeeze", [call.value(), *([integers(axes)] if axes else [])])]


# --- joining and parting ---


def concat(default_axis: int) -> Rule:
    """Make the rule of Concat, whose axis is the attribute `dim`."""

    def rule(call: Call) -> list[Item]:
        values = call.values()
        arrays = [call.constant(number) for number in range(len(values))]
        axis = call.attributes.integer("dim", default_axis)
        constant = [array for array in arrays if array is not None]
        if len(constant) == len(arrays) and call.node.operator == "_rnn_param_concat":
            return [call.builder.constant(f"{call.node.name}_parameters", np.concatenate(constant, axis=axis))]
        return [call.add("Concat", values, axis=axis)]

    return rule


def stack(call: Call) -> list[Item]:
    """Stack along a new axis."""
    axis = call.attributes.integer("axis", 0)
    return [call.add("Concat", [call.add("Unsqueeze", [one, integers([axis])]) for one in call.values()], axis=axis)]


def slice_channel(call: Call) -> list[Item]:
    """SliceChannel: equal parts along an axis, without it where `squeeze_axis`."""
    attributes = call.attributes
    count, axis = attributes.integer("num_outputs"), attributes.integer("axis", 1)
    if not 1 <= count <= 2**16:
        raise attributes.wrong("num_outputs", "a number of parts from 1 to 65536")
    parts = call.builder.add_many("Split", [call.value()], call.node.name, count, axis=axis, num_outputs=count)
    if attributes.boolean("squeeze_axis", default=False):
        return [call.add("Squeeze", [part, integers([axis])]) for part in parts]
    return list(parts)


# --- choosing ---


def slice_values(call: Call) -> list[Item]:
    """Slice from `begin` to `end` in steps, for each leading axis."""
    attributes = call.attributes
    begins, ends = attributes.optional_sizes("begin") or (), attributes.optional_sizes("end") or ()
    steps = [step or 1 for step in attributes.optional_sizes("step") or (1,) * len(begins)]
    if not len(begins) == len(ends) == len(steps):
        raise call.refusal(f"expected as many begins as ends and steps, got {begins}, {ends} and {steps}")
    starts = [(0 if step > 0 else _FURTHEST) if one is None else one for one, step in zip(begins, steps, strict=True)]
    stops = [
        (_FURTHEST if step > 0 else -_FURTHEST) if one is None else one for one, step in zip(ends, steps, strict=True)
    ]
    axes = integers(range(len(begins)))
    return [call.add("Slice", [call.value(), integers(starts), integers(stops), axes, integers(steps)])]


def slice_axis(call: Call) -> list[Item]:
    """slice_axis from `begin` to `end`."""
    attributes = call.attributes
    stop = attributes.integer("end") if attributes.has("end") else _FURTHEST
    bounds = [integers([number]) for number in (attributes.integer("begin"), stop, attributes.integer("axis"))]
    return [call.add("Slice", [call.value(), *bounds])]


def slice_like(call: Call) -> list[Item]:
    """slice_like: the second input's lengths, along some axes or all."""
    axes = call.attributes.sizes("axes", ()) or tuple(range(call.rank(1)))
    if any(axis < 0 for axis in axes):
        axes = tuple(axis % call.rank(1) for axis in axes)
    stops = call.add("Gather", [call.add("Shape", [call.value(1)]), integers(axes)])
    return [call.add("Slice", [call.value(0), integers([0] * len(axes)), stops, integers(axes)])]


def crop(call: Call) -> list[Item]:
    """Crop height and width, to given lengths or those of a second input, at an offset or in the middle."""
    attributes = call.attributes
    lengths: Sequence[int | None] = attributes.sizes("h_w", (0, 0))
    if len(call.items) > 1:
        lengths = call.sizes(1)[2:]
    if None in lengths or len(lengths) != 2:
        raise call.refusal(f"needs known lengths to crop to, got {tuple(lengths)}; give example inputs")
    wanted = [length or 0 for length in lengths]
    offset: Sequence[int] = attributes.sizes("offset", (0, 0))
    if attributes.boolean("center_crop", default=False):
        sizes = call.sizes()[2:]
        if None in sizes:
            raise call.refusal("a crop in the middle needs a known input size; give example inputs")
        offset = [((size or 0) - length) // 2 for size, length in zip(sizes, wanted, strict=True)]
    stops = [first + length for first, length in zip(offset, wanted, strict=True)]
    return [call.add("Slice", [call.value(0), integers(offset), integers(stops), integers([2, 3])])]


def reverse(call: Call) -> list[Item]:
    """Reverse along axes."""
    axes = call.attributes.sizes("axis")
    ones = [-1] * len(axes)
    stops = integers([-_FURTHEST] * len(axes))
    return [call.add("Slice", [call.value(), integers(ones), stops, integers(axes), integers(ones)])]


def embedding(call: Call) -> list[Item]:
    """Embedding: rows of a table; the numbers of rows may be real numbers."""
    rows = call.cast(call.value(0), ir.DataType.INT64)
    return [call.add("Gather", [call.value(1), rows], axis=0)]


def take(call: Call) -> list[Item]:
    """Take entries along an axis; indices out of range are clipped or wrapped around."""
    data, mode = call.value(0), call.attributes.text("mode", "clip")
    axis = call.attributes.integer("axis", 0)
    rows = call.cast(call.value(1), ir.DataType.INT64)
    if mode == "wrap":
        count = call.sizes()[axis]
        if count is None:
            raise call.refusal("indices that wrap around need an axis of known length; give example inputs")
        rows = call.add("Mod", [rows, integers([count]).reshape(())])
    elif mode == "clip":
        shape = call.add("Shape", [data])
        last = call.add("Sub", [call.add("Gather", [shape, integers([axis]).reshape(())]), integers([1]).reshape(())])
        rows = call.add("Max", [call.add("Min", [rows, last]), integers([0]).reshape(())])
    return [call.add("Gather", [data, rows], axis=axis)]


def one_hot(call: Call) -> list[Item]:
    """one_hot of a depth."""
    attributes = call.attributes
    numbers = [attributes.number("off_value", 0.0), attributes.number("on_value", 1.0)]
    rows = call.cast(call.value(), ir.DataType.INT64)
    depth = integers([attributes.integer("depth")]).reshape(())
    return [call.add("OneHot", [rows, depth, np.array(numbers, dtype=np.float32)], axis=-1)]


def where(call: Call) -> list[Item]:
    """Where the condition is not zero, the first, else the second."""
    return [call.add("Where", [call.cast(call.value(0), ir.DataType.BOOL), call.value(1), call.value(2)])]


# --- filling ---


def pad(call: Call) -> list[Item]:
    """Pad with a constant, the edge, or a reflection."""
    attributes = call.attributes
    mode = attributes.text("mode", "constant")
    widths = attributes.sizes("pad_width")
    if mode not in ("constant", "edge", "reflect") or len(widths) % 2:
        raise call.refusal(f"expected a mode of constant, edge or reflect and pairs of widths, got {mode}, {widths}")
    data = call.value()
    pads = integers([*widths[::2], *widths[1::2]])
    filling = [call.scalar(attributes.number("constant_value", 0.0), data)] if mode == "constant" else []
    return [call.add("Pad", [data, pads, *filling], mode=mode)]


def tile(call: Call) -> list[Item]:
    """Tile; axes that are missing on either side count as 1."""
    times, data = call.attributes.sizes("reps"), call.value()
    missing = len(times) - call.rank()
    if missing > 0:
        data = call.add("Unsqueeze", [data, integers(range(missing))])
    return [call.add("Tile", [data, integers((*(1,) * -missing, *times))])]


def repeat(call: Call) -> list[Item]:
    """Repeat each entry along an axis."""
    attributes = call.attributes
    if not attributes.has("axis"):
        raise call.refusal("expected an axis; without one the input is flattened, which is not supported")
    count, rank = attributes.integer("repeats"), call.rank()
    axis = attributes.integer("axis") % rank
    # [.., n, ..] to [.., n, 1, ..] to [.., n, count, ..] to [.., n * count, ..]
    apart = call.add("Unsqueeze", [call.value(), integers([axis + 1])])
    repeated = call.add("Tile", [apart, integers([count if place == axis + 1 else 1 for place in range(rank + 1)])])
    factors = integers([count if place == axis else 1 for place in range(rank)])
    return [call.add("Reshape", [repeated, call.add("Mul", [call.add("Shape", [call.value()]), factors])])]


def broadcast_to(call: Call) -> list[Item]:
    """broadcast_to a shape, whose zeros keep what is there."""
    shape = [size or 1 for size in call.attributes.sizes("shape")]
    return [call.add("Expand", [call.value(), integers(shape)])]


def broadcast_axis(call: Call) -> list[Item]:
    """broadcast_axis: axes of length 1 to given lengths."""
    axes, lengths, rank = call.attributes.sizes("axis", ()), call.attributes.sizes("size", ()), call.rank()
    shape = [1] * rank
    for axis, length in zip(axes, lengths, strict=False):
        shape[axis % rank] = length
    return [call.add("Expand", [call.value(), integers(shape)])]


def broadcast_like(call: Call) -> list[Item]:
    """broadcast_like, of the whole shape."""
    if call.attributes.has("lhs_axes") or call.attributes.has("rhs_axes"):
        raise call.refusal("broadcast_like of some axes is not supported")
    return [call.add("Expand", [call.value(0), call.add("Shape", [call.value(1)])])]


def filled(number: float) -> Rule:
    """Make the rule of _zeros and _ones; an axis of unknown length counts as 1 and is broadcast."""

    def rule(call: Call) -> list[Item]:
        shape = [size if size > 0 else 1 for size in call.attributes.sizes("shape", ())]
        if math.prod(shape) > _MOST_ELEMENTS:
            raise call.refusal(f"a constant of shape {tuple(shape)} is larger than expected; the file is damaged")
        value = call.builder.constant(call.node.name, np.full(shape, number, dtype=np.float32))
        return [value]

    return rule


def arange(call: Call) -> list[Item]:
    """_arange: start, start + step, ..., each several times."""
    attributes = call.attributes
    start, step = attributes.number("start", 0.0), attributes.number("step", 1.0)
    if not attributes.has("stop"):
        start, stop = 0.0, start
    else:
        stop = attributes.number("stop")
    times = attributes.integer("repeat", 1)
    if step == 0 or times < 1 or not abs((stop - start) / step) * times <= _MOST_ELEMENTS:
        raise call.refusal(f"a range from {start} to {stop} in steps of {step}, {times} times, is none to be expected")
    numbers = np.repeat(np.arange(start, stop, step, dtype=np.float32), times)
    return [call.builder.constant(call.node.name, numbers)]


# --- types, products ---

_KINDS = {
    "float16": ir.DataType.FLOAT16, "float32": ir.DataType.FLOAT, "float64": ir.DataType.DOUBLE,
    "int8": ir.DataType.INT8, "uint8": ir.DataType.UINT8, "int32": ir.DataType.INT32, "int64": ir.DataType.INT64,
    "bool": ir.DataType.BOOL,
}  # fmt: skip


def cast(call: Call) -> list[Item]:
    """Cast."""
    name = call.attributes.text("dtype", "")
    if name not in _KINDS:
        raise call.attributes.wrong("dtype", f"one of {', '.join(_KINDS)}")
    return [call.cast(call.value(), _KINDS[name])]


def shape_array(call: Call) -> list[Item]:
    """shape_array: the lengths of the axes."""
    return [call.add("Shape", [call.value()])]


def dot(call: Call) -> list[Item]:
    """Dot: the last axis of the first with the first axis of the second, which must be a matrix."""
    left, right = call.value(0), call.value(1)
    if call.rank(1) != 2:
        raise call.refusal(f"expected a matrix as the second factor, got {call.rank(1)} axes")
    if call.attributes.boolean("transpose_a", default=False):
        left = call.add("Transpose", [left], perm=list(range(call.rank(0)))[::-1])
    if call.attributes.boolean("transpose_b", default=False):
        right = call.add("Transpose", [right], perm=[1, 0])
    return [call.add("MatMul", [left, right])]


def batch_dot(call: Call) -> list[Item]:
    """batch_dot of stacks of matrices."""
    factors = call.values()[:2]
    for number, name in enumerate(("transpose_a", "transpose_b")):
        if call.attributes.boolean(name, default=False):
            order = list(range(call.rank(number)))
            factors[number] = call.add("Transpose", [factors[number]], perm=[*order[:-2], order[-1], order[-2]])
    return [call.add("MatMul", factors)]


def depth_to_space(call: Call) -> list[Item]:
    """depth_to_space."""
    return [call.add("DepthToSpace", [call.value()], blocksize=call.attributes.integer("block_size"), mode="DCR")]


def space_to_depth(call: Call) -> list[Item]:
    """space_to_depth."""
    return [call.add("SpaceToDepth", [call.value()], blocksize=call.attributes.integer("block_size"))]


def divide_by_root(call: Call) -> list[Item]:
    """div_sqrt_dim: x / sqrt(length of the last axis)."""
    data = call.value()
    sizes = sizes_of(data)
    if sizes is None or sizes[-1] is None:
        raise call.refusal("needs a last axis of known length; give example inputs")
    return [call.add("Div", [data, call.scalar(math.sqrt(sizes[-1]), data)])]


RULES: Mapping[str, Rule] = {
    "identity": identity,
    "_copy": identity,
    "_copyto": identity,
    "BlockGrad": identity,
    "stop_gradient": identity,
    "make_loss": identity,
    "MakeLoss": identity,
    "IdentityAttachKLSparseReg": identity,
    "_identity_with_attr_like_rhs": identity,
    "Flatten": flatten,
    "flatten": flatten,
    "Reshape": reshape,
    "reshape": reshape,
    "reshape_like": reshape_like,
    "transpose": transpose,
    "SwapAxis": swap_axes,
    "swapaxes": swap_axes,
    "expand_dims": expand_dims,
    "squeeze": squeeze,
    "Concat": concat(1),
    "concat": concat(1),
    "_rnn_param_concat": concat(1),
    "stack": stack,
    "SliceChannel": slice_channel,
    "split": slice_channel,
    "slice": slice_values,
    "crop": slice_values,
    "slice_axis": slice_axis,
    "slice_like": slice_like,
    "Crop": crop,
    "reverse": reverse,
    "flip": reverse,
    "Embedding": embedding,
    "take": take,
    "one_hot": one_hot,
    "where": where,
    "Pad": pad,
    "pad": pad,
    "tile": tile,
    "repeat": repeat,
    "broadcast_to": broadcast_to,
    "broadcast_axis": broadcast_axis,
    "broadcast_axes": broadcast_axis,
    "broadcast_like": broadcast_like,
    "_zeros": filled(0),
    "_ones": filled(1),
    "_arange": arange,
    "Cast": cast,
    "cast": cast,
    "shape_array": shape_array,
    "dot": dot,
    "batch_dot": batch_dot,
    "depth_to_space": depth_to_space,
    "space_to_depth": space_to_depth,
    "_contrib_div_sqrt_dim": divide_by_root,
}
