"""Write what LiteRT makes of the cases of `litert_cases`, for machines without it.

Run from the repository's root: `python -m tests.core.engines.golden_tflite.make`. Made with ai-edge-litert 2.3.0 on
x86-64.
"""

from pathlib import Path

import numpy as np

from narrowgauge.core.engines.arithmetics import KERNELS
from tests.core.engines.litert_cases import CASES, Case
from tests.core.engines.litert_operators import Draw

FILE = Path(__file__).parent / "levels.npz"
FAMILIES = ("tie", "near")
KEPT = 200
"""Levels of each case, evenly spread over all of them."""


ENGINES = ("xnnpack", "tflite-reference")


def rows() -> list[tuple[str, str]]:
    """List the engines and rows whose levels are kept."""
    return [(engine, name) for name, row in CASES.items() for engine in row.engines if engine in ENGINES]


def cases(engine: str, name: str) -> list[Case]:
    """Make the cases of one row: each type, each family of scales, one draw."""
    row = CASES[name]
    draws = [Draw(family, 7, kind) for kind in row.kinds for family in FAMILIES]
    return [row.make(KERNELS[engine], draw) for draw in draws]


def kept(levels: np.ndarray) -> np.ndarray:
    """Keep some levels of a case."""
    flat = levels.reshape(-1).astype(np.int32)
    return flat[np.linspace(0, flat.size - 1, min(KEPT, flat.size)).astype(np.int64)]


def fingerprint() -> np.ndarray:
    """What numpy draws, so that another generator of random numbers is told from another arithmetic."""
    draw = Draw("near", 7, "int8")
    return np.append(draw.levels((8,)).astype(np.float64), [draw.scale(), draw.zero_point()])


def main() -> None:
    """Run every case in LiteRT."""
    made = {"fingerprint": fingerprint()}
    for engine, name in rows():
        levels = [kept(one.theirs(reference=engine == "tflite-reference")) for one in cases(engine, name)]
        made[f"{engine}: {name}"] = np.concatenate(levels).astype(np.int16)
    np.savez_compressed(FILE, **made)


if __name__ == "__main__":
    main()
