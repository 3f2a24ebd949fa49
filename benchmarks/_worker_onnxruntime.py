"""Worker: ONNX Runtime's own `quantize_static`, see `_worker.py`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from _worker import Array, work
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

# Images whose intermediate tensors are all in memory at once; with all of 256 a small network takes 10 GB.
STRIDE = 16


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Images one by one, as `quantize_static` asks for them."""

    def __init__(self, images: Array, name: str) -> None:
        self.images, self.name = images, name
        self.set_range(0, len(images))

    def __len__(self) -> int:
        return len(self.images)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Go on from one image up to another, exclusive."""
        self.indices = iter(range(start_index, end_index))

    def get_next(self) -> dict[str, Array] | None:
        """Return the next feed, None at the end."""
        index = next(self.indices, None)
        return None if index is None else {self.name: self.images[index : index + 1]}


def run(model: Path, images: Array, output: Path, options: Mapping[str, Any]) -> None:
    """Prepare and quantize as the documentation advises for a CPU with VNNI: QDQ, uint8 activations, int8 weights."""
    prepared = output.with_suffix(".prepared.onnx")
    name = onnx.load(model, load_external_data=False).graph.input[0].name
    with contextlib.redirect_stdout(None):
        try:
            quant_pre_process(model, prepared)
        except Exception:  # symbolic shape inference knows fewer operators than ONNX's own
            quant_pre_process(model, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            output,
            Reader(images, name),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=options["per_channel"],
            calibrate_method=CalibrationMethod[options["method"]],
            op_types_to_quantize=options.get("operators"),
            extra_options={"CalibStridedMinMax": _stride(len(images))} if options["method"] != "MinMax" else {},
        )


def _stride(count: int) -> int:
    """Return the largest divisor, as the option demands one."""
    return max(stride for stride in range(1, STRIDE + 1) if count % stride == 0)


if __name__ == "__main__":
    work(run)
