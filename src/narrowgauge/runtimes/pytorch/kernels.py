"""What a kernel of PyTorch is to the network: which levels it reads and how it is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.runtimes.pytorch.pairs import Levels, levels_before

Engine = Literal["fbgemm", "qnnpack", "onednn", "x86"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """An operator between levels.

    Attributes:
        node: the operator.
        engine: of PyTorch.
        output: the levels that are written.
        bias: what an Add of a constant behind a matrix product adds, real; None for none.
    """

    node: ir.Node
    engine: Engine
    output: Levels
    bias: npt.NDArray[np.float32] | None = None

    @property
    def target(self) -> tuple[float, int]:
        """Scale and zero point of the output, as PyTorch takes them."""
        return float(self.output.scale), int(self.output.zero_point)

    def source(self, number: int) -> Levels | None:
        """Return the levels behind an input, None where there are none."""
        return levels_before(self.node.inputs[number]) if number < len(self.node.inputs) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """A kernel that computes an operator.

    Attributes:
        sources: the levels that it reads.
        run: their quantized tensors to the quantized tensor of the output.
        note: what its numbers depend on; "" for nothing.
    """

    sources: tuple[Levels, ...]
    run: Callable[..., Any]
    note: str = ""


Build = Callable[[Call], Kernel | str]
"""How a row of a table of operators makes a kernel; a text is the reason why PyTorch has none."""

NOT_UNSIGNED = "PyTorch's kernels take levels of uint8 with one scale"


def quantized(array: npt.NDArray[np.integer], levels: Levels) -> Any:
    """Make PyTorch's quantized tensor of some levels."""
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if levels.axis is None:
        return torch._make_per_tensor_quantized_tensor(tensor, float(levels.scale), int(levels.zero_point))
    return torch._make_per_channel_quantized_tensor(
        tensor,
        torch.from_numpy(levels.scale.astype(np.float64)),
        torch.from_numpy(levels.zero_point.astype(np.int64)),
        levels.axis % tensor.dim(),
    )


def relabelled(tensor: Any, levels: Any) -> Any:
    """Give a quantized tensor other levels, in its own scale and zero point."""
    import torch

    return torch._make_per_tensor_quantized_tensor(levels, tensor.q_scale(), tensor.q_zero_point())
