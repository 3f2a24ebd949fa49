"""Arguments and options that several commands share: one name, one meaning, one help text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ModelPath = Annotated[
    Path, typer.Argument(metavar="MODEL", help="The float network: an .onnx file.", show_default=False)
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
MaxDrop = Annotated[
    float | None,
    typer.Option(
        min=0,
        metavar="POINTS",
        help="Exit with 3 if accuracy falls by more than this (your --metric, else top-1, else the agreement with the "
        "float network from 100 %).",
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
