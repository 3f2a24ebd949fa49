"""One use of an operator: what a row of the table is given, and how it reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.errors import TargetError

_WIDER = {"int4": np.int8, "uint4": np.uint8}
"""Types that torch stores in wider ones."""

Known = npt.NDArray[Any]
"""Numbers that are known while the module is traced: int64, or Python objects where some are symbolic sizes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One node and the values of its inputs.

    Attributes:
        torch: the package, which only functions import.
        node: the ONNX node.
        inputs: torch.Tensor or `Known` each; None for one that is left out.
        constants: `inputs` of the network's own numbers, as numpy arrays; None for values that a node writes.
    """

    torch: Any
    node: ir.Node
    inputs: Sequence[Any]
    constants: Sequence[Known | None]

    def has(self, number: int) -> bool:
        """Whether the input is there."""
        return number < len(self.inputs) and self.inputs[number] is not None

    def tensor(self, number: int = 0) -> Any:
        """Return an input as a torch.Tensor."""
        return as_tensor(self.torch, self.inputs[number])

    def tensors(self) -> list[Any]:
        """Return all inputs as torch.Tensors."""
        return [as_tensor(self.torch, value) for value in self.inputs]

    def optional(self, number: int) -> Any:
        """Return an input as a torch.Tensor, or None where it is left out."""
        return self.tensor(number) if self.has(number) else None

    def known(self, number: int) -> Known:
        """Return an input whose numbers must be known before the network runs: a shape, axes, bounds.

        Raises:
            TargetError: they are computed from the network's inputs.
        """
        constant = self.constants[number]
        if constant is not None:
            return constant
        if isinstance(self.inputs[number], np.ndarray):
            return np.asarray(self.inputs[number])
        raise self.refusal(f"input {number + 1} to be a constant or a shape, it is computed from the network's inputs")

    def integers(self, number: int, attribute: str = "") -> list[Any] | None:
        """Return integers (or symbolic sizes) of an input, or of an attribute of older form; None where left out."""
        if self.has(number):
            return [whole(item) for item in self.known(number).reshape(-1).tolist()]
        held = self.node.attributes.get_ints(attribute) if attribute else None
        return None if held is None else list(held)

    def integer(self, name: str, default: int) -> int:
        """Return an attribute."""
        return self.node.attributes.get_int(name, default)

    def number(self, name: str, default: float) -> float:
        """Return an attribute."""
        return self.node.attributes.get_float(name, default)

    def text(self, name: str, default: str) -> str:
        """Return an attribute."""
        return self.node.attributes.get_string(name, default)

    def sizes(self, name: str) -> list[int] | None:
        """Return an attribute that is a list of integers; None where it is left out."""
        held = self.node.attributes.get_ints(name)
        return None if held is None else list(held)

    def refusal(self, expected: str) -> TargetError:
        """Say what cannot be written, naming the node."""
        return TargetError(f"node {self.node.name!r} ({self.node.op_type}): a PyTorch module needs {expected}")


def as_tensor(torch: Any, value: Any) -> Any:
    """Return a value as a torch.Tensor; one that holds symbolic sizes is stacked of them."""
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.name in _WIDER:
        value = value.astype(_WIDER[value.dtype.name])
    if value.dtype.name == "bfloat16":
        return torch.from_numpy(np.array(value).view(np.int16)).view(torch.bfloat16)
    if value.dtype != object:
        tensor = torch.from_numpy(np.array(value))
        # PyTorch 2.13 cannot store a tensor without elements, so the program makes it.
        return tensor if value.size else torch.zeros(value.shape, dtype=tensor.dtype)
    flat = [torch.scalar_tensor(item, dtype=torch.int64) for item in value.reshape(-1).tolist()]
    return torch.stack(flat).reshape(value.shape) if value.ndim else flat[0]


def whole(item: Any) -> Any:
    """Return a plain integer where a number is one; a symbolic size as it is."""
    return int(item) if isinstance(item, int | float | np.integer | np.bool_) else item
