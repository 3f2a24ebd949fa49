"""What a person reads: short, grouped, loud where it must be."""

from __future__ import annotations

import pytest

from narrowgauge.cli.outcome import beside, counted, grouped_reasons, labels_text, recovery, size_text, times


def node(operator: str, reason: str) -> dict[str, str]:
    return {"name": f"{operator}_1", "operator": operator, "reason": reason}


def test_nodes_of_one_reason_are_one_line_whatever_their_names() -> None:
    nodes = [
        *[node("Add", f"'v{number}' arrives in float: an integer Add would pay for it") for number in range(3)],
        node("Mul", "'w' arrives in float: an integer Mul would pay for it"),
        node("Erf", "tvm has no integer Erf"),
        node("Exp", "tvm has no integer Exp"),
        node("Slice", "dynamic quantization of tvm leaves Slice float"),
    ]
    assert grouped_reasons(nodes) == [
        (4, "3 Add, 1 Mul", "an input arrives in float: integers would pay for it"),
        (2, "1 Erf, 1 Exp", "tvm has no integer form of them"),
        (1, "1 Slice", "dynamic quantization of tvm leaves Slice float"),
    ]


def test_many_operators_of_one_reason_are_counted_together() -> None:
    nodes = [node(f"Op{number}", f"tvm has no integer Op{number}") for number in range(9)]
    assert grouped_reasons(nodes) == [(9, "1 Op0, 1 Op1, 1 Op2, 6 others", "tvm has no integer form of them")]


def test_a_step_that_was_kept_shows_what_decided() -> None:
    """Its noise over all samples may have risen a little."""
    first = {"name": "ranges", "noise_before": None, "noise_after": 0.01, "seconds": 0.1, "kept": True, "drop": None}
    second = {**first, "name": "refine-ranges", "noise_before": 0.01, "noise_after": 0.011, "judged_db": 0.42}
    (said,) = recovery([{**first, "judged_db": None}, second])
    assert "ranges 20.0 dB" in str(said)
    assert "refine-ranges +0.4 dB" in str(said)
    (old,) = recovery([first, {**second, "judged_db": None}])  # of a summary that does not say it
    assert "refine-ranges -0.4 dB" in str(old)


@pytest.mark.parametrize(("number", "text"), [(0, "0 samples"), (1, "1 sample"), (2, "2 samples")])
def test_one_is_no_plural(number: int, text: str) -> None:
    assert counted(number, "sample") == text


def test_sizes_ratios_and_labels() -> None:
    assert [size_text(size) for size in (12, 999_600, 3_260_000)] == ["12 B", "1 MB", "3.26 MB"]
    assert times(4, 2, "faster", "slower") == "2.00x faster"
    assert times(1000, 1001, "faster", "slower") == "about the same"
    assert times(2, 3, "faster", "slower") == "1.50x slower"
    assert (labels_text(3, 3), labels_text(3, 0), labels_text(3, 1)) == ("", ", none labelled", ", 1 of them labelled")


def test_the_engine_of_the_float_networks_latency_is_said_where_it_is_another() -> None:
    summary = {
        "float": {}, "quantized": {}, "agreement_top1": None, "sqnr_db": None, "sqnr_infinite": False,
        "size_bytes": {"float": 8, "quantized": 2}, "latency_ms": {"float": 1.0, "quantized": 2.0},
    }  # fmt: skip
    for runtimes, said in (
        ({"float": "onnxruntime", "quantized": "tvm"}, True),
        ({"float": "x", "quantized": "x"}, False),
    ):
        table = beside(("float", "quantized"), {**summary, "latency_runtimes": runtimes})
        changes = [str(cell) for cell in table.columns[3].cells]
        assert ("2.00x slower (float in ONNX Runtime)" in changes) is said
        assert ("2.00x slower" in changes) is not said
