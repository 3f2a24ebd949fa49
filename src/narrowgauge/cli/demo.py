"""`narrowgauge demo`: everything once, on a small network that comes along."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from narrowgauge.cli import options

_CALIBRATING = 256


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write.")] = Path("narrowgauge-demo"),
    force: options.Force = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Try it: quantize a small network that comes along.

    The whole flow in a few seconds, on images of handwritten digits.

    The network was trained on the first 1200 images; some of these calibrate, and the other 597 check.
    """
    import shutil

    import numpy as np

    from narrowgauge import pipeline
    from narrowgauge.cli import outcome, terminal
    from narrowgauge.demo import digits, network_path
    from narrowgauge.exporters.folder import new_folder

    made_before = (out / "int8" / "summary.json").is_file()
    with terminal.stdout_kept_clean(), terminal.progress_bars(quiet=json) as progress:
        images, labels, trained = digits()
        used = np.r_[:_CALIBRATING, trained : len(images)]
        with new_folder(out, force=force or made_before) as folder:
            network = network_path("digits_conv")
            shutil.copyfile(network, folder / "digits.onnx")
            np.savez(folder / "digits.npz", image=images[used], labels=labels[used])
            np.savez(folder / "held_out.npz", image=images[trained:], labels=labels[trained:])
            result = pipeline.quantize(
                network, str(folder / "digits.npz"), target="onnxruntime", out=folder / "int8", samples=_CALIBRATING,
                progress=progress,
            )  # fmt: skip
    if json:
        terminal.show_json(result.summary)
        return
    terminal.show(
        f"A small network that reads handwritten digits, quantized to 8 bits: {_CALIBRATING} images calibrated it,",
        f"{len(images) - trained} others check it.",
        *outcome.run_report(result.summary, out / "int8", explain=True),
        "",
        "Try next:",
        *_next_commands(out),
    )


def _next_commands(out: Path) -> list[str]:
    import shlex

    folder = shlex.quote(str(out))
    command = _command()
    lines = [
        f"{command} compare {folder}/digits.onnx {folder}/int8/model.onnx --data {folder}/held_out.npz",
        f"{command} verify {folder}/int8 --data {folder}/held_out.npz",
        f"{command} quantize {folder}/digits.onnx --target qnn --data {folder}/digits.npz --out digits-qnn",
    ]
    return [f"  {line}" for line in lines]


def _command() -> str:
    """Return what starts narrowgauge in the user's shell: its name, or, where that is not on the path, its path."""
    import shlex
    import shutil
    import sys

    script = Path(sys.executable).with_name("narrowgauge")
    if shutil.which("narrowgauge") or not script.exists():
        return "narrowgauge"
    here = Path.cwd()
    return shlex.quote(str(script.relative_to(here) if script.is_relative_to(here) else script))
