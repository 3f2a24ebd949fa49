"""The table of commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

import narrowgauge
from narrowgauge.cli.analyze import analyze
from narrowgauge.cli.bench import bench
from narrowgauge.cli.calibrate import calibrate
from narrowgauge.cli.compare import compare
from narrowgauge.cli.demo import demo
from narrowgauge.cli.export import export
from narrowgauge.cli.guard import guarded
from narrowgauge.cli.import_model import import_model
from narrowgauge.cli.inspect import inspect
from narrowgauge.cli.quantize import quantize
from narrowgauge.cli.report import report
from narrowgauge.cli.targets import targets
from narrowgauge.cli.verify import verify

COMMANDS: dict[str, Callable[..., None]] = {
    "quantize": quantize,
    "analyze": analyze,
    "calibrate": calibrate,
    "import": import_model,
    "export": export,
    "compare": compare,
    "verify": verify,
    "bench": bench,
    "targets": targets,
    "inspect": inspect,
    "report": report,
    "demo": demo,
}

app = typer.Typer(
    help="Lay a trained float network on the narrow integers of the chip you have, and see what every rounded number "
    "costs. Start with: narrowgauge demo",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but the accuracy asked for was missed.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _name, _command in COMMANDS.items():
    app.command(_name, no_args_is_help=_name not in ("targets", "demo"))(guarded(_command))


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"narrowgauge {narrowgauge.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take the options that stand before a command."""
