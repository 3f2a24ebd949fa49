"""What chips that take TFLite files ask of them: one table for each chip, one function that checks a graph.

In: a graph as it was read or written. Out: the conditions that it breaks, and which operators the chip runs. It never
changes a graph. A new chip is a file with its `Chip` and a line in `CHIPS`.
"""

from narrowgauge.exporters.tflite.constraints.checking import Chip, Violation, check, describe, on_chip
from narrowgauge.exporters.tflite.constraints.edgetpu import EDGETPU
from narrowgauge.exporters.tflite.constraints.hexagon import HEXAGON

__all__ = ["CHIPS", "Chip", "Violation", "check", "describe", "on_chip"]

CHIPS: dict[str, Chip] = {"tflite-edgetpu": EDGETPU, "tflite-hexagon": HEXAGON}
"""Target -> its chip."""
