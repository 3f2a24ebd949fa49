"""Numbers as a person reads them; what is not known is a dash."""

from __future__ import annotations

import math

UNKNOWN = "–"

# SI prefixes, as files and chips are sold.
_BYTES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def real(value: float | None, digits: int = 3) -> str:
    """A real number with so many significant digits: "0.0235", "-583", "1.2e-07", "∞"."""
    if value is None or math.isnan(value):
        return UNKNOWN
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:.{digits}g}"
    if "e" in text and 1e-4 < abs(value) < 1e7:
        text = f"{value:.0f}"
    return text.replace("-", "−")


def interval(low: float, high: float) -> str:
    """A range: "−2.1 to 6"."""
    return f"{real(low)} to {real(high)}"


def percent(share: float | None) -> str:
    """A share, 1 for all, in percent: "0.031 %", "4.2 %", "62 %"."""
    value = math.nan if share is None else 100 * share
    if not math.isfinite(value):
        return UNKNOWN
    size = abs(value)
    if value == 0:
        text = "0"
    elif size < 0.001:
        return "< 0.001 %" if value > 0 else "> −0.001 %"
    else:
        text = f"{value:.0f}" if size >= 10 else f"{value:.1f}" if size >= 1 else f"{value:.2g}"
    return f"{text} %".replace("-", "−")


def points(value: float | None, unit: str = "%") -> str:
    """A measured accuracy that is given in percent: "84.5 %"; other units keep four digits."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    return f"{value:.1f} {unit}".replace("-", "−") if unit else real(value, 4)


def decibels(value: float | None) -> str:
    """A ratio in decibels: "38.2 dB", "∞ dB"."""
    if value is None or math.isnan(value):
        return UNKNOWN
    return f"{value:.1f} dB".replace("-", "−") if math.isfinite(value) else f"{real(value)} dB"


def noise_decibels(noise: float | None) -> float | None:
    """Signal-to-noise ratio of a noise relative to its signal, decibels; infinite without noise, None if unknown."""
    if noise is None or math.isnan(noise):
        return None
    if noise <= 0:
        return math.inf
    return -10 * math.log10(noise) if math.isfinite(noise) else -math.inf


def gained(before: float, after: float) -> str:
    """A change in decibels, with its sign: "+2.9 dB"."""
    if not (math.isfinite(before) and math.isfinite(after)):
        return UNKNOWN
    return signed_decibels(after - before)


def signed_decibels(change: float) -> str:
    """A change in decibels that is known: "+2.9 dB"."""
    return f"{change:+.1f} dB".replace("-", "−")


def error_size(sqnr_db: float) -> str:
    """Size of an error (root of the mean square) relative to its signal, in percent."""
    return percent(0.0 if sqnr_db == math.inf else 10 ** (-sqnr_db / 20))


def size(count: float | None) -> str:
    """A number of bytes: "3.5 MB"."""
    if count is None or not math.isfinite(count):
        return UNKNOWN
    for unit, name in _BYTES:
        if count >= unit:
            return f"{count / unit:.3g} {name}" if count < 1000 * unit else f"{count / unit:.0f} {name}"
    return f"{count:.0f} bytes"


def seconds(value: float | None) -> str:
    """A time: "0.03 s", "12.4 s", "2 min 5 s"."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if value >= 120:
        return f"{value // 60:.0f} min {value % 60:.0f} s"
    return f"{value:.1f} s" if value >= 1 else f"{value:.2g} s" if value >= 0.001 else "< 0.001 s"


def milliseconds(value: float | None) -> str:
    """A latency: "1.83 ms"."""
    return f"{real(value)} ms" if value is not None and math.isfinite(value) else UNKNOWN


def counted(count: int, noun: str, plural: str = "") -> str:
    """A count with its noun: "1 layer", "12 layers"."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
