"""How fast a vision transformer runs, float, mixed and in integers only, in ONNX Runtime and OpenVINO.

    python benchmarks/vit_speed.py [--rounds 100] [--images 744] [--folder kept]

One thread, one image, all networks in turn. The mixed form is what the targets `onnxruntime` and `openvino` make:
products with weights in integers, LayerNormalization, Softmax, GELU, attention's products and the residual stream in
float. The form in integers only is `integer.onnx` of the target `integer-only`.

OpenVINO computes what is float in a network in bfloat16 by default, where the processor has it. So it is measured both
ways, float32 asked for and by default, the float network as well as the mixed one; and with its batch left open, as the
files have it, and fixed to one image.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from _common import VIT_TINY, Array, interleaved, open_plain, paired_ratio, report, run_all, samples, table, zoo

from narrowgauge.pipeline import quantize
from narrowgauge.runtimes.openvino import the_core

FLOAT, MIXED, INTEGER = "float", "mixed", "integer-only"
ONE_THREAD = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
FLOAT32 = ONE_THREAD | {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
"""As narrowgauge runs OpenVINO: what is float in the file is computed in float32."""

Run = Callable[[Array], Array]


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """An engine with its settings.

    Attributes:
        name: for the table.
        target: whose mixed form it runs.
        open: opens a file, gives what computes one image's logits.
    """

    name: str
    target: str
    open: Callable[[Path], Run]


def in_onnxruntime(path: Path) -> Run:
    """Open a file in ONNX Runtime, everything at its default but the number of threads."""
    session = open_plain(path, threads=1)
    return lambda image: run_all(session, image)


def compiled(path: Path, settings: Mapping[str, Any], *, fixed: bool) -> openvino.CompiledModel:
    """Compile a file in OpenVINO; `fixed`: for one image alone."""
    core = the_core()
    model = core.read_model(path)
    if fixed:
        model.reshape([1, *(size.get_length() for size in list(model.inputs[0].partial_shape)[1:])])
    return core.compile_model(model, "CPU", dict(settings))


def in_openvino(settings: Mapping[str, Any], *, fixed: bool) -> Callable[[Path], Run]:
    """Return what opens a file in OpenVINO with these settings."""

    def opened(path: Path) -> Run:
        request = compiled(path, settings, fixed=fixed).create_infer_request()

        def run(image: Array) -> Array:
            request.infer({0: image})
            return np.array(request.get_output_tensor(0).data)

        return run

    return opened


WRONG = "the error is greater than the logits. OpenVINO's CPU plugin computes int64 numbers in int32 (its issue 35823)."

WAYS = (
    Way(name="ONNX Runtime", target="onnxruntime", open=in_onnxruntime),
    Way(name="OpenVINO, float32, batch open", target="openvino", open=in_openvino(FLOAT32, fixed=False)),
    Way(name="OpenVINO, float32, batch 1", target="openvino", open=in_openvino(FLOAT32, fixed=True)),
    Way(name="OpenVINO, default, batch open", target="openvino", open=in_openvino(ONE_THREAD, fixed=False)),
    Way(name="OpenVINO, default, batch 1", target="openvino", open=in_openvino(ONE_THREAD, fixed=True)),
)


def main() -> None:
    """Read the command line, run, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100, help="how often all networks are timed in turn")
    parser.add_argument("--samples", type=int, default=256, help="images that calibrate")
    parser.add_argument("--images", type=int, default=64, help="images behind those that measure accuracy; 0: none")
    parser.add_argument("--folder", type=Path, help="keeps the quantized networks; those that are there are taken")
    asked = parser.parse_args()
    pictures, labels = _pictures(asked.samples + max(asked.images, 1))
    calibrating, others = pictures[: asked.samples], pictures[asked.samples :]
    with tempfile.TemporaryDirectory(prefix="narrowgauge-vit-") as scratch:
        files, notes = networks(asked.folder or Path(scratch), calibrating)
        runs, refused = opened(files)
        found = timed(runs, others[:1], asked.rounds)
        accuracy = measured(runs, others, labels[asked.samples :]) if asked.images else {}
        wrong = [f"{way} computes something else from the form {form}: {WRONG}" for way, form in strangers(accuracy)]
        counters = {form: counted(files["openvino", form], others[:1]) for form in (FLOAT, MIXED)}
    rows = [_row(way, form, found, accuracy) for way, form in runs]
    head = ["engine", "form", "ms", "times as fast as its float", "as ONNX Runtime's float"]
    head += ["top-1", "agree", "SQNR dB"] if accuracy else []
    text = f"{table(head, rows)}\n\nOpenVINO {openvino.__version__}; what is float it computes by default in "
    text += f"{_default_precision(files['openvino', FLOAT])}.\n\n{_counters(counters)}"
    text += "".join(f"\n\n{note}" for note in notes + refused + wrong)
    data = {"rows": [{"engine": way, "form": form, **found[way, form]} for way, form in runs]}
    report(
        "vit_speed", "A vision transformer, float and quantized, one thread, one image", text,
        {**data, "accuracy": [{"engine": way, "form": form, **one} for (way, form), one in accuracy.items()],
         "counters": counters},
    )  # fmt: skip


def _pictures(count: int) -> tuple[Array, list[int | None]]:
    arrays, labels = [], []
    for array, label in samples(VIT_TINY):
        arrays.append(array)
        labels.append(label)
        if len(arrays) == count:
            break
    return np.concatenate(arrays), labels


def networks(folder: Path, calibrating: Array) -> tuple[dict[tuple[str, str], Path], list[str]]:
    """Quantize for each target; return the files by target and form, and why one is not there."""
    files, notes, given = {}, [], zoo() / VIT_TINY.path
    targets = tuple(dict.fromkeys(way.target for way in WAYS))
    for target in (*targets, INTEGER):
        out = folder / target
        if not out.is_dir():
            form = "" if target == INTEGER else "qdq"
            quantize(given, calibrating, target=target, samples=len(calibrating), format=form, analysis="none", out=out)
    for target in targets:
        files |= {(target, FLOAT): given, (target, MIXED): folder / target / "model.onnx"}
        if (folder / INTEGER / "integer.onnx").is_file():
            files[target, INTEGER] = folder / INTEGER / "integer.onnx"
    if (targets[0], INTEGER) not in files:
        notes.append(f"Skipped: the target {INTEGER} wrote no integer.onnx.")
    return files, notes


def opened(files: Mapping[tuple[str, str], Path]) -> tuple[dict[tuple[str, str], Run], list[str]]:
    """Open each form in each way; say what an engine does not take."""
    runs, refused = {}, []
    for way in WAYS:
        for (target, form), path in files.items():
            if target != way.target:
                continue
            try:
                runs[way.name, form] = way.open(path)
            except RuntimeError as error:
                refused.append(f"{way.name} does not take the form {form}: {' '.join(str(error).split())[:200]}")
    return runs, refused


def timed(runs: Mapping[tuple[str, str], Run], image: Array, rounds: int) -> dict[tuple[str, str], dict[str, float]]:
    """Time all in turn: milliseconds, and how many times as fast each is as the float network."""
    names = {f"{way}|{form}": (way, form) for way, form in runs}
    times = interleaved({name: lambda run=runs[key]: run(image) for name, key in names.items()}, rounds)  # type: ignore[misc]
    return {
        (way, form): {
            "milliseconds": 1000 * statistics.median(times[name]),
            "least_milliseconds": 1000 * min(times[name]),
            "faster_than_float": paired_ratio(times[f"{way}|{FLOAT}"], times[name]),
            "faster_than_onnxruntime": paired_ratio(times[f"{WAYS[0].name}|{FLOAT}"], times[name]),
        }
        for name, (way, form) in names.items()
    }


def measured(
    runs: Mapping[tuple[str, str], Run], pictures: Array, labels: list[int | None]
) -> dict[tuple[str, str], dict[str, float]]:
    """Compare each with the float network in ONNX Runtime: top-1 and agreement in %, SQNR of the logits in dB."""
    logits = {key: np.concatenate([run(one[None]) for one in pictures]) for key, run in runs.items()}
    given = logits[WAYS[0].name, FLOAT].astype(np.float64)
    right = np.array([-1 if label is None else label for label in labels])
    found = {}
    for key, one in logits.items():
        noise = float(np.square(one - given).sum())
        found[key] = {
            "top1": 100 * float((one.argmax(1) == right).mean()),
            "agreement": 100 * float((one.argmax(1) == given.argmax(1)).mean()),
            "sqnr_db": 10 * np.log10(float(np.square(given).sum()) / noise) if noise else float("inf"),
        }
    return found


def strangers(accuracy: Mapping[tuple[str, str], Mapping[str, float]]) -> list[tuple[str, str]]:
    """Name what has nothing to do with the float network any more."""
    return [key for key, one in accuracy.items() if one["sqnr_db"] < 0]


def counted(path: Path, image: Array, runs: int = 20) -> dict[str, float]:
    """Sum OpenVINO's own counters by kind of node and number type: milliseconds of a run, the longest first."""
    request = compiled(path, FLOAT32 | {"PERF_COUNT": True}, fixed=True).create_infer_request()
    request.infer({0: image})
    spent: dict[str, float] = {}
    for _ in range(runs):
        request.infer({0: image})
        for node in request.get_profiling_info():
            kind = f"{node.node_type} {node.exec_type.rpartition('_')[2].lower()}"
            spent[kind] = spent.get(kind, 0.0) + 1000 * node.real_time.total_seconds() / runs
    return dict(sorted(spent.items(), key=lambda item: -item[1]))


def _row(
    way: str, form: str, found: Mapping[tuple[str, str], Mapping[str, float]],
    accuracy: Mapping[tuple[str, str], Mapping[str, float]],
) -> list[str]:  # fmt: skip
    one = found[way, form]
    row = [way, form, f"{one['milliseconds']:.2f}", f"{one['faster_than_float']:.2f}"]
    row.append(f"{one['faster_than_onnxruntime']:.2f}")
    if accuracy:
        other = accuracy[way, form]
        row += [f"{other['top1']:.2f}", f"{other['agreement']:.2f}", f"{other['sqnr_db']:.1f}"]
    return row


def _default_precision(path: Path) -> str:
    kind = compiled(path, ONE_THREAD, fixed=True).get_property("INFERENCE_PRECISION_HINT")
    return str(kind.get_type_name() if hasattr(kind, "get_type_name") else kind)


def _counters(counters: Mapping[str, Mapping[str, float]]) -> str:
    kinds = dict.fromkeys(kind for one in counters.values() for kind, spent in one.items() if spent >= 0.05)
    rows = [[kind, *[f"{one[kind]:.2f}" if kind in one else None for one in counters.values()]] for kind in kinds]
    total = ["all", *[f"{sum(one.values()):.2f}" for one in counters.values()]]
    head = ["kind of node, number type", *[f"{form} ms" for form in counters]]
    return f"OpenVINO's own counters, float32, batch 1 (a Subgraph is attention or a chain of elementwise ones):\n\n" \
           f"{table(head, [*rows, total])}"  # fmt: skip


if __name__ == "__main__":
    main()
