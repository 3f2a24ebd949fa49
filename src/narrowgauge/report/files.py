"""The report as a file of a run's folder, and made again from what the folder holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from narrowgauge.analysis.attention_pictures import AttentionPictures
from narrowgauge.analysis.records import Analysis
from narrowgauge.analysis.records_json import (
    analysis_from_json,
    analysis_to_json,
    pictures_from_json,
    pictures_to_json,
)
from narrowgauge.core.plan import Plan, load_plan
from narrowgauge.errors import NarrowgaugeError, OutputError, ReportError
from narrowgauge.exporters.folder import SUMMARY, describe_file, write_summary
from narrowgauge.report.render import render
from narrowgauge.report.run import REPORT
from narrowgauge.targets.registry import load_target
from narrowgauge.targets.schema import Target

ANALYSIS = "analysis.json"
ATTENTION = "attention.json"


def write_report(
    folder: Path, summary: Mapping[str, Any], analysis: Analysis | None, *, plan: Plan, target: Target,
    attention: AttentionPictures | None = None,
) -> None:  # fmt: skip
    """Write `report.html`, `analysis.json` where there is an analysis, `attention.json` where there are pictures.

    Args:
        folder: where to.
        summary: what `summary.json` holds.
        analysis: where the accuracy goes.
        plan: the encodings.
        target: what they are for.
        attention: pictures of it.

    Raises:
        OutputError: if a file cannot be written.
    """
    texts = {REPORT: render(summary, analysis, plan=plan, target=target, attention=attention)}
    if analysis is not None:
        texts[ANALYSIS] = analysis_to_json(analysis)
    if attention is not None:
        texts[ATTENTION] = pictures_to_json(attention)
    for name, text in texts.items():
        try:
            (folder / name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{folder / name}: could not write the report: {error.strerror}") from None


def report_again(folder: Path, target: Target | None = None) -> Path:
    """Write the report of a run's folder anew, from its summary, plan and analysis.

    Args:
        folder: what `quantize` or `analyze` wrote.
        target: what it was made for; None for the one that the summary names.

    Returns:
        The path of the report.

    Raises:
        ReportError: if the folder is none that a run wrote.
        NarrowgaugeError: if a file in it cannot be read.
    """
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        name = str(summary["target"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ReportError(
            f"{folder}: expected a folder that quantize or analyze wrote, with a summary.json; there is none to be read"
        ) from None
    file, pictures = folder / ANALYSIS, folder / ATTENTION
    analysis = analysis_from_json(_text(file), source=str(file)) if file.exists() else None
    attention = pictures_from_json(_text(pictures), source=str(pictures)) if pictures.exists() else None
    plan = load_plan(folder / "plan.json")
    write_report(folder, summary, analysis, plan=plan, target=target or load_target(name), attention=attention)
    _list_again(folder, summary)
    return folder / REPORT


def note_exactness(folder: Path, runtime: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    """Note in a folder's summary how an engine's integers lie to ours, and write its report anew.

    Args:
        folder: what `quantize` wrote.
        runtime: name of the engine; what was noted of it before is replaced.
        found: what `analysis.exactness.to_summary` returns.

    Returns:
        Why it could not be noted, a sentence, or nothing: what was found holds without it.
    """
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        before = summary.get("bit_exact")
        noted = {**(before if isinstance(before, dict) else {}), runtime: dict(found)}
        _replace_summary(folder, {**summary, "bit_exact": noted})
        if REPORT in summary["files"]:
            report_again(folder)
    except (OSError, ValueError, NarrowgaugeError) as error:
        return (f"could not be noted in the summary and the report: {error}",)
    return ()


def _list_again(folder: Path, summary: dict[str, Any]) -> None:
    """Let a summary list the files that were written anew, so that `verify` does not take them for damaged."""
    listed = summary.get("files")
    if not isinstance(listed, dict):
        return
    again = [folder / name for name in (REPORT, ANALYSIS, ATTENTION) if name in listed]
    try:
        changed = {file.name: describe_file(file) for file in again if file.exists()}
    except OSError as error:
        raise OutputError(f"{folder / SUMMARY}: could not write the summary: {error.strerror}") from None
    _replace_summary(folder, {**summary, "files": {**listed, **changed}})


def _replace_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write a summary in one step: the folder has the old one or the new one.

    Raises:
        OutputError: if it cannot be written.
    """
    fresh = folder / f".{SUMMARY}"
    try:
        write_summary(summary, fresh)
        fresh.replace(folder / SUMMARY)
    except OSError as error:
        raise OutputError(f"{folder / SUMMARY}: could not write the summary: {error.strerror}") from None
    finally:
        fresh.unlink(missing_ok=True)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ReportError(f"{file}: expected an analysis in JSON, could not read it: {error}") from None
