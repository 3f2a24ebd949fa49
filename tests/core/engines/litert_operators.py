"""Single operators run in LiteRT: the judge of the kernels' arithmetic, and scales that tell formulas apart."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.engines.kernels import storage_limits
from narrowgauge.core.granularity import PerAxis, PerTensor
from narrowgauge.core.numbers import integer_type
from tests.importers.tflite_networks import Op, T, packed

Array = np.ndarray
FAMILIES = ("rand", "tie", "near")
"""Any scales; powers of two, whose products are full of exact ties; small multiples of one random number, whose
products are ties but for what float32 rounds: only these tell the orders of operations apart."""


def encoding(scale: Any, zero_point: Any = 0, kind: str = "int8", axis: int = 0) -> Encoding:
    scale = np.asarray(scale, np.float32)
    zero_point = np.broadcast_to(np.int32(zero_point), scale.shape)
    granularity = PerAxis(axis) if scale.ndim else PerTensor()
    return Encoding(type=integer_type(kind), granularity=granularity, scale=scale, zero_point=zero_point)


@dataclass
class Draw:
    """Draws scales of one family, and levels."""

    family: str
    seed: int
    kind: str = "int8"
    rng: np.random.Generator = field(init=False)
    unit: np.float32 = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng([self.seed, FAMILIES.index(self.family)])
        self.unit = np.float32(self.rng.uniform(0.005, 0.05))

    def scale(self, shape: tuple[int, ...] = (), *, unit: float | None = None) -> Array:
        """Scales about 0.02; in the family near, multiples of the unit (by default one for all of this draw)."""
        if self.family == "rand":
            return self.rng.uniform(0.004, 0.06, shape).astype(np.float32)
        if self.family == "tie":
            return np.float32(2.0) ** -self.rng.integers(4, 8, shape)
        multiple = self.rng.integers(1, 13, shape).astype(np.float32)
        return (multiple * np.float32(self.unit if unit is None else unit)).astype(np.float32)

    def factor(self, shape: tuple[int, ...] = ()) -> Array:
        """Scales of what is multiplied by a scale of `scale`: in the family near, small multiples of a power of two."""
        return self.scale(shape, unit=2.0**-8)

    def zero_point(self) -> int:
        low, high = storage_limits(encoding(1, 0, self.kind))
        return 0 if self.kind == "int16" else int(self.rng.integers(low, high + 1))

    def encoding(self, *, product: float = 1) -> Encoding:
        return encoding(self.scale() * np.float32(product), self.zero_point(), self.kind)

    def levels(self, shape: tuple[int, ...], kind: str = "") -> Array:
        limits = np.iinfo(kind or self.kind)
        return self.rng.integers(limits.min, limits.max + 1, shape).astype(kind or self.kind)


def tensor(shape: tuple[int, ...], held: Encoding | None, data: Array | None = None, axis: int = 0) -> T:
    """A tensor of levels; None: of float32."""
    if held is None:
        return T(shape=shape, data=data)
    return T(
        shape=shape, type=held.type.storage.name.upper(), data=data, axis=axis,
        scale=np.atleast_1d(held.scale).tolist(), zero_point=np.atleast_1d(held.zero_point).tolist(),
    )  # fmt: skip


def litert(
    name: str, inputs: list[T], outputs: list[T], feeds: list[Array], *, reference: bool, version: int = 1,
    delegate: bool = True, **options: Any,
) -> list[Array]:  # fmt: skip
    """Run one operator in LiteRT; `feeds` are the arrays of the inputs that hold no data."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    tensors = [*inputs, *outputs]
    operator = Op(
        name=name, inputs=list(range(len(inputs))), outputs=list(range(len(inputs), len(tensors))), options=options,
        version=version,
    )  # fmt: skip
    fed = [number for number, one in enumerate(inputs) if one.data is None]
    content = packed(tensors, [operator], fed, operator.outputs)
    resolver = OpResolverType.BUILTIN_REF if reference else OpResolverType.AUTO
    if not reference and not delegate:
        resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)  # LiteRT tells which delegate it made
    try:
        interpreter = Interpreter(model_content=content, num_threads=1, experimental_op_resolver_type=resolver)
        interpreter.allocate_tensors()
        for number, array in zip(fed, feeds, strict=True):
            interpreter.set_tensor(number, array)
        interpreter.invoke()
        return [interpreter.get_tensor(one["index"]) for one in interpreter.get_output_details()]
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
