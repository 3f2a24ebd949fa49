"""What was compiled, beside the same integer operators and the simulation in ONNX Runtime, on made-up inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.plan import Plan
from narrowgauge.data.inputs import InputSpec, input_specs
from narrowgauge.errors import OutputError, RuntimeFailure
from narrowgauge.exporters.formats import Export
from narrowgauge.runtimes.onnxruntime import open_run
from narrowgauge.runtimes.program import Run
from narrowgauge.runtimes.tvm import open_program

Array = npt.NDArray[Any]

_FEEDS = 2
_AGREEING = 0.999  # share of the elements within one step of the integer operators
_NOISE = 0.1  # share of the energy, where another machine's integer operators round otherwise
_STEPS = 255  # steps of an output: its own range in 8 bits


def compare(path: Path, network: ir.Model, export: Export) -> str:
    """Read a library back and run it.

    The same network of integer operators in ONNX Runtime gives the same integers where the processor has VNNI. The
    simulation in float does not: of two ways to add up its products, each decides some ties otherwise, and deep
    networks carry that on (MobileNetV2: ONNX Runtime's simulation with and without its optimizer agrees within one
    step on two of three logits). So the integer operators judge, and the simulation where they cannot.

    Args:
        path: the library.
        network: of integer operators.
        export: what was asked for.

    Returns:
        What was found, for the person.

    Raises:
        OutputError: the library does not run, or computes something else.
    """
    try:
        library = open_program(path).run
        feeds = [_feed(input_specs(network), export.plan, seed) for seed in range(_FEEDS)]
        found = [library(feed) for feed in feeds]
    except RuntimeFailure as error:
        raise OutputError(f"{path}: what was written does not run: {error}") from None
    integers = _reference(network, feeds, simulate=False)
    if integers is not None:
        share = min(_within_a_step(one, other) for one, other in zip(integers, found, strict=True))
        if share >= _AGREEING:
            return (
                f"the library agrees with ONNX Runtime's integer operators within one step on {100 * share:.2f} % of "
                f"the output, on {_FEEDS} made-up inputs"
            )
    simulated = _reference(export.simulated, feeds, simulate=True)
    if simulated is None:
        raise OutputError(f"{path}: ONNX Runtime runs neither the integer operators nor the simulation to compare with")
    noise = max(_noise(one, other) for one, other in zip(simulated, found, strict=True))
    if not noise <= _NOISE:
        raise OutputError(
            f"{path}: what was written computes something else than the simulation: on made-up inputs it differs by "
            f"{100 * noise:.3g} % of the output's energy, at most {100 * _NOISE:.0f} % were expected"
        )
    return f"the library differs from the simulation by {100 * noise:.2g} % of the output's energy, on made-up inputs"


def _reference(network: ir.Model, feeds: list[dict[str, Array]], *, simulate: bool) -> list[dict[str, Array]] | None:
    """Run a network in ONNX Runtime; None where it refuses."""
    try:
        run: Run = open_run(network, simulate=simulate)
        return [run(feed) for feed in feeds]
    except RuntimeFailure:
        return None


def _feed(inputs: tuple[InputSpec, ...], plan: Plan, seed: int) -> dict[str, Array]:
    """Make up inputs: what the encoding covers where there is one, else normal numbers; integers are 0."""
    generator = np.random.default_rng(seed)
    feed: dict[str, Array] = {}
    for spec in inputs:
        shape = tuple(extent if extent is not None else 1 for extent in spec.shape)
        encoding = plan.encodings.get(spec.name)
        if spec.dtype.kind != "f":
            feed[spec.name] = np.zeros(shape, spec.dtype)
        elif isinstance(encoding, Encoding):
            low, high = float(encoding.minimum.min()), float(encoding.maximum.max())
            feed[spec.name] = generator.uniform(low, high, shape).astype(spec.dtype)
        else:
            feed[spec.name] = generator.standard_normal(shape).astype(spec.dtype)
    return feed


def _pairs(first: dict[str, Array], second: dict[str, Array]) -> list[tuple[Array, Array]]:
    """Outputs beside each other, float64, those elements that are finite in both or in one alone."""
    pairs = []
    for name, one in first.items():
        a, b = np.asarray(one, np.float64).reshape(-1), np.asarray(second[name], np.float64).reshape(-1)
        kept = np.isfinite(a) | np.isfinite(b)
        pairs.append((a[kept], b[kept]))
    return pairs


def _within_a_step(first: dict[str, Array], second: dict[str, Array]) -> float:
    """Return the least share of an output's elements that differ by one step or less."""
    shares = [1.0]
    for one, other in _pairs(first, second):
        if one.size:
            finite = one[np.isfinite(one)]
            step = float(np.ptp(finite)) / _STEPS if finite.size else 0.0
            tolerance = max(step, 1e-5 * float(np.abs(finite).max(initial=0.0)))
            shares.append(float(np.mean(np.abs(one - other) <= tolerance)))
    return min(shares)


def _noise(first: dict[str, Array], second: dict[str, Array]) -> float:
    """Return the largest share of an output's energy that the difference has; NaN where only one is finite."""
    shares = [0.0]
    for one, other in _pairs(first, second):
        energy = float(np.sum(one**2))
        difference = float(np.sum((one - other) ** 2))
        shares.append(difference / energy if energy else float(difference > 0))
    return float(np.max(shares))
