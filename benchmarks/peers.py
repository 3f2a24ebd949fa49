"""Us and the peers on the zoo: accuracy, size, speed of the quantized networks, and what making them cost.

Every peer has an environment of its own under `benchmarks/.venvs/` and quantizes in a fresh process there, with the
same images; what it wrote is measured here, all in one place, with plain ONNX Runtime.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from _common import (
    HERE,
    IMAGENET_NETWORKS,
    Array,
    Network,
    interleaved,
    open_plain,
    paired_ratio,
    report,
    run_all,
    samples,
    table,
    zoo,
)

CALIBRATING = 256
"""The zoo's convention: so many images calibrate, the others evaluate."""

THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
LATENCY_ROUNDS = 100
MOST_SECONDS = 1800


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One way to use a tool.

    Attributes:
        name: as in the table.
        options: what the tool's worker takes.
        transformer: for transformers only (True), for other networks only (False), or for all (None).
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    transformer: bool | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Tool:
    """A tool and how to get it.

    Attributes:
        worker: script of this folder that runs it.
        requirements: what pip installs into its environment; none for the project's own environment.
        variants: ways to use it.
    """

    worker: str
    requirements: tuple[str, ...]
    variants: tuple[Variant, ...]


# The newest that pip found when this was written; raise them on purpose.
TOOLS = {
    "narrowgauge": Tool(worker="_worker_narrowgauge.py", requirements=(), variants=(Variant(name="default"),)),
    "onnxruntime": Tool(
        worker="_worker_onnxruntime.py",
        requirements=("onnxruntime==1.31.1", "onnx==1.23.2", "numpy==2.4.6", "sympy"),
        variants=(
            Variant(name="minmax", options={"method": "MinMax", "per_channel": True}),
            Variant(name="percentile", options={"method": "Percentile", "per_channel": True}),
            Variant(name="entropy", options={"method": "Entropy", "per_channel": True}),
            Variant(name="minmax, weights per tensor", options={"method": "MinMax", "per_channel": False}),
            Variant(
                name="minmax, layers only",
                options={"method": "MinMax", "per_channel": True, "operators": ["MatMul", "Gemm", "Conv"]},
                transformer=True,
            ),
        ),
    ),
    "nncf": Tool(
        worker="_worker_nncf.py",
        requirements=("nncf==3.4.0", "onnxruntime==1.31.1", "onnx==1.23.2", "numpy==2.4.6"),
        variants=(
            Variant(name="default", transformer=False),
            Variant(name="mixed preset", options={"preset": "mixed"}, transformer=False),
            Variant(name="transformer", options={"transformer": True}, transformer=True),
        ),
    ),
    "aimet": Tool(
        worker="_worker_aimet.py",
        requirements=("torch==2.13.0", "aimet-onnx==2.42.0"),
        variants=(
            Variant(name="min_max", options={"scheme": "min_max"}),
            Variant(name="tf_enhanced", options={"scheme": "tf_enhanced"}),
            Variant(name="percentile", options={"scheme": "percentile"}),
            Variant(
                name="equalized, tf_enhanced", options={"scheme": "tf_enhanced", "equalize": True}, transformer=False
            ),
        ),
    ),
}


def main() -> None:
    """Read the command line, run, report."""
    arguments = _arguments()
    zoo()
    pythons = {name: _environment(name, TOOLS[name], install=not arguments.skip_install) for name in arguments.peers}
    rows: list[dict[str, Any]] = []
    for name in arguments.networks:
        with tempfile.TemporaryDirectory(prefix="narrowgauge-peers-") as folder:
            rows += list(_network_rows(IMAGENET_NETWORKS[name], pythons, arguments.images, Path(folder)))
    calibrating, evaluating = (arguments.images,) * 2 if arguments.images else (CALIBRATING, "the other images")
    title = f"Peers: {calibrating} images calibrate, {evaluating} evaluate"
    text = f"{_versions(rows)}\n\n{_table(rows)}\n\n{_standing(rows)}"
    report("peers", title, text, {"images": arguments.images, "rows": rows})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--networks", nargs="+", choices=IMAGENET_NETWORKS, default=list(IMAGENET_NETWORKS))
    parser.add_argument("--peers", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--images", type=int, default=0, help="so many calibrate and the next so many evaluate")
    parser.add_argument("--skip-install", action="store_true", help="take the environments as they are")
    return parser.parse_args()


# --- environments and workers ---------------------------------------------------------------------------------


def _environment(name: str, tool: Tool, *, install: bool) -> Path:
    """Return the Python of a tool's environment, made afresh where its requirements changed."""
    if not tool.requirements:
        return Path(sys.executable)
    folder = HERE / ".venvs" / name
    python, stamp, wanted = folder / "bin" / "python", folder / "requirements.txt", "\n".join(tool.requirements)
    if not install or (stamp.is_file() and stamp.read_text() == wanted):
        return python
    print(f"Installing {', '.join(tool.requirements)} into {folder} ...", file=sys.stderr)
    folder.parent.mkdir(exist_ok=True)
    (folder.parent / ".gitignore").write_text("*\n")
    quiet = ["--quiet", "--quiet", "--disable-pip-version-check", "--no-input"]
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    subprocess.run([str(python), "-m", "pip", "install", *quiet, *tool.requirements], check=True)
    stamp.write_text(wanted)
    return python


def _work(python: Path, worker: str, job: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Run a worker; return what it measured, or `failed`: the last thing it said."""
    request = folder / "job.json"
    request.write_text(json.dumps(job))
    # CI: NNCF's telemetry asks nothing and sends nothing there.
    environment = {**os.environ, "CI": "true"}
    environment.pop("PYTHONPATH", None)
    command = [str(python), str(HERE / worker), str(request)]
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, errors="replace", timeout=MOST_SECONDS,
            env=environment, cwd=folder,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {MOST_SECONDS} s"}
    except FileNotFoundError:
        return {"failed": "its environment is not installed"}
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or ["nothing"]
        return {"failed": f"exit code {done.returncode}: {said[0][:200]}", "stderr": done.stderr[-4000:]}
    answer: dict[str, Any] = json.loads(Path(job["result"]).read_text())
    return answer


# --- one network ----------------------------------------------------------------------------------------------


def _network_rows(network: Network, pythons: Mapping[str, Path], count: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Quantize a network with every tool and measure all that came of it."""
    calibrating, evaluating, classes = _split(network, count)
    np.save(folder / "images.npy", calibrating)
    del calibrating
    float_file = zoo() / network.path
    reference = run_all(open_plain(float_file, threads=THREADS), evaluating)
    rows, files = [_float_row(network, float_file, reference, classes)], {"float": float_file}
    for number, (tool, variant) in enumerate(_variants(network, pythons)):
        output = folder / f"{number}.onnx"
        job = {
            "model": str(float_file), "images": str(folder / "images.npy"), "output": str(output),
            "result": str(folder / f"{number}.json"), "options": dict(variant.options),
        }  # fmt: skip
        print(f"{network.name}: {tool}, {variant.name}", end=" ... ", file=sys.stderr, flush=True)
        row: dict[str, Any] = {"network": network.name, "tool": tool, "variant": variant.name}
        row |= _work(pythons[tool], TOOLS[tool].worker, job, folder)
        if "failed" not in row:
            row |= _accuracy(output, reference, evaluating, classes)
        if "failed" not in row:
            row["size_ratio"] = _size(output) / _size(float_file)
            row["cost_in_float_passes"] = row["seconds"] / row["float_pass_seconds"]
            files[f"{tool}, {variant.name}"] = output
        said = row.get("failed") or f"agrees {row['agreement']:.1f} %, {row['seconds']:.1f} s"
        print(said, file=sys.stderr, flush=True)
        rows.append(row)
    for row, ratio in zip((row for row in rows if "failed" not in row), _latencies(files, evaluating), strict=True):
        row["latency_ratio"] = ratio
    yield from rows


def _split(network: Network, count: int) -> tuple[Array, Array, npt.NDArray[np.int64]]:
    """Return the images that calibrate, those that evaluate, and the classes of the latter."""
    pairs = list(islice(samples(network), 2 * count if count else None))
    cut = count or CALIBRATING
    classes = np.array([label for _, label in pairs[cut:]], dtype=np.int64)
    arrays = [array for array, _ in pairs]
    return np.concatenate(arrays[:cut]), np.concatenate(arrays[cut:]), classes


def _variants(network: Network, pythons: Mapping[str, Path]) -> Iterator[tuple[str, Variant]]:
    for tool in pythons:
        for variant in TOOLS[tool].variants:
            if variant.transformer in (None, network.transformer):
                yield tool, variant


def _float_row(network: Network, file: Path, reference: Array, classes: npt.NDArray[np.int64]) -> dict[str, Any]:
    return {
        "network": network.name, "tool": "float", "variant": "", "agreement": 100.0, "size_bytes": _size(file),
        "top1": 100 * float((reference.argmax(axis=1) == classes).mean()), "size_ratio": 1.0, "images": len(classes),
    }  # fmt: skip


def _accuracy(file: Path, reference: Array, images: Array, classes: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Compare a file with the float network: top-1 and agreement in percent, SQNR of the logits in decibels."""
    try:
        logits = run_all(open_plain(file, threads=THREADS), images)
    except Exception as error:  # ONNX Runtime raises bare classes of its own that share no base
        return {"failed": f"ONNX Runtime does not run what it wrote: {error}"[:300]}
    best = logits.argmax(axis=1)
    signal, noise = np.square(reference, dtype=np.float64).sum(), np.square(logits - reference, dtype=np.float64).sum()
    return {
        "top1": 100 * float((best == classes).mean()),
        "agreement": 100 * float((best == reference.argmax(axis=1)).mean()),
        "sqnr_db": 10 * math.log10(signal / noise) if noise else None,
        "size_bytes": _size(file),
    }


def _size(file: Path) -> int:
    """Bytes of a network's file and of the weights beside it."""
    return sum(part.stat().st_size for part in (file, file.with_name(f"{file.name}.data")) if part.is_file())


def _latencies(files: Mapping[str, Path], images: Array) -> list[float]:
    """Time all files in turn, one thread, one image; each over the float network's time of the same round."""
    sessions = {name: open_plain(file, threads=1) for name, file in files.items()}
    feed = images[:1]
    times = interleaved(
        {name: lambda session=session: run_all(session, feed) for name, session in sessions.items()},  # type: ignore[misc]
        LATENCY_ROUNDS,
    )
    return [paired_ratio(times[name], times["float"]) for name in files]


# --- telling --------------------------------------------------------------------------------------------------


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    head = [
        "network", "tool", "variant", "top-1 %", "agree %", "SQNR dB", "size / float", "latency / float", "seconds",
        "in float passes", "peak MB",
    ]  # fmt: skip
    return table(head, [_cells(row) for row in rows])


def _cells(row: Mapping[str, Any]) -> list[object]:
    start = [row["network"], row["tool"]]
    if "failed" in row:
        return [*start, f"{row['variant']}: {row['failed']}".replace("|", "/"), *[None] * 8]
    peak = row.get("peak_rss_bytes")
    return [
        *start, row["variant"], _number(row, "top1", 1), _number(row, "agreement", 1), _number(row, "sqnr_db", 1),
        _number(row, "size_ratio", 2), _number(row, "latency_ratio", 2), _number(row, "seconds", 1),
        _number(row, "cost_in_float_passes", 1), f"{peak / 2**20:.0f}" if peak else None,
    ]  # fmt: skip


def _number(row: Mapping[str, Any], key: str, digits: int) -> str | None:
    value = row.get(key)
    return None if value is None else f"{value:.{digits}f}"


def _standing(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say for each network how we stand beside the best peer of each column."""
    lines = []
    done = [row for row in rows if "failed" not in row and row["tool"] != "float"]
    for network in dict.fromkeys(row["network"] for row in done):
        ours = [row for row in done if row["network"] == network and row["tool"] == "narrowgauge"]
        peers = [row for row in done if row["network"] == network and row["tool"] != "narrowgauge"]
        if ours and peers:
            lines.append([network, *_beside(ours[0], peers)])
    head = ["network", "agree - best peer", "top-1 - best peer", "latency / fastest peer", "seconds / fastest peer"]
    return f"narrowgauge beside the best peer of each column:\n\n{table(head, lines)}" if lines else ""


def _beside(ours: Mapping[str, Any], peers: Sequence[Mapping[str, Any]]) -> list[str]:
    cells = []
    for key in ("agreement", "top1"):
        best = max(peers, key=lambda row: row[key])
        cells.append(f"{ours[key] - best[key]:+.1f} ({best['tool']}, {best['variant']})")
    for key in ("latency_ratio", "seconds"):
        best = min(peers, key=lambda row: row[key])
        cells.append(f"{ours[key] / best[key]:.2f} ({best['tool']}, {best['variant']})")
    return cells


def _versions(rows: Sequence[Mapping[str, Any]]) -> str:
    found: dict[str, Mapping[str, str]] = {row["tool"]: row["versions"] for row in rows if "versions" in row}
    return "\n".join(
        f"- {tool}: {', '.join(f'{name} {number}' for name, number in versions.items())}"
        for tool, versions in found.items()
    )


if __name__ == "__main__":
    main()
