"""LiteRT's reference kernels on the CPU: the definition that integer TFLite kernels of others are checked against.

They run on no delegate and on one thread, and are some hundred times slower than those that LiteRT picks by itself.
"""

from __future__ import annotations

from pathlib import Path

from narrowgauge.runtimes import litert
from narrowgauge.runtimes.inner import Inner
from narrowgauge.runtimes.program import Program


def open_program(path: Path, *, threads: int | None = None) -> Program:
    """Open a .tflite file; see `litert.open_program`."""
    return litert.open_program(path, threads=threads, reference=True)


def open_inner(path: Path, *, threads: int | None = None) -> Inner:
    """Open a .tflite file so that a run gives the levels inside; see `litert.open_inner`."""
    return litert.open_inner(path, threads=threads, reference=True)
