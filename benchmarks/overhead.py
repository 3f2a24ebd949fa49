"""What a run costs however little there is to do: importing the package, and `quantize` with a single image."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _common import MOBILENET_V2, images, interleaved, report, table, zoo

BUDGETS = {"import narrowgauge": 0.3, "from narrowgauge import quantize": None, "quantize, one image": 2.0}
HEAVY = ("torch", "ray", "matplotlib", "plotly", "pandas", "scipy", "sklearn", "tensorflow")

QUANTIZE = """
import json, sys
import narrowgauge
network, image, out = sys.argv[1:]
result = narrowgauge.quantize(network, image, out=out, force=True)
print(json.dumps(result.summary["seconds"]))
"""


def main() -> None:
    """Read the command line, run, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5, help="how often all is timed in turn")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="narrowgauge-overhead-") as folder:
        image = Path(folder) / "image.npy"
        np.save(image, images(MOBILENET_V2, 1))
        arguments = [str(zoo() / MOBILENET_V2.path), str(image), str(Path(folder) / "out")]
        stages: list[dict[str, float]] = []
        codes = {
            "python": _python("pass"),
            "import narrowgauge": _python("import narrowgauge"),
            "from narrowgauge import quantize": _python("from narrowgauge import quantize"),
            "quantize, one image": lambda: stages.append(json.loads(_python(QUANTIZE, *arguments)())),
        }
        times = interleaved(codes, rounds)
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    beyond = {name: medians[name] - medians["python"] for name in BUDGETS}
    stage_medians = {name: statistics.median(stage[name] for stage in stages) for name in stages[0]}
    heavy = _python(f"import sys, narrowgauge.pipeline; print([name for name in {HEAVY} if name in sys.modules])")()
    text = _text(medians["python"], beyond, stage_medians, heavy.strip())
    data: dict[str, Any] = {"seconds": times, "beyond_python": beyond, "stages": stages, "heavy_imports": heavy.strip()}
    report("overhead", f"Overhead: median of {rounds}", text, data)


def _python(code: str, *arguments: str) -> Callable[[], str]:
    """Return a run of Python in a fresh process, which gives what it printed."""
    command = [sys.executable, "-c", code, *arguments]
    return lambda: subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _text(python: float, beyond: dict[str, float], stages: dict[str, float], heavy: str) -> str:
    rows = [[name, f"{seconds:.2f}", *_judged(seconds, BUDGETS[name])] for name, seconds in beyond.items()]
    inside = ", ".join(f"{name} {seconds:.2f}" for name, seconds in stages.items())
    head = ["what", "seconds", "budget", "of it"]
    return (
        f"`python -c pass` takes {python:.3f} s; beyond it:\n\n{table(head, rows)}\n\n"
        f"Inside `quantize`, seconds: {inside}.\nOptional packages that the pipeline imports: {heavy}."
    )


def _judged(seconds: float, budget: float | None) -> list[str | None]:
    return [None, None] if budget is None else [f"{budget} s", f"{100 * seconds / budget:.0f} %"]


if __name__ == "__main__":
    main()
