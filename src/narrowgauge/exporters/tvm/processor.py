"""The processor that a library is compiled for, and its instruction for products of 8-bit integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from narrowgauge.runtimes import tvm as runtime

Instruction = Literal["vpdpbusd", "pmaddwd", "multiply"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Product:
    """How products are added up: `accumulator[lane] += sum over d of levels[d] * weights[lane, d]`, exact in int32.

    Attributes:
        instruction: `vpdpbusd` of AVX-VNNI and AVX512-VNNI multiplies uint8 by int8 and adds four products without
            saturation between; `pmaddwd` of AVX2 adds two products of int16; `multiply` is left to LLVM.
        lanes: accumulators of one vector.
        depth: products that each accumulator takes at a time.
        registers: vectors that the processor holds.
    """

    instruction: Instruction
    lanes: int
    depth: int
    registers: int

    def add(self, accumulator: Any, levels: Any, position: Any, weights: Any) -> Any:
        """Return the expression of an accumulator after one step.

        Args:
            accumulator: vector of `lanes` int32.
            levels: buffer of uint8.
            position: of the first of `depth` levels in it.
            weights: vector of `lanes * depth` int8, the depth innermost.
        """
        from tvm.target.codegen import llvm_lookup_intrinsic_id
        from tvm.tirx.script.builder import ir as T  # noqa: N812 - as TVM's own scripts call it

        lanes = self.lanes
        if self.instruction == "vpdpbusd":
            four = T.reinterpret("int32", levels.vload([position], "uint8x4"))
            spread = T.reinterpret(f"uint8x{4 * lanes}", T.broadcast(four, lanes))
            dot = llvm_lookup_intrinsic_id(f"llvm.x86.avx512.vpdpbusd.{32 * lanes}")
            return T.call_llvm_pure_intrin(f"int32x{lanes}", dot, accumulator, spread, weights)
        if self.instruction == "pmaddwd":
            two = T.reinterpret("int32", T.Cast("int16x2", levels.vload([position], "uint8x2")))
            spread = T.reinterpret(f"int16x{2 * lanes}", T.broadcast(two, lanes))
            dot = llvm_lookup_intrinsic_id("llvm.x86.avx2.pmadd.wd")
            return accumulator + T.call_llvm_pure_intrin(
                f"int32x{lanes}", dot, spread, T.Cast(f"int16x{2 * lanes}", weights)
            )
        one = T.broadcast(T.Cast("int32", levels[position]), lanes)
        return accumulator + one * T.Cast(f"int32x{lanes}", weights)


VNNI_512 = Product(instruction="vpdpbusd", lanes=16, depth=4, registers=32)
VNNI_256 = Product(instruction="vpdpbusd", lanes=8, depth=4, registers=16)
AVX2 = Product(instruction="pmaddwd", lanes=8, depth=2, registers=16)
ANY = Product(instruction="multiply", lanes=16, depth=1, registers=16)

_FEATURES: tuple[tuple[str, Product], ...] = (
    ("avx512vnni", VNNI_512),
    ("avxvnni", VNNI_256),
    ("avx2", AVX2),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Processor:
    """What a library is compiled for.

    Attributes:
        target: of TVM.
        name: as LLVM calls it.
        features: what LLVM may use of it; another processor that lacks one cannot run the library.
        product: its instruction.
        fuses: whether it multiplies and adds float32 with one rounding.
    """

    target: Any
    name: str
    features: Sequence[str]
    product: Product
    fuses: bool


def this_processor() -> Processor:
    """Look at the processor that this runs on."""
    import tvm

    name, features = runtime.this_processor()
    target = tvm.target.Target({"kind": "llvm", "mcpu": name})
    product = next((product for feature, product in _FEATURES if feature in features), ANY)
    fuses = not {"fma", "neon"}.isdisjoint(features)
    return Processor(target=target, name=name, features=tuple(sorted(features)), product=product, fuses=fuses)
