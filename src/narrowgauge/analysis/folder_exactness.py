"""The integers inside an engine that runs a folder's network, beside those of the folder's integer network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from pathlib import Path

import onnx_ir as ir

from narrowgauge.analysis.exactness import Exactness, check_exactness
from narrowgauge.calibration.batching import batch_size
from narrowgauge.core.plan import Plan
from narrowgauge.data import batches, input_specs
from narrowgauge.data.inputs import rows_per_run
from narrowgauge.data.samples import Sample
from narrowgauge.errors import OutputError, PlanError, RuntimeFailure, TargetError
from narrowgauge.exporters.folder import FLOAT, INTEGER, SIMULATED
from narrowgauge.exporters.tvm.inner import open_inner as tvm_inner
from narrowgauge.graph.edits import is_operator
from narrowgauge.graph.refusals import REFUSAL
from narrowgauge.importers.onnx import read
from narrowgauge.lowering.lower import lower
from narrowgauge.runtimes.engines import ENGINES, Engine
from narrowgauge.runtimes.inner import LEVELS, Inner, open_inner
from narrowgauge.targets.schema import Target

_NOT_COMPARED = "the integers inside were not compared"
_SHOWN = 3
_LONGEST = 60


def folder_exactness(
    file: Path,
    samples: Iterable[Sample],
    *,
    engine: Engine,
    plan: Plan,
    target: Target,
    threads: int | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> tuple[Exactness | None, tuple[str, ...]]:
    """Compare every integer inside an engine with that of our integer network for the engine's arithmetic.

    Args:
        file: the quantized network that the engine runs, in the folder that `quantize` wrote.
        samples: for the float network.
        engine: that runs it.
        plan: the folder's.
        target: what the folder was made for.
        threads: of one operator.
        progress: called with the number of samples of each run.

    Returns:
        What was found, what looking changed and why integers differ, a sentence each; None and the reason where they
        cannot be compared.

    Raises:
        DataError: the samples cannot be read.
    """
    if plan.mode != "static":
        return None, (f"{_NOT_COMPARED}: a {plan.mode} plan has no activations of known scales",)
    if target.formats[:1] == ("integer",):
        return None, (f"{_NOT_COMPARED}: {file.name} is the network in {target.name}'s integers itself",)
    if not engine.arithmetic:
        return None, (f"{_NOT_COMPARED}: the arithmetic of {engine.title} is not one of ours{_hint(target)}",)
    network = read(file.with_name(FLOAT))
    try:
        integer = _integer(file.with_name(INTEGER), network, plan, target, engine.arithmetic)
        inner = _opened(file, engine, threads)
        given = batches(samples, rows_per_run(inner.inputs) or batch_size(network), input_specs(network))
        found = check_exactness(integer, inner, given, network=network, threads=threads, progress=progress)
    except (PlanError, TargetError, OutputError, RuntimeFailure) as error:
        return None, (f"{_NOT_COMPARED}: {error}",)
    if not found.elements:
        return None, (f"{_NOT_COMPARED}: {_nothing_compared(found, file.name)}",)
    return found, (*found.notes, *explain(found, network, integer, engine=engine, target=target))


def _nothing_compared(found: Exactness, file: str) -> str:
    """Say why no element was compared."""
    if found.tensors:
        first = found.tensors[0]
        return f"{first.name!r} was {first.remark}"
    if not found.only_ours:
        return "nothing in the network is rounded to levels"
    return f"none of them has the same name in {file} and in our integer network"


def _hint(target: Target) -> str:
    """Name an engine that computes by the target's arithmetic from its simulated form."""
    rule = target.arithmetic.requantization
    able = [one.name for one in ENGINES if one.runs_simulated and one.arithmetic == rule]
    return f"; an engine that computes as the target does: --runtime {able[0]}" if able else ""


def _opened(file: Path, engine: Engine, threads: int | None) -> Inner:
    """Open the file, or what shows the same integers where such files show none."""
    if engine.name == "tvm":
        return tvm_inner(read(file.with_name(SIMULATED)), threads=threads)
    return open_inner(file, runtime=engine.name, threads=threads)


def _integer(file: Path, network: ir.Model, plan: Plan, target: Target, arithmetic: str) -> ir.Model:
    """Read our integer network where the folder has it, else make it."""
    if target.arithmetic.requantization == arithmetic and file.is_file():
        return read(file)
    return lower(network, plan, target, form="integer", arithmetic=arithmetic)


def explain(found: Exactness, network: ir.Model, integer: ir.Model, *, engine: Engine, target: Target) -> Iterator[str]:
    """Say of integers that differ where it begins and what is known of the reason, a sentence each.

    Args:
        found: how many differ where.
        network: the float network.
        integer: our integer network.
        engine: what runs the other one.
        target: what both are for; where it claims to be exact, and the engine too, there is a warning.
    """
    first = found.first
    if first is None:
        return
    loud = "WARNING: " if target.arithmetic.bit_exact and not engine.deviation else ""
    share = found.differences.different / found.elements
    writer = f"{first.operator} {_some([first.node])}" if first.node else "an input"
    yield (
        f"{loud}{found.differences.different:,} of {found.elements:,} integers inside {engine.title} differ from those "
        f"that we compute ({share:.2g}), by {found.differences.largest} at most; the first is in "
        f"{_some([first.name])!r} ({writer})"
    )
    if engine.deviation:
        yield f"{engine.title}: {engine.deviation}"
    begun = {one.name: one.own for one in found.tensors if one.own is not None and one.own.different}
    islands = float_before(integer, list(begun), {str(node.name) for node in network.graph})
    behind = [name for name in begun if islands[name]]
    # The order of a sum moves a number by its last places, so a level by one at most.
    near = [name for name in behind if begun[name].largest <= 1]
    if near:
        operators = {node.op_type for name in near for node in islands[name]}
        yield (
            f"rounded behind operators in float, whose sums depend on the engine's order: {_some(near)} "
            f"(behind {_some(sorted(operators))})"
        )
    for name in [name for name in behind if name not in near][:_SHOWN]:
        yield _far_off(name, islands[name])
    others = [name for name in begun if not islands[name]]
    if others:
        yield f"differ by themselves, from equal integers before them: {_some(others)}"


def _far_off(name: str, island: Sequence[ir.Node]) -> str:
    """Say why a value behind operators in float differs by more than the order of sums would do."""
    said = [
        f"{node.op_type} {_some([str(node.name)])} ({node.metadata_props[REFUSAL]})"
        for node in island if REFUSAL in node.metadata_props
    ]  # fmt: skip
    if said:
        return f"{_some([name])} is rounded behind what we compute in real numbers, and the engine may not: {said[-1]}"
    return f"{_some([name])} differs by more than the order of sums in float explains; the reason is not known"


def float_before(integer: ir.Model, names: Sequence[str], nodes: Set[str]) -> dict[str, tuple[ir.Node, ...]]:
    """Find the operators in float whose results are rounded to levels, back to the levels before them.

    Args:
        integer: our integer network.
        names: values.
        nodes: names of the float network's nodes: others prepare a rounding and are not counted.

    Returns:
        Name of the value -> nodes, those next to the rounding first.
    """
    writers = {str(value.name): node for node in integer.graph for value in node.outputs}
    found = {}
    for name in names:
        rounding = writers.get(f"{name}{LEVELS}")
        waiting = [rounding] if is_operator(rounding, "QuantizeLinear") else []
        seen: dict[ir.Node, None] = {}
        while waiting:
            node = waiting.pop(0)
            if node is not None and node not in seen and not is_operator(node, "DequantizeLinear"):
                seen[node] = None
                waiting += [value.producer() for value in node.inputs if value is not None]
        found[name] = tuple(node for node in seen if str(node.name) in nodes)
    return found


def _some(names: Sequence[str]) -> str:
    """Write the first few names; long ones, which converters make of many, are cut."""
    shown = [name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}..." for name in names[:_SHOWN]]
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(shown) + rest
