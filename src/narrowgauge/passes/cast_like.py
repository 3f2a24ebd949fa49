"""Write CastLike as the Cast that it is where the type it takes is known."""

import onnx_ir as ir

from narrowgauge.graph.edits import all_nodes, is_operator, remove_unused
from narrowgauge.graph.refusals import Refusal


def cast_like(model: ir.Model) -> tuple[Refusal, ...]:
    """Turn every CastLike whose second input's type is known into a Cast of the first, in place.

    Exporters write constants that way, whose type is that of an activation; as a Cast they can be folded, and nothing
    seems to read the activation any more. Nothing is refused: a CastLike that stays is right.
    """
    for node in tuple(all_nodes(model)):
        if not is_operator(node, "CastLike") or node.inputs[1] is None or node.inputs[1].dtype is None:
            continue
        node.attributes["to"] = ir.AttrInt64("to", int(node.inputs[1].dtype))
        node.op_type = "Cast"
        node.resize_inputs(1)
    remove_unused(model)
    return ()
