"""Lay a trained float network on the narrow integers of the chip you have, and see what every rounded number costs.

The names below are imported when they are first used: `import narrowgauge` itself costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from narrowgauge.calibration.statistics import Statistics
    from narrowgauge.comparison import compare
    from narrowgauge.core.encoding import Encoding
    from narrowgauge.core.plan import Plan
    from narrowgauge.errors import NarrowgaugeError
    from narrowgauge.exporting import export_targets
    from narrowgauge.lowering.lower import lower
    from narrowgauge.pipeline import Result, analyze, calibrate, quantize
    from narrowgauge.recipe import Recipe, Rule
    from narrowgauge.stages import Progress
    from narrowgauge.targets.schema import Target

__version__ = "0.1.0"

_HOMES = {
    "Encoding": "narrowgauge.core.encoding",
    "NarrowgaugeError": "narrowgauge.errors",
    "Plan": "narrowgauge.core.plan",
    "Progress": "narrowgauge.stages",
    "Recipe": "narrowgauge.recipe",
    "Result": "narrowgauge.pipeline",
    "Rule": "narrowgauge.recipe",
    "Statistics": "narrowgauge.calibration.statistics",
    "Target": "narrowgauge.targets.schema",
    "analyze": "narrowgauge.pipeline",
    "calibrate": "narrowgauge.pipeline",
    "compare": "narrowgauge.comparison",
    "export_targets": "narrowgauge.exporting",
    "lower": "narrowgauge.lowering.lower",
    "quantize": "narrowgauge.pipeline",
}

__all__ = [
    "Encoding",
    "NarrowgaugeError",
    "Plan",
    "Progress",
    "Recipe",
    "Result",
    "Rule",
    "Statistics",
    "Target",
    "__version__",
    "analyze",
    "calibrate",
    "compare",
    "export_targets",
    "lower",
    "quantize",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
