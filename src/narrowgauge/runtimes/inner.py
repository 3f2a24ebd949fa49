"""The integers inside an engine: what it computes between its inputs and outputs, by the float network's names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from narrowgauge.data.inputs import InputSpec
from narrowgauge.errors import RuntimeFailure
from narrowgauge.runtimes.engines import engine_module
from narrowgauge.runtimes.feeding import taking
from narrowgauge.runtimes.program import Program, Run

LEVELS = "_quantized"
"""What a lowered network puts behind the name of a float value to name its levels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    """An opened network file whose integers can be looked at.

    Attributes:
        inputs: what it takes, in real numbers, as `Program.inputs`.
        names: the values of the float network whose levels it gives, in the order in which it computes them.
        run: one run: input name -> array in, name -> levels out, of an integer type, in the float network's layout
            where the file tells it. It raises RuntimeFailure.
        notes: what looking changes, or what could not be looked at, one sentence each.
        laid_out: whether the file says how its tensors lie, so that all are in the float network's layout.
    """

    inputs: tuple[InputSpec, ...]
    names: tuple[str, ...]
    run: Run
    notes: tuple[str, ...] = ()
    laid_out: bool = False

    def taking(self, inputs: Sequence[InputSpec]) -> Run:
        """Return the run for feeds of a network with these inputs; see `feeding.taking`.

        Raises:
            DataError: the file takes other inputs.
        """
        program = Program(inputs=self.inputs, outputs=self.names, run=self.run)
        return taking(program, inputs, self.names)


def open_inner(path: Path, *, runtime: str = "", threads: int | None = None) -> Inner:
    """Open a network file in an engine so that a run gives the integers inside.

    Args:
        path: the file.
        runtime: name of an engine, "" for the usual one of such files.
        threads: of one run; None for the cores that this process may use.

    Raises:
        RuntimeFailure: no engine runs such a file, this one refuses it, or it does not show what is inside.
        MissingDependencyError: the engine is not installed; the message has the command that installs it.
    """
    engine, module = engine_module(path, runtime)
    if not hasattr(module, "open_inner"):
        raise RuntimeFailure(f"{path}: {engine.title} does not show the integers inside a network")
    opened: Inner = module.open_inner(path, threads=threads)
    return opened


def value_of(levels: str) -> str:
    """Return the name of the float value that levels of this name stand for; "" where the name does not tell."""
    return levels.removesuffix(LEVELS) if levels.endswith(LEVELS) else ""
