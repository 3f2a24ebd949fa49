"""A quantized network with a switch for each tensor: what leaving any set of tensors float does, from one session."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from narrowgauge.core.plan import Plan
from narrowgauge.graph.engine import open_session
from narrowgauge.lowering.qdq import QdqStyle, lower_to_qdq

Array = np.ndarray


class Switched:
    """Runs the network with some tensors left float and all others rounded; biases are float.

    An independent way to what the sweep measures: nothing is cut, one input of the network for each tensor says whether
    it is rounded.
    """

    def __init__(self, model: ir.Model, plan: Plan, groups: Mapping[str, Sequence[str]], feed: Mapping[str, Array]):
        network = lower_to_qdq(model, plan, QdqStyle(bias_bits=0, drop_clips=False))
        owner = {member: name for name, members in groups.items() for member in members}
        self.names = tuple(groups)
        self.feed = dict(feed)
        originals = dict(model.graph.initializers.items())
        switches = {}
        for number, name in enumerate(groups):
            switches[name] = ir.val(f"switch_{number}", dtype=ir.DataType.BOOL, shape=())
            network.graph.inputs.append(switches[name])
        self.switches = {name: str(value.name) for name, value in switches.items()}
        for node in list(network.graph):
            if node.op_type != "DequantizeLinear":
                continue
            levels = node.inputs[0]
            rounding = levels.producer()
            if rounding is not None and rounding.op_type == "QuantizeLinear":
                real = rounding.inputs[0]
                name = next(n for n in owner if levels.name == f"{n}_quantized")
            else:
                name = next(n for n in owner if str(levels.name) == f"{n}_quantized")
                real = ir.val(f"{node.name}_float", const_value=ir.tensor(originals[name].const_value.numpy()))
                real.const_value.name = real.name
                network.graph.register_initializer(real)
            choice = ir.node("Where", [switches[owner[name]], real, node.outputs[0]], name=f"{node.name}_choice")
            choice.outputs[0].name = f"{node.name}_chosen"
            choice.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
            node.outputs[0].replace_all_uses_with(choice.outputs[0], replace_graph_outputs=True)
            choice.replace_input_with(2, node.outputs[0])
            node.append(choice)
        self.session = open_session(network, threads=1, simulate=True)

    def outputs(self, left_float: Collection[str]) -> list[Array]:
        flags = {switch: np.array(name in left_float) for name, switch in self.switches.items()}
        return self.session.run(None, {**self.feed, **flags})

    def noise(self, left_float: Collection[str]) -> float:
        """Output noise against the float network, the mean over the outputs."""
        if not hasattr(self, "reference"):
            self.reference = self.outputs(self.names)
        shares = [
            np.square(other.astype(np.float64) - one).sum() / np.square(one.astype(np.float64)).sum()
            for one, other in zip(self.reference, self.outputs(left_float), strict=True)
        ]
        return float(np.mean(shares))
