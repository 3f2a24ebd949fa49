"""The encodings of a network that a run wrote: a network in integers holds levels, and not what they mean."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.plan import load_plan
from narrowgauge.errors import NarrowgaugeError
from narrowgauge.exporters.folder import PLAN, SUMMARY, describe_file


def written_encodings(model: Any) -> Mapping[str, Encoding]:
    """Read the affine encodings of the plan that lies beside a network's file.

    Only where the folder's summary lists both files as they are now: a plan that was changed since says nothing of the
    network.

    Args:
        model: a file; anything else has no plan beside it.

    Returns:
        Value name -> encoding; empty where there is no such plan.
    """
    if not isinstance(model, str | os.PathLike):
        return {}
    path = Path(model)
    plan = path.with_name(PLAN)
    try:
        listed = json.loads(path.with_name(SUMMARY).read_text(encoding="utf-8"))["files"]
        if any(listed[file.name] != describe_file(file) for file in (path, plan)):
            return {}
        encodings = load_plan(plan).encodings
    except (OSError, ValueError, KeyError, TypeError, NarrowgaugeError):
        return {}
    return {name: encoding for name, encoding in encodings.items() if isinstance(encoding, Encoding)}
