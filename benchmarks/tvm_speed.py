"""How fast libraries that narrowgauge compiles with TVM are beside TVM's own float build of the same network.

The float build is what TVM makes of the float network by itself: its ONNX importer, the pipeline "zero", the same
processor and number of threads. ONNX Runtime's float and integer networks are timed in the same rounds, as a measure of
what the processor can do. One image at a time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from _common import (
    MOBILENET_V2,
    NETWORKS,
    RESNET20,
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

from narrowgauge.exporters.tvm.processor import this_processor
from narrowgauge.pipeline import quantize
from narrowgauge.runtimes.tvm import open_program

CALIBRATING = 16
"""Images that calibrate: the speed does not depend on them."""


def main() -> None:
    """Read the command line, run, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=[RESNET20.name, MOBILENET_V2.name])
    parser.add_argument("--rounds", type=int, default=30, help="how often all are timed in turn")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    # TVM reads these when it makes its threads: how many, and that none is tied to a core.
    os.environ.update(TVM_NUM_THREADS=str(arguments.threads), TVM_BIND_THREADS="0")
    found = [_measure(NETWORKS[name], arguments.rounds, arguments.threads) for name in arguments.networks]
    title = f"TVM: int8 beside TVM's own float build, {arguments.threads} thread(s), one image at a time"
    report("tvm_speed", title, _table(found), {"networks": found})


def _measure(network: Network, rounds: int, threads: int) -> dict[str, Any]:
    path, samples = zoo() / network.path, images(network, CALIBRATING + 1)
    feed = samples[:1]
    with tempfile.TemporaryDirectory(prefix="narrowgauge-tvm-") as folder:
        out = Path(folder) / "tvm"
        quantize(path, samples, samples=CALIBRATING, target="tvm", recipe="plain", analysis="none", out=out)
        start = time.perf_counter()
        compiled = _float_build(out / "float.onnx", feed)
        float_seconds = time.perf_counter() - start
        plain = open_plain(out / "float.onnx", threads=threads)
        other = Path(folder) / "onnxruntime"
        quantize(path, samples, samples=CALIBRATING, recipe="plain", analysis="none", out=other)
        integer = open_plain(other / "model.onnx", threads=threads)
        program = open_program(out / "model.tvm.so", threads=threads)
        name = program.inputs[0].name
        expected, answered = run_all(plain, feed), compiled()
        if np.abs(answered - expected).max() > 1e-3 * np.abs(expected).max():
            raise SystemExit(f"{network.name}: TVM's float build answers otherwise than ONNX Runtime's")
        times = interleaved(
            {
                "TVM int8": lambda: program.run({name: feed}),
                "TVM float": compiled,
                "ONNX Runtime int8": lambda: run_all(integer, feed),
                "ONNX Runtime float": lambda: run_all(plain, feed),
            },
            rounds,
        )
        sizes = {"library": (out / "model.tvm.so").stat().st_size, "float": (out / "float.onnx").stat().st_size}
    return {
        "network": network.name,
        "milliseconds": {key: 1000 * statistics.median(taken) for key, taken in times.items()},
        "ratio": paired_ratio(times["TVM int8"], times["TVM float"]),
        "bytes": sizes,
        "float_build_seconds": float_seconds,
    }


def _float_build(path: Path, feed: np.ndarray) -> Callable[[], np.ndarray]:
    """Compile a float network as TVM does it; return what runs it once on a feed."""
    import tvm
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    model = onnx.load(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = from_onnx(model, shape_dict={model.graph.input[0].name: list(feed.shape)})
    library = tvm.compile(relax.get_pipeline("zero")(module), target=this_processor().target)
    machine, given = relax.VirtualMachine(library, tvm.cpu()), tvm.runtime.tensor(feed)

    def run() -> np.ndarray:
        answered = machine["main"](given)
        return (answered[0] if hasattr(answered, "__len__") else answered).numpy()

    return run


def _table(found: list[dict[str, Any]]) -> str:
    engines = list(found[0]["milliseconds"])
    head = ["network", *[f"{engine} ms" for engine in engines], "TVM int8 / float", "float / int8 bytes"]
    rows = [
        [
            row["network"], *[f"{row['milliseconds'][engine]:.2f}" for engine in engines], f"{row['ratio']:.3f}",
            f"{row['bytes']['float'] / row['bytes']['library']:.2f}",
        ]
        for row in found
    ]  # fmt: skip
    return table(head, rows)


if __name__ == "__main__":
    main()
