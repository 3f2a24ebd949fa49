"""What every engine gives: a program that takes and returns real numbers, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from narrowgauge.data.inputs import InputSpec

Array = npt.NDArray[Any]
Run = Callable[[Mapping[str, Array]], dict[str, Array]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """An opened network file.

    Attributes:
        inputs: what it takes. An input that the file wants in integers with an encoding is taken in real numbers
            (float32) and rounded on the way in.
        outputs: names of what it gives, in its order; integers with an encoding come as the real numbers that they
            stand for.
        run: one run: input name -> array in, output name -> array out. It raises RuntimeFailure.
    """

    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]
    run: Run
