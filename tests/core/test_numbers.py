"""Number types of 2 to 16 bits."""

import numpy as np
import pytest

from narrowgauge.core.numbers import IntegerType, integer_type
from narrowgauge.errors import PlanError


@pytest.mark.parametrize("bits", range(2, 17))
def test_levels_of_every_width(bits: int) -> None:
    signed = IntegerType(bits=bits, signed=True)
    narrow = IntegerType(bits=bits, signed=True, narrow=True)
    unsigned = IntegerType(bits=bits, signed=False)
    assert (signed.minimum, signed.maximum, signed.levels) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1, 2**bits)
    assert (narrow.minimum, narrow.maximum, narrow.levels) == (-signed.maximum, signed.maximum, 2**bits - 1)
    assert (unsigned.minimum, unsigned.maximum, unsigned.levels) == (0, 2**bits - 1, 2**bits)


@pytest.mark.parametrize("bits", [*range(2, 17), 32])
@pytest.mark.parametrize(("signed", "narrow"), [(True, False), (True, True), (False, False)])
def test_name_and_storage(bits: int, signed: bool, narrow: bool) -> None:
    kind = IntegerType(bits=bits, signed=signed, narrow=narrow)
    assert integer_type(kind.name) == kind
    held = np.iinfo(kind.storage)
    assert held.min <= kind.minimum
    assert kind.maximum <= held.max
    assert kind.storage.itemsize * 8 < 2 * max(bits, 5)


@pytest.mark.parametrize(
    "name", ["int1", "int17", "uint0", "int64", "float8", "int", "uint8_narrow", "", "int8 narrow"]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(PlanError):
        integer_type(name)


def test_names_are_read_as_people_write_them() -> None:
    assert integer_type(" INT8 ") == IntegerType(bits=8, signed=True)
