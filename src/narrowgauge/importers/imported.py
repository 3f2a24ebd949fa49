"""What an importer gives: a network to work on, and how it came."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from narrowgauge.core.plan import Plan
from narrowgauge.graph.refusals import Refusal


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportedModel:
    """A network read in.

    Attributes:
        model: The float network to work on: same results, simplified, opset 21 or newer.
        original: The network as it was given, in ONNX: the float reference. Of a network that came quantized, its float
            network before it was simplified, the one that `plan` is for.
        notes: What the import changed or could not do, one sentence each.
        refusals: The nodes a simplification left as they were, with the reason.
        name: What to call it: its path, its graph's name, or the name of its class.
        framework: Whose file or object it was: "ONNX", "PyTorch", "Keras", "TFLite", "MXNet".
        plan: The encodings of a network that came quantized; its names are those of `original`. None of a float one.
        file: The ONNX file that `original` is, untouched; None of all else.
    """

    model: ir.Model
    original: ir.Model
    notes: tuple[str, ...]
    refusals: tuple[Refusal, ...]
    name: str = ""
    framework: str = "ONNX"
    plan: Plan | None = None
    file: Path | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Converted:
    """What an importer makes of another framework's network.

    Attributes:
        model: An ONNX network, opset 21, float; of a quantized network the same in Q/DQ form, every tensor of integers
            as a pair of QuantizeLinear and DequantizeLinear with the file's own scale and zero point (weights and
            biases as initializers of integers behind a DequantizeLinear). Values keep the names that the framework has
            for them, and inputs and outputs their layout; they hold real numbers even where the file's are integers.
        notes: What was changed or could not be done, one sentence each.
        target: Name of the target whose arithmetic a quantized network was made for ("tflite", ...); "" if unknown.
    """

    model: ir.Model
    notes: tuple[str, ...] = ()
    target: str = ""
