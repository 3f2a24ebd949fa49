"""A module of TVM in the making: its values, in ONNX's layout and in ours, and its kernels."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from narrowgauge.errors import TargetError
from narrowgauge.exporters.tvm import conversion
from narrowgauge.exporters.tvm.image import Image, Operand, whole
from narrowgauge.exporters.tvm.processor import Processor
from narrowgauge.exporters.tvm.reading import NO_HALO, Array, Encoded, Halo, halo_of
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.edits import is_operator, sole_consumer
from narrowgauge.graph.shapes import static_shape

_OPERATOR = re.compile(r'ir\.Op\(.*?name="([\w.]+)".*?support_level=\d+\)')
"""How TVM's messages write one of its operators."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Levels:
    """A tensor of levels in our layout.

    Attributes:
        variable: of TVM, one axis of uint8.
        operand: layout, scale and zero point.
        signed: whether ONNX's levels are int8.
        shape: of the tensor in ONNX.
        last: whether its channels are the last axis of that shape; else the second.
    """

    variable: Any
    operand: Operand
    signed: bool
    shape: tuple[int, ...]
    last: bool

    @property
    def image(self) -> Image:
        """Layout."""
        return self.operand.image


@dataclass(kw_only=True, slots=True)
class Builder:
    """A module, its values and its kernels.

    Attributes:
        processor: that it is for.
        importer: of TVM, for ONNX; its `_nodes` hold the values that are in ONNX's layout, by name.
        levels: those that are in ours; a value may be in both.
        done: names of nodes that belong to one before them.
        functions: kernels, by what they were built from.
    """

    processor: Processor
    importer: Any
    levels: dict[str, Levels] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    functions: dict[Hashable, Any] = field(default_factory=dict)

    def import_node(self, node: ir.Node) -> None:
        """Let TVM's importer add a node: it computes in ONNX's layout."""
        for value in [*node.inputs, *_captured(node)]:
            if value is not None:
                self.importer._nodes[str(value.name)] = self.plain(value)
        try:
            self.importer._construct_nodes(onnx.GraphProto(node=[ir.to_proto(node)]))
        except Exception as error:  # whatever its converters raise
            reason = _OPERATOR.sub(r"\1", " ".join(str(error).split()))[:300]
            raise TargetError(
                f"TVM could not import {node.op_type} (node {node.name!r}): {reason or type(error).__name__}; keep it "
                "out of the network, or take another target"
            ) from None

    # --- values ---

    def plain(self, value: ir.Value) -> Any:
        """Return a value in ONNX's layout and type."""
        from tvm import relax

        name = str(value.name)
        if name in self.importer._nodes:
            return self.importer._nodes[name]
        if name in self.levels:
            found = self.levels[name]
            kind = "int8" if found.signed else "uint8"
            made = self.taken_out(found, kind, functools.partial(conversion.move_out_kernel, signed=found.signed), kind)
        else:
            array = constant_array(value)
            assert array is not None, name
            made = relax.const(array)
        self.importer._nodes[name] = made
        return made

    def taken_out(self, found: Levels, key: Hashable, build: Callable[..., Any], kind: str) -> Any:
        """Bring levels (or real numbers in our layout) into ONNX's.

        Args:
            found: them.
            key: of the kernel, beside the layout.
            build: builds it, from an image and whether its rows are a matrix's.
            kind: type of what it writes.
        """
        image, rows = found.image, found.last
        shape = (image.width, image.channels) if rows else (image.batch, image.channels, image.height, image.width)
        made = self.call((key, image, rows), lambda: build(image, rows=rows), [found.variable], shape, kind)
        return self.reshaped(made, shape, found.shape)

    def reshaped(self, variable: Any, shape: Sequence[int], wanted: Sequence[int]) -> Any:
        """Give a tensor another shape where it has not that one."""
        from tvm import relax

        if tuple(shape) == tuple(wanted):
            return variable
        return self.importer.bb.emit(relax.op.reshape(variable, tuple(wanted)))

    def call(
        self, key: Hashable, build: Callable[[], Any], arguments: Sequence[Any], shape: Sequence[int] | int, kind: str
    ) -> Any:
        """Call a kernel, built once for each key."""
        from tvm import relax

        block = self.importer.bb
        if key not in self.functions:
            function = build()
            name = f"narrowgauge_{function.attrs['global_symbol']}_{len(self.functions)}"
            self.functions[key] = block.add_func(function.with_attr("global_symbol", name), name)
        extents = (shape,) if isinstance(shape, int) else tuple(shape)
        result = relax.TensorType(extents, kind)
        return block.emit(relax.call_tir(self.functions[key], relax.Tuple(list(arguments)), result))

    def constant(self, array: Array) -> Any:
        """Add a constant to the module."""
        from tvm import relax

        return relax.const(np.ascontiguousarray(array))

    # --- levels ---

    def read(self, value: ir.Value, encoded: Encoded, *, last: bool, halo: Halo = NO_HALO, depth: int = 0) -> Levels:
        """Return a value's levels in our layout.

        Args:
            value: of levels.
            encoded: what its reader takes its levels for.
            last: whether channels are to be the last axis.
            halo: pixels around it that must be there.
            depth: channels in memory, 0 for any number.
        """
        name = str(value.name)
        found = self.levels.get(name)
        if found is not None and (found.last == last or len(found.shape) == 2):
            image = found.image
            fits = all(have >= need for have, need in zip(image.halo, halo, strict=True))
            fits = fits and (not any(halo) or found.operand.zero_point == encoded.zero_point)
            if fits and depth in (0, image.depth):
                return replace(found, operand=encoded.operand(image))
        shape = static_shape(value)
        assert shape is not None
        image = replace(whole(shape, last=last), halo=halo)
        image = replace(image, depth=depth or image.depth)
        plain = self.reshaped(self.plain(value), shape, flat_shape(image, last=last))
        build = conversion.move_rows_in_kernel if last else conversion.move_in_kernel
        variable = self.call(
            ("move_in", image, encoded.signed, encoded.zero_point, last),
            lambda: build(image, signed=encoded.signed, zero_point=encoded.zero_point), [plain], image.size, "uint8",
        )  # fmt: skip
        operand = encoded.operand(image)
        return Levels(variable=variable, operand=operand, signed=encoded.signed, shape=shape, last=last)

    def write(self, value: ir.Value, variable: Any, operand: Operand, *, signed: bool, last: bool) -> None:
        """Keep what a kernel gave as the levels of a value."""
        shape = static_shape(value)
        assert shape is not None
        self.levels[str(value.name)] = Levels(variable=variable, operand=operand, signed=signed, shape=shape, last=last)

    def written(self, node: ir.Node, signed: bool) -> tuple[ir.Value, int, int]:
        """Return what a node's kernel writes, and the lowest and highest level: those of the Clip behind it."""
        output = node.outputs[0]
        clip = sole_consumer(output)
        if clip is None or not is_operator(clip, "Clip") or clip.inputs[0] is not output:
            return output, 0, 255
        offset = 128 if signed else 0
        bounds = [constant_array(value) if value is not None else None for value in clip.inputs[1:3]]
        if any(value is not None and bound is None for value, bound in zip(clip.inputs[1:3], bounds, strict=True)):
            return output, 0, 255
        self.done.add(str(clip.name))
        bounds += [None] * (2 - len(bounds))
        low = 0 if bounds[0] is None else int(bounds[0]) + offset
        high = 255 if bounds[1] is None else int(bounds[1]) + offset
        return clip.outputs[0], low, high

    def halo(self, value: ir.Value) -> Halo:
        """Return the room around a value that all kernels which read it need."""
        needs = [halo_of(use.node, use.idx) for use in value.uses()]
        return tuple(max(sides) for sides in zip(NO_HALO, *needs, strict=True))


def as_rows(levels: Levels) -> Levels:
    """See an image of single pixels, `[samples, channels]`, as a matrix: it lies in memory alike."""
    image = levels.image
    if levels.last:
        return levels
    assert image.height == image.width == 1
    assert not any(image.halo)
    rows = replace(image, batch=1, width=image.batch)
    return replace(levels, operand=replace(levels.operand, image=rows), last=True)


def flat_shape(image: Image, *, last: bool) -> tuple[int, ...]:
    """Shape of a tensor as the kernels that convert it take it."""
    if last:
        return image.width, image.channels
    return image.batch, image.channels, image.height, image.width


def _captured(node: ir.Node) -> Iterable[ir.Value]:
    """Values that the bodies of a node read from outside."""
    graphs = [
        attribute.as_graph() for attribute in node.attributes.values() if attribute.type == ir.AttributeType.GRAPH
    ]
    for graph in graphs:
        own = {*graph.inputs, *graph.initializers.values(), *(value for one in graph for value in one.outputs)}
        read = [value for one in graph for value in (*one.inputs, *_captured(one))]
        yield from (value for value in (*read, *graph.outputs) if value is not None and value not in own)
