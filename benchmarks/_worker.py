"""What the workers share: they run in a peer's own environment, which has numpy and onnxruntime but not narrowgauge.

A worker is started with one argument, the path of a JSON file: `model` (ONNX file), `images` (.npy, count x channels x
height x width, float32), `output` (ONNX file to write), `result` (JSON file to write), `options` (the variant).
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

Array = npt.NDArray[np.float32]
Quantize = Callable[[Path, Array, Path, Mapping[str, Any]], Mapping[str, float] | None]

PACKAGES = ("narrowgauge", "onnxruntime", "nncf", "aimet-onnx", "onnx", "numpy", "torch")

# A tool that wants more is stopped with a MemoryError, before the machine is.
MOST_BYTES = 14 * 2**30


def work(quantize: Quantize) -> None:
    """Quantize as the job says; write the file and what it cost.

    Args:
        quantize: (model, images, output, options) -> None, or figures of its own, among them `not_counted`: seconds
            that are no part of quantization. Its time is measured whole, from the files to the file.
    """
    job = json.loads(Path(sys.argv[1]).read_text())
    images = np.load(job["images"])
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
    start = time.perf_counter()
    own = dict(quantize(Path(job["model"]), images, Path(job["output"]), job["options"]) or {})
    seconds = time.perf_counter() - start - own.get("not_counted", 0.0)
    result = {
        "seconds": seconds,
        "peak_rss_bytes": peak_rss_bytes(),
        "float_pass_seconds": float_pass_seconds(job["model"], images),
        "own": own,
        "versions": {package: found for package in PACKAGES if (found := _version(package))},
    }
    Path(job["result"]).write_text(json.dumps(result))


def peak_rss_bytes() -> int:
    """Return the largest resident size of this program so far.

    Linux's `getrusage` starts a child at the size of the process that forked it; /proc starts it at nothing.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def float_pass_seconds(model: str, images: Array) -> float:
    """Time the plain pass of the same images, one by one, at ONNX Runtime's defaults: the faster of two."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    times = []
    for _ in range(2):
        start = time.perf_counter()
        for feed in feeds(images, name):
            session.run(None, feed)
        times.append(time.perf_counter() - start)
    return min(times)


def feeds(images: Array, name: str) -> Iterator[dict[str, Array]]:
    """Yield one feed for each image."""
    for index in range(len(images)):
        yield {name: images[index : index + 1]}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
