"""Keep what TVM says to itself off the terminal."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Iterator

_STDERR = 2


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Drop warnings, prints, and what TVM's C++ writes to the standard error.

    It tells of its own operators ("Fast mode segfaults when ..."), of names that its importer changed, and prints the
    node that it could not import; what matters comes as an exception.
    """
    sys.stderr.flush()
    kept, nowhere = os.dup(_STDERR), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, _STDERR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(kept, _STDERR)
        os.close(kept)
        os.close(nowhere)
