"""Inputs of networks that the tests of this folder feed."""

import numpy as np

from narrowgauge.data import InputSpec


def image_input(*shape: int | None, dtype: type = np.float32) -> tuple[InputSpec, ...]:
    """One input named `input`."""
    return (InputSpec(name="input", shape=shape, dtype=np.dtype(dtype)),)


PICTURE = image_input(None, 3, 8, 8)

SPEECH = (
    InputSpec(name="input", shape=(None, None), dtype=np.dtype(np.float32)),
    InputSpec(name="state", shape=(2, None, 128), dtype=np.dtype(np.float32)),
    InputSpec(name="sr", shape=(), dtype=np.dtype(np.int64)),
)
"""The inputs of silero-vad: no common batch axis, and a scalar."""

TEXT = (
    InputSpec(name="ids", shape=(None, None), dtype=np.dtype(np.int64)),
    InputSpec(name="mask", shape=(None, None), dtype=np.dtype(np.int64)),
)
"""The inputs of a text encoder: batch and time are dynamic."""
