"""Roundings on any edges of random networks: parted and lowered, a network gives the numbers that it gave before."""

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.plan import plan_from_json, plan_to_json
from narrowgauge.graph.digest import network_digest
from narrowgauge.graph.engine import open_session
from narrowgauge.graph.quantized import is_quantized
from narrowgauge.importers.prequantized import Parted, take_apart
from narrowgauge.lowering.qdq import lower_to_qdq
from narrowgauge.lowering.qoperator import lower_to_qoperator

SHAPE = (2, 3, 4, 4)
SCALES = (0.05, 0.031, 0.125)
TYPES = {"uint8": np.uint8, "int8": np.int8, "uint16": np.uint16, "int16": np.int16}


def run(model: ir.Model | onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Run as written: no rewrites, no fusions."""
    given = model if isinstance(model, ir.Model) else ir.from_proto(model)
    session = open_session(given, threads=1, optimization="none", simulate=True)
    return [np.asarray(array) for array in session.run(None, dict(feed))]


def relowered(parted: Parted) -> ir.Model:
    """Lower what was parted, from the plan as it is written to a file."""
    plan = plan_from_json(plan_to_json(parted.plan))
    assert plan.network == network_digest(parted.model)
    return lower_to_qdq(parted.model, plan)


class Builder:
    """Draws a network: operators on values of one shape, every edge rounded or not."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.levels: dict[tuple[str, float, str, int], str] = {}
        self.written: list[tuple[float, str, int]] = []
        self.count = 0

    def name(self, what: str) -> str:
        self.count += 1
        return f"{what}{self.count}"

    def constant(self, what: str, array: np.ndarray) -> str:
        name = self.name(what)
        self.constants[name] = array
        return name

    def add(self, operator: str, inputs: list[str], **attributes: object) -> str:
        output = self.name(operator.lower())
        self.nodes.append(helper.make_node(operator, inputs, [output], name=f"node_{output}", **attributes))
        return output

    def encoding(self) -> tuple[float, str, int]:
        kind = self.data.draw(st.sampled_from(sorted(TYPES)))
        ends = np.iinfo(TYPES[kind])
        zero_point = self.data.draw(st.sampled_from([int(ends.min), (int(ends.min) + int(ends.max) + 1) // 2]))
        return self.data.draw(st.sampled_from(SCALES)), kind, zero_point

    def linear(self, operator: str, value: str, scale: float, kind: str, zero_point: int) -> str:
        scales = self.constant("scale", np.array(scale, np.float32))
        zeros = self.constant("zero_point", np.array(zero_point, TYPES[kind]))
        return self.add(operator, [value, scales, zeros])

    def rounded(self, value: str) -> str:
        """One reader's branch of a value: as it is, rounded, or rounded twice; levels are shared or not."""
        for _ in range(self.data.draw(st.sampled_from([0, 1, 1, 1, 2]))):
            encoding = self.encoding()
            self.written.append(encoding)
            key = (value, *encoding)
            if key not in self.levels or self.data.draw(st.booleans()):
                self.levels[key] = self.linear("QuantizeLinear", value, *encoding)
            value = self.linear("DequantizeLinear", self.levels[key], *encoding)
        return value

    def weights(self, *shape: int) -> str:
        if not self.data.draw(st.booleans()):
            return self.constant("weight", np.random.default_rng(self.count).normal(size=shape).astype(np.float32))
        levels = np.random.default_rng(self.count).integers(-128, 128, shape).astype(np.int8)
        scales = np.linspace(0.01, 0.02, shape[0], dtype=np.float32)
        inputs = [self.constant("levels", levels), self.constant("scale", scales)]
        return self.add("DequantizeLinear", [*inputs, self.constant("zero", np.zeros(shape[0], np.int8))], axis=0)


def draw_network(data: st.DataObject) -> tuple[onnx.ModelProto, Builder]:
    builder = Builder(data)
    values = ["x"]
    for _ in range(data.draw(st.integers(1, 6))):
        operator = data.draw(st.sampled_from(["Conv", "Relu", "Add", "Mul", "MaxPool", "Sigmoid", "Transpose", "Clip"]))
        first = builder.rounded(data.draw(st.sampled_from(values)))
        if operator == "Conv":
            values.append(builder.add("Conv", [first, builder.weights(3, 3, 1, 1)]))
        elif operator in ("Add", "Mul"):
            second = builder.rounded(data.draw(st.sampled_from(values)))
            values.append(builder.add(operator, [first, second]))
        elif operator == "MaxPool":
            values.append(builder.add("MaxPool", [first], kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
        elif operator == "Transpose":
            values.append(builder.add("Transpose", [first], perm=[0, 1, 3, 2]))
        elif operator == "Clip":
            bounds = [builder.constant("bound", np.array(bound, np.float32)) for bound in (0, 6)]
            values.append(builder.add("Clip", [first, *bounds]))
        else:
            values.append(builder.add(operator, [first]))
    outputs = [builder.rounded(values[-1]), builder.rounded(data.draw(st.sampled_from(values)))]
    returned = [builder.add("Identity", [value]) if value == "x" else value for value in dict.fromkeys(outputs)]
    graph = helper.make_graph(
        builder.nodes,
        "edges",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *SHAPE[1:]])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in returned],
        [numpy_helper.from_array(array, name) for name, array in builder.constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), builder


@settings(max_examples=60)
@given(st.data())
def test_a_parted_network_gives_the_same_numbers_wherever_it_rounds(data: st.DataObject) -> None:
    network, builder = draw_network(data)
    parted = take_apart(ir.from_proto(network))
    feed = {"x": np.random.default_rng(builder.count).normal(scale=3, size=SHAPE).astype(np.float32)}
    before, after = run(network, feed), run(relowered(parted), feed)
    assert [value.name for value in parted.model.graph.outputs] == [value.name for value in network.graph.output]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not is_quantized(parted.model)
    known = {(float(scale), kind, zero) for scale, kind, zero in builder.written}
    for encoding in parted.plan.encodings.values():
        if isinstance(encoding, Encoding) and encoding.scale.ndim == 0:
            assert (float(encoding.scale), encoding.type.name, int(encoding.zero_point)) in {
                (float(np.float32(scale)), kind, zero) for scale, kind, zero in known
            }


@settings(max_examples=30)
@given(st.data())
def test_what_was_lowered_parts_into_the_same_plan(data: st.DataObject) -> None:
    network, builder = draw_network(data)
    parted = take_apart(ir.from_proto(network))
    again = take_apart(relowered(parted))
    feed = {"x": np.random.default_rng(builder.count).normal(scale=3, size=SHAPE).astype(np.float32)}
    for one, other in zip(run(network, feed), run(relowered(again), feed), strict=True):
        np.testing.assert_array_equal(one, other)
    assert encodings_of(again) == encodings_of(parted)


def encodings_of(parted: Parted) -> set[tuple[object, ...]]:
    """Each encoding in numbers that compare."""
    return {
        (one.type.name, one.granularity, tuple(np.ravel(one.scale).tolist()), tuple(np.ravel(one.zero_point).tolist()))
        for one in parted.plan.encodings.values()
        if isinstance(one, Encoding)
    }


@settings(max_examples=30)
@given(st.data())
def test_operators_of_integers_part_like_the_pairs_they_were_made_of(data: st.DataObject) -> None:
    network, builder = draw_network(data)
    integer = lower_to_qoperator(relowered(take_apart(ir.from_proto(network))))
    parted = take_apart(integer)
    feed = {"x": np.random.default_rng(builder.count).normal(scale=3, size=SHAPE).astype(np.float32)}
    for one, other in zip(run(integer, feed), run(relowered(parted), feed), strict=True):
        assert one.shape == other.shape
        assert (np.abs(one - other) > 1e-4).mean() < TIES


TIES = 0.03
"""Share of numbers that the rounding of ties by an integer kernel may move."""
