"""The table of engines' arithmetics, by the names that targets and engines use."""

from __future__ import annotations

from narrowgauge.core.engines.integer_only import INTEGER_ONLY
from narrowgauge.core.engines.kernels import Kernels
from narrowgauge.core.engines.openvino import OPENVINO
from narrowgauge.core.engines.tflite_optimized import TFLITE_NEON
from narrowgauge.core.engines.tflite_reference import TFLITE_REFERENCE, TFLITE_SINGLE_ROUNDING
from narrowgauge.core.engines.torch_kernels import FBGEMM, ONEDNN, QNNPACK, X86
from narrowgauge.core.engines.xnnpack import XNNPACK, XNNPACK_RNDNU

_LITERT = (XNNPACK, TFLITE_REFERENCE, TFLITE_NEON, TFLITE_SINGLE_ROUNDING, XNNPACK_RNDNU)
_TORCH = (FBGEMM, QNNPACK, ONEDNN, X86)

KERNELS: dict[str, Kernels] = {kernels.name: kernels for kernels in (*_LITERT, *_TORCH, OPENVINO, INTEGER_ONLY)}
"""Each adds one row: the record of its kernels."""
