"""How fast the quantized networks are beside the float ones in ONNX Runtime, and what it really fuses in them.

One thread, one image, ONNX Runtime's default optimizations. The operators are counted in the graph that ONNX Runtime
itself writes after optimizing: a QuantizeLinear or DequantizeLinear left there is work that no kernel took in.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from _common import (
    IMAGENET_NETWORKS,
    Network,
    images,
    interleaved,
    open_plain,
    paired_ratio,
    report,
    run_all,
    table,
    zoo,
)

from narrowgauge.pipeline import quantize

CALIBRATING = 16
"""Images that calibrate: the speed does not depend on them."""

FORMATS = ("qdq", "qoperator")


def main() -> None:
    """Read the command line, run, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--networks", nargs="+", choices=IMAGENET_NETWORKS, default=list(IMAGENET_NETWORKS))
    parser.add_argument("--rounds", type=int, default=50, help="how often all networks are timed in turn")
    arguments = parser.parse_args()
    found = [_measure(IMAGENET_NETWORKS[name], arguments.rounds) for name in arguments.networks]
    text = f"{_ratios(found)}\n\n" + "\n\n".join(_operators(row) for row in found)
    report("speed", "Speed: int8 over float in ONNX Runtime, one thread, batch 1", text, {"networks": found})


def _measure(network: Network, rounds: int) -> dict[str, Any]:
    path, samples = zoo() / network.path, images(network, CALIBRATING + 1)
    with tempfile.TemporaryDirectory(prefix="narrowgauge-speed-") as folder:
        files = {"float": path}
        for form in FORMATS:
            out = Path(folder) / form
            quantize(path, samples, samples=CALIBRATING, format=form, out=out)
            files[form] = out / "model.onnx"
        sessions = {name: open_plain(file, threads=1) for name, file in files.items()}
        feed = samples[:1]
        times = interleaved(
            {name: lambda session=session: run_all(session, feed) for name, session in sessions.items()},  # type: ignore[misc]
            rounds,
        )
        counts = {name: _optimized_operators(file, Path(folder) / "optimized.onnx") for name, file in files.items()}
    return {
        "network": network.name,
        "milliseconds": {name: 1000 * statistics.median(taken) for name, taken in times.items()},
        "ratio": {name: paired_ratio(times[name], times["float"]) for name in FORMATS},
        "operators": counts,
    }


def _optimized_operators(file: Path, written: Path) -> dict[str, int]:
    """Count the operators of the graph that ONNX Runtime makes of a file, the most frequent first."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(written)
    onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(written, load_external_data=False).graph
    return dict(Counter(node.op_type for node in graph.node).most_common())


def _ratios(found: list[dict[str, Any]]) -> str:
    head = ["network", "float ms", *[f"{form} ms" for form in FORMATS], *[f"{form} / float" for form in FORMATS]]
    return table(
        head,
        [
            [
                row["network"], *[f"{milliseconds:.2f}" for milliseconds in row["milliseconds"].values()],
                *[f"{row['ratio'][form]:.2f}" for form in FORMATS],
            ]
            for row in found
        ],
    )  # fmt: skip


def _operators(row: dict[str, Any]) -> str:
    counts = row["operators"]
    names = sorted({name for count in counts.values() for name in count}, key=lambda name: -counts["qdq"].get(name, 0))
    lines = [[name, *[count.get(name) for count in counts.values()]] for name in names]
    return f"Operators of {row['network']} after optimization:\n\n{table(['operator', *counts], lines)}"


if __name__ == "__main__":
    main()
