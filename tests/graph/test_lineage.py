"""What is computed from what, against a walk over the graph."""

import onnx_ir as ir

from narrowgauge.graph.lineage import Lineage
from tests.graph.transformers import pre_norm, transformer
from tests.planning.networks import network, normal


def computed_from(value: ir.Value) -> set[ir.Value]:
    """The value and all before it, by walking back."""
    found, waiting = set(), [value]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            writer = one.producer()
            waiting += [before for before in writer.inputs if before is not None] if writer is not None else []
    return found


def test_it_is_what_a_walk_finds() -> None:
    model = transformer(pre_norm, depth=2)
    lineage = Lineage.of(model.graph)
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    for value in values:
        before = computed_from(value)
        assert [lineage.comes_from(value, one) for one in values] == [one in before for one in values]


def test_a_constant_comes_from_nothing_and_outputs_of_one_node_from_each_other_neither() -> None:
    model = network(
        "float[n, 4] x", "float[n, 2] y", "a, b = Split<axis = 1, num_outputs = 2>(x)  c = Add(b, w)  y = Mul(c, c)",
        w=normal(2),
    )  # fmt: skip
    lineage = Lineage.of(model.graph)
    values = {value.name: value for node in model.graph for value in node.outputs}
    weights = model.graph.initializers["w"]
    assert not lineage.comes_from(values["y"], weights)
    assert not lineage.comes_from(weights, values["y"])
    assert not lineage.comes_from(values["b"], values["a"])
    assert not lineage.comes_from(values["y"], values["a"])
    assert lineage.comes_from_any(values["y"], [values["c"].producer()])
    assert not lineage.comes_from(None, values["a"])
