"""Leave out the initial states of recurrent layers that are zero: ONNX means zeros where there is none."""

import onnx_ir as ir

from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.edits import is_operator, remove_unused
from narrowgauge.graph.refusals import Refusal

_STATES = {"GRU": (5,), "LSTM": (5, 6), "RNN": (5,)}
"""Operator -> numbers of the inputs that hold initial states."""

_KEEP_NUMBERS = (
    "Cast", "Expand", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
)  # fmt: skip


def zero_states(model: ir.Model) -> tuple[Refusal, ...]:
    """Remove initial states of LSTM, GRU and RNN that are zero whatever the batch size is, in place.

    Frameworks make them as long as the batch, which needs its size at run time. Nothing is refused.
    """
    for node in model.graph:
        for index in _STATES.get(node.op_type, ()) if is_operator(node, node.op_type) else ():
            if index < len(node.inputs) and node.inputs[index] is not None and _is_zero(node.inputs[index]):
                node.replace_input_with(index, None)
    remove_unused(model)
    return ()


def _is_zero(value: ir.Value | None) -> bool:
    while value is not None:
        array = constant_array(value)
        if array is not None:
            return not array.any()
        node = value.producer()
        if is_operator(node, "ConstantOfShape") and node is not None:
            tensor = node.attributes.get_tensor("value", None)
            return tensor is None or not tensor.numpy().any()
        if node is None or not is_operator(node, *_KEEP_NUMBERS):
            return False
        value = node.inputs[0]
    return False
