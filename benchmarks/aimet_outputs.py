"""Qualcomm's encodings, loaded into AIMET: its simulated outputs beside ours, in steps of the output.

Each network is planned for a target, written in every version of the format that the target has, and simulated by
AIMET-ONNX in an environment of its own (`--python`; else the one that `peers.py` makes). AIMET leaves biases float, so
ours is simulated both so and with its integer biases.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from _common import HERE, NETWORKS, Array, images, report, run_all, table, zoo

from narrowgauge.calibration.collect import collect
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.plan import Plan
from narrowgauge.data.batches import Batch
from narrowgauge.demo import NETWORK_NAMES, digits, network_path
from narrowgauge.exporters.formats import FORMATS, Export
from narrowgauge.graph.engine import open_session
from narrowgauge.importers.onnx import load
from narrowgauge.lowering.qdq import QdqStyle, lower_to_qdq
from narrowgauge.planning.choices import Choices
from narrowgauge.planning.fill import fill
from narrowgauge.planning.place import place
from narrowgauge.targets.registry import load_target

CALIBRATING = 32
FLOAT_BIASES = QdqStyle(bias_bits=0, drop_clips=False)  # as AIMET simulates
HOW = "python -m venv VENV && VENV/bin/pip install torch==2.13.0 aimet-onnx==2.42.0"


def main() -> None:
    """Read the command line, run, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    names = [*NETWORK_NAMES, *NETWORKS]
    parser.add_argument("--networks", nargs="+", choices=names, default=names)
    parser.add_argument("--target", default="qnn")
    parser.add_argument("--images", type=int, default=16, help="so many are compared")
    parser.add_argument("--python", type=Path, default=HERE / ".venvs" / "aimet" / "bin" / "python", help="with AIMET")
    arguments = parser.parse_args()
    if not arguments.python.is_file():
        print(f"Skipped: needs a Python with AIMET-ONNX, there is none at {arguments.python}: {HOW}, then --python")
        raise SystemExit(0)
    rows = [
        row for name in arguments.networks for row in _rows(name, arguments.target, arguments.images, arguments.python)
    ]
    head = ["network", "format", "outputs equal", "most steps", "steps, our integer biases", "SQNR dB", "ours to float"]
    cells = [
        [
            row["network"], row["format"], f"{100 * row['equal']:.2f} %", f"{row['most_steps']:.0f}",
            f"{row['most_steps_integer_biases']:.0f}", f"{row['sqnr_db']:.1f}", f"{row['sqnr_to_float_db']:.1f}",
        ]
        for row in rows
    ]  # fmt: skip
    title = f"Encodings of {arguments.target} in AIMET-ONNX, {arguments.images} images"
    report("aimet_outputs", title, table(head, cells), {"rows": rows})


def _rows(name: str, target: str, count: int, python: Path) -> Iterator[dict[str, Any]]:
    """Compare one network in every format of the target."""
    model, samples = _network(name, CALIBRATING + count)
    plan = _plan(model, samples[:CALIBRATING], target)
    inputs, chosen = samples[CALIBRATING:], load_target(target)
    simulated = lower_to_qdq(model, plan, QdqStyle(bias_bits=chosen.bias_bits))
    exact, floating, reference = (
        _outputs(one, inputs) for one in (simulated, lower_to_qdq(model, plan, FLOAT_BIASES), model)
    )
    for form in (form for form in chosen.formats if form.startswith("encodings")):
        with tempfile.TemporaryDirectory(prefix="narrowgauge-aimet-") as folder:
            export = Export(network=model, plan=plan, target=chosen, simulated=simulated)
            FORMATS[form].write(export, Path(folder))
            theirs = _theirs(Path(folder), inputs, python)
        steps = np.abs(theirs - floating) / _step(model, plan)
        yield {
            "network": name,
            "format": form,
            "equal": float((steps < 0.5).mean()),
            "most_steps": float(steps.max()),
            "most_steps_integer_biases": float((np.abs(theirs - exact) / _step(model, plan)).max()),
            "sqnr_db": _sqnr(floating, theirs),
            "sqnr_to_float_db": _sqnr(reference, floating),
        }
        print(f"{name}, {form}: at most {steps.max():.1f} steps", file=sys.stderr, flush=True)


def _network(name: str, count: int) -> tuple[ir.Model, Array]:
    if name in NETWORK_NAMES:
        return load(network_path(name)).model, digits().images[:count]
    return load(zoo() / NETWORKS[name].path).model, images(NETWORKS[name], count)


def _plan(model: ir.Model, samples: Array, target: str) -> Plan:
    feed = str(model.graph.inputs[0].name)
    rows = (Batch(feed={feed: row[None]}, count=1, names=(str(n),), labels=(None,)) for n, row in enumerate(samples))
    chosen, choices = load_target(target), Choices()
    return fill(model, place(model, chosen, choices), collect(model, rows), chosen, choices)


def _outputs(model: ir.Model, inputs: Array) -> Array:
    return run_all(open_session(model, optimization="basic", simulate=True), inputs)


def _theirs(folder: Path, inputs: Array, python: Path) -> Array:
    np.save(folder / "inputs.npy", inputs)
    files = ("model.onnx", "model.encodings", "inputs.npy", "outputs.npy")
    command = [
        str(python),
        "-W",
        "ignore",
        str(HERE / "_worker_aimet_outputs.py"),
        *(str(folder / file) for file in files),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    outputs: Array = np.load(folder / "outputs.npy")
    return outputs


def _step(model: ir.Model, plan: Plan) -> float:
    """Step of the first output."""
    encoding = plan.encodings.get(str(model.graph.outputs[0].name))
    return float(encoding.scale) if isinstance(encoding, Encoding) else float("nan")


def _sqnr(reference: Array, other: Array) -> float:
    """Signal to quantization noise ratio, dB."""
    noise = np.square(reference.astype(np.float64) - other).sum()
    return float(10 * np.log10(np.square(reference.astype(np.float64)).sum() / max(noise, 1e-30)))


if __name__ == "__main__":
    main()
