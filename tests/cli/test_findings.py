"""What an analysis found, as a person reads it on the screen."""

import io

from rich.console import Console

from narrowgauge.analysis.records import Analysis, Cause, CauseRemedy, Outlier, Sensitivity, Step
from narrowgauge.cli.findings import findings

OUTLIER = Outlier(value="s", channel=41, positions=(), reach=9.0, others=1.0, source="n", unit=None, source_value="")


def shown(analysis: Analysis) -> str:
    console = Console(file=io.StringIO(), width=200)
    for part in findings(analysis):
        console.print(part)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return " ".join(text.split())


def test_a_cause_has_its_remedies_and_what_recovery_did() -> None:
    remedies = (
        CauseRemedy(method="float", detail="11 values", sqnr_db=12.1, gain_db=13.4, allowed=False),
        CauseRemedy(method="cap at the source", detail="a <= 16", sqnr_db=7.5, gain_db=8.8, allowed=True, chosen=True),
    )
    cause = Cause(sentence="unit 417 does it", outliers=(OUTLIER,), sqnr_db=-1.3, remedies=remedies, all_tried=True)
    step = Step(
        name="cap-outliers", detail="'a' from 219 to 21", noise_before=0.1, noise_after=0.01, seconds=1, kept=True
    )
    text = shown(Analysis(outliers=(OUTLIER,), causes=(cause,), steps=(step,)))
    assert "Cause: unit 417 does it. Output SQNR -1.3 dB before any recovery" in text
    assert "float 12.1 dB +13.4 dB no 11 values" in text
    assert "cap at the source (chosen) 7.5 dB +8.8 dB yes a <= 16" in text
    assert "Best by measured gain: cap at the source (a <= 16), +8.8 dB." in text
    assert "Recovery kept: cap at the source ('a' from 219 to 21): +10.0 dB." in text
    assert "Outlier:" not in text


def test_a_tensor_of_a_transformer_is_named() -> None:
    cost = Sensitivity(name="gelu_7", kind="activation", node="n", depth=3, alone=0.1, without=0.1, gain=0.1)
    assert "gelu_7 (block 7, MLP hidden)" in shown(
        Analysis(sensitivities=(cost,), roles={"gelu_7": "block 7, MLP hidden"})
    )
    assert "gelu_7 (" not in shown(Analysis(sensitivities=(cost,)))


def test_without_a_cause_nothing_is_said_of_one() -> None:
    text = shown(Analysis(outliers=(OUTLIER,)))
    assert "Cause" not in text
    assert "Recovery" not in text
    assert "Outlier: channel 41 of 's' reaches 9, the other channels 1: 'n' writes it." in text
