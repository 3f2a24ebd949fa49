"""The folder that a run writes: whole or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from narrowgauge.calibration.statistics import Statistics
from narrowgauge.core.plan import Plan, load_plan, plan_to_json
from narrowgauge.data.preprocess import Preprocess, load_preprocess, preprocess_toml
from narrowgauge.errors import OutputError, TargetError
from narrowgauge.exporters.formats import Export, Format
from narrowgauge.exporters.forms import Forms
from narrowgauge.exporters.onnx import write_onnx
from narrowgauge.graph.digest import network_digest
from narrowgauge.runtimes.engines import engines_for, file_bytes

MODEL, SIMULATED, INTEGER = "model.onnx", "simulated.onnx", "integer.onnx"
FLOAT, ORIGINAL = "float.onnx", "original.onnx"
PLAN, STATISTICS, SUMMARY, PREPROCESS = "plan.json", "statistics.npz", "summary.json", "model.toml"


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What a folder holds so far.

    Attributes:
        folder: where it is now, under a temporary name.
        runnable: the file that stands for the quantized network: the target's own, else the simulated one.
        runtime: name of the engine that runs it; "" for the simulated one.
        size_bytes: of the quantized network, all of its files.
        notes: what a person should know.
        planned: the plan is in the file; False where it holds the float network.
    """

    folder: Path
    runnable: Path
    runtime: str
    size_bytes: int
    notes: tuple[str, ...] = ()
    planned: bool = True


@contextlib.contextmanager
def new_folder(out: Path | None, *, force: bool = False, reads: Iterable[object] = ()) -> Iterator[Path]:
    """Make a folder under a temporary name beside `out` and rename it when all went well.

    Whatever happens, `out` is the old folder, the new one, or none: never half of one. Without `out` the folder is
    temporary and removed at the end.

    Args:
        out: the folder.
        force: replace what is there.
        reads: what the run reads; of these the paths are never replaced, but for files that an earlier run wrote.

    Raises:
        OutputError: if `out` exists and is not empty (unless `force`), is a file, or cannot be written; if replacing it
            would remove what the run reads or where it runs; if the disk is full.
    """
    if out is None:
        with tempfile.TemporaryDirectory(prefix="narrowgauge-") as name:
            yield Path(name)
        return
    out = out.resolve()  # where a link points, so that the folder itself is replaced
    check_free(out, force=force, reads=reads)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise OutputError(f"{out}: could not make the folder: {error.strerror}; choose another --out") from None
    try:
        yield temporary
        temporary.chmod(0o755)
        _put_in_place(temporary, out)
    except OSError as error:
        raise OutputError(f"{out}: could not write: {error.strerror or error}; nothing was changed") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_free(out: Path, *, force: bool, reads: Iterable[object] = ()) -> None:
    """Refuse a place that is taken; see `new_folder`.

    Raises:
        OutputError: if `out` is a file, or a folder that is not empty and `force` is not given or would do harm.
    """
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: expected a folder or nothing, there is a file; choose another --out")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not force:
        raise OutputError(f"{out}: the folder exists and is not empty; choose another --out, or --force to replace it")
    written = _written_before(out)
    for path in [Path(place).resolve() for place in reads if isinstance(place, str | os.PathLike)]:
        if path.is_relative_to(out) and path.exists() and path not in written:
            raise OutputError(f"{out}: --force would remove {path}, which this run reads; choose another --out")
    for path in (Path.cwd(), Path.home()):
        if path.resolve().is_relative_to(out):
            raise OutputError(f"{out}: --force would remove {path} and all that is in it; choose another --out")


def _written_before(out: Path) -> set[Path]:
    """List what an earlier run wrote into a folder, as its summary says: a new run may read and replace that."""
    try:
        summary = json.loads((out / SUMMARY).read_text(encoding="utf-8"))
        return {out / name for name in summary["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _put_in_place(temporary: Path, out: Path) -> None:
    """Put the new folder where `out` is, in one step of the file system wherever that has one."""
    if not out.exists() or not any(out.iterdir()):  # an empty folder gives way to one renamed over it
        temporary.rename(out)
    elif _exchanged(temporary, out):
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        _replace_in_two_steps(temporary, out)


def _exchanged(one: Path, other: Path) -> bool:
    """Let two paths of one file system change places in one step; False where the system cannot.

    Linux: renameat2(2) with RENAME_EXCHANGE; macOS: renamex_np(2) with RENAME_SWAP, which is 2 as well.
    """
    library = ctypes.CDLL(None)
    first, second, exchange, working_folder = os.fsencode(one), os.fsencode(other), 2, -100
    try:
        if hasattr(library, "renamex_np"):
            return bool(library.renamex_np(first, second, exchange) == 0)
        return bool(library.renameat2(working_folder, first, working_folder, second, exchange) == 0)
    except AttributeError:  # a C library without either
        return False


def _replace_in_two_steps(temporary: Path, out: Path) -> None:
    """Move the old folder aside, put the new one in its place, remove the old one."""
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
    old = aside / out.name
    try:
        out.rename(old)
        try:
            temporary.rename(out)
        except BaseException:
            old.rename(out)
            raise
    finally:
        if out.exists():
            shutil.rmtree(aside, ignore_errors=True)


def describe_files(folder: Path) -> dict[str, dict[str, int | str]]:
    """List the files of a folder: name -> size in `bytes` and `sha256`, so that damage can be told later."""
    return {path.name: describe_file(path) for path in sorted(folder.iterdir())}


def describe_file(path: Path) -> dict[str, int | str]:
    """Return a file's size in `bytes` and its `sha256`."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def write_forms(
    folder: Path,
    forms: Forms,
    network: ir.Model,
    plan: Plan,
    statistics: Statistics | None,
    *,
    original: ir.Model | None = None,
    preprocess: Preprocess | None = None,
) -> Written:
    """Write every form of a planned network, the plan, the statistics, the preprocessing; each is read back.

    Args:
        folder: where to.
        forms: the quantized forms.
        network: the float network that the plan describes.
        plan: the plan.
        statistics: what calibration saw.
        original: the float network before recovery; written where it is another one, since only it tells what the
            quantized network should answer.
        preprocess: how images become inputs.

    Raises:
        OutputError: if something cannot be written or does not read back.
    """
    write_onnx(forms.simulated, folder / SIMULATED)
    write_onnx(network, folder / FLOAT)
    if original is not None and network_digest(original) != network_digest(network):
        write_onnx(original, folder / ORIGINAL)
    if preprocess is not None:
        write_preprocess(preprocess, folder / PREPROCESS)
    integer = forms.integer if forms.integer is not forms.exported else None
    for form, name in ((forms.exported, MODEL), (integer, INTEGER)):
        if form is not None:
            write_onnx(form, folder / name)
    write_plan(plan, folder / PLAN)
    if statistics is not None:
        statistics.save(folder / STATISTICS)
    if forms.format is not None:
        export = Export(network=network, plan=plan, target=forms.target, simulated=forms.simulated, original=original)
        return _write_format(folder, forms.format, export)
    runnable = MODEL if forms.exported is not None else SIMULATED
    runs = {engine.name for engine in engines_for(folder / MODEL)}  # a target's engine may run only its other format
    runtime = forms.target.runtime if forms.exported is not None and forms.target.runtime in runs else ""
    return Written(folder=folder, runnable=folder / runnable, runtime=runtime, size_bytes=file_bytes(folder / runnable))


def _write_format(folder: Path, format: Format, export: Export) -> Written:
    """Write the target's own files; what its format cannot say leaves the simulation, with a note."""
    before = set(folder.iterdir())
    simulated = Written(
        folder=folder, runnable=folder / SIMULATED, runtime="", size_bytes=file_bytes(folder / SIMULATED)
    )
    try:
        exported = format.write(export, folder)
    except TargetError as error:
        for path in set(folder.iterdir()) - before:
            path.unlink()
        return replace(simulated, notes=(f"WARNING: not written: {format.title}: {error}",))
    if exported.runnable is None:
        return replace(simulated, notes=exported.notes)
    size = sum(path.stat().st_size for path in set(folder.iterdir()) - before)
    return Written(
        folder=folder, runnable=exported.runnable, runtime=export.target.runtime, size_bytes=size,
        notes=exported.notes, planned=exported.planned,
    )  # fmt: skip


def write_preprocess(preprocess: Preprocess, path: Path) -> None:
    """Write a preprocessing and read it back.

    Raises:
        OutputError: if it cannot be written or reads back as another one.
    """
    try:
        path.write_text(preprocess_toml(preprocess), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: could not write the preprocessing: {error.strerror}") from None
    if load_preprocess(path) != preprocess:
        raise OutputError(f"{path}: what was written reads back as another preprocessing")


def write_plan(plan: Plan, path: Path) -> None:
    """Write a plan and read it back.

    Raises:
        OutputError: if it cannot be written or reads back as another plan.
    """
    try:
        path.write_text(plan_to_json(plan), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: could not write the plan: {error.strerror}") from None
    if not load_plan(path).same_as(plan):
        raise OutputError(f"{path}: what was written reads back as another plan")


def write_summary(summary: Mapping[str, Any], path: Path) -> None:
    """Write `summary.json`.

    Raises:
        OutputError: if it cannot be written.
    """
    try:
        with path.open("w", encoding="utf-8") as file:
            json.dump(summary, file, indent=2, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(f"{path}: could not write the summary: {error.strerror}") from None
