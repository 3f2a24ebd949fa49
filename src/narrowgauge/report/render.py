"""The report: one HTML file that shows what quantization cost and where, and needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from importlib import resources
from typing import Any

import narrowgauge
from narrowgauge.analysis.attention_pictures import AttentionPictures
from narrowgauge.analysis.cause_words import other_outliers
from narrowgauge.analysis.encoding_words import type_words
from narrowgauge.analysis.outlier_words import describe
from narrowgauge.analysis.records import Analysis
from narrowgauge.core.plan import Plan
from narrowgauge.report import figures
from narrowgauge.report.attention import attention_data, attention_sentences
from narrowgauge.report.causes import read_causes, sentence, told_outcomes
from narrowgauge.report.integers import read_integers
from narrowgauge.report.pictures import PICTURES, pictures
from narrowgauge.report.run import Run, read_run, read_steps, verdict
from narrowgauge.report.tensors import role, tensors, words, worst
from narrowgauge.targets.schema import Target

_HERE = resources.files("narrowgauge.report")

# The chart library: Observable Plot, and D3 that it is built on.
_LIBRARY = ("d3.min.js", "plot.umd.min.js")

# The page's own scripts: one scope, in this order.
_SCRIPTS = ("theme.js", "charts.js", "table.js", "tensor.js", "network.js", "attention.js", "front.js")


def render(
    summary: Mapping[str, Any],
    analysis: Analysis | None,
    *,
    plan: Plan,
    target: Target,
    attention: AttentionPictures | None = None,
) -> str:
    """Write the report as the text of one HTML file.

    The page loads nothing: styles, scripts and data are part of it, and its Content-Security-Policy forbids all else.
    Names and notes come from networks that nobody vouches for, so they are escaped (Jinja's autoescape; in the data
    `<`, `>` and `&` are written as JSON escapes), and only the scripts whose digests the policy lists may run.

    Args:
        summary: what `summary.json` holds; a figure that is missing is shown as unknown.
        analysis: where the loss arises, and what recovery did; None leaves out what needs it, but for the steps of
            recovery, which the summary holds, too.
        plan: what was quantized how.
        target: what for.
        attention: pictures of it.
    """
    from jinja2 import Environment, PackageLoader  # the command line starts without it

    environment = Environment(
        loader=PackageLoader("narrowgauge.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {"figures": figures, "role": role, "words": words}
    run, rows = read_run(summary), tensors(plan, analysis)
    causes, steps = read_causes(analysis), (analysis.steps if analysis else ()) or read_steps(summary)
    heads = analysis.attention if analysis else ()
    library = "\n".join(_text("vendor", name) for name in _LIBRARY)
    script = "(() => {\n'use strict';\n" + "\n".join(_text("templates", name) for name in _SCRIPTS) + "\n})();"
    return environment.get_template("page.html").render(
        run=run,
        verdict=verdict(run),
        tiles=_tiles(run),
        analysis=analysis,
        plan=plan,
        target=target,
        steps=steps,
        rows=rows,
        worst=worst(rows),
        attention=attention_sentences(heads, attention),
        integers=read_integers(summary),
        largest_cost=max((row.cost or 0 for row in rows), default=0) or 1,
        kinds=sorted({row.kind for row in rows if row.kind}),
        operators=sorted({row.operator for row in rows if row.operator}),
        float_nodes=_by_reason(plan),
        types=_types(plan),
        causes=causes,
        outcomes=told_outcomes(causes, steps),
        outliers=[sentence(describe(one)) for one in other_outliers(analysis)] if analysis else [],
        most_pictures=PICTURES,
        front=analysis.front if analysis else (),
        version=narrowgauge.__version__,
        style=_text("templates", "style.css"),
        library=library,
        script=script,
        digests=[_digest(library), _digest(script)],
        licences=_licences(),
        data=_embedded({**pictures(plan, analysis, rows), "attention": attention_data(heads, attention)}),
    )


def _tiles(run: Run) -> list[dict[str, str]]:
    """The figures of the first screen: float against quantized; what was not measured has no tile."""
    tiles = [
        {
            "title": one.title,
            "value": figures.points(one.quantized, one.unit),
            "before": f"float {figures.points(one.reference, one.unit)}",
        }
        for one in run.metrics
    ]
    if run.agreement is not None:
        tiles.append({"title": "Same answer as float", "value": f"{run.agreement:.1f} %",
                      "before": f"on {figures.counted(run.samples, 'sample')}"})  # fmt: skip
    if run.sqnr_db is not None:
        tiles.append({"title": "Output SQNR", "value": figures.decibels(run.sqnr_db),
                      "before": f"error of {figures.error_size(run.sqnr_db)}"})  # fmt: skip
    if run.quantized_bytes is not None:
        tiles.append({"title": "Size", "value": figures.size(run.quantized_bytes),
                      "before": f"float {figures.size(run.float_bytes)}"})  # fmt: skip
    if run.quantized_ms is not None:
        where = f" in {run.float_engine}" if run.float_engine else ""
        tiles.append({"title": "Latency, one thread", "value": figures.milliseconds(run.quantized_ms),
                      "before": f"float {figures.milliseconds(run.float_ms)}{where}"})  # fmt: skip
    return tiles


def _by_reason(plan: Plan) -> list[tuple[str, list[str]]]:
    """Reason -> nodes that stay float for it ("name (operator)"), most nodes first."""
    found: dict[str, list[str]] = {}
    for node in plan.float_nodes:
        found.setdefault(node.reason, []).append(f"{node.name} ({node.operator})" if node.operator else node.name)
    return sorted(found.items(), key=lambda item: -len(item[1]))


def _types(plan: Plan) -> list[tuple[str, int]]:
    """Number type -> how many tensors have it, most first."""
    return Counter(type_words(encoding) for encoding in plan.encodings.values()).most_common()


def _embedded(data: Mapping[str, Any]) -> str:
    """JSON that can stand in a script element whatever its texts hold: `</script>` and `<!--` cannot occur."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    escapes: dict[str, str | int | None] = {
        "<": "\\u003c",
        ">": "\\u003e",
        "&": "\\u0026",
        "\u2028": "\\u2028",
        "\u2029": "\\u2029",
    }
    return text.translate(str.maketrans(escapes))


def _digest(script: str) -> str:
    """The digest by which a Content-Security-Policy allows an inline script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _licences() -> str:
    """The licences of the chart library and of what it is built from."""
    files = sorted(
        (file for file in _HERE.joinpath("vendor").iterdir() if file.name.endswith(".LICENSE.txt")),
        key=lambda file: file.name,
    )
    return "\n\n".join(
        f"{file.name.removesuffix('.LICENSE.txt')}\n\n{file.read_text(encoding='utf-8').strip()}" for file in files
    )


def _text(folder: str, name: str) -> str:
    return _HERE.joinpath(folder, name).read_text(encoding="utf-8")
