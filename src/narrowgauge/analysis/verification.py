"""Check a folder that `quantize` wrote: are its files whole, and do they do what its summary says?"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from narrowgauge.analysis.evaluate import Comparison, Run, compare_runs
from narrowgauge.analysis.exactness import Exactness
from narrowgauge.analysis.exactness import to_json as exactness_to_json
from narrowgauge.analysis.folder_exactness import folder_exactness
from narrowgauge.calibration.batching import batch_size
from narrowgauge.core.plan import load_plan
from narrowgauge.data import Preprocess, batches, default_preprocess, input_specs, open_samples
from narrowgauge.data.inputs import output_names
from narrowgauge.data.preprocess import load_preprocess
from narrowgauge.errors import MissingDependencyError, NarrowgaugeError, OutputError, RuntimeFailure, TargetError
from narrowgauge.exporters.folder import FLOAT, INTEGER, ORIGINAL, PLAN, PREPROCESS, SIMULATED, SUMMARY
from narrowgauge.importers.onnx import read
from narrowgauge.runtimes.engines import engine_for, engine_named, engines_for, open_program
from narrowgauge.runtimes.feeding import taking
from narrowgauge.runtimes.onnxruntime import open_run
from narrowgauge.targets.registry import load_target


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_figure(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _is_runnable(value: Any) -> bool:
    return isinstance(value, dict) and _is_text(value.get("file")) and _is_text(value.get("runtime"))


def _is_listing(value: Any) -> bool:
    """Whether it lists files of the folder itself, each with its size and digest."""
    return isinstance(value, dict) and all(
        Path(name).name == name
        and isinstance(one, dict)
        and _is_count(one.get("bytes"))
        and _is_text(one.get("sha256"))
        for name, one in value.items()
    )


_FITS: Mapping[str, Callable[[Any], bool]] = {
    "model": _is_text,
    "target": _is_text,
    "files": _is_listing,
    "agreement_top1": _is_figure,
    "sqnr_db": _is_figure,
    "checked_samples": _is_count,
    "runnable": _is_runnable,
}
"""What a summary must say to be checked, and of what kind each entry is."""

_NO_ENGINE = "the integers inside were not compared: no engine here runs the target's own file"

_FLOAT_FILE = "the file holds the float network: there are no integers inside to compare"

# How far figures of other samples may lie from the summary's before they contradict it. A few samples that reach beyond
# the calibrated ranges cost many decibels.
_DEVIATIONS = 4.0
_SQNR_DB = 20.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What was found.

    Attributes:
        pairs: (reference file, other file) -> how they compare; the float network is the first reference.
        samples: how many were run.
        contradictions: what does not hold, one sentence each; empty if all is well.
        notes: what a person should know of the samples.
        runtime: name of the engine that ran the quantized network; "" where it was simulated.
        exactness: how the engine's integers lie to ours; None where they were not compared.
        reasons: why integers differ or were not compared, a sentence each.
    """

    pairs: Mapping[tuple[str, str], Comparison]
    samples: int
    contradictions: tuple[str, ...]
    notes: tuple[str, ...]
    runtime: str = ""
    exactness: Exactness | None = None
    reasons: tuple[str, ...] = ()


def verify(
    folder: Path,
    data: Any,
    *,
    runtime: str = "",
    samples: int = 100,
    preprocess: str | Path | None = None,
    threads: int | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> Verification:
    """Read a folder back, run its networks on samples and compare them with each other and with `summary.json`.

    Where we know the arithmetic of the engine that runs the quantized network, every integer inside it is compared with
    that of our integer network, too. Integers that differ contradict nothing: they are a finding, with a warning where
    they should not.

    Args:
        folder: what `quantize` wrote.
        data: samples, see `data.open_samples`.
        runtime: name of the engine that runs the quantized network, "" for the one that the summary names.
        samples: how many of them.
        preprocess: how images become inputs; None takes the folder's own, else the file beside the network that the
            summary names.
        threads: of the engine.
        progress: called with the number of samples of each batch, once for each pair of networks.

    Raises:
        OutputError: if a file is missing, cannot be read, or is not the one that was written.
        NarrowgaugeError: if a network cannot be run or the data cannot be read.
    """
    summary = _read_summary(folder)
    _check_files(folder, summary)
    plan = load_plan(folder / PLAN)
    reference = read(folder / _reference(folder))
    inputs = input_specs(reference)
    given = _preprocess(preprocess, folder, Path(summary["model"]))
    opened = open_samples(data, inputs, preprocess=given).take(samples)
    engine_name = runtime or str(summary["runnable"]["runtime"])
    runnable = _file(folder, str(summary["runnable"]["file"]), engine_name)
    runs = {runnable: _run(folder / runnable, reference, engine_name, threads)}
    pairs = {}
    planned = runnable == SIMULATED or summary["runnable"].get("planned", True) is not False
    for one, other in _pairs(folder, runnable) if planned else [(_reference(folder), runnable)]:
        for name in (one, other):
            if name not in runs:
                simulated = "" if name == SIMULATED else "onnxruntime"
                runs[name] = _run(folder / name, reference, simulated, threads)
        pairs[one, other] = compare_runs(
            runs[one], runs[other], batches(opened, batch_size(reference), inputs), progress=progress
        )
    found = next(iter(pairs.values()))
    said = (
        []
        if plan.target == summary["target"]
        else [f"plan.json is for {plan.target}, summary.json for {summary['target']}"]
    )
    contradictions = (*said, *_contradictions(summary, pairs))
    inside: Exactness | None = None
    reasons: tuple[str, ...] = (_FLOAT_FILE,) if not planned else () if engine_name else (_NO_ENGINE,)
    if engine_name and planned:
        try:
            inside, reasons = folder_exactness(
                folder / runnable, opened, engine=engine_named(engine_name), plan=plan,
                target=load_target(plan.target), threads=threads, progress=progress,
            )  # fmt: skip
        except TargetError as error:  # one of the user's own, of which only the name is known here
            reasons = (f"the integers inside were not compared: {error}",)
    return Verification(
        pairs=pairs, samples=found.samples, contradictions=contradictions, notes=opened.notes,
        runtime=engine_name, exactness=inside, reasons=reasons,
    )  # fmt: skip


def to_json(found: Verification) -> dict[str, Any]:
    """Put a verification into JSON values."""
    return {
        "samples": found.samples,
        "pairs": [
            {
                "reference": one, "other": other, "agreement_top1": pair.agreement_top1,
                "sqnr_db": pair.sqnr_db if math.isfinite(pair.sqnr_db) else None,
                "sqnr_infinite": pair.sqnr_db == math.inf,
            }
            for (one, other), pair in found.pairs.items()
        ],
        "runtime": found.runtime,
        "bit_exact": None if found.exactness is None else exactness_to_json(found.exactness),
        "contradictions": list(found.contradictions),
        "notes": [*found.notes, *found.reasons],
    }  # fmt: skip


def _read_summary(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise OutputError(f"{folder}: expected a folder that `narrowgauge quantize` wrote, there is none")
    path = folder / SUMMARY
    if not path.is_file():
        raise OutputError(f"{folder}: expected a folder that `narrowgauge quantize` wrote, it has no {SUMMARY}")
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        missing = _FITS.keys() - set(summary)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise OutputError(f"{path}: expected what `narrowgauge quantize` wrote, could not read it: {error}") from None
    if missing:
        raise OutputError(f"{path}: {min(missing)!r} is missing: it is damaged or of another version; quantize again")
    wrong = next((key for key, fits in _FITS.items() if not fits(summary[key])), None)
    if wrong is None and summary["runnable"]["file"] not in summary["files"]:
        wrong = "runnable"
    if wrong is not None:
        raise OutputError(f"{path}: {wrong!r} is not what a run writes there: it is damaged or changed; quantize again")
    return dict(summary)


def _check_files(folder: Path, summary: Mapping[str, Any]) -> None:
    for name, meant in summary["files"].items():
        path = folder / name
        if not path.is_file():
            raise OutputError(f"{path}: the file is missing, summary.json lists it; quantize again")
        size = path.stat().st_size
        if size != meant["bytes"]:
            raise OutputError(
                f"{path}: expected {meant['bytes']} bytes, it has {size}: damaged or changed; quantize again"
            )
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != meant["sha256"]:
                raise OutputError(f"{path}: it was changed or damaged since it was written; quantize again")


def _preprocess(given: str | Path | None, folder: Path, model: Path) -> Preprocess | None:
    if given is None and (folder / PREPROCESS).is_file():
        given = folder / PREPROCESS
    return load_preprocess(Path(given)) if given is not None else default_preprocess(model)


def _file(folder: Path, runnable: str, runtime: str) -> str:
    """Name the quantized network that an engine runs: the target's own, else the simulated one where it takes that.

    Raises:
        RuntimeFailure: there is no such engine, or it runs neither.
    """
    if not runtime or engine_named(runtime) in engines_for(folder / runnable):
        return runnable
    if engine_named(runtime).runs_simulated:
        return SIMULATED
    engine_for(folder / runnable, runtime)  # says what it runs
    return runnable


def _reference(folder: Path) -> str:
    """Name the float network that the quantized one stands for: recovery may have changed the one the plan is for."""
    return ORIGINAL if (folder / ORIGINAL).exists() else FLOAT


def _pairs(folder: Path, runnable: str) -> list[tuple[str, str]]:
    """Name the runnable file beside the float network first, then the other forms beside it."""
    others = [name for name in (SIMULATED, INTEGER) if name != runnable and (folder / name).exists()]
    return [(_reference(folder), runnable), *((runnable, other) for other in others)]


def _run(path: Path, network: ir.Model, runtime: str, threads: int | None) -> Run:
    """Open a file in an engine for the feeds of the float network; without an engine, simulate it."""
    try:
        if not runtime:
            return open_run(path, threads=threads, simulate=True)
        program = open_program(path, runtime=runtime, threads=threads)
        return taking(program, input_specs(network), output_names(network))
    except MissingDependencyError:
        raise
    except NarrowgaugeError as error:
        said = str(error).removeprefix(f"{path}: ")  # most name the file themselves
        who = f"{engine_named(runtime).title} cannot run it" if runtime else "ONNX Runtime cannot run it"
        raise RuntimeFailure(f"{path}: {who}: {said}") from None


def _contradictions(summary: Mapping[str, Any], pairs: Mapping[tuple[str, str], Comparison]) -> list[str]:
    (first, runnable), found = next(iter(pairs.items()))
    said = []
    for (one, other), pair in pairs.items():
        if one != first and pair.sqnr_db < found.sqnr_db - 3:
            said.append(
                f"{other} and {one} should say the same, but they differ more ({pair.sqnr_db:.1f} dB) than the "
                f"quantized network differs from the float one ({found.sqnr_db:.1f} dB)"
            )
    if not summary["checked_samples"]:
        return said
    expected, got = summary["agreement_top1"], found.agreement_top1
    if expected is not None and got is not None:
        counts = 1 / max(summary["checked_samples"], 1) + 1 / found.samples
        share = min(max(expected / 100, 0.01), 0.99)
        most = 100 * _DEVIATIONS * math.sqrt(share * (1 - share) * counts)
        if got < expected - most:
            said.append(
                f"{runnable} agrees with {first} on {got:.2f} % of the samples, summary.json says {expected:.2f} %"
            )
    if summary["sqnr_db"] is not None and found.sqnr_db < summary["sqnr_db"] - _SQNR_DB:
        said.append(f"{runnable} has an SQNR of {found.sqnr_db:.1f} dB, summary.json says {summary['sqnr_db']:.1f} dB")
    return said
