"""The cause of a loss is named by block, unit, tokens and channel, and its remedies are measured from one state."""

import numpy as np
import onnx_ir as ir
import pytest

import narrowgauge
from narrowgauge.analysis.cause_remedies import FLOAT, METHODS
from narrowgauge.analysis.cause_words import choice, other_outliers, outcomes
from narrowgauge.analysis.causes import find_causes, groups
from narrowgauge.analysis.outliers import find_outliers
from narrowgauge.analysis.records import Analysis, Cause, Outlier, Step
from narrowgauge.graph.blocks import find_blocks
from narrowgauge.recipe import Recipe
from narrowgauge.report.render import render
from tests.graph.transformers import SIZE, TOKENS, Writer, pre_norm
from tests.planning.networks import network, normal
from tests.recovery.benches import state_of, total_noise, workshop_of

BLOCK, UNIT, CHANNEL, TOKEN = 1, 5, 3, 2


def sink(depth: int = 2) -> ir.Model:
    """A transformer whose unit 5 of block 1 fires on token 2 and writes that into channel 3 of the stream."""
    writer, x = Writer(), "x"
    for _ in range(depth):
        x = pre_norm(writer, x)
    y = writer.linear(writer.norm(x), SIZE, 8)
    shape = f"float[n, {TOKENS}, 8] {y}"
    perceptron = find_blocks(writer.model(y, output=shape))[BLOCK].branches[1].perceptrons[0]
    first, last = (str(node.inputs[1].name) for node in (perceptron.first[0], perceptron.last))
    writer.weights[first][:, UNIT] = 0
    writer.weights[first][0, UNIT] = 40
    writer.weights[last][UNIT] = 0
    writer.weights[last][UNIT, CHANNEL] = -3
    return writer.model(y, output=shape)


def feed() -> np.ndarray:
    found = normal(64, TOKENS, SIZE, seed=4)
    found[..., 0] = -8
    found[:, TOKEN, 0] = 8
    return found


def causes_of(target: str, *, remedies: bool = True) -> tuple[Cause, ...]:
    workshop = workshop_of(sink(), feed(), target)
    return find_causes(workshop, state_of(workshop, ranges="max"), remedies=remedies)


def test_the_cause_is_named_and_a_cap_is_chosen_where_there_are_but_8_bits() -> None:
    (found,) = causes_of("tflite")
    assert found.sentence.startswith(f"block {BLOCK}, MLP unit {UNIT} (channel {UNIT} of ")
    assert f" at token {TOKEN} writes -" in found.sentence
    assert f" into residual channel {CHANNEL} (ordinary values there: median " in found.sentence
    assert "one step of int8" in found.sentence
    first = found.outliers[0]
    assert (first.unit, first.channel, first.positions, first.tokens) == (UNIT, CHANNEL, (TOKEN,), True)
    assert -first.reach <= first.low <= first.high < -10 * first.ordinary < 0
    methods = {one.method: one for one in found.remedies}
    assert set(methods) <= set(METHODS)
    assert methods[FLOAT].gain_db > 1
    assert not methods["16 bits"].allowed
    assert not methods["scale and zero point per channel"].allowed
    assert found.chosen is not None
    assert found.chosen.method == "cap at the source"
    assert found.chosen.gain_db > 1
    assert choice(found).startswith("best by measured gain: cap at the source (")
    assert [one.gain_db for one in found.remedies] == sorted((one.gain_db for one in found.remedies), reverse=True)


def test_where_channels_may_have_their_own_scales_the_largest_gain_decides() -> None:
    (found,) = causes_of("integer-only")
    methods = {one.method: one for one in found.remedies}
    assert methods["scale and zero point per channel"].allowed
    assert methods["16 bits"].allowed
    assert not methods[FLOAT].allowed
    assert found.chosen is not None
    able = [one for one in found.remedies if one.allowed]
    assert found.chosen.gain_db > max(one.gain_db for one in able) - 0.14  # those of less are equal: the cheapest


def test_the_gain_is_that_of_the_state_that_is_measured() -> None:
    workshop = workshop_of(sink(), feed(), "tflite")
    state = state_of(workshop, ranges="max")
    (found,) = find_causes(workshop, state, remedies=False)
    assert found.sqnr_db == pytest.approx(-10 * np.log10(total_noise(workshop, state)))
    (bare,) = found.remedies
    assert (bare.method, bare.chosen) == (FLOAT, False)
    assert bare.sqnr_db - found.sqnr_db == pytest.approx(bare.gain_db)
    assert choice(found) == ""


def test_what_the_plan_has_is_told_without_trying_all() -> None:
    (found,) = causes_of("integer-only", remedies=False)
    assert {one.method for one in found.remedies} == {FLOAT, "scale and zero point per channel"}
    assert all(one.gain_db > 1 for one in found.remedies)
    assert (found.chosen, choice(found)) == (None, "")


def test_a_run_names_it() -> None:
    """The cause is that of the network as it came, whatever recovery took away; it is on the report's first screen."""
    recipe = Recipe(name="caps", estimator="max", methods=("cap-outliers",))
    found = narrowgauge.quantize(sink(), {"x": feed()}, target="tflite", recipe=recipe, samples=48, check_samples=16)
    assert found.analysis is not None
    (cause,) = found.analysis.causes
    assert cause.sentence.startswith(f"block {BLOCK}, MLP unit {UNIT} (")
    assert any(said.startswith("kept: ") for said in outcomes(found.steps))
    roles = found.analysis.roles
    assert f"block {BLOCK}, MLP hidden" in roles.values()
    assert set(roles) <= {loss.name for loss in found.analysis.losses}
    weights = {roles[loss.name] for loss in found.analysis.losses if loss.kind == "weights" and loss.name in roles}
    assert {"block 0, q", "block 0, attention output", "block 1, MLP output"} <= weights
    page = render(found.summary, found.analysis, plan=found.plan, target=found.target)
    assert page.count("lock 1, MLP unit 5 (channel 5 of") == 2
    assert "What recovery did about it" in page


def test_in_float_outliers_of_the_stream_are_no_cause() -> None:
    """The target onnxruntime keeps the stream float: what remains is the unit itself."""
    for found in causes_of("onnxruntime"):
        assert all(one.stretched for one in found.outliers)
        assert "stream" not in found.sentence.split("one step of")[1]


def test_nothing_is_named_where_nothing_stands_out() -> None:
    writer = Writer()
    y = writer.linear(pre_norm(writer, pre_norm(writer, "x")), SIZE, 8)
    workshop = workshop_of(writer.model(y, output=f"float[n, {TOKENS}, 8] {y}"), normal(64, TOKENS, SIZE), "tflite")
    assert find_causes(workshop, state_of(workshop), remedies=True) == ()


def test_an_outlier_that_costs_nothing_is_no_cause() -> None:
    """Leaving it float wins decibels of noise that nobody sees: 51 dB before."""
    weights = normal(16, 4, seed=1) / 100
    weights[9] = 3
    model = network("float[n, 5, 16] x", "float[n, 5, 4] y", "y = MatMul(x, w)", w=weights)
    samples = normal(64, 5, 16)
    samples[..., 9] = 100 * np.sign(samples[..., 9])
    workshop = workshop_of(model, samples, "integer-only")
    state = state_of(workshop, ranges="max")
    (found,) = find_outliers(model, state.statistics)
    assert found.stretched == ("x",)
    assert "x" in state.plan.encodings
    assert find_causes(workshop, state, remedies=False) == ()


def test_without_samples_to_measure_on_nothing_is_said() -> None:
    workshop = workshop_of(sink(), feed(), "tflite", measuring=0)
    assert find_causes(workshop, state_of(workshop), remedies=True) == ()


def outlier(**fields: object) -> Outlier:
    base = {
        "value": "s", "channel": 1, "positions": (), "reach": 9.0, "others": 1.0, "source": "n", "unit": None,
        "source_value": "",
    }  # fmt: skip
    return Outlier(**{**base, **fields})  # type: ignore[arg-type]


def test_a_unit_and_what_it_writes_are_one_group() -> None:
    unit = outlier(value="h", channel=7, stretched=("h", "a"))
    first = outlier(value="s", channel=1, unit=7, source_value="a", stretched=("s", "t"))
    second = outlier(value="s", channel=2, unit=7, source_value="a", stretched=("s",))
    alone = outlier(value="q", channel=7, stretched=("q",))
    assert groups([unit, first, alone, second]) == [(first, second, unit), (alone,)]
    deeper = outlier(value="h", channel=7, stretched=("h", "a"), unit=3, source_value="n")
    assert groups([deeper, first]) == [(first, deeper)]


def test_outliers_that_a_cause_tells_of_are_not_told_again() -> None:
    told = outlier(stretched=("s", "t"))
    cause = Cause(sentence="it", outliers=(told,), sqnr_db=3.0, remedies=())
    others = (outlier(value="t"), outlier(value="t", channel=2), outlier(value="s"))
    assert other_outliers(Analysis(outliers=others, causes=(cause,))) == (others[1],)


def test_what_recovery_did_against_outliers_in_words() -> None:
    steps = [
        Step(name="ranges", detail="", noise_before=float("nan"), noise_after=0.1, seconds=1.0, kept=True),
        Step(name="cap-outliers", detail="outliers were cut off where they arise: 'gelu_7' from 219 to 21",
             noise_before=0.1, noise_after=0.0123, seconds=1.0, kept=True),
        Step(name="migrate", detail="", noise_before=0.1, noise_after=0.1, seconds=1.0, kept=False),
        Step(name="widen-streams", detail="in int16", noise_before=float("nan"), noise_after=0.1, seconds=1.0,
             kept=True),
    ]  # fmt: skip
    assert outcomes(steps) == (
        "kept: cap at the source ('gelu_7' from 219 to 21): +9.1 dB",
        "tried, not kept: migration: +0.0 dB",
        "kept: 16 bits (in int16)",
    )
