"""Arguments and options that several commands share: one name, one meaning, one help text."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

ModelPath = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="The network: .onnx, .keras, .h5, .tflite, .pt2, or MXNet's symbol.json; float or quantized.",
        show_default=False,
    ),
]
_DATA = (
    "A folder of images (flat, or a folder per class), .npy or .npz arrays (named like the inputs), a .txt list of "
    "paths, or module:callable that yields {input: array}."
)
Data = Annotated[str, typer.Option(metavar="DATA", help=_DATA, show_default=False)]
OptionalData = Annotated[str | None, typer.Option(metavar="DATA", help=_DATA, show_default=False)]
Labels = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Right answers: lines of `relative-path class-index`. A folder per class needs none.",
        show_default=False,
    ),
]
Preprocessing = Annotated[
    str | None,
    typer.Option(
        metavar="FILE.toml",
        help="How images become inputs: resize, crop, mean, std, ... Without: MODEL's name with .toml, if it is there.",
        show_default=False,
    ),
]
Metric = Annotated[
    str | None,
    typer.Option(
        metavar="MODULE:CALLABLE",
        help="Your own metric: a function (outputs, labels) -> number, or a class with update and compute.",
        show_default=False,
    ),
]
Threads = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Threads that run the network.", show_default="all cores")
]


def _points(text: str) -> float:
    """Read percentage points: `0.5` or `0.5%`."""
    try:
        points = float(text.removesuffix("%"))
    except ValueError:
        points = math.nan
    if not 0 <= points <= 100:
        raise typer.BadParameter(f"expected percentage points from 0 to 100, such as 0.5 or 0.5%, got {text!r}")
    return points


MaxDrop = Annotated[
    float | None,
    typer.Option(
        parser=_points,
        metavar="POINTS",
        help="Percentage points that accuracy may fall (your --metric, else top-1, else the agreement with the float "
        "network from 100 %). Exit with 3 if it falls by more.",
        show_default=False,
    ),
]
OutFolder = Annotated[
    Path, typer.Option(metavar="DIR", help="The folder to write, whole or not at all.", show_default=False)
]
Force = Annotated[bool, typer.Option("--force", help="Replace what is already there.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else, on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
TargetName = Annotated[
    str, typer.Option(metavar="T", help="What it is for: a name that `narrowgauge targets` lists, or a .toml file.")
]
RecipeName = Annotated[
    str, typer.Option(metavar="R", help="auto, fast, best, plain, dynamic, weight-only, or a .toml file.")
]
PlanFile = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Apply this plan.json, or the encodings of this quantized network, instead of choosing them; `own`: those "
        "that MODEL came with.",
        show_default=False,
    ),
]
StatisticsFile = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Statistics of an earlier calibration: taken instead of calibrating, or gone on from. If the file is not "
        "there yet, it is written while they grow, so that an interrupted run can go on.",
        show_default=False,
    ),
]
_THEIRS = "the target's choice"
Weights = Annotated[
    str, typer.Option(metavar="TYPE", help="Number type of weights: int8, int4, ...", show_default=_THEIRS)
]
Activations = Annotated[
    str, typer.Option(metavar="TYPE", help="Number type of activations: uint8, int16.", show_default=_THEIRS)
]
Granularity = Annotated[
    str,
    typer.Option(metavar="tensor|channel|block", help="What one scale of weights covers.", show_default=_THEIRS),
]
KeepFloat = Annotated[
    list[str] | None,
    typer.Option(
        metavar="WHAT",
        help="What stays float: first, last, an operator (Softmax), or a node's name or pattern. Repeatable.",
        show_default=False,
    ),
]
