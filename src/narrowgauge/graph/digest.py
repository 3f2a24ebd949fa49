"""A fingerprint of a network, so that statistics and plans know which one they belong to."""

from __future__ import annotations

import hashlib

import onnx_ir as ir


def network_digest(model: ir.Model) -> str:
    """SHA-256 over the structure, the value names and the weights of a network, as 64 hexadecimal digits.

    Weights that nothing reads do not count: a file may lack them.
    """
    digest = hashlib.sha256()
    graph = model.graph
    for node in graph.all_nodes():
        names = [value.name if value is not None else "" for value in node.inputs]
        digest.update(repr((node.domain, node.op_type, names, [value.name for value in node.outputs])).encode())
    for name, value in sorted(graph.initializers.items()):
        if value.const_value is not None and (value.uses() or value.is_graph_output()):
            digest.update(repr((name, str(value.const_value.dtype), tuple(value.const_value.shape))).encode())
            digest.update(value.const_value.tobytes())
    return digest.hexdigest()
