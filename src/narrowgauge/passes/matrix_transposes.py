"""Transpose the last two axes directly where matrices are first put into one axis and taken out of it again."""

import onnx_ir as ir

from narrowgauge.graph.constants import constant_integers
from narrowgauge.graph.edits import graph_of, is_operator, new_node, remove_unused, sole_consumer, take_place
from narrowgauge.graph.refusals import Refusal
from narrowgauge.graph.shapes import dimensions
from narrowgauge.passes.fold_shapes import infer_shapes_anew
from narrowgauge.passes.moments import producer


def matrix_transposes(model: ir.Model) -> tuple[Refusal, ...]:
    """Replace Reshape to [matrices, m, n], Transpose and Reshape back to [..., n, m] by one Transpose, in place.

    So torch.onnx writes the keys of scaled_dot_product_attention. Nothing is refused.
    """
    changed = False
    for node in tuple(model.graph):
        if is_operator(node, "Transpose") and tuple(node.attributes.get_ints("perm", ())) == (0, 2, 1):
            changed |= _replace(node)
    remove_unused(model)
    if changed:
        infer_shapes_anew(model)
    return ()


def _replace(transpose: ir.Node) -> bool:
    before, after = producer(transpose.inputs[0], "Reshape"), sole_consumer(transpose.outputs[0])
    if before is None or after is None or not is_operator(after, "Reshape"):
        return False
    source = before.inputs[0]
    sizes, joined, parted = dimensions(source), constant_integers(before.inputs[1]), constant_integers(after.inputs[1])
    if source is None or not sizes or joined is None or parted is None or len(parted) != len(sizes) or len(sizes) < 3:
        return False
    if len(joined) != 3 or joined[1:] != sizes[-2:] or parted[-2:] != (sizes[-1], sizes[-2]) or 0 in parted:
        return False
    # -1 may stand for one size, known or not; all others must be those that were there.
    if any(size != part for size, part in zip(sizes[:-2], parted[:-2], strict=True) if part != -1):
        return False
    axes = len(sizes)
    order = [*range(axes - 2), axes - 1, axes - 2]
    result = after.outputs[0]
    name = after.name or str(result.name)
    direct = new_node("Transpose", [source], {"perm": order}, name=name, output=f"{name}_direct", like=result)
    shape = list(source.shape or ())
    graph_of(after).insert_before(after, direct)
    take_place(direct.outputs[0], result)
    direct.outputs[0].shape = ir.Shape([shape[axis] for axis in order])
    return True
