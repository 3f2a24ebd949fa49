"""Networks are timed in turn, so that a machine that changes speed changes all of them."""

import itertools
import time

import pytest

from narrowgauge.analysis.latency import measure_latency


def test_runs_take_turns_and_the_first_round_warms_up() -> None:
    order: list[str] = []
    found = measure_latency({name: lambda name=name: order.append(name) for name in "abc"}, seconds=0.05, most=20)
    assert order == list("abc") * 21
    assert {name: times.runs for name, times in found.items()} == dict.fromkeys("abc", 20)


def test_medians_and_minima() -> None:
    waits = {"slow": itertools.cycle([0.02]), "uneven": itertools.chain([0.05], itertools.cycle([0.001, 0.004, 0.03]))}
    found = measure_latency({name: lambda wait=wait: time.sleep(next(wait)) for name, wait in waits.items()}, most=9)
    assert 20 <= found["slow"].minimum_ms <= found["slow"].median_ms
    assert 1 <= found["uneven"].minimum_ms < 4
    assert found["uneven"].minimum_ms < found["uneven"].median_ms < 30


def test_it_ends_in_time_but_not_before_three_rounds() -> None:
    start = time.perf_counter()
    found = measure_latency({"a": lambda: time.sleep(0.03)}, seconds=0.01)
    assert found["a"].runs == 3
    assert time.perf_counter() - start < 1
    long = measure_latency({"a": lambda: time.sleep(0.005)}, seconds=0.1)
    assert 3 < long["a"].runs <= 25


def test_an_error_is_not_swallowed() -> None:
    def broken() -> None:
        raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        measure_latency({"a": broken})
