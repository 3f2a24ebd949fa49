"""A made-up run of a network of many layers, with all that the page can show."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from narrowgauge.analysis.records import (
    Analysis,
    Cause,
    CauseRemedy,
    Choice,
    Distribution,
    Outlier,
    Remedy,
    Sensitivity,
    Step,
    TensorLoss,
    ValueNoise,
)
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import PerAxis, PerTensor
from narrowgauge.core.numbers import integer_type
from narrowgauge.core.plan import FloatNode, Plan
from narrowgauge.targets.registry import load_target
from narrowgauge.targets.schema import Target

BINS = 160
CHANNELS = 64


@dataclass(frozen=True, kw_only=True)
class Example:
    """What `render` takes."""

    summary: dict[str, Any]
    analysis: Analysis
    plan: Plan
    target: Target

    @property
    def steps(self) -> tuple[Step, ...]:
        """What recovery tried."""
        return self.analysis.steps

    @property
    def front(self) -> tuple[Choice, ...]:
        """What mixed precision could choose from."""
        return self.analysis.front


def example(layers: int = 8, *, prefix: str = "") -> Example:
    """Make a run of a network of convolutions, two tensors each: its output and its weights.

    Args:
        layers: how many convolutions.
        prefix: comes before every name that a network chooses.
    """
    generator = np.random.default_rng(0)
    noise = 1.6e-3
    losses: list[TensorLoss] = []
    distributions, encodings, sensitivities, depth = {}, {}, [], []
    share = generator.dirichlet(np.full(3 * layers, 0.25))
    for layer in range(layers):
        node = f"{prefix}conv_{layer}"
        values = generator.laplace(scale=generator.uniform(0.3, 2), size=4000) * generator.uniform(0.5, 4)
        for kind, name, shape in (
            ("activation", f"{prefix}hardtanh_{layer}", "1x32x56x56"),
            ("weights", f"{prefix}{layer}.weight", "64x32x3x3"),
        ):
            elements = np.clip(values, 0, None) if kind == "activation" else values / 20
            encoding = _encoding(kind, elements, generator)
            encodings[name] = encoding
            distributions[name] = _distribution(name, elements, encoding, generator)
            losses.append(_loss(kind, name, node, 2 * layer + 1, shape, elements, encoding))
        costs = (share[3 * layer], share[3 * layer + 1], share[3 * layer] + share[3 * layer + 1])
        for name, kind, cost in zip(
            (f"{prefix}hardtanh_{layer}", f"{prefix}{layer}.weight", node), ("activation", "weights", "layer"), costs,
            strict=True,
        ):  # fmt: skip
            gain = noise * (0.9 * cost - 0.002)
            sensitivities.append(Sensitivity(
                name=name, kind=kind, node=node, depth=2 * layer + 1, alone=noise * cost * 1.1, without=noise - gain,
                gain=gain,
            ))  # type: ignore[arg-type]  # fmt: skip
        depth.append(_value(f"{prefix}pad_{layer}", f"{prefix}relu_{layer}", "Relu", 2 * layer, layer))
        depth.append(_value(f"{prefix}hardtanh_{layer}", node, "Conv", 2 * layer + 1, layer))
    analysis = Analysis(
        losses=tuple(losses), distributions=distributions, sensitivities=tuple(sensitivities), depth=tuple(depth),
        noise=noise, samples=64, seconds={"loss": 1.2, "sensitivity": 24.0}, notes=("64 samples were analysed",),
        steps=_steps(), front=_front(layers, prefix),
    )  # fmt: skip
    worst = analysis.ranking()[0]
    outlier = Outlier(
        value=f"{prefix}hardtanh_1", channel=41, positions=(1, 14, 183, 196), reach=583.0, others=21.0,
        source=f"{prefix}conv_1", unit=417, source_value=f"{prefix}gelu_1",
    )  # fmt: skip
    analysis = replace(
        analysis, remedies=_remedies(worst, noise), outliers=(outlier, _stream(prefix)), causes=(_cause(prefix),)
    )
    return Example(
        summary=_summary(prefix), analysis=analysis, plan=_plan(encodings, layers, prefix),
        target=load_target("onnxruntime"),
    )  # fmt: skip


def _stream(prefix: str) -> Outlier:
    return Outlier(
        value=f"{prefix}hardtanh_2", channel=41, positions=(1, 14, 183, 196), reach=578.0, others=35.0,
        source=f"{prefix}conv_2", unit=417, source_value=f"{prefix}gelu_1", low=-590.0, high=-480.0, ordinary=2.3,
        words="block 7, residual channel 41", source_words="block 7, MLP unit 417", tokens=True,
        stretched=(f"{prefix}hardtanh_2",),
    )  # fmt: skip


def _cause(prefix: str) -> Cause:
    """A cause that names the second outlier, with remedies."""
    return Cause(
        sentence=f"block 7, MLP unit 417 (channel 417 of '{prefix}gelu_1') at tokens 1, 14, 183, 196 writes -480 to "
        "-590 into residual channel 41 (ordinary values there: median 2.3)",
        outliers=(_stream(prefix),),
        sqnr_db=-1.3,
        all_tried=True,
        remedies=(
            CauseRemedy(method="float", detail="11 values", sqnr_db=12.1, gain_db=13.4, allowed=False),
            CauseRemedy(
                method="cap at the source", detail=f"{prefix}linear_1 <= 16, it reached 219", sqnr_db=7.5, gain_db=8.8,
                allowed=True, chosen=True,
            ),
        ),
    )  # fmt: skip


def _encoding(kind: str, elements: np.ndarray[Any, Any], generator: np.random.Generator) -> Encoding:
    reach = float(np.abs(elements).max())
    if kind == "activation":
        return Encoding(
            type=integer_type("uint8"), granularity=PerTensor(), scale=np.float32(0.7 * reach / 255),
            zero_point=np.int32(0),
        )  # fmt: skip
    scale = generator.uniform(0.3, 1, CHANNELS) * reach / 127
    return Encoding(
        type=integer_type("int8"), granularity=PerAxis(0), scale=scale, zero_point=np.zeros(CHANNELS, np.int32)
    )


def _distribution(
    name: str, elements: np.ndarray[Any, Any], encoding: Encoding, generator: np.random.Generator
) -> Distribution:
    counts, edges = np.histogram(elements, bins=BINS)
    narrow = generator.uniform(0.2, 1, CHANNELS)
    low, high = (np.broadcast_to(end, CHANNELS) for end in (encoding.minimum, encoding.maximum))
    return Distribution(
        name=name, edges=tuple(edges), density=tuple(counts / counts.sum()), channel_axis=1,
        channel_low=tuple(elements.min() * narrow), channel_high=tuple(elements.max() * narrow),
        channel_index=tuple(range(CHANNELS)), channel_range_low=tuple(low), channel_range_high=tuple(high),
    )  # fmt: skip


def _loss(
    kind: Any, name: str, node: str, depth: int, shape: str, elements: np.ndarray[Any, Any], encoding: Encoding
) -> TensorLoss:
    low, high = float(encoding.minimum.min()), float(encoding.maximum.max())
    step = float(encoding.scale.max())
    beyond = np.maximum(elements - high, 0) + np.maximum(low - elements, 0)
    levels, counts = np.unique(np.rint(np.clip(elements, low, high) / step), return_counts=True)
    entropy = float(-(counts / counts.sum() * np.log2(counts / counts.sum())).sum())
    return TensorLoss(
        name=name, kind=kind, node=node, operator="Conv", depth=depth, type=encoding.type.name,
        granularity="tensor" if kind == "activation" else "axis 0", shape=shape, range=(low, high),
        seen=(float(elements.min()), float(elements.max())), scales=(float(encoding.scale.min()), step),
        signal=float(np.mean(elements**2)), rounding=step**2 / 12, clipping=float(np.mean(beyond**2)),
        clipped_share=float(np.mean(beyond > 0)), levels=256, levels_used=len(levels), entropy_bits=entropy,
        wasted_bits=8 - entropy, measured=True,
    )  # fmt: skip


def _value(name: str, node: str, operator: str, depth: int, layer: int) -> ValueNoise:
    sqnr = math.inf if depth == 0 else 46 - 12 * math.log10(1 + layer) + 2 * math.sin(3 * depth)
    return ValueNoise(name=name, node=node, operator=operator, depth=depth, sqnr_db=sqnr)


def _remedies(worst: Sensitivity, noise: float) -> tuple[Remedy, ...]:
    tried = (("float", 1.0, ""), ("16 bits", 0.98, "needs a target with 16-bit activations"),
             ("range: percentile:99.99", 0.55, "range 0 to 4.1"), ("per channel", -0.1, ""))  # fmt: skip
    return tuple(
        Remedy(tensor=worst.name, method=method, noise=noise - worst.gain * part, gain=worst.gain * part, detail=detail)
        for method, part, detail in tried
    )


def _plan(encodings: dict[str, Encoding], layers: int, prefix: str) -> Plan:
    reason = "onnxruntime is faster in float"
    nodes = [FloatNode(name=f"{prefix}relu_{layer}", operator="Relu", reason=reason) for layer in (0, layers // 2)]
    softmax = FloatNode(name=f"{prefix}softmax", operator="Softmax", reason=f"{prefix}no integer Softmax")
    return Plan(
        target="onnxruntime", encodings=encodings, float_nodes=(*nodes, softmax), float_outputs=(f"{prefix}logits",)
    )


def _steps() -> tuple[Step, ...]:
    return (
        Step(name="migrate outliers", detail="outlier channels of 3 values were scaled into the next weights",
             noise_before=6e-3, noise_after=3.1e-3, seconds=0.4, kept=True),
        Step(name="refine ranges", detail="the ranges of 11 values were chosen by their error behind the next layers",
             noise_before=3.1e-3, noise_after=1.9e-3, seconds=3.2, kept=True),
        Step(name="equalize", detail="", noise_before=1.9e-3, noise_after=2.4e-3, seconds=0.8, kept=False, drop=1.2),
        Step(name="correct bias", detail="", noise_before=math.nan, noise_after=math.nan, seconds=0.1, kept=True),
    )  # fmt: skip


def _front(layers: int, prefix: str) -> tuple[Choice, ...]:
    return tuple(
        Choice(cost=1.8e6 + 1.7e6 * part / 8, unit="bytes", noise=0.05 * math.exp(-0.42 * part),
               bits={f"{prefix}conv_{layer}": 8 if layer < part else 4 for layer in range(layers)}, chosen=part == 3)
        for part in range(9)
    )  # fmt: skip


def _integers(prefix: str, different: int) -> dict[str, Any]:
    """What was found inside an engine."""
    rows = [
        {"name": f"{prefix}hardtanh_{layer}", "node": f"{prefix}conv_{layer}", "operator": "Conv", "elements": 100_000,
         "different": 17 * layer, "max": 2, "own": {"different": layer, "max": 1, "off_by": {"1": layer}}}
        for layer in range(1, 4)
    ]  # fmt: skip
    said = f"WARNING: 1,234 of 6,897,056 integers differ, the first in {prefix}hardtanh_1"
    return {
        "elements": 6_897_056, "different": different, "max": 3 if different else 0, "tensors": 64, "samples": 8,
        "off_by": {"1": different - 4, "2": 3, "more": 1} if different else {},
        "first_different_tensors": rows if different else [],
        "reasons": [said] if different else [],
    }  # fmt: skip


def _summary(prefix: str) -> dict[str, Any]:
    return {
        "model": f"/somewhere/{prefix}mobilenet_v2.onnx",
        "target": "onnxruntime",
        "recipe": "default",
        "mode": "static",
        "float": {"top1": 84.81, "top5": 96.9},
        "quantized": {"top1": 84.54, "top5": 96.77},
        "agreement_top1": 97.4,
        "sqnr_db": 28.0,
        "sqnr_infinite": False,
        "checked_samples": 744,
        "labelled_samples": 744,
        "size_bytes": {"float": 13_964_500, "quantized": 3_655_000},
        "latency_ms": {"float": 9.21, "quantized": 4.37},
        "bit_exact": {"onnxruntime": _integers(prefix, 0), "openvino": _integers(prefix, 1234)},
        "files": {"model.onnx": {"bytes": 3_655_000, "sha256": "0" * 64}, "plan.json": {"bytes": 81_000}},
        "seconds": {"import": 0.31, "calibrate": 5.8, "refine ranges": 3.2, "check": 12.9},
        "peak_rss_bytes": 912_000_000,
        "float_nodes": [],
        "versions": {"narrowgauge": "0.1.0", "onnxruntime": "1.31.0"},
        "notes": ["converted from opset 18 to 21", f"{prefix}WARNING: look at this"],
    }
