"""What torch.compile makes of our exported programs: the integer kernels it chooses, and their speed.

Beside the float network as an exported program of the same writer, run operator by operator and compiled, and the
outputs' distance from our simulation. uint8 activations, ranges that clip nothing, one image at a time.
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from _common import NETWORKS, Network, images, interleaved, paired_ratio, report, table, zoo

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.plan import Plan
from narrowgauge.exporters.formats import Export
from narrowgauge.exporters.pytorch import write
from narrowgauge.pipeline import quantize
from narrowgauge.runtimes.onnxruntime import open_run
from narrowgauge.runtimes.pytorch import compile_program, open_program
from narrowgauge.targets.registry import load_target

CALIBRATING, COMPARED = 16, 8


def main() -> None:
    """Read the command line, run, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["resnet20"])
    parser.add_argument("--rounds", type=int, default=20, help="how often all programs are timed in turn")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    found = [_measure(NETWORKS[name], arguments.rounds, arguments.threads) for name in arguments.networks]
    head = ["network", "program", "ms", "of compiled float", "integer kernels", "within 1 step of the simulation"]
    rows = [
        [one["network"], name, f"{row['ms']:.2f}", f"{row['ratio']:.2f}", row["kernels"], row["within"]]
        for one in found
        for name, row in one["programs"].items()
    ]
    title = f"Exported programs in PyTorch, {arguments.threads} thread(s), batch 1"
    report("pytorch_out", title, table(head, rows), {"networks": found})


def _measure(network: Network, rounds: int, threads: int) -> dict[str, Any]:
    from torch._inductor.utils import run_and_get_code

    data, target = images(network, CALIBRATING + COMPARED), load_target("pytorch-fbgemm")
    kernels: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="narrowgauge-pytorch-") as scratch:
        out = Path(scratch) / "planned"
        options = {"activations": "uint8", "recipe": "plain", "samples": CALIBRATING, "check_samples": 1}
        result = quantize(zoo() / network.path, data[:CALIBRATING], target=target, out=out, analysis="none", **options)
        model, simulated = ir.load(out / "float.onnx"), ir.load(out / "simulated.onnx")
        name, output = str(model.graph.inputs[0].name), str(model.graph.outputs[0].name)
        runs = {}
        for kind, plan, form in (
            ("float", Plan(target=target.name, encodings={}), model),
            ("int8", result.plan, simulated),
        ):
            folder = Path(scratch) / kind
            folder.mkdir()
            path = write(Export(network=model, plan=plan, target=target, simulated=form), folder).runnable
            assert path is not None
            runs[f"{kind}, operator by operator"] = open_program(path, threads=threads).run
            compiled = compile_program(path, threads=threads).run
            _, code = run_and_get_code(compiled, {name: data[:1]})
            chosen = Counter(re.findall(r"torch\.ops\.onednn\.(q\w+_pointwise)", "\n".join(code)))
            kernels[f"{kind}, compiled"] = ", ".join(f"{count} {each}" for each, count in chosen.items())
            runs[f"{kind}, compiled"] = compiled
        times = interleaved({key: lambda run=run: run({name: data[:1]}) for key, run in runs.items()}, rounds)  # type: ignore[misc]
        within = {
            key: _within(run, simulated, data[CALIBRATING:], result.plan, name, output)
            for key, run in runs.items()
            if key.startswith("int8")
        }
    return {
        "network": network.name,
        "programs": {
            key: {
                "ms": 1000 * statistics.median(taken),
                "ratio": paired_ratio(taken, times["float, compiled"]),
                "kernels": kernels.get(key),
                "within": within.get(key),
            }
            for key, taken in times.items()
        },
    }


def _within(run: Any, simulated: Any, data: Any, plan: Plan, name: str, output: str) -> str:
    """Say which share of the outputs is within one step of the simulation's."""
    reference = open_run(simulated, simulate=True)
    feeds = [{name: data[number : number + 1]} for number in range(len(data))]
    found, expected = (np.concatenate([each(feed)[output] for feed in feeds]) for each in (run, reference))
    encoding = plan.encodings.get(output)
    step = float(encoding.scale) if isinstance(encoding, Encoding) else float(np.abs(expected).max()) / 127
    return f"{np.mean(np.abs(found - expected) < 1.5 * step):.3f}"


if __name__ == "__main__":
    main()
