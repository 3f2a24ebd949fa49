"""Which samples calibrate and which check."""

from __future__ import annotations

from narrowgauge.data.samples import Samples


def split(samples: Samples, asked: int) -> tuple[Samples, Samples, tuple[str, ...]]:
    """Cut samples into those that calibrate, the first `asked` ones, and those that check, the others.

    Where there are no more than asked for, a quarter is held back for the check; a single sample does both.

    Returns:
        The two parts, the second possibly empty where the number of samples is unknown, and what a person should know.
    """
    count = samples.count
    if count is None or count > asked:
        return samples.take(asked), samples.skip(asked), ()
    if count <= 1:
        return samples, samples, ("the one sample there is calibrates and checks: the check says little",)
    calibrating = max(1, count - max(1, count // 4))
    note = (
        f"{count} samples found, {asked} asked for calibration: {calibrating} calibrate, "
        f"the other {count - calibrating} check"
    )
    return samples.take(calibrating), samples.skip(calibrating), (note,)
