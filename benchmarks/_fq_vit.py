"""FQ-ViT and the methods that its table puts beside it: where they round, with what, and the network that does so.

Lin et al., "FQ-ViT: Post-Training Quantization for Fully Quantized Vision Transformer", 2022, section 4 and table 1;
code: github.com/megvii-research/FQ-ViT at 5daf591. Rounded are: the patch embedding, class token and patches together,
the position table, the residual stream, what LayerNormalization writes (of the last one the token that is read), what
linear layers write (but for what GELU reads), the logits and the shares of attention, attention times values, what GELU
writes, and the logits of the classes; weights with one scale for each output channel. Not rounded: the input (as in
their ViT-B and ViT-L), what GELU reads, biases.

Differs from that code: numbers halfway between two levels go to the even one before the zero point is added, not
behind it; and the last calibrating batch runs in float as the others do, where theirs already takes Log-Int-Softmax.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir
import onnxruntime
from _fq_vit_calibration import (
    INT8,
    Array,
    Method,
    Observed,
    Part,
    averaged,
    extremes,
    joined_batches,
    least_error,
    part_of,
    power_of_two,
    power_of_two_zero_points,
    quantiles,
    shrunk,
    squared_errors,
)
from _fq_vit_functions import use_integer_layer_norm, use_log_int_softmax

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import PerAxis
from narrowgauge.core.plan import Plan
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.edits import is_operator, remove_unused, sole_consumer
from narrowgauge.graph.engine import open_session, run_session
from narrowgauge.graph.exposing import returning
from narrowgauge.graph.roles import bias_addition, is_constant, is_float, output_axis, weight_inputs
from narrowgauge.graph.shapes import infer_shapes
from narrowgauge.importers.opening import load
from narrowgauge.lowering.qdq import QdqStyle, lower_to_qdq
from narrowgauge.passes import SIMPLIFICATIONS
from narrowgauge.passes.select_early import select_early

Kind = Literal["stream", "shares", "other"]

BATCHES = 4
"""Theirs are ten of 100 images."""

CHUNK = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """A row of the table.

    Attributes:
        name: as the paper has it.
        attention: bits of what Softmax writes.
        activations: quantizer of all that is not said below.
        stream: quantizer of what LayerNormalization reads; with a power-of-two factor it computes in integers.
        shares: quantizer of what Softmax writes, None for Log-Int-Softmax.
    """

    name: str
    attention: int
    activations: Method
    stream: Method
    shares: Method | None

    @property
    def integer_layer_norm(self) -> bool:
        """Whether LayerNormalization computes as FQ-ViT's."""
        return self.stream in (power_of_two, power_of_two_zero_points)


def _same(name: str, method: Method) -> Variant:
    return Variant(name=name, attention=8, activations=method, stream=method, shares=method)


VARIANTS = (
    _same("MinMax", extremes),
    _same("EMA", averaged),
    _same("Percentile", quantiles),
    _same("OMSE", least_error),
    Variant(name="FQ-ViT", attention=8, activations=extremes, stream=power_of_two, shares=extremes),
    Variant(name="FQ-ViT", attention=4, activations=extremes, stream=power_of_two, shares=None),
    Variant(
        name="FQ-ViT, a zero point per channel", attention=8, activations=extremes, stream=power_of_two_zero_points,
        shares=extremes,
    ),
)  # fmt: skip


# --- where it rounds ------------------------------------------------------------------------------------------


def network_for(path: Path) -> ir.Model:
    """Open a float network as FQ-ViT's code has it: fused, but every token computed to the end, for it observes all."""
    model = load(path).model
    for run in SIMPLIFICATIONS:
        if run is not select_early:
            run(model)
    remove_unused(model)
    infer_shapes(model)
    return model


def sites(model: ir.Model) -> dict[str, Kind]:
    """Return the values that are rounded, constants among them."""
    found: dict[str, Kind] = {}
    for node in model.graph:
        for value, kind in _sites_of(node):
            found.setdefault(str(value.name), kind)
    streams = [node.inputs[0] for node in model.graph if is_operator(node, "LayerNormalization")]
    return found | {str(value.name): "stream" for value in streams if value is not None}


def _sites_of(node: ir.Node) -> Iterator[tuple[ir.Value, Kind]]:
    output = node.outputs[0]
    if is_operator(node, "LayerNormalization"):
        yield _selected(output), "other"
    elif is_operator(node, "Softmax"):
        yield output, "shares"
        if node.inputs[0] is not None:
            yield node.inputs[0], "other"
    elif is_operator(node, "Gelu") or (is_operator(node, "Concat") and is_float(output)):
        yield output, "other"
    elif is_operator(node, "Conv", "Gemm", "MatMul") and weight_inputs(node):
        addition = bias_addition(node)
        written = output if addition is None else addition.outputs[0]
        if not is_operator(sole_consumer(written), "Gelu"):
            yield written, "other"
    elif is_operator(node, "MatMul") and not is_operator(sole_consumer(output), "Softmax", "Mul", "Div", "Add"):
        yield output, "other"
    elif is_operator(node, "Add"):
        tables = [value for value in node.inputs if value is not None and is_constant(value)]
        yield from ((table, "other") for table in tables if len([size for size in table.shape or () if size != 1]) > 1)


def _selected(value: ir.Value) -> ir.Value:
    """Return the part of a value that alone is read, where a single selection reads it."""
    reader = sole_consumer(value)
    while reader is not None and is_operator(reader, "Gather", "Slice", "Squeeze"):
        value = reader.outputs[0]
        reader = sole_consumer(value)
    return value


# --- calibration ----------------------------------------------------------------------------------------------


def observe(model: ir.Model, images: Array, *, threads: int) -> dict[str, Observed]:
    """Run the float network over the calibrating images; return what each site showed.

    The last batch runs twice: its squared errors need the extremes of all.

    Args:
        model: what `network_for` gave.
        images: at least one a batch.
        threads: of the engine.
    """
    kinds = sites(model)
    arrays = {name: constant_array(model.graph.initializers.get(name)) for name in kinds}
    constants = {name: array for name, array in arrays.items() if array is not None}
    session = open_session(returning(model, [name for name in kinds if name not in constants]), threads=threads)
    batches = np.array_split(images, BATCHES)
    seen = joined_batches([_parts(session, batch, constants) for batch in batches])
    ranges = {name: shrunk(seen[name]) for name in kinds}
    errors = {name: squared_errors(array, ranges[name]) for name, array in constants.items()}
    rows: dict[str, list[Array]] = {name: [] for name, kind in kinds.items() if kind == "stream"}
    for values in _values(session, batches[-1]):
        for name, array in values.items():
            errors[name] = errors.get(name, 0.0) + squared_errors(array, ranges[name])
            if name in rows:
                rows[name].append(array.reshape(-1, array.shape[-1]))
    kept = {name: np.concatenate(arrays) for name, arrays in rows.items()}
    return {name: Observed(batches=seen[name], errors=errors[name], rows=kept.get(name)) for name in kinds}


def _parts(
    session: onnxruntime.InferenceSession, batch: Array, constants: Mapping[str, Array]
) -> dict[str, list[Part]]:
    """Observe a batch, chunk by chunk, and constants, which are the same in every batch, once."""
    parts = {name: [part_of(array, 1)] for name, array in constants.items()}
    chunks = -(-len(batch) // CHUNK)
    for values in _values(session, batch):
        for name, array in values.items():
            parts.setdefault(name, []).append(part_of(array, chunks))
    return parts


def _values(session: onnxruntime.InferenceSession, batch: Array) -> Iterator[Mapping[str, Array]]:
    """Run a batch chunk by chunk; yield all outputs by name."""
    entry, names = session.get_inputs()[0].name, [output.name for output in session.get_outputs()]
    for start in range(0, len(batch), CHUNK):
        yield run_session(session, names, {entry: batch[start : start + CHUNK]})


# --- the network that rounds ----------------------------------------------------------------------------------


def quantized(model: ir.Model, observed: Mapping[str, Observed], variant: Variant) -> ir.Model:
    """Write a variant into a copy of the float network, for simulation."""
    methods = {"stream": variant.stream, "shares": variant.shares, "other": variant.activations}
    encodings = dict(_weights(model))
    for name, kind in sites(model).items():
        method = methods[kind]
        if method is not None:
            encodings[name] = method(observed[name])
    plan = Plan(target="", encodings=encodings)
    lowered = lower_to_qdq(model, plan, QdqStyle(bias_bits=0, spell_out_channels=True))
    if variant.shares is None:
        use_log_int_softmax(lowered, {output: encodings[read] for output, read in _reads(model, "Softmax").items()})
    if variant.integer_layer_norm:
        use_integer_layer_norm(lowered, _normalized(model, encodings))
    return lowered


def _weights(model: ir.Model) -> Iterator[tuple[str, Encoding]]:
    """Encode weights: int8, `scale = max |w| / 127.5` of each output channel, so that the greatest becomes 127."""
    for node in model.graph:
        for number in weight_inputs(node) if is_operator(node, "Conv", "Gemm", "MatMul") else ():
            array = constant_array(node.inputs[number])
            assert array is not None
            axis = output_axis(node, number)
            others = tuple(other for other in range(array.ndim) if other != axis)
            scale = np.maximum(np.abs(array).max(axis=others) / 127.5, np.finfo(np.float32).eps)
            zero_point = np.zeros(scale.shape, dtype=np.int32)
            yield (
                str(node.inputs[number].name),  # type: ignore[union-attr]
                Encoding(type=INT8, granularity=PerAxis(axis), scale=scale, zero_point=zero_point),
            )


def _reads(model: ir.Model, operator: str) -> dict[str, str]:
    """Name of each output of an operator -> name of what the node reads first."""
    return {
        str(node.outputs[0].name): str(node.inputs[0].name)  # type: ignore[union-attr]
        for node in model.graph
        if is_operator(node, operator)
    }


def _normalized(model: ir.Model, encodings: Mapping[str, Encoding]) -> dict[str, tuple[Encoding, Encoding]]:
    """Name of each LayerNormalization's output -> encodings of its input and of what is made of its output."""
    return {
        str(node.outputs[0].name): (
            encodings[str(node.inputs[0].name)],  # type: ignore[union-attr]
            encodings[str(_selected(node.outputs[0]).name)],
        )
        for node in model.graph
        if is_operator(node, "LayerNormalization")
    }
