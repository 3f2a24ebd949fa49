"""`narrowgauge import`: a network as narrowgauge sees it."""

from __future__ import annotations

from narrowgauge.cli import options


def import_model(
    model: options.ModelPath,
    out: options.OutFolder,
    force: options.Force = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Read a network of any framework: float.onnx and notes.txt.

    It computes what the given network computes; batch normalizations are folded, constants computed, and so on. A
    network that came quantized gives plan.json, with its scales and zero points, and simulated.onnx, too; its
    float.onnx is left as it is, since the plan is for its very values.
    """
    from narrowgauge.cli import outcome, terminal
    from narrowgauge.exporters.folder import FLOAT, PLAN, SIMULATED, new_folder, write_plan
    from narrowgauge.exporters.onnx import write_onnx
    from narrowgauge.importers.opening import load
    from narrowgauge.lowering.qdq import QdqStyle, lower_to_qdq
    from narrowgauge.targets.registry import load_target

    with new_folder(out, force=force) as folder:
        with terminal.progress_bars(quiet=quiet) as progress:
            progress.begin("import", None)
            imported = load(model)
            plan = imported.plan
            network = imported.model if plan is None else imported.original
            write_onnx(network, folder / FLOAT)
            if plan is not None:
                write_plan(plan, folder / PLAN)
                style = QdqStyle(bias_bits=load_target(plan.target).bias_bits)
                write_onnx(lower_to_qdq(network, plan, style), folder / SIMULATED)
        left = [f"left as it was: {refusal}" for refusal in imported.refusals]
        notes = [*imported.notes, *left]
        (folder / "notes.txt").write_text("".join(f"{note}\n" for note in notes), encoding="utf-8")
    before, after = len(imported.original.graph), len(network.graph)
    if json:
        terminal.show_json(
            {
                "model": str(model),
                "float": str(out / FLOAT),
                "nodes": {"before": before, "after": after},
                "notes": notes,
            }
        )
    elif not quiet:
        terminal.show(f"{before} nodes became {after}.", *outcome.notes(notes), outcome.files(out))
