"""Which tensors a plan rounds, beside the network that it is lowered to."""

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.analysis.roundings import roundings
from narrowgauge.calibration.collect import collect
from narrowgauge.core.encoding import DynamicEncoding, Encoding
from narrowgauge.core.numbers import integer_type
from narrowgauge.core.plan import Plan
from narrowgauge.demo import NETWORK_NAMES, digits, network_path
from narrowgauge.graph.engine import open_session
from narrowgauge.importers.onnx import load
from narrowgauge.lowering.qdq import QdqStyle, lower_to_qdq
from narrowgauge.planning.choices import Choices
from narrowgauge.planning.fill import fill
from narrowgauge.planning.place import place
from narrowgauge.targets.registry import load_target
from tests.calibration.networks import batches_of, branches, convolutions, network
from tests.lowering.networks import hand_plan, per_tensor


def changed_values(model: ir.Model, plan: Plan, feed: dict[str, np.ndarray]) -> dict[str, bool]:
    """Whether the Q/DQ pair of each value changes what goes into it, by the value's name."""
    lowered = lower_to_qdq(model, plan, QdqStyle(bias_bits=0))
    pairs = {}
    for node in lowered.graph:
        if node.op_type == "QuantizeLinear":
            after = next(iter(node.outputs[0].consumers())).outputs[0]
            pairs[str(node.name).removesuffix("_quantize")] = (node.inputs[0], after)
    lowered.graph.outputs.clear()
    lowered.graph.outputs.extend({id(v): v for pair in pairs.values() for v in pair if not v.is_graph_input()}.values())
    session = open_session(lowered, threads=1, optimization="none")
    names = [output.name for output in session.get_outputs()]
    found = feed | dict(zip(names, session.run(names, feed), strict=True))
    return {name: not np.array_equal(found[first.name], found[last.name]) for name, (first, last) in pairs.items()}


@pytest.mark.parametrize("name", NETWORK_NAMES)
@pytest.mark.parametrize("target", ["onnxruntime", "tflite", "pytorch-fbgemm"])
def test_listed_are_exactly_the_values_that_rounding_changes(name: str, target: str) -> None:
    model, images = load(network_path(name)).model, digits().images[:8]
    chip, statistics = load_target(target), collect(model, batches_of(model, images), threads=1)
    choices = Choices()
    plan = fill(model, place(model, chip, choices), statistics, chip, choices)
    changed = changed_values(model, plan, {"image": images})
    activations = [one for one in roundings(model, plan) if one.kind == "activation"]
    listed = [one.name for one in activations]
    assert len(listed) == len(set(listed))
    # Half of a rounded number is a level of the half scale, which does not make a Mul one that hands levels on.
    halved = {one.name for one in activations if one.node is not None and one.node.op_type == "Mul"}
    assert set(listed) - halved == {name for name, is_changed in changed.items() if is_changed} - halved
    depths = [one.depth for one in roundings(model, plan)]
    assert depths == sorted(depths)


CHAIN = """
<ir_version: 10, opset_import: ["": 21]>
chain (float[n, 4] x) => (float[n, 6] y, float[n, 4] z)
{
    shape = Constant<value_ints = [-1, 4]>()
    r = Reshape(x, shape)
    z = Neg(r)
    y = MatMul(r, w1)
}
"""


def chain() -> ir.Model:
    return network(CHAIN, {"w1": np.ones((4, 6), np.float32)})


def named(model: ir.Model, plan: Plan) -> list[tuple[str, str]]:
    return [(one.name, str(one.node.name) if one.node is not None else "") for one in roundings(model, plan)]


def test_a_value_that_is_handed_on_is_listed_where_it_is_first_rounded() -> None:
    model = chain()
    reshape, negation, product = (str(node.name) for node in model.graph)
    same = per_tensor("uint8", 0.1)
    encodings = {"x": same, "r": per_tensor("uint8", 0.1), "y": same, "w1": per_tensor("int8", 0.1)}
    everything = hand_plan(encodings)
    assert named(model, everything) == [("x", ""), ("w1", product), ("y", product)]
    other = hand_plan(encodings | {"r": per_tensor("uint8", 0.2)})
    assert [name for name, _ in named(model, other)] == ["x", "r", "w1", "y"]
    # A float Reshape of an input that nothing in integers reads: its output is rounded first.
    late = hand_plan(encodings, float_nodes=[reshape, negation])
    assert [name for name, _ in named(model, late)] == ["r", "w1", "y"]
    # Nothing in integers reads or writes anything.
    assert named(model, hand_plan(encodings, float_nodes=[reshape, negation, product])) == []


def test_encodings_of_run_time_and_of_wide_types_are_left_out() -> None:
    model = chain()
    wide = per_tensor("int32", 0.1)
    dynamic = DynamicEncoding(type=integer_type("uint8"))
    assert named(model, hand_plan({"x": dynamic, "w1": wide})) == []


def test_a_constant_in_the_place_of_an_activation_is_listed_as_a_constant() -> None:
    text = '<ir_version: 10, opset_import: ["": 21]> g (float[n, 4] x) => (float[n, 4] y) { y = Add(x, c) }'
    model = network(text, {"c": np.ones(4, np.float32)})
    plan = hand_plan(dict.fromkeys(["x", "c", "y"], per_tensor("uint8", 0.1)))
    assert [(one.name, one.kind) for one in roundings(model, plan)] == [
        ("x", "activation"), ("c", "weights"), ("y", "activation"),
    ]  # fmt: skip


def test_the_body_of_an_if_does_not_make_a_value_rounded() -> None:
    model = branches()
    condition = next(str(node.name) for node in model.graph if node.op_type == "If")
    encoding = per_tensor("uint8", 0.1)
    plan = hand_plan({"x": encoding, "h": encoding}, float_nodes=[condition, *_nodes(model, "ReduceSum")])
    assert [one.name for one in roundings(model, plan)] == ["h"]


def _nodes(model: ir.Model, operator: str) -> list[str]:
    return [str(node.name) for node in model.graph if node.op_type == operator]


def test_weights_of_two_readers_are_listed_once_with_the_first_integer_one() -> None:
    model = convolutions()
    first, second = (node for node in model.graph if node.op_type == "Conv")
    plan = hand_plan({"w1": per_tensor("int8", 0.1), "w2": per_tensor("int8", 0.1)}, float_nodes=[str(first.name)])
    (one,) = roundings(model, plan)
    assert (one.name, one.node, one.kind) == ("w2", second, "weights")
    assert isinstance(one.encoding, Encoding)


@pytest.mark.parametrize(
    ("operation", "listed"),
    [
        ("MaxPool<kernel_shape = [2, 2]>(h)", False),
        ("GlobalMaxPool(h)", False),
        ("Relu(h)", False),
        ("Concat<axis = 1>(h, h)", False),
        ("Max(h, h)", False),
        ("Transpose(h)", False),
        ("Gather<axis = 1>(h, i)", False),
        ("Slice(h, i, j)", False),
        ("AveragePool<kernel_shape = [2, 2]>(h)", True),  # means of levels are no levels
        ("Add(h, h)", True),
        ("Sigmoid(h)", True),
    ],
)
def test_what_only_selects_levels_rounds_nothing(operation: str, listed: bool) -> None:
    text = f"""
    <ir_version: 10, opset_import: ["": 21]>
    selecting (float[n, 3, 4, 4] x) => (y) {{
        i = Constant<value_ints = [0]>()
        j = Constant<value_ints = [1]>()
        h = Neg(x)
        y = {operation}
    }}
    """
    model, same = network(text, {}), per_tensor("uint8", 0.1, 100)
    assert [one.name for one in roundings(model, hand_plan({"h": same, "y": same}))] == ["h", "y"][: 1 + listed]
    other = per_tensor("uint8", 0.2, 100)
    assert [one.name for one in roundings(model, hand_plan({"h": same, "y": other}))] == ["h", "y"]
