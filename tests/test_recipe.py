"""Recipes: presets, TOML files good and bad, and which nodes their rules mean."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrowgauge.core.numbers import integer_type
from narrowgauge.errors import RecipeError
from narrowgauge.planning.fill import fill
from narrowgauge.planning.place import place
from narrowgauge.recipe import (
    PRESETS,
    Recipe,
    Rule,
    choices,
    end_layers,
    keep_float_rules,
    load_recipe,
    narrowed,
    recipe_from_values,
)
from narrowgauge.recovery.methods import METHODS
from narrowgauge.targets.registry import load_target
from tests.planning.networks import name_of, network, normal, seen

BRANCHING = network(
    "float[n, 8] x, float[n, 8] z", "float[n, 8] y, float[n, 8] u",
    "a = MatMul(x, wa)  r = Relu(a)  b = MatMul(z, wb)  s = Add(r, b)  c = MatMul(s, wc)  t = Tanh(c)"
    "  y = MatMul(t, wy)  e = Exp(t)  d = MatMul(r, wd)  u = Mul(d, e)",
    **{f"w{letter}": normal(8, 8, seed=seed) for seed, letter in enumerate("abcdy")},
)  # fmt: skip


def written(tmp_path: Path, text: str) -> Path:
    (tmp_path / "own.toml").write_text(text)
    return tmp_path / "own.toml"


# --- presets and files ----------------------------------------------------------------------------------------


def test_presets() -> None:
    assert set(PRESETS) == {
        "auto", "fast", "best", "plain", "dynamic", "weight-only", "tvm-global-scale", "tvm-kl",
    }  # fmt: skip
    for name, recipe in PRESETS.items():
        assert load_recipe(name) is recipe
        assert recipe.name == name
        chosen, notes = choices(recipe, BRANCHING)
        assert notes == ()
        assert chosen.mode == recipe.mode
    assert (PRESETS["dynamic"].mode, PRESETS["weight-only"].mode) == ("dynamic", "weight-only")
    assert {name for name, recipe in PRESETS.items() if not recipe.methods} == {
        "plain", "dynamic", "weight-only", "tvm-global-scale", "tvm-kl",
    }  # fmt: skip
    assert PRESETS["auto"] == replace(PRESETS["best"], name="auto", thrifty=True)
    assert set(PRESETS["best"].methods) <= set(METHODS)
    assert not PRESETS["fast"].measured


def test_the_former_name_of_the_default_still_means_it(tmp_path: Path) -> None:
    assert load_recipe("default") is PRESETS["auto"]
    assert load_recipe(written(tmp_path, 'base = "default"')) == replace(PRESETS["auto"], name="own")


def test_a_recipe_stays_itself() -> None:
    recipe = Recipe(name="mine", estimator="entropy")
    assert load_recipe(recipe) is recipe


def test_a_file_says_only_what_differs_from_its_base(tmp_path: Path) -> None:
    text = """
        base = "plain"
        weights = "int4"
        granularity = "block"
        block_size = 64
        methods = ["correct-bias"]
        measured = false
        budget = "size 15 %"
        bits = [4, 8]
        [[rules]]
        position = "first"
        keep_float = true
        [[rules]]
        node = "layer?.*"
        operator = "Conv"
        weights = "int8"
        activations = "int16"
        granularity = "channel"
        estimator = "percentile:99.5"
    """
    recipe = load_recipe(written(tmp_path, text))
    assert recipe == replace(
        PRESETS["plain"], name="own", weights="int4", granularity="block", block_size=64,
        methods=("correct-bias",), measured=False, budget="size 15 %", bits=(4, 8),
        rules=(
            Rule(position="first", keep_float=True),
            Rule(
                node="layer?.*", operator="Conv", weights="int8", activations="int16", granularity="channel",
                estimator="percentile:99.5",
            ),
        ),
    )  # fmt: skip
    assert load_recipe(str(tmp_path / "own.toml")) == recipe


def test_an_empty_file_is_the_default(tmp_path: Path) -> None:
    assert load_recipe(written(tmp_path, "")) == replace(PRESETS["auto"], name="own")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("weights = ", "could not read the recipe"),
        ('base = "slow"', f"expected 'base' to be one of {', '.join(PRESETS)}"),
        ("base = [1]", "expected 'base' to be one of"),
        ('wieghts = "int8"', "unknown key 'wieghts'"),
        ('name = "x"', "unknown key 'name'"),
        ("weights = 8", "expected 'weights' to be str, got 8"),
        ('weights = "int99"', "weights: expected a width of 2 to 16 bits"),
        ('activations = "float16"', "activations: expected a number type"),
        ("migrate = true", "unknown key 'migrate'"),
        ("measured = 1", "expected 'measured' to be bool, got 1"),
        ('methods = "migrate"', "expected 'methods' to be list, got 'migrate'"),
        ('methods = ["migrate", "magic"]', "expected 'methods' to be some of migrate, equalize"),
        ("bits = [3]", "expected 'bits' to be some of 4, 8, 16, 32, got 3"),
        ('budget = "cheap"', "expected a budget such as 'size 3 MB'"),
        ("block_size = true", "expected 'block_size' to be int, got True"),
        ("block_size = -1", "expected 'block_size' to be 0 or more, got -1"),
        ('block_size = "32"', "expected 'block_size' to be int"),
        ('mode = "fast"', "expected 'mode' to be one of static, dynamic, weight-only, got 'fast'"),
        ('granularity = "row"', "expected 'granularity' to be one of tensor, channel, block, got 'row'"),
        ('estimator = "best"', "range estimator"),
        ('estimator = "percentile:101"', "percentile"),
        ('weight_estimator = "entropy"', "expected 'weight_estimator' to be max or mse"),
        ("rules = 3", "expected 'rules' to be tables"),
        ("rules = [3]", "expected 'rules' to be tables"),
        ("[[rules]]\nkeep_float = true", "expected 'node', 'operator' or 'position'"),
        ('[[rules]]\nnode = "a"\ncolour = 3', "rules: unknown key 'colour'"),
        ('[[rules]]\nnode = "a"\nkeep_float = "yes"', "rules: expected 'keep_float' to be bool"),
        ('[[rules]]\nposition = "middle"', "expected 'position' to be first or last, got 'middle'"),
        ('[[rules]]\nnode = "a"\nweights = "int1"', "weights: expected a width"),
        ('[[rules]]\nnode = "a"\nestimator = "best"', "range estimator"),
        ('[[rules]]\nnode = "a"\nmode = "dynamic"', "rules: unknown key 'mode'"),
    ],
)
def test_what_a_file_must_not_say(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(written(tmp_path, text))
    assert said in str(caught.value)
    assert "own.toml" in str(caught.value)


def test_files_that_are_not_there_and_names_that_are_not_known(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.toml: could not read the recipe"):
        load_recipe(tmp_path / "none.toml")
    with pytest.raises(RecipeError, match=rf"one of {', '.join(PRESETS)} or a \.toml file, got 'slow'"):
        load_recipe("slow")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="could not read the recipe"):
        load_recipe(tmp_path / "bytes.toml")


@given(
    st.dictionaries(
        st.sampled_from([*Recipe.__dataclass_fields__, "base", "x"]),
        st.one_of(st.booleans(), st.integers(), st.text(max_size=6), st.lists(st.integers(), max_size=2), st.floats(),
                  st.lists(st.dictionaries(st.sampled_from([*Rule.__dataclass_fields__]), st.text(max_size=4)))),
        max_size=4,
    )
)  # fmt: skip
def test_whatever_a_file_holds_gives_a_recipe_or_its_error(values: dict[str, object]) -> None:
    try:
        recipe = recipe_from_values(values, name="any")
    except RecipeError:
        return
    choices(recipe, BRANCHING)


# --- rules ----------------------------------------------------------------------------------------------------


def chosen(model: ir.Model, *rules: Rule, **fields: object) -> tuple[dict[str, object], tuple[str, ...]]:
    """What is asked for each node, by the name of the value that it writes."""
    found, notes = choices(Recipe(name="test", rules=rules, **fields), model)
    outputs = {str(node.name): str(node.outputs[0].name) for node in model.graph}
    return {outputs[name]: choice for name, choice in found.nodes.items()}, notes


def test_the_last_rule_that_says_something_wins() -> None:
    name = name_of(BRANCHING, "c")
    found, _ = choices(
        Recipe(
            name="test", weights="int16", activations="uint16",
            rules=(
                Rule(operator="MatMul", weights="int4", granularity="tensor"),
                Rule(node=name, weights="int8", keep_float=True),
                Rule(operator="Mat*", weights="int2"),
                Rule(node=name, granularity="channel"),
            ),
        ),
        BRANCHING,
    )  # fmt: skip
    assert found.weights(name) == integer_type("int8")
    assert found.granularity(name) == "channel"
    assert found.keep_float(name) == f"kept float by the recipe (node {name})"
    other = name_of(BRANCHING, "a")
    assert (found.weights(other), found.granularity(other)) == (integer_type("int4"), "tensor")
    assert found.weights(name_of(BRANCHING, "r")) == integer_type("int16")
    assert found.activations(name) == found.activations(other) == found.activations(None) == integer_type("uint16")


def test_rules_that_matched_nothing_are_noted() -> None:
    found, notes = chosen(
        BRANCHING, Rule(node="none*", keep_float=True), Rule(operator="Conv", weights="int4"),
        Rule(operator="Tanh", position="last"), Rule(operator="Tanh", keep_float=True),
    )  # fmt: skip
    assert set(found) == {"t"}
    assert notes == (
        "the recipe's rule for node none* matched no node",
        "the recipe's rule for operator Conv matched no node",
        "the recipe's rule for operator Tanh, last layer matched no node",
    )


def test_patterns_operators_and_names_with_brackets() -> None:
    model = BRANCHING.clone()
    for number, node in enumerate(model.graph):
        node.name = f"block[{number}]/{node.op_type.lower()}"
    assert set(chosen(model, Rule(node="*matmul", keep_float=True))[0]) == {"a", "b", "c", "y", "d"}
    assert set(chosen(model, Rule(node="block[1]/relu", keep_float=True))[0]) == {"r"}
    assert set(chosen(model, Rule(node="block?0?/*", operator="MatMul", keep_float=True))[0]) == {"a"}
    assert set(chosen(model, *keep_float_rules(["MatMul"]))[0]) == {"a", "b", "c", "y", "d"}
    assert chosen(model, Rule(node="BLOCK*", keep_float=True))[0] == {}


def test_what_keep_float_takes() -> None:
    kept = chosen(BRANCHING, *keep_float_rules(["first", "Tanh", name_of(BRANCHING, "u")]))[0]
    assert set(kept) == {"a", "b", "t", "u"}
    assert {choice.keep_float for name, choice in kept.items() if name in "ab"} == {
        "kept float by the recipe (first layer)"
    }


def test_estimators_of_single_nodes() -> None:
    found, _ = choices(Recipe(name="test", rules=(Rule(operator="Tanh", estimator="max"),)), BRANCHING)
    assert found.range_estimator(name_of(BRANCHING, "t")).__name__ == "max_range"
    assert found.range_estimator(None) is found.estimator


# --- first and last layers ------------------------------------------------------------------------------------


def ends(model: ir.Model, position: str) -> set[str]:
    return {str(node.outputs[0].name) for node in end_layers(model, position)}


def test_the_ends_of_a_branching_network() -> None:
    assert ends(BRANCHING, "first") == {"a", "b"}
    assert ends(BRANCHING, "last") == {"y", "d"}


def test_the_ends_of_a_chain() -> None:
    model = network(
        "float[n, 3, 8, 8] x", "float[n, 4] y",
        "h = Neg(x)  c = Conv(h, w)  r = Relu(c)  p = GlobalAveragePool(r)  f = Flatten(p)  m = Gemm(f, v)"
        "  y = Softmax(m)",
        w=normal(8, 3, 3, 3), v=normal(8, 4),
    )  # fmt: skip
    assert (ends(model, "first"), ends(model, "last")) == ({"c"}, {"m"})


def test_one_layer_is_both_and_products_of_activations_are_none() -> None:
    model = network(
        "float[n, 6, 8] x", "float[n, 6, 6] y",
        "k = Transpose<perm = [0, 2, 1]>(x)  s = MatMul(x, k)  t = MatMul(s, w)  y = MatMul(t, s)", w=normal(6, 6),
    )  # fmt: skip
    assert (ends(model, "first"), ends(model, "last")) == ({"t"}, {"t"})


def test_a_short_cut_past_the_first_layer_makes_no_other_one_first() -> None:
    model = network(
        "float[n, 8] x", "float[n, 8] y", "a = MatMul(x, w)  s = Add(a, x)  b = MatMul(s, v)  y = Add(b, s)",
        w=normal(8, 8), v=normal(8, 8, seed=1),
    )  # fmt: skip
    assert (ends(model, "first"), ends(model, "last")) == ({"a"}, {"b"})


def test_a_network_without_layers_has_no_ends() -> None:
    model = network("float[n, 8] x", "float[n, 8] y", "y = Tanh(x)")
    assert (ends(model, "first"), ends(model, "last")) == (set(), set())
    _, notes = chosen(model, *keep_float_rules(["first", "last"]))
    assert len(notes) == 2
    assert np.unique(notes).size == 2


def test_what_tvm_did_by_itself() -> None:
    """One scale of 8 / 2^7 for all activations; weights with one scale, rounded up to a power of two."""
    recipe = PRESETS["tvm-global-scale"]
    model = network("float[n, 16] x", "float[n, 4] y", "h = Gemm(x, w, b)  r = Relu(h)  y = Gemm(r, v, b2)",
                    w=normal(16, 8), b=normal(8), v=normal(8, 4), b2=normal(4))  # fmt: skip
    target = narrowed(load_target("tvm"), recipe)
    asked, _ = choices(recipe, model)
    plan = fill(model, place(model, target, asked), seen(model, normal(32, 16)), target, asked)
    scales = {name: encoding.scale for name, encoding in plan.encodings.items()}
    assert all(not encoding.zero_point.any() for encoding in plan.encodings.values())
    assert scales["x"] == scales["r"] == 8 / 128
    for name, largest in (("w", np.abs(normal(16, 8)).max()), ("v", np.abs(normal(8, 4)).max())):
        exponent = np.log2(float(scales[name]))
        assert exponent == round(exponent)
        assert largest / 127 <= scales[name] < 2 * largest / 127


def test_a_recipe_that_asks_for_nothing_leaves_the_target_as_it_is() -> None:
    for name in ("tvm", "onnxruntime", "tensorrt", "cambricon"):
        assert narrowed(load_target(name), PRESETS["auto"]) == load_target(name)


@pytest.mark.parametrize("mode", ["dynamic", "weight-only"])
def test_a_target_that_runs_nothing_in_a_mode_refuses_it(mode: str) -> None:
    with pytest.raises(RecipeError, match=f"integer-only quantizes nothing in {mode} mode; expected .* static"):
        narrowed(load_target("integer-only"), PRESETS[mode])


def test_own_recipes_may_ask_for_powers_of_two(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, 'base = "plain"\nsymmetric = true\npower_of_two = true'))
    target = narrowed(load_target("onnxruntime"), recipe)
    assert target.activations.symmetric
    assert target.weights.power_of_two
    with pytest.raises(RecipeError, match="expected 'power_of_two' to be bool"):
        load_recipe(written(tmp_path, 'power_of_two = "weights"'))
