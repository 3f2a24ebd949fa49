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
    """Simplify a float network: float.onnx and notes.txt.

    It computes what the given network computes; batch normalizations are folded, constants computed, and so on.
    """
    from narrowgauge.cli import outcome, terminal
    from narrowgauge.exporters.folder import FLOAT, new_folder
    from narrowgauge.exporters.onnx import write_onnx
    from narrowgauge.importers.onnx import load

    with new_folder(out, force=force) as folder:
        with terminal.progress_bars(quiet=quiet) as progress:
            progress.begin("import", None)
            imported = load(model)
            write_onnx(imported.model, folder / FLOAT)
        left = [f"left as it was: {refusal}" for refusal in imported.refusals]
        notes = [*imported.notes, *left]
        (folder / "notes.txt").write_text("".join(f"{note}\n" for note in notes), encoding="utf-8")
    before, after = len(imported.original.graph), len(imported.model.graph)
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
