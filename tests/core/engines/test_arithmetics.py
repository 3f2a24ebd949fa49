"""Every kernel gives LiteRT's own integers, ties and saturation included."""

import itertools

import numpy as np
import pytest

from narrowgauge.core.engines.arithmetics import KERNELS
from tests.core.engines.golden_tflite import make as golden
from tests.core.engines.litert_cases import CASES
from tests.core.engines.litert_operators import FAMILIES, Draw

ROWS = [(engine, case, kind) for case, row in CASES.items() for engine in row.engines for kind in row.kinds]


@pytest.mark.parametrize(("engine", "case", "kind"), ROWS)
def test_every_level_is_litert_s(engine: str, case: str, kind: str) -> None:
    pytest.importorskip("ai_edge_litert", reason="the judge is LiteRT: pip install ai-edge-litert")
    for family, seed in itertools.product(FAMILIES, range(1 if kind == "int16" else 3)):
        made = CASES[case].make(KERNELS[engine], Draw(family, seed, kind))
        theirs = made.theirs(reference=engine == "tflite-reference", delegate=engine == "xnnpack")
        np.testing.assert_array_equal(made.ours, theirs)


def test_names_are_those_of_the_records() -> None:
    assert all(kernels.name == name and kernels.source for name, kernels in KERNELS.items())
    assert {"xnnpack", "tflite-reference", "tflite-neon", "tflite-single-rounding", "xnnpack-rndnu"} <= set(KERNELS)


@pytest.mark.parametrize(("engine", "case"), golden.rows())
def test_levels_that_litert_gave_before(engine: str, case: str) -> None:
    with np.load(golden.FILE) as kept:
        drawn, expected = kept["fingerprint"], kept[f"{engine}: {case}"]
    assert np.array_equal(drawn, golden.fingerprint()), "numpy draws other numbers: run golden_tflite/make.py again"
    found = np.concatenate([golden.kept(one.ours) for one in golden.cases(engine, case)])
    np.testing.assert_array_equal(found, expected)
