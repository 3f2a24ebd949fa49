from dataclasses import replace

import numpy as np
import pytest

from narrowgauge.analysis.encoding_words import scale_words
from narrowgauge.analysis.records import Analysis, Remedy, Sensitivity, TensorLoss
from narrowgauge.core.encoding import DynamicEncoding, Encoding, LogEncoding, NormalizedEncoding
from narrowgauge.core.granularity import Granularity, PerAxis, PerBlock, PerTensor, PowerOfTwoFactor
from narrowgauge.core.numbers import integer_type
from narrowgauge.core.plan import Plan
from narrowgauge.report.tensors import Tensor, error_change, role, tensors, words, worst
from tests.report.example import example

LOSS = TensorLoss(
    name="a", kind="activation", node="n", operator="Conv", depth=3, type="uint8", granularity="tensor", shape="1x4",
    range=(0.0, 6.0), seen=(0.0, 9.0), scales=(0.0235, 0.0235), signal=1.0, rounding=1e-4, clipping=9e-4,
    clipped_share=0.003, levels=256, levels_used=200, entropy_bits=5.5, wasted_bits=2.5, measured=True,
)  # fmt: skip
COST = Sensitivity(name="a", kind="activation", node="n", depth=3, alone=0.02, without=0.07, gain=0.03)


def tensor_with(**changes: object) -> Tensor:
    tensor = Tensor(name="a", encoding=None, loss=LOSS, sensitivity=COST, remedies=(), noise=0.1)
    return replace(tensor, **changes)  # type: ignore[arg-type]


def test_costs_are_shares_of_the_whole_error() -> None:
    tensor = tensor_with()
    assert tensor.cost == pytest.approx(0.2)
    assert tensor.saved == pytest.approx(0.3)
    assert tensor.sqnr_db == pytest.approx(30)
    assert tensor.clipping_share == pytest.approx(0.9)


@pytest.mark.parametrize("noise", [None, 0.0, float("nan"), float("inf")])
def test_a_share_of_nothing_is_unknown(noise: float | None) -> None:
    tensor = tensor_with(noise=noise)
    assert tensor.cost is None
    assert not any("at the output" in sentence for sentence in words(tensor))


def test_words_name_cost_and_cause() -> None:
    assert words(tensor_with()) == [
        "By itself it adds 20 % of the error at the output; left float, 30 % goes away.",
        "Its own error is mostly clipping (90 %): 0.3 % of its elements lie beyond 0 to 6.",
        "Its range is wide for what it mostly holds: 5.5 of 8 bits carry information.",
    ]


@pytest.mark.parametrize(("granularity", "part"), [(PerAxis(0), "channel"), (PerBlock(0, 1), "block")])
def test_with_several_scales_elements_lie_beyond_their_own_range(granularity: Granularity, part: str) -> None:
    scale = np.array([0.01, 0.02], np.float32)
    encoding = Encoding(
        type=integer_type("uint8"), granularity=granularity, scale=scale, zero_point=np.zeros(2, np.int32)
    )
    assert words(tensor_with(encoding=encoding))[1] == (
        "Its own error is mostly clipping (90 %): 0.3 % of its elements lie beyond the range of their "
        f"{part} (the widest of all: 0 to 6)."
    )


@pytest.mark.parametrize(
    ("alone", "gain", "sentence"),
    [
        (1e-5, 1e-5, "It costs next to nothing at the output."),
        (0.02, -0.03, "yet left float, the error grows by 30 %: here errors cancel."),
        (0.02, -1e-5, "yet left float, next to nothing goes away."),
        (0.04, 0.01, "yet left float, only 10 % goes away: errors do not add up here."),
    ],
)
def test_words_on_costs_that_are_small_or_negative(alone: float, gain: float, sentence: str) -> None:
    assert sentence in words(tensor_with(sensitivity=replace(COST, alone=alone, gain=gain)))[0]


@pytest.mark.parametrize(
    ("rounding", "clipping", "sentence"),
    [
        (1e-4, 1e-6, "Its own error is mostly rounding: a step of 0.0235 between levels."),
        (1e-4, 1e-4, "Its own error is rounding and clipping in nearly equal parts."),
    ],
)
def test_words_on_the_cause(rounding: float, clipping: float, sentence: str) -> None:
    assert sentence in words(tensor_with(loss=replace(LOSS, rounding=rounding, clipping=clipping)))


def test_a_tensor_without_error_has_no_cause() -> None:
    assert len(words(tensor_with(loss=replace(LOSS, rounding=0.0, clipping=0.0), sensitivity=None))) == 0


def remedy(method: str, gain: float, detail: str = "") -> Remedy:
    return Remedy(tensor="a", method=method, noise=0.1 - gain, gain=gain, detail=detail)


def test_words_name_the_best_remedy_but_float_only_as_the_last_resort() -> None:
    some, none = remedy("per channel", 0.01, "not on this target"), remedy("range: mse", -0.01)
    best = "“per channel” (not on this target) helps most: it takes away 10 %"
    assert best in words(tensor_with(remedies=(remedy("float", 0.03), some, none)))[-1]
    assert words(tensor_with(remedies=(remedy("float", 0.03), none)))[-1].endswith("only leaving it float helps.")
    assert words(tensor_with(remedies=(none,)))[-1] == "Nothing that was tried helps."


def test_change_of_a_remedy_is_relative_to_the_error_before() -> None:
    assert error_change(remedy("float", 0.03)) == pytest.approx(0.3)
    assert error_change(remedy("float", -0.1)) == pytest.approx(-1)


def test_rows_are_ranked_as_the_analysis_ranks() -> None:
    shown = example(6)
    rows = tensors(shown.plan, shown.analysis)
    assert [row.name for row in rows] == [one.name for one in shown.analysis.ranking()]
    assert {row.name for row in rows} == set(shown.plan.encodings)
    assert rows[0].remedies == tuple(sorted(shown.analysis.remedies, key=lambda one: -one.gain))
    assert worst(rows, 2) == rows[:2]


def test_rows_of_the_plan_alone() -> None:
    scale, zero = [0.5, 0.25], [0, 0]
    encodings = {
        "x": Encoding(type=integer_type("uint8"), granularity=PerTensor(), scale=0.5, zero_point=4),  # type: ignore[arg-type]
        "w": Encoding(type=integer_type("int4"), granularity=PerAxis(0), scale=scale, zero_point=zero),  # type: ignore[arg-type]
        "d": DynamicEncoding(type=integer_type("uint8")),
    }
    value, weights, dynamic = tensors(Plan(target="t", encodings=encodings), None)
    assert (value.range, value.scales, value.levels) == ((-2.0, 125.5), (0.5, 0.5), 256)
    assert (weights.range, weights.scales, weights.granularity) == ((-4.0, 3.5), (0.25, 0.5), "axis 0")
    assert (dynamic.range, dynamic.scales, dynamic.granularity) == (None, None, "each tensor at run time")
    assert worst([value, weights, dynamic]) == []


def test_a_tensor_that_the_plan_does_not_list_is_shown_all_the_same() -> None:
    (row,) = tensors(Plan(target="t", encodings={}), Analysis(losses=(LOSS,), sensitivities=(COST,), noise=0.1))
    assert (row.name, row.encoding, row.cost) == ("a", None, pytest.approx(0.2))


def test_roles() -> None:
    assert role(tensor_with()) == "output of Conv “n”"
    assert role(tensor_with(loss=replace(LOSS, kind="weights"))) == "weights of Conv “n”"
    assert role(tensor_with(loss=replace(LOSS, node=""))) == "input of the network"
    assert role(tensor_with(loss=None, sensitivity=None)) == "tensor of the plan"
    assert role(replace(tensor_with(), part="block 7, MLP hidden")) == "output of Conv “n” (block 7, MLP hidden)"


def test_what_a_tensor_is_in_a_transformer_comes_from_the_analysis() -> None:
    analysis = Analysis(losses=(LOSS,), roles={LOSS.name: "block 7, MLP hidden"})
    (row,) = tensors(Plan(target="tflite", encodings={}), analysis)
    assert row.part == "block 7, MLP hidden"


def test_blocks_in_words() -> None:
    blocks = Encoding(
        type=integer_type("int4"), granularity=PerBlock(0, 32), scale=[[1.0]], zero_point=[[0]]  # type: ignore[arg-type]
    )  # fmt: skip
    assert scale_words(blocks) == "axis 0, blocks of 32"


def test_words_on_logarithms_and_shares() -> None:
    logarithm = LogEncoding(type=integer_type("uint4"), normalized=True)
    lost = tensor_with(encoding=logarithm, sensitivity=None)
    assert words(lost) == [
        "Its own error is mostly clipping (90 %): 0.3 % of its elements are too small for a level and become 0."
    ]
    shares = tensor_with(
        encoding=NormalizedEncoding(type=integer_type("uint8")), sensitivity=None, loss=replace(LOSS, clipping=0.0)
    )
    assert len(words(shares)) == 1  # that few of its levels are much used is how attention is
    assert words(shares)[0].startswith("Its own error is mostly rounding")


def test_types_and_shifts_of_the_plan_alone() -> None:
    channels = Encoding(
        type=integer_type("uint8"), granularity=PowerOfTwoFactor(-1), scale=[0.5, 4.0], zero_point=[7, 9]
    )  # type: ignore[arg-type]
    encodings = {
        "p": LogEncoding(type=integer_type("uint4")), "s": NormalizedEncoding(type=integer_type("uint8")),
        "r": channels,
    }  # fmt: skip
    logarithm, shares, shifted = tensors(Plan(target="t", encodings=encodings), None)
    assert (logarithm.type, logarithm.range, logarithm.scales) == ("log2 4 bits", (2**-14, 1), (2**-14, 0.5))
    assert (shares.type, shares.range, shares.scales) == ("shares 8 bits", (0, 1), (0, pytest.approx(1 / 255)))
    assert (shifted.type, shifted.shifts, shifted.scales) == ("uint8", "shifts 0 to 3", (0.5, 4))
    assert logarithm.shifts == shares.shifts == ""
