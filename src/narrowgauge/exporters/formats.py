"""The table of formats: what a target's toolchain eats, one writer each."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from narrowgauge.core.plan import Plan
from narrowgauge.targets.schema import Target


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """A planned network on its way out.

    Attributes:
        network: the float network that the plan is for; a writer must not change it.
        plan: the encodings.
        target: what it is for.
        simulated: its Q/DQ form.
        original: the float network before recovery; None where that is `network`.
    """

    network: ir.Model
    plan: Plan
    target: Target
    simulated: ir.Model
    original: ir.Model | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What a writer wrote.

    Attributes:
        runnable: the file that `Format.runtime` runs; None where nothing here can.
        notes: what a person should know.
        planned: the plan is in the file; False where it holds the float network.
    """

    runnable: Path | None = None
    notes: tuple[str, ...] = ()
    planned: bool = True


Write = Callable[[Export, Path], Exported]
"""`write(export, folder)`: writes into the folder, reads back what it wrote, compares it with the plan, and raises
OutputError where they differ. Files are named model.<suffix>; the names of a folder's other files are taken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """One format: `narrowgauge.exporters.<module>` has `write`, or the function that is named.

    Attributes:
        name: as given to `--format` and in targets.
        title: what it is, for people.
        module: of `narrowgauge.exporters`; imported on use.
        function: of that module.
        package: that must be importable, "" for none.
        install: the command that installs it.
    """

    name: str
    title: str
    module: str
    function: str = "write"
    package: str = ""
    install: str = ""

    @property
    def installed(self) -> bool:
        """Whether what it needs is here."""
        return not self.package or importlib.util.find_spec(self.package) is not None

    def write(self, export: Export, folder: Path) -> Exported:
        """Write a planned network; see `Write`."""
        writer: Write = getattr(importlib.import_module(f"narrowgauge.exporters.{self.module}"), self.function)
        return writer(export, folder)


FORMATS: dict[str, Format] = {
    one.name: one
    for one in (
        Format(name="openvino-ir", title="OpenVINO IR", module="openvino", package="openvino",
               install='pip install "narrowgauge[openvino]"'),
        Format(name="pt2", title="PyTorch exported program", module="pytorch", package="torch",
               install='pip install "narrowgauge[torch]"'),
        Format(name="tvm", title="compiled TVM library", module="tvm", package="tvm",
               install='pip install "narrowgauge[tvm]"'),
        Format(name="tflite", title="TFLite, real numbers at the ends", module="tflite", package="ai_edge_litert",
               install='pip install "narrowgauge[litert]"'),
        Format(name="tflite-integer", title="TFLite, integers at the ends", module="tflite", function="write_integer",
               package="ai_edge_litert", install='pip install "narrowgauge[litert]"'),
        Format(name="tflite-float16", title="TFLite, float16 weights", module="tflite", function="write_halves",
               package="ai_edge_litert", install='pip install "narrowgauge[litert]"'),
        Format(name="tflite-float", title="TFLite, the float network", module="tflite", function="write_float",
               package="ai_edge_litert", install='pip install "narrowgauge[litert]"'),
        Format(name="tflite-edgetpu", title="TFLite for edgetpu_compiler", module="tflite.chips",
               function="write_edgetpu", package="ai_edge_litert", install='pip install "narrowgauge[litert]"'),
        Format(name="tflite-hexagon", title="TFLite for the Hexagon delegate", module="tflite.chips",
               function="write_hexagon", package="ai_edge_litert", install='pip install "narrowgauge[litert]"'),
        Format(name="tensorrt", title="Q/DQ ONNX, calibration cache and dynamic ranges", module="tensorrt"),
        Format(name="encodings-1.0.0", title="ONNX and Qualcomm encodings 1.0.0", module="qualcomm",
               function="write_1_0_0"),
        Format(name="encodings-0.6.1", title="ONNX and Qualcomm encodings 0.6.1", module="qualcomm",
               function="write_0_6_1"),
        Format(name="encodings-2.0.0", title="ONNX and Qualcomm encodings 2.0.0", module="qualcomm",
               function="write_2_0_0"),
        Format(name="cambricon", title="ONNX and Cambricon parameters", module="cambricon"),
        Format(name="ncnn", title="ONNX and ncnn int8 table", module="ncnn"),
    )
}  # fmt: skip
"""Formats beside `qdq` and `qoperator`, which `forms.py` lowers."""
