"""Real numbers that stand for a quantized tensor: they carry how they were rounded.

The mark is an attribute of the tensor object, which PyTorch hands from function to function while a module runs or is
traced, and which no operation copies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_MARK = "_narrowgauge_rounding"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rounding:
    """How a tensor was rounded.

    Attributes:
        scale: of one step.
        zero_point: level of the real 0.
        signed: whether the levels are -128 to 127 instead of 0 to 255.
    """

    scale: float
    zero_point: int
    signed: bool

    @property
    def levels(self) -> tuple[int, int]:
        """The lowest and highest level."""
        return (-128, 127) if self.signed else (0, 255)


def tensors_in(value: Any) -> list[Any]:
    """List the tensors in nested tuples, lists and dicts."""
    import torch
    from torch.utils import _pytree as pytree

    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def rounding_of(tensor: Any) -> Rounding | None:
    """Tell how a tensor was rounded; None if it stands for no quantized one."""
    found: Rounding | None = getattr(tensor, _MARK, None)
    return found


def mark(result: Any, rounding: Rounding) -> Any:
    """Mark the real numbers that a function returned as rounded."""
    for tensor in tensors_in(result):
        if tensor.is_floating_point():
            setattr(tensor, _MARK, rounding)
    return result


def round_to(real: Any, rounding: Rounding) -> Any:
    """Round a tensor, or several in a tuple, to levels and back, in PyTorch's operators for that."""
    import torch
    from torch.utils import _pytree as pytree

    known = torch.ops.quantized_decomposed
    parameters = (
        rounding.scale, rounding.zero_point, *rounding.levels, torch.int8 if rounding.signed else torch.uint8
    )  # fmt: skip

    def rounded(tensor: Any) -> Any:
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            return tensor
        return known.dequantize_per_tensor(known.quantize_per_tensor(tensor, *parameters), *parameters)

    return mark(pytree.tree_map(rounded, real), rounding)


def round_dynamically(real: Any) -> Any:
    """Round to 8 bits by the range that the tensor has."""
    import torch

    known = torch.ops.quantized_decomposed
    levels = (0, 255)
    scale, zero_point = known.choose_qparams.tensor(real, *levels, torch.finfo(torch.float32).eps, torch.uint8)
    parameters = (scale, zero_point, *levels, torch.uint8)
    return known.dequantize_per_tensor.tensor(known.quantize_per_tensor.tensor(real, *parameters), *parameters)
