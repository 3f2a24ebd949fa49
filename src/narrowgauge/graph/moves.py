"""Operators that hand numbers on as they are."""

from __future__ import annotations

MOVES = (
    "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Cast", "Slice", "Gather",
    "Split", "Expand", "Tile",
)  # fmt: skip
"""What they write are numbers of their first input: all or some of them, in another layout, more than once or as
another type."""
