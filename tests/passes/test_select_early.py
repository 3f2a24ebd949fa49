"""Selections move up; the reference is ONNX Runtime on the network as it was (`rewrite` compares)."""

import math
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import narrowgauge.passes as simplification
from narrowgauge.graph.costs import multiply_accumulates
from narrowgauge.graph.shapes import dimensions
from narrowgauge.importers.onnx import load
from narrowgauge.passes import SIMPLIFICATIONS
from narrowgauge.passes.merge_reshapes import merge_reshapes
from narrowgauge.passes.positions import ELEMENTWISE
from narrowgauge.passes.select_early import select_early
from tests.passes.networks import Shape, assert_same, network, node, operators, random, rewrite, run

TOKENS, WIDTH, HEADS = 7, 6, 2
SEQUENCE = ["N", TOKENS, WIDTH]

WEIGHTS = {
    "w": random(WIDTH, WIDTH),
    "w2": random(WIDTH, WIDTH, seed=1),
    "b": random(WIDTH),
    "gain": random(WIDTH, seed=2),
    "offset": random(WIDTH, seed=3),
    "position": random(1, TOKENS, WIDTH),
    "mask": random(TOKENS, TOKENS),
    "first": np.array(0),
    "last": np.array(-1),
    "zero": np.array([0]),
    "one": np.array([1]),
    "two": np.array([2]),
    "three": np.array([3]),
    "minus_one": np.array([-1]),
    "minus_three": np.array([-3]),
    "end": np.array([2**62]),
    "before_begin": np.array([-(2**62)]),
    "some": np.array([4, -2, 4]),
    "split": np.array([0, 0, HEADS, WIDTH // HEADS]),
    "merged": np.array([0, 0, -1]),
    "patches": np.array([-1, WIDTH]),
    "slice_starts": np.array([0, 1, 0]),
    "slice_ends": np.array([2**62, 3, 2**62]),
}


def build(
    nodes: list[onnx.NodeProto], shape: Shape = SEQUENCE, outputs: tuple[str, ...] = ("y",), **constants: np.ndarray
) -> onnx.ModelProto:
    read = {value for each in nodes for value in each.input}
    known = {**WEIGHTS, **constants}
    return network(nodes, {"x": shape}, outputs, {name: known[name] for name in sorted(read & set(known))})


def positions(model: ir.Model, name: str, axis: int = 1) -> int | None:
    """How long an axis of a value is."""
    value = next(value for each in model.graph for value in each.outputs if value.name == name)
    return (dimensions(value) or ())[axis]


def attention(prefix: str = "", *, source: str = "x", result: str = "a", fused: bool = True) -> list[onnx.NodeProto]:
    """Self-attention of [N, T, C] with two heads: fused products or one each, as exporters write them."""
    p, heads = prefix, []
    for name in "qkv":
        heads.append(node("Reshape", f"{p}{name} split", f"{p}{name}r"))
        heads.append(
            node("Transpose", f"{p}{name}r", f"{p}{name}h", perm=[0, 2, 3, 1] if name == "k" else [0, 2, 1, 3])
        )
    if fused:
        begin = [node("MatMul", f"{source} wide", f"{p}qkv"), node("Add", f"{p}qkv wide_bias", f"{p}qkvb")]
        begin.append(node("Split", f"{p}qkvb", f"{p}q {p}k {p}v", axis=2, num_outputs=3))
    else:
        begin = [node("MatMul", f"{source} w{name}", f"{p}{name}p") for name in "qkv"]
        begin += [node("Add", f"{p}{name}p b", f"{p}{name}") for name in "qkv"]
    return [
        *begin,
        *heads,
        node("Mul", f"{p}qh scale", f"{p}qs"),
        node("MatMul", f"{p}qs {p}kh", f"{p}scores"),
        node("Softmax", f"{p}scores", f"{p}probabilities"),
        node("MatMul", f"{p}probabilities {p}vh", f"{p}mixed"),
        node("Transpose", f"{p}mixed", f"{p}tokens", perm=[0, 2, 1, 3]),
        node("Reshape", f"{p}tokens merged", f"{p}together"),
        node("MatMul", f"{p}together w", f"{p}projected"),
        node("Add", f"{p}projected b", result),
    ]


ATTENTION = {
    "wide": random(WIDTH, 3 * WIDTH),
    "wide_bias": random(3 * WIDTH),
    "wq": random(WIDTH, WIDTH, seed=5),
    "wk": random(WIDTH, WIDTH, seed=6),
    "wv": random(WIDTH, WIDTH, seed=7),
    "scale": np.float32(0.5),
}


def block(source: str, prefix: str, *, fused: bool = True, normalise_first: bool = True) -> list[onnx.NodeProto]:
    """One block of a transformer, from `source` to `{prefix}out`."""
    p = prefix
    attended = attention(p, source=f"{p}n" if normalise_first else source, result=f"{p}a", fused=fused)
    middle = f"{p}r" if normalise_first else f"{p}rn"
    behind = [
        node("MatMul", f"{p}m w2" if normalise_first else f"{middle} w2", f"{p}h"),
        node("Gelu", f"{p}h", f"{p}g"),
        node("MatMul", f"{p}g w", f"{p}f"),
        node("Add", f"{middle} {p}f", f"{p}out"),
    ]
    if normalise_first:
        first = [node("LayerNormalization", f"{source} gain offset", f"{p}n")]
        second = [node("LayerNormalization", f"{p}r gain offset", f"{p}m")]
    else:
        first, second = [], [node("LayerNormalization", f"{p}r gain offset", f"{p}rn")]
    return [*first, *attended, node("Add", f"{source} {p}a", f"{p}r"), *second, *behind]


SELECTIONS = {
    "class token": [node("Gather", "z first", "y", axis=1)],
    "last token": [node("Gather", "z last", "y", axis=-2)],
    "a list": [node("Gather", "z some", "y", axis=1)],
    "slice": [node("Slice", "z zero one one", "y")],
    "slice of all axes": [node("Slice", "z slice_starts slice_ends", "y")],
    "slice and squeeze": [node("Slice", "z minus_one end one", "s"), node("Squeeze", "s one", "y")],
    "slice with a step": [node("Slice", "z one end one three", "y")],
    "slice backwards": [node("Slice", "z minus_one before_begin one minus_three", "y")],
    "two tokens": [node("Gather", "z first", "s"), node("Gather", "z last", "t"), node("Sub", "s t", "y")],
    "overlapping": [
        node("Gather", "z some", "s", axis=1),
        node("Slice", "z two three one", "t"),
        node("Sub", "s t", "y"),
    ],
    "behind a transpose": [node("Transpose", "z", "t", perm=[1, 0, 2]), node("Gather", "t first", "y")],
}
SELECTIONS["two tokens"][0].attribute.append(onnx.helper.make_attribute("axis", 1))
SELECTIONS["two tokens"][1].attribute.append(onnx.helper.make_attribute("axis", 1))


@pytest.mark.parametrize("name", sorted(SELECTIONS))
@pytest.mark.parametrize("inner", [True, False], ids=["inner", "network's output"])
def test_every_form_of_selection_moves_up(name: str, inner: bool) -> None:
    nodes = [node("MatMul", "x w", "m"), node("Add", "m b", "p"), node("Gelu", "p", "z"), *SELECTIONS[name]]
    if inner:
        nodes.append(node("Relu", "y", "out"))
    model, refusals = rewrite(build(nodes, outputs=("out",) if inner else ("y",)), select_early)
    assert refusals == ()
    taken = {"a list": 2, "slice of all axes": 2, "slice with a step": 2, "slice backwards": 3, "two tokens": 2}
    expected = taken.get(name, 3 if name == "overlapping" else 1)
    assert [positions(model, value) for value in ("m", "p")] == [expected, expected]
    again = rewrite(ir.to_proto(model), select_early)[0]
    assert operators(again) == operators(model)


FOLLOWED = {
    "normalisation": [node("LayerNormalization", "m gain offset", "z")],
    "position table": [node("Add", "m position", "z")],
    "residual": [node("Relu", "m", "r"), node("Add", "m r", "z")],
    "square": [node("Mul", "m m", "z")],
    "softmax of channels": [node("Softmax", "m", "z")],
    "split heads": [node("Reshape", "m split", "r"), node("Abs", "r", "s"), node("Reshape", "s merged", "z")],
    "transposed": [node("Transpose", "m", "t", perm=[2, 1, 0]), node("Neg", "t", "u"), node("Transpose", "u", "z")],
    "mean of channels": [node("ReduceMean", "m minus_one", "r"), node("Sub", "m r", "z")],
    "mean without the axis": [
        node("ReduceMean", "m minus_one", "r", keepdims=0),
        node("Unsqueeze", "r minus_one", "u"),
        node("Sub", "m u", "z"),
    ],
    "concat of channels": [node("Concat", "m m position2", "c", axis=-1), node("MatMul", "c high", "z")],
    "part of the channels": [node("Slice", "m one three two", "c"), node("MatMul", "c low", "z")],
    "one channel": [node("Gather", "m first", "c", axis=2), node("Unsqueeze", "c two", "z")],
    "squeezed": [node("Unsqueeze", "m one", "u"), node("Tanh", "u", "t"), node("Squeeze", "t one", "z")],
    "weights of each token": [
        node("Unsqueeze", "m two", "u"),
        node("MatMul", "u own", "v"),
        node("Squeeze", "v two", "z"),
    ],
    "gate": [node("MatMul", "x w2", "g"), node("Sigmoid", "g", "s"), node("Mul", "s m", "z")],
    "where": [node("Greater", "m b", "c"), node("Where", "c m position", "z")],
}


@pytest.mark.parametrize("name", sorted(FOLLOWED))
def test_operators_that_work_token_by_token_are_followed(name: str) -> None:
    nodes = [node("MatMul", "x w", "m"), *FOLLOWED[name], node("Gather", "z some", "y", axis=1)]
    more = {
        "position2": random(2, TOKENS, WIDTH, seed=4),
        "high": random(3 * WIDTH, WIDTH),
        "low": random(2, WIDTH),
        "own": random(TOKENS, WIDTH, WIDTH),
    }
    model, _ = rewrite(build(nodes, **more), select_early)
    assert positions(model, "m") == 2
    assert sum(operators(model).values()) <= len(nodes) + 1


STAYING = {
    "softmax of tokens": [node("Softmax", "m", "z", axis=1)],
    "tokens mixed": [node("MatMul", "mask m", "z")],
    "mean of tokens": [node("ReduceMean", "m one", "r"), node("Add", "m r", "z")],
    "tokens as channels": [node("LayerNormalization", "m all_gain", "z", axis=1)],
    "concat of tokens": [node("Concat", "m m", "z", axis=1)],
    "tokens cut before": [node("Slice", "m one end one", "z")],
    "tokens mixed by a reshape": [node("Reshape", "m elsewhere", "r"), node("Relu", "r", "z")],
    "tokens joined with the batch": [
        node("Reshape", "m patches", "r"),
        node("Relu", "r", "s"),
        node("Reshape", "s back", "z"),
    ],
    "read by others": [node("Relu", "m", "z"), node("ReduceSum", "z", "other")],
    "an output": [node("Relu", "m", "z"), node("Identity", "z", "other")],
}


@pytest.mark.parametrize("name", sorted(STAYING))
def test_what_mixes_tokens_or_is_needed_whole_stays(name: str) -> None:
    other = name in {"read by others", "an output"}
    nodes = [node("MatMul", "x w", "m"), *STAYING[name], node("Gather", "z first", "y", axis=1)]
    more = {
        "all_gain": random(TOKENS, WIDTH),
        "elsewhere": np.array([0, WIDTH, TOKENS]),
        "back": np.array([-1, TOKENS, WIDTH]),
    }
    proto = build(nodes, outputs=("y", "other") if other else ("y",), **more)
    model, _ = rewrite(proto, select_early)
    assert positions(model, "m") == TOKENS
    assert operators(model) == {
        each.op_type: operators(load(proto, simplify=False).model)[each.op_type] for each in nodes
    }


LEFT = {
    "most tokens": [node("MatMul", "x w", "z"), node("Slice", "z one end one", "y")],
    "no product": [node("Relu", "x", "z"), node("Gather", "z first", "y", axis=1)],
    "output channels of a layer": [node("MatMul", "x w", "z"), node("Gather", "z first", "y", axis=2)],
    "indices from the data": [
        node("MatMul", "x w", "z"),
        node("ArgMax", "z", "index", axis=1),
        node("GatherElements", "z index", "y", axis=1),
    ],
    "two axes": [node("MatMul", "x w", "z"), node("Slice", "z corner corner_end one_and_two", "y")],
    "nothing selected": [node("MatMul", "x w", "z"), node("Slice", "z two two one", "y")],
}


@pytest.mark.parametrize("name", sorted(LEFT))
def test_what_saves_nothing_or_is_no_selection_of_positions_is_left(name: str) -> None:
    more = {"corner": np.array([0, 0]), "corner_end": np.array([1, 2]), "one_and_two": np.array([1, 2])}
    model, _ = rewrite(build(LEFT[name], **more), select_early)
    assert [each.op_type for each in model.graph] == [each.op_type for each in LEFT[name]]
    assert all(positions(model, value.name or "") in {TOKENS, None} for value in [model.graph[0].outputs[0]])


def test_convolutions_are_left_alone() -> None:
    nodes = [
        node("Conv", "x kernel", "c"),
        node("Relu", "c", "r"),
        node("Slice", "r zero one one", "s"),
        node("Conv", "s kernel1", "y"),
    ]
    proto = build(nodes, ["N", 3, 5, 5], kernel=random(4, 3, 3, 3), kernel1=random(2, 1, 1, 1))
    model, _ = rewrite(proto, select_early)
    assert [each.op_type for each in model.graph] == ["Conv", "Relu", "Slice", "Conv"]


@pytest.mark.parametrize("normalise_first", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_last_block_of_a_transformer_computes_one_token(fused: bool, normalise_first: bool) -> None:
    nodes = [
        *block("x", "a_", fused=fused, normalise_first=normalise_first),
        *block("a_out", "b_", fused=fused, normalise_first=normalise_first),
        node("LayerNormalization", "b_out gain offset", "z"),
        node("Gather", "z first", "t", axis=1),
        node("Gemm", "t head", "y"),
    ]
    proto = build(nodes, **ATTENTION, head=random(WIDTH, 3))
    model, _ = rewrite(proto, merge_reshapes, select_early, merge_reshapes)
    assert operators(model)["MatMul"] == sum(each.op_type == "MatMul" for each in nodes)
    for name in ("b_projected", "b_h", "b_f", "b_r", "b_out"):
        assert positions(model, name) == 1
    assert positions(model, "b_scores", axis=2) == 1
    assert positions(model, "b_probabilities", axis=2) == 1
    assert positions(model, "b_probabilities", axis=3) == TOKENS
    assert positions(model, "a_out") == TOKENS
    assert operators(model)["Slice"] == 2  # the queries, and the stream that the attention is added to
    # Layers that share what they read go on doing so: the queries' layer computes all tokens, as the others do.
    assert positions(model, "b_qkv" if fused else "b_qp") == TOKENS


def test_tokens_first_as_torch_lays_them_out() -> None:
    nodes = [
        node("Transpose", "x", "t", perm=[1, 0, 2]),
        node("MatMul", "t w", "q"),
        node("MatMul", "t w2", "k"),
        node("Reshape", "q heads", "qr"),
        node("Reshape", "k heads", "kr"),
        node("Transpose", "qr", "qh", perm=[1, 0, 2]),
        node("Transpose", "kr", "kh", perm=[1, 2, 0]),
        node("MatMul", "qh kh", "scores"),
        node("Softmax", "scores", "probabilities"),
        node("Transpose", "kr", "vh", perm=[1, 0, 2]),
        node("MatMul", "probabilities vh", "mixed"),
        node("Transpose", "mixed", "tokens", perm=[1, 0, 2]),
        node("Reshape", "tokens together", "together_"),
        node("MatMul", "together_ w", "projected"),
        node("Gather", "projected first", "y"),
    ]
    constants = {"heads": np.array([TOKENS, -1, WIDTH // HEADS]), "together": np.array([TOKENS, -1, WIDTH])}
    model, _ = rewrite(build(nodes, **constants), select_early)
    assert positions(model, "projected", axis=0) == 1
    assert positions(model, "mixed") == 1


@pytest.mark.parametrize("index", ["first", "last", "some"])
def test_number_of_tokens_may_be_open(index: str) -> None:
    """`some` has indices from either end, of which nobody knows whether they are the same."""
    nodes = [
        node("MatMul", "x w", "m"),
        node("Relu", "m", "r"),
        node("Add", "r m", "s"),
        node("Reshape", "s split", "h"),
        node("Abs", "h", "z"),
        node("Gather", "z pick", "y", axis=1),
    ]
    pick = np.array([-2, 1]) if index == "some" else WEIGHTS[index]
    model, _ = rewrite(build(nodes, ["N", "T", WIDTH], pick=pick), select_early)
    assert positions(model, "m") == (None if index == "some" else 1)


def test_reshape_to_an_open_number_of_tokens_and_gather_of_a_part() -> None:
    nodes = [
        node("MatMul", "x w", "m"),
        node("Reshape", "m target", "h"),
        node("Gather", "h one", "p", axis=2),
        node("Gather", "p first", "y", axis=1),
    ]
    model, _ = rewrite(build(nodes, target=np.array([0, -1, HEADS, WIDTH // HEADS])), select_early)
    assert positions(model, "m") == 1
    assert positions(model, "p") == 1


def test_constants_that_others_read_stay_whole() -> None:
    nodes = [
        node("MatMul", "x w", "m"),
        node("Add", "m position", "z"),
        node("Gather", "z first", "y", axis=1),
        node("Mul", "x position", "other"),
    ]
    model, _ = rewrite(build(nodes, outputs=("y", "other")), select_early)
    assert positions(model, "m") == 1


def test_values_that_the_body_of_an_if_reads_stay_whole() -> None:
    body = onnx.helper.make_graph(
        [node("Neg", "m", "inner")], "body", [], [onnx.helper.make_tensor_value_info("inner", 1, None)]
    )
    nodes = [
        node("MatMul", "x w", "m"),
        node("Gather", "m first", "y", axis=1),
        node("If", "yes", "other", then_branch=body, else_branch=body),
    ]
    model, _ = rewrite(build(nodes, outputs=("y", "other"), yes=np.bool_(True)), select_early)
    assert positions(model, "m") == TOKENS


def test_selection_reaches_the_networks_input() -> None:
    nodes = [node("MatMul", "x w", "m"), node("MatMul", "m w2", "z"), node("Gather", "z last", "y", axis=1)]
    model, _ = rewrite(build(nodes), select_early)
    assert [each.op_type for each in model.graph] == ["Slice", "MatMul", "MatMul", "Squeeze"]


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", ["b", "row", "table"])
def test_rows_of_a_gemm(transposed: int, bias: str) -> None:
    nodes = [node("Gemm", f"x w {bias}", "m", transA=transposed), node("Gather", "m first", "y")]
    shape = [WIDTH, TOKENS] if transposed else [TOKENS, WIDTH]
    constants = {"row": random(1, WIDTH), "table": random(TOKENS, WIDTH)}
    model, _ = rewrite(build(nodes, shape, **constants), select_early)
    assert positions(model, "m", axis=0) == 1


@pytest.mark.parametrize("operator", ELEMENTWISE)
def test_each_elementwise_operator_computes_every_position_by_itself(operator: str) -> None:
    """By the schema, every tensor input is tried as a value with tokens; a new operator in the table is tried too."""
    schema = onnx.defs.get_schema(operator, 21)
    logical, extra = operator in {"And", "Not", "Or", "Xor"}, {}
    count = max(1, schema.min_input)
    inputs = ["m", "position", "m"][:count]
    nodes = [node("MatMul", "x w", "m0"), node("Abs", "m0", "m1"), node("Add", "m1 half", "m")]
    if logical:
        nodes += [node("Greater", "m half", "first_"), node("Less", "m position", "second_")]
        inputs = ["first_", "second_"][:count]
    if operator == "Where":
        nodes, inputs = [*nodes, node("Greater", "m half", "c")], ["c", "m", "position"]
    if operator == "Cast":
        extra = {"to": onnx.TensorProto.DOUBLE}
    if operator == "Mod":
        extra = {"fmod": 1}
    nodes += [node(operator, " ".join(inputs), "r", **extra), node("Cast", "r", "z", to=onnx.TensorProto.FLOAT)]
    nodes.append(node("Slice", "z one three one", "y"))
    model, _ = rewrite(build(nodes, half=np.float32(0.5), position=np.abs(random(1, TOKENS, WIDTH))), select_early)
    assert positions(model, "m0") == 2


STEPS = {
    "Add": "Add {a} {b}",
    "Mul": "Mul {a} {b}",
    "product": "MatMul {a} {b}",
    "layer": "MatMul {a} weights",
    "layer again": "MatMul {a} weights",
    "layer from the left": "MatMul weights {a}",
    "tokens swapped": "Transpose {a} perm=0213",
    "last swapped": "Transpose {a} perm=0132",
    "rotated": "Transpose {a} perm=0312",
    "softmax": "Softmax {a} axis=3",
    "softmax before": "Softmax {a} axis=2",
    "two axes joined": "Reshape {a} zeros; Reshape full",
    "all but the last joined": "Reshape {a} open; Reshape full",
    "middle joined": "Reshape {a} flat; Reshape full",
    "LayerNormalization": "LayerNormalization {a} vector",
    "per channel": "Mul {a} vector",
    "per token": "Mul {a} column",
    "per both": "Mul {a} plane",
    "per all": "Mul {a} cube",
    "Tanh": "Tanh {a}",
}
"""Operator, inputs and attributes; a second operator reads what the first one made."""


@st.composite
def token_networks(draw: st.DrawFn) -> onnx.ModelProto:
    """A random network of values [2, 4, 4, 4], so that every axis could be taken for every other, and a selection."""
    names, nodes, made = ["x"], [], ""
    for number in range(draw(st.integers(2, 8))):
        first, second = (draw(st.sampled_from(names[-3:])) for _ in range(2))
        for part, step in enumerate(
            draw(st.sampled_from(sorted(STEPS.values()))).format(a=first, b=second).split("; ")
        ):
            operator, *inputs = step.split()
            attributes = dict(each.split("=") for each in inputs if "=" in each)
            values = {key: [*map(int, text)] if key == "perm" else int(text) for key, text in attributes.items()}
            read, made = [made, *inputs] if part else inputs, f"v{number}_{part}"
            nodes.append(node(operator, " ".join(each for each in read if "=" not in each), made, **values))
        names.append(made)
    axis = draw(st.integers(0, 3))
    outputs = [f"y{number}" for number in range(draw(st.integers(1, 2)))]
    picks = [draw(st.sampled_from(["first", "last", "list"])) for _ in outputs]
    nodes += [node("Gather", f"{made} {pick}", name, axis=axis) for name, pick in zip(outputs, picks, strict=True)]
    constants = {
        "weights": random(4, 4) / 2, "vector": random(4), "column": random(4, 1), "plane": random(4, 4, seed=1),
        "cube": random(4, 4, 4), "first": np.array(0), "last": np.array(-1), "list": np.array([-1, 0]),
        "zeros": np.array([0, 0, -1]), "open": np.array([-1, 4]), "flat": np.array([2, 16, 4]),
        "full": np.array([2, 4, 4, 4]),
    }  # fmt: skip
    read = {value for each in nodes for value in each.input}
    used = {name: array for name, array in constants.items() if name in read}
    others = draw(st.lists(st.sampled_from(names[1:]), max_size=1))
    return network(nodes, {"x": [2, 4, 4, 4]}, outputs + others, used)


@settings(max_examples=150)
@given(proto=token_networks())
def test_random_networks_give_the_same_and_cost_no_more(proto: onnx.ModelProto) -> None:
    before = load(proto, simplify=False).model
    model, _ = rewrite(proto, select_early)
    assert products(model) <= products(before)
    assert set(operators(model)) <= {*operators(before), "Slice", "Squeeze"}
    assert operators(model)["MatMul"] <= operators(before)["MatMul"]


def products(model: ir.Model) -> int:
    """Multiplications of all matrix products."""
    total = 0
    for each in model.graph:
        if each.op_type in {"MatMul", "Gemm"}:
            result, summed = dimensions(each.outputs[0]), dimensions(each.inputs[0])
            total += math.prod(size or 1 for size in result or ()) * ((summed or ())[-1] or 1)
    return total


def test_zoo_transformer_computes_its_last_block_for_one_token(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zoo / "models" / "vit_tiny" / "vit_tiny_patch16_224.onnx"
    after = load(path).model
    monkeypatch.setattr(
        simplification, "SIMPLIFICATIONS", tuple(each for each in SIMPLIFICATIONS if each is not select_early)
    )
    before = load(path).model
    assert_same(run(before, size=1), run(after, size=1), tolerance=1e-5)
    assert operators(after)["MatMul"] == operators(before)["MatMul"]
    saved = 1 - sum(map(multiply_accumulates, after.graph)) / sum(map(multiply_accumulates, before.graph))
    assert 0.05 < saved < 0.07


@pytest.mark.parametrize("folder", ["mobilenet_v2", "cifar_resnet"])
def test_zoo_convolutional_networks_are_left_as_they_are(zoo: Path, folder: str) -> None:
    model = load(next((zoo / "models" / folder).glob("*.onnx"))).model
    before = [str(each) for each in model.graph]
    assert select_early(model) == ()
    assert [str(each) for each in model.graph] == before
