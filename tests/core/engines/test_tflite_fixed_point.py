"""Tables of sigmoid and tanh: close to the functions, with the ends of the fixed-point code.

That they are the kernel's, entry by entry, the LSTMs of `test_tflite_recurrent` show.
"""

from __future__ import annotations

import numpy as np
import pytest

from narrowgauge.core.engines.tflite_fixed_point import GREATEST, LEAST, saturated, sigmoid_table, tanh_table

LEVELS = np.arange(LEAST, GREATEST + 1)


def test_sigmoid() -> None:
    table = sigmoid_table()
    np.testing.assert_allclose(table / 2**15, 1 / (1 + np.exp(-LEVELS / 4096)), atol=2.0**-12)
    assert table[-LEAST] == 2**14
    assert (table[:-LEAST][::-1][:GREATEST] + table[1 - LEAST :] == GREATEST).all()  # of a negative level: 1 less that


@pytest.mark.parametrize("integer_bits", range(7))
def test_tanh(integer_bits: int) -> None:
    table = tanh_table(integer_bits)
    np.testing.assert_allclose(table / 2**15, np.tanh(LEVELS * 2.0 ** (integer_bits - 15)), atol=2.0**-11)
    assert table[-LEAST] == 0
    np.testing.assert_array_equal(table[1:-LEAST], -table[:-LEAST:-1])


def test_tables_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        sigmoid_table()[0] = 1


def test_saturation() -> None:
    np.testing.assert_array_equal(saturated([-40000, -5, 40000]), [LEAST, -5, GREATEST])
