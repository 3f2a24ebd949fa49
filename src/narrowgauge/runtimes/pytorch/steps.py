"""A Q/DQ network as steps: PyTorch's kernels, its roundings, and what ONNX Runtime computes in float between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from narrowgauge.graph.edits import is_operator
from narrowgauge.graph.engine import open_session, run_session
from narrowgauge.graph.pieces import piece
from narrowgauge.runtimes.program import Array
from narrowgauge.runtimes.pytorch.kernels import Engine, quantized
from narrowgauge.runtimes.pytorch.matching import Matched, matches, needed
from narrowgauge.runtimes.pytorch.pairs import Levels, Rounding, levels_of

Values = dict[str, Any]
"""What a run has computed: name of a value -> quantized tensor of levels, else an array."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A part of a run.

    Attributes:
        reads: names of the values that it takes.
        run: takes them from the values and puts there what it computes.
        levels: the value whose levels it writes; "" for none.
    """

    reads: frozenset[str]
    run: Callable[[Values], None]
    levels: str = ""


def steps_of(network: ir.Model, engine: Engine, threads: int) -> tuple[list[Step], list[str]]:
    """Part a network into steps.

    Args:
        network: of Q/DQ pairs.
        engine: of PyTorch, which is the one in use.
        threads: of one operator of ONNX Runtime.

    Returns:
        The steps in their order, and notes on what stays float.

    Raises:
        RuntimeFailure: ONNX Runtime refuses what stays float.
    """
    matched, notes = matches(network, engine)
    wanted = needed(network, matched)
    steps: list[Step] = []
    waiting: list[ir.Node] = []  # float operators that no step has needed yet
    for node in network.graph:
        if node not in matched and node not in wanted:
            continue
        made = _kernel_step(matched[node]) if node in matched else _rounding_step(node)
        if made is None:
            waiting.append(node)
            continue
        if any(str(value.name) in made.reads for one in waiting for value in one.outputs):
            steps.append(_float_step(network, waiting, threads))
            waiting = []
        steps.append(made)
    if waiting:
        steps.append(_float_step(network, waiting, threads))
    return steps, notes


def _kernel_step(matched: Matched) -> Step:
    kernel, output = matched.kernel, matched.rounding.levels
    constants = {one.name: quantized(one.constant, one) for one in kernel.sources if one.constant is not None}

    def run(values: Values) -> None:
        tensors = [
            constants[levels.name] if levels.name in constants else _tensor(values[levels.name], levels)
            for levels in kernel.sources
        ]
        values[output.name] = _clamped(kernel.run(*tensors), matched.rounding)

    reads = frozenset(levels.name for levels in kernel.sources if levels.constant is None)
    return Step(reads=reads, run=run, levels=output.name)


def _clamped(tensor: Any, rounding: Rounding) -> Any:
    """Cut levels where the bounds of a fused Relu or Clip lie inside the type."""
    import torch

    output, (low, high) = rounding.levels, rounding.bounds
    least, greatest = ((end - int(output.zero_point)) * float(output.scale) for end in (0, 255))
    if low <= least and high >= greatest:
        return tensor
    if torch.backends.quantized.engine == "qnnpack":
        tensor = tensor.contiguous()  # QNNPACK's clamp mixes up channels that lie next to each other (2.13)
    return torch.clamp(tensor, max(low, least), min(high, greatest))


def _rounding_step(node: ir.Node) -> Step | None:
    """Let PyTorch quantize or dequantize with one scale; None for another node, or other levels."""
    levels = levels_of(node) if is_operator(node, "QuantizeLinear", "DequantizeLinear") else None
    if levels is None or levels.axis is not None or levels.zero_point.dtype not in (np.uint8, np.int8):
        return None
    source, result = node.inputs[0], str(node.outputs[0].name)
    if source is None or source.is_initializer():
        return None
    import torch

    given = str(source.name)
    if is_operator(node, "DequantizeLinear"):

        def dequantize(values: Values) -> None:
            values[result] = _tensor(values[given], levels).dequantize().contiguous().numpy()

        return Step(reads=frozenset({given}), run=dequantize)
    kind = torch.quint8 if levels.zero_point.dtype == np.uint8 else torch.qint8

    def quantize(values: Values) -> None:
        real = torch.from_numpy(np.array(values[given], np.float32, order="C"))
        values[result] = torch.quantize_per_tensor(real, float(levels.scale), int(levels.zero_point), kind)

    return Step(reads=frozenset({given}), run=quantize, levels=result)


def _float_step(network: ir.Model, nodes: Sequence[ir.Node], threads: int) -> Step:
    """Let ONNX Runtime compute some nodes."""
    held = set(nodes)
    outputs = [
        str(value.name)
        for node in nodes
        for value in node.outputs
        if value.is_graph_output() or any(use.node not in held for use in value.uses())
    ]
    part = piece(network, nodes, outputs)
    session = open_session(part, threads=threads, simulate=True, arena=False)
    names = [str(value.name) for value in part.graph.inputs]

    def run(values: Values) -> None:
        feed = {name: array_of(values[name]) for name in names}
        values.update(run_session(session, outputs, feed, what="a part of the network that stays float"))

    return Step(reads=frozenset(names), run=run)


def _tensor(value: Any, levels: Levels) -> Any:
    return quantized(value, levels) if isinstance(value, np.ndarray) else value


def array_of(value: Any) -> Array:
    """Return a value as an array: the levels of a quantized tensor."""
    return value if isinstance(value, np.ndarray) else np.array(value.int_repr().contiguous().numpy())
