"""The table of FQ-ViT's paper on ViT-Ti: how methods that quantize a vision transformer fully do, and how we do.

MinMax, EMA, Percentile, OMSE and FQ-ViT are made again here after the code of its authors (`_fq_vit.py`), with
narrowgauge's plans and lowering; every row but that of ONNX Runtime's own kernels is simulated by the same operators.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime
from _common import VIT_TINY, Array, report, samples, table, zoo
from _fq_vit import BATCHES, VARIANTS, Variant, network_for, observe, quantized

from narrowgauge import quantize
from narrowgauge.calibration.statistics import Statistics
from narrowgauge.core.plan import Plan
from narrowgauge.errors import NarrowgaugeError
from narrowgauge.graph.edits import is_operator
from narrowgauge.graph.engine import available_cores, open_session, run_session
from narrowgauge.graph.roles import activation_inputs, weight_inputs
from narrowgauge.lowering.qdq import QdqStyle, lower_to_qdq
from narrowgauge.recipe import Recipe, Rule, load_recipe

CALIBRATING = 256
"""The zoo's convention: so many images calibrate, the others evaluate."""

CHUNK = 8

PAPER = {
    ("float", "32/32/32"): 84.53, ("MinMax", "8/8/8"): 23.64, ("EMA", "8/8/8"): 30.30, ("Percentile", "8/8/8"): 46.69,
    ("OMSE", "8/8/8"): 73.39, ("FQ-ViT", "8/8/8"): 83.31, ("FQ-ViT", "8/8/4"): 82.68,
}  # fmt: skip
"""(method, bits) -> top-1 of ViT-B on ImageNet: table 1 of the paper and the README of its code."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """A network to measure.

    Attributes:
        network: it.
        bits: of weights, of what products with weights read, and of attention.
        stream: bits of what LayerNormalization reads.
        simulate: whether Q/DQ pairs stay as they are, in float, or become ONNX Runtime's integer kernels.
        steps: what recovery kept.
    """

    network: ir.Model
    bits: str
    stream: str
    simulate: bool = True
    steps: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """Prepared images: those that calibrate, those that evaluate, and the classes of the latter."""

    calibrating: Array
    evaluating: Array
    classes: npt.NDArray[np.int64]


def main() -> None:
    """Read the command line, run, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=0, help="so many calibrate and the next so many evaluate")
    parser.add_argument("--integers", action="store_true", help="run our integer networks instead of simulating them")
    arguments = parser.parse_args()
    if 0 < arguments.images < BATCHES:
        parser.error(f"expected --images {BATCHES} or more: so many batches calibrate, got {arguments.images}")
    start, path = time.perf_counter(), zoo() / VIT_TINY.path
    images = _images(arguments.images)
    reference = _logits(open_session(path), images.evaluating)
    rows = [_figures("float", "32/32/32", "32", reference, reference, images.classes)]
    _tell(rows[-1])
    ours = _ours(images.calibrating, integers=arguments.integers)
    for name, build in itertools.chain(_published(images.calibrating), ours):
        rows.append(_measured(name, build, images, reference))
        _tell(rows[-1])
    calibrating, evaluating = len(images.calibrating), len(images.evaluating)
    title = f"Methods that quantize ViT-Ti: {calibrating} images calibrate, {evaluating} evaluate"
    took = time.perf_counter() - start
    text = f"{_table(rows)}\n\n{_notes(calibrating)}\n\nAll of it took {took / 60:.1f} minutes."
    report("vit_methods", title, text, {"images": [calibrating, evaluating], "seconds": took, "rows": rows})


def _images(count: int) -> Images:
    pairs = list(islice(samples(VIT_TINY), 2 * count if count else None))
    cut = count or CALIBRATING
    arrays = [array for array, _ in pairs]
    return Images(
        calibrating=np.concatenate(arrays[:cut]),
        evaluating=np.concatenate(arrays[cut:]),
        classes=np.array([label for _, label in pairs[cut:]], dtype=np.int64),
    )


# --- the rows -------------------------------------------------------------------------------------------------

Row = tuple[str, Callable[[], Built]]


def _published(calibrating: Array) -> Iterator[Row]:
    """Yield the paper's methods; all are made from one calibration."""
    model = network_for(zoo() / VIT_TINY.path)
    began = time.perf_counter()
    observed = observe(model, calibrating, threads=available_cores())
    print(f"FQ-ViT's observers saw {len(calibrating)} images in {time.perf_counter() - began:.0f} s", flush=True)

    def build(variant: Variant) -> Built:
        network = quantized(model, observed, variant)
        return Built(network=network, bits=f"8/8/{variant.attention}", stream="8")

    for variant in VARIANTS:
        yield variant.name, partial(build, variant)


def _ours(calibrating: Array, *, integers: bool) -> Iterator[Row]:
    """Yield ours: the fully integer form, its variants, and the mixed form.

    Args:
        calibrating: the images.
        integers: run the fully integer form in integer operators instead of simulating it.
    """
    auto = load_recipe("auto")
    narrow = replace(auto, methods=tuple(name for name in auto.methods if name != "widen-streams"))
    few_bits = replace(auto, rules=(Rule(operator="Softmax", activations="uint4"),))
    kept: dict[str, Statistics | None] = {}

    def build(target: str, recipe: Recipe) -> Built:
        # `quantize` checks what it made on samples that did not calibrate: it gets the last image once more for that.
        data = np.concatenate([calibrating, calibrating[-1:]])
        result = quantize(
            zoo() / VIT_TINY.path, data, target=target, recipe=recipe, samples=len(calibrating), check_samples=1,
            analysis="none", statistics=kept.get(target),
        )  # fmt: skip
        kept[target] = result.statistics
        network, simulate = result.model, False
        if result.target.all_integer and integers and result.forms.integer is not None:
            network = result.forms.integer
        elif result.target.all_integer:
            style = QdqStyle(bias_bits=result.target.bias_bits, spell_out_channels=True)
            network, simulate = lower_to_qdq(result.float_model, result.plan, style), True
        bits, stream = _widths(result.float_model, result.plan)
        kept_steps = tuple(step.name for step in result.steps if step.kept)
        return Built(network=network, bits=bits, stream=stream, simulate=simulate, steps=kept_steps)

    yield "narrowgauge, integer-only", partial(build, "integer-only", auto)
    yield "narrowgauge, integer-only, shares of 4 bits", partial(build, "integer-only", few_bits)
    yield "narrowgauge, integer-only, stream of 8 bits", partial(build, "integer-only", narrow)
    yield "narrowgauge, onnxruntime (mixed)", partial(build, "onnxruntime", auto)


def _widths(model: ir.Model, plan: Plan) -> tuple[str, str]:
    """Return the bits of weights, of what products with them read and of attention; and those of the stream."""
    weights, activations, attention, stream = set(), set(), set(), set()
    for node in model.graph:
        if is_operator(node, "Softmax"):
            attention.add(node.outputs[0].name)
        elif is_operator(node, "LayerNormalization") and node.inputs[0] is not None:
            stream.add(node.inputs[0].name)
        elif is_operator(node, "MatMul", "Gemm", "Conv") and (numbers := weight_inputs(node)):
            weights |= {node.inputs[number].name for number in numbers}  # type: ignore[union-attr]
            read = {value for _, value in activation_inputs(node)}
            activations |= {value.name for value in read if value not in model.graph.inputs}
    return "/".join(_bits(plan, names) for names in (weights, activations, attention)), _bits(plan, stream)


def _bits(plan: Plan, names: set[str | None]) -> str:
    """Say how many bits values have: every width that occurs, and float where some have none."""
    encodings = [plan.encodings.get(str(name)) for name in names]
    widths = sorted({encoding.type.bits for encoding in encodings if encoding is not None})
    return "+".join([*map(str, widths), *(["float"] if None in encodings else [])])


# --- measuring and telling ------------------------------------------------------------------------------------


def _measured(name: str, build: Callable[[], Built], images: Images, reference: Array) -> dict[str, Any]:
    """Build a row's network and run it; one that fails keeps its row, with the reason."""
    began = time.perf_counter()
    try:
        built = build()
        seconds = time.perf_counter() - began
        session = open_session(built.network, simulate=built.simulate)
        logits = _logits(session, images.evaluating)
    except NarrowgaugeError as error:
        return {"method": f"{name}: {error}".replace("|", "/"), "bits": None, "stream": None}
    row = _figures(name, built.bits, built.stream, logits, reference, images.classes)
    return {**row, "seconds": seconds, "kept": list(built.steps)}


def _logits(session: onnxruntime.InferenceSession, inputs: Array) -> Array:
    entry, output = session.get_inputs()[0].name, session.get_outputs()[0].name
    starts = range(0, len(inputs), CHUNK)
    runs = [run_session(session, [output], {entry: inputs[start : start + CHUNK]}) for start in starts]
    return np.concatenate([run[output] for run in runs])


def _figures(
    name: str, bits: str, stream: str, logits: Array, reference: Array, classes: npt.NDArray[np.int64]
) -> dict[str, Any]:
    """Compare logits with the float network's: top-1 and agreement in percent, SQNR in decibels."""
    best = logits.argmax(axis=1)
    signal, noise = np.square(reference, dtype=np.float64).sum(), np.square(logits - reference, dtype=np.float64).sum()
    return {
        "method": name,
        "bits": bits,
        "stream": stream,
        "top1": 100 * float((best == classes).mean()),
        "agreement": 100 * float((best == reference.argmax(axis=1)).mean()),
        "sqnr_db": 10 * math.log10(signal / noise) if noise > 0 else None,
        "paper_top1_vit_b": PAPER.get((name, bits)),
    }


def _tell(row: Mapping[str, Any]) -> None:
    print(" | ".join("-" if cell is None else str(cell) for cell in _cells(row)), flush=True)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    head = ["method", "bits W/A/attention", "stream", "top-1 %", "agree %", "SQNR dB", "s", "paper's ViT-B, top-1 %"]
    return table(head, [_cells(row) for row in rows])


def _cells(row: Mapping[str, Any]) -> list[object]:
    measured = [
        None if row.get(key) is None else f"{row[key]:.{digits}f}"
        for key, digits in (("top1", 1), ("agreement", 1), ("sqnr_db", 1), ("seconds", 0), ("paper_top1_vit_b", 2))
    ]
    return [row["method"], row["bits"], row["stream"], *measured]


def _notes(calibrating: int) -> str:
    return "\n".join([
        f"- MinMax to FQ-ViT: {calibrating} images in {BATCHES} batches calibrate (theirs: 1000 in 10), the last batch "
        "chooses OMSE's ranges and the power-of-two factors. EMA and Percentile have momentum 0.01 over the batches.",
        "- FQ-ViT 8/8/8 has shares of attention in uint8 with one scale, as its authors make that row; 8/8/4 has their "
        "Log-Int-Softmax. Both have their LayerNormalization in integers.",
        "- stream: bits of what LayerNormalization reads. s: seconds to choose the numbers and to write the network, "
        "without the calibration that the paper's methods share; our rows of a target share one, timed with the first.",
        "- paper's ViT-B: their network of the same family, on all of ImageNet; its float accuracy is 84.53.",
    ])  # fmt: skip


if __name__ == "__main__":
    main()
