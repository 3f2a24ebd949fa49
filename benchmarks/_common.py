"""What the benchmarks share: the zoo's networks and images, timing in turn, tables, and the folder for results."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from narrowgauge.data import default_preprocess, input_specs, open_samples
from narrowgauge.importers.onnx import load

Array = npt.NDArray[np.float32]

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """A network of the zoo.

    Attributes:
        name: as in tables and on the command line.
        path: its file, relative to the zoo.
        images: the images that it is for, relative to the zoo.
        transformer: whether tools that have a mode for transformers are to use it.
    """

    name: str
    path: str
    images: str = "images/nips17/images"
    transformer: bool = False


MOBILENET_V2 = Network(name="mobilenet_v2", path="models/mobilenet_v2/mobilenet_v2_1.0_224.onnx")
VIT_TINY = Network(name="vit_tiny", path="models/vit_tiny/vit_tiny_patch16_224.onnx", transformer=True)
MOBILENET_V1 = Network(name="mobilenet_v1_025", path="models/mobilenet_v1_025/mobilenet_v1_0.25_224.onnx")
RESNET20 = Network(name="resnet20", path="models/cifar_resnet/resnet20.onnx", images="images/cifar10/test.zip")
IMAGENET_NETWORKS = {network.name: network for network in (MOBILENET_V2, VIT_TINY, MOBILENET_V1)}
NETWORKS = IMAGENET_NETWORKS | {RESNET20.name: RESNET20}


def zoo() -> Path:
    """Return the folder of real networks: $NARROWGAUGE_ZOO, else ../shared/zoo beside the repository.

    Raises:
        SystemExit: with code 0 where it is absent: there is nothing to measure on.
    """
    folder = Path(os.environ.get("NARROWGAUGE_ZOO") or HERE.parent.parent / "shared" / "zoo")
    if not (folder / "MANIFEST.md").is_file():
        print(f"Skipped: needs the zoo of real networks, which is not at {folder}; set NARROWGAUGE_ZOO to its folder.")
        raise SystemExit(0)
    return folder


def samples(network: Network) -> Iterator[tuple[Array, int | None]]:
    """Yield (array with batch axis, the output that stands for its class or None) of the network's images.

    They are sorted by name and prepared by the TOML file beside the network.
    """
    path, folder = zoo() / network.path, zoo() / network.images
    table = folder.parent / "labels.txt"
    specs = input_specs(load(path).model)
    opened = open_samples(folder, specs, preprocess=default_preprocess(path), labels=table if table.is_file() else None)
    for sample in opened:
        yield np.asarray(sample.feed[specs[0].name], dtype=np.float32), sample.label


def images(network: Network, count: int) -> Array:
    """Return the first images, count x channels x height x width."""
    return np.concatenate([array for array, _ in islice(samples(network), count)])


# --- running and timing ---------------------------------------------------------------------------------------


def open_plain(path: str | Path, *, threads: int) -> onnxruntime.InferenceSession:
    """Open a file in ONNX Runtime as anybody would: everything at its default but the number of threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run_all(session: onnxruntime.InferenceSession, inputs: Array, *, batch: int = 1) -> Array:
    """Run samples, `batch` at a time; return the first output of all."""
    name = session.get_inputs()[0].name
    starts = range(0, len(inputs), batch)
    return np.concatenate([session.run(None, {name: inputs[start : start + batch]})[0] for start in starts])


def interleaved(runs: Mapping[str, Callable[[], object]], rounds: int, *, warm: bool = True) -> dict[str, list[float]]:
    """Time runs in turn, A B C A B C ..., so that a machine that changes speed changes all of them; seconds."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(-1 if warm else 0, rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if number >= 0:
                times[name].append(time.perf_counter() - start)
    return times


def paired_ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """Return the median over the rounds of one run's time over the other's of the same round."""
    return statistics.median(a / b for a, b in zip(times, others, strict=True))


def run_self(script: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Run a script of this folder in a fresh process of this environment; return the JSON of its last line."""
    command = [sys.executable, str(HERE / script), *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


# --- telling --------------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Write a markdown table; None becomes a dash."""
    lines = [list(head), ["---"] * len(head), *[["-" if cell is None else str(cell) for cell in row] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine() -> dict[str, Any]:
    """Say when, on what and with which versions."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in ("narrowgauge", "onnxruntime", "onnx", "numpy")},
        },
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor() or platform.machine()
    split = (line.partition(":") for line in info.read_text().splitlines())
    pairs = {key.strip(): value.strip() for key, _, value in split}
    flags = set(pairs.get("flags", "").split())
    speaking = [flag for flag in ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8") if flag in flags]
    place = f"family {pairs.get('cpu family', '?')} model {pairs.get('model', '?')}"
    return f"{pairs.get('model name', platform.machine())} ({place}; {', '.join(speaking) or 'no vector flags'})"


def report(name: str, title: str, text: str, data: Mapping[str, Any]) -> None:
    """Print a result and keep it: `results/NAME.md` for people, `results/NAME.json` with everything measured."""
    where = machine()
    versions = ", ".join(f"{package} {number}" for package, number in where["versions"].items())
    place = f"{where['cpu']}, {where['cores']} cores, load average {where['load_average'][0]}"
    head = f"# {title}\n\n{where['date']}; {place}; {versions}"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / ".gitignore").write_text("*\n")
    (RESULTS / f"{name}.md").write_text(f"{head}\n\n{text}\n")
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": where, **data}, indent=1) + "\n")
    print(f"{head}\n\n{text}\n")
