import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrowgauge.report import figures


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (figures.real(0.02349), "0.0235"),
        (figures.real(-583.2), "−583"),
        (figures.real(583214.0), "583214"),
        (figures.real(1.2e-7), "1.2e−07"),
        (figures.real(math.nan), "–"),
        (figures.real(-math.inf), "−∞"),
        (figures.interval(-2.1, 6), "−2.1 to 6"),
        (figures.percent(0), "0 %"),
        (figures.percent(0.6234), "62 %"),
        (figures.percent(0.0421), "4.2 %"),
        (figures.percent(-0.00031), "−0.031 %"),
        (figures.percent(1e-9), "< 0.001 %"),
        (figures.percent(-1e-9), "> −0.001 %"),
        (figures.percent(math.inf), "–"),
        (figures.points(84.54), "84.5 %"),
        (figures.points(0.35219, ""), "0.3522"),
        (figures.decibels(-3.21), "−3.2 dB"),
        (figures.decibels(math.inf), "∞ dB"),
        (figures.decibels(None), "–"),
        (figures.gained(20.0, 22.9), "+2.9 dB"),
        (figures.gained(math.inf, 22.9), "–"),
        (figures.error_size(40.0), "1.0 %"),
        (figures.error_size(math.inf), "0 %"),
        (figures.size(3_655_000), "3.65 MB"),
        (figures.size(999), "999 bytes"),
        (figures.size(None), "–"),
        (figures.seconds(125), "2 min 5 s"),
        (figures.seconds(0.0314), "0.031 s"),
        (figures.milliseconds(4.372), "4.37 ms"),
        (figures.counted(1, "layer"), "1 layer"),
        (figures.counted(1200, "layer"), "1,200 layers"),
    ],
)
def test_a_figure_reads_as_a_person_writes_it(text: str, expected: str) -> None:
    assert text == expected


@given(st.floats() | st.none())
def test_every_number_has_a_text(value: float | None) -> None:
    for write in (
        figures.real, figures.percent, figures.points, figures.decibels, figures.size, figures.seconds,
        figures.milliseconds,
    ):  # fmt: skip
        text = write(value)
        assert text
        assert "nan" not in text
        assert "inf" not in text


@given(st.floats(1e-30, 1e30))
def test_noise_in_decibels_turns_back(noise: float) -> None:
    sqnr = figures.noise_decibels(noise)
    assert sqnr is not None
    assert 10 ** (-sqnr / 10) == pytest.approx(noise)


def test_noise_that_is_none_or_unknown() -> None:
    assert figures.noise_decibels(0.0) == math.inf
    assert figures.noise_decibels(math.inf) == -math.inf
    assert figures.noise_decibels(math.nan) is None
    assert figures.noise_decibels(None) is None
