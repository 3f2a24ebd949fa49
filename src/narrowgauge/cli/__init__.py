"""The command line: one command for each file.

Input: arguments. Output: files, text for people or JSON for scripts, an exit code. It never does what the Python API
cannot.
"""

from __future__ import annotations


def main() -> None:
    """Run the command line with this process's arguments and exit with its code (`guard.ExitCode`)."""
    from narrowgauge.cli.app import app
    from narrowgauge.cli.guard import end_cleanly_when_terminated

    end_cleanly_when_terminated()
    app(prog_name="narrowgauge")
