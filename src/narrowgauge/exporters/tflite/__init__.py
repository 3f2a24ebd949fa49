"""TFLite files from a network and its plan.

In: an `Export`. Out: model.tflite, read back and compared with the plan. Two steps, each by itself: `conversion` makes
plain records of the network (`importers.tflite.network`, the reader's), `litert` makes bytes of these. What TFLite
cannot say raises `TargetError`, which names the node or the value.
"""

from narrowgauge.exporters.tflite.files import write, write_float, write_halves, write_integer

__all__ = ["write", "write_float", "write_halves", "write_integer"]
