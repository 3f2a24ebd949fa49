import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from narrowgauge.data import open_samples
from tests.data.networks import image_input

VECTOR = image_input(None, 1)
BOUND = st.none() | st.integers(0, 14)


@given(st.lists(st.tuples(BOUND, BOUND), max_size=3), st.sampled_from(["array", "rows", "batches"]))
def test_slices_of_slices_are_those_of_a_list(slices: list[tuple[int | None, int | None]], kind: str) -> None:
    rows = np.arange(10, dtype=np.float32)[:, None]
    data = {"array": rows, "rows": list(rows), "batches": [rows[:4], rows[4:5], rows[5:]]}[kind]
    samples, expected = open_samples(data, VECTOR), list(range(10))
    for start, stop in slices:
        samples, expected = samples[start:stop], expected[start:stop]
    found = [
        (int(value), name)
        for sample in samples
        for value, name in zip(sample.feed["input"][:, 0], sample.names, strict=True)
    ]
    assert found == [(number, f"data[{number}]") for number in expected]
    assert samples.count == (len(expected) if kind == "array" else None)


def test_opened_samples_are_taken_as_they_are() -> None:
    samples = open_samples(np.zeros((3, 1)), VECTOR)
    assert open_samples(samples, VECTOR) is samples
