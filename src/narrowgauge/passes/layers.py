"""Layers with constant weights, and what scaling or shifting their output or input does to the weights.

For a layer y = W x + b, per output channel s and t:   s y + t = (s W) x + (s b + t),
and per input channel s and t:                         W (s x + t) + b = (W s) x + (W t + b).
Numbers are computed in float64 and stored in the weights' own type.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from narrowgauge.graph.constants import constant_array, replace_constant_input
from narrowgauge.graph.edits import is_operator, sole_consumer

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class CannotFoldError(Exception):
    """The numbers of an affine node do not fit into a layer; the message is the reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """A Conv, ConvTranspose, Gemm or MatMul whose weights are constant.

    Attributes:
        node: The node itself.
        weight: Its weights as ONNX stores them: Conv [out, in/groups, *kernel], Gemm [in, out] or, with transB,
            [out, in], ConvTranspose [in, out/groups, *kernel], MatMul [..., in, out].
        bias_node: For a MatMul, the Add of a constant that alone reads it.
    """

    node: ir.Node
    weight: np.ndarray
    bias_node: ir.Node | None = None

    @property
    def output(self) -> ir.Value:
        """The value after the bias."""
        return (self.bias_node or self.node).outputs[0]

    @property
    def is_convolution(self) -> bool:
        """Whether channels lie on axis 1; else on the last."""
        return self.node.op_type in {"Conv", "ConvTranspose"}

    @property
    def groups(self) -> int:
        """The number of groups of channels."""
        return self.node.attributes.get_int("group", 1)

    @property
    def output_channels(self) -> int:
        """The number of output channels."""
        if self.node.op_type == "Conv":
            return int(self.weight.shape[0])
        if self.node.op_type == "ConvTranspose":
            return int(self.weight.shape[1]) * self.groups
        return int(self.weight.shape[0 if self.is_transposed else -1])

    @property
    def input_channels(self) -> int:
        """The number of input channels."""
        if self.node.op_type == "Conv":
            return int(self.weight.shape[1]) * self.groups
        if self.node.op_type == "ConvTranspose":
            return int(self.weight.shape[0])
        return int(self.weight.shape[-1 if self.is_transposed else -2])

    @property
    def is_transposed(self) -> bool:
        """Whether the weights of a Gemm lie as [out, in]."""
        return self.node.op_type == "Gemm" and bool(self.node.attributes.get_int("transB", 0))


def layer_of(node: ir.Node | None) -> Layer | None:
    """Return the layer that a node is, or that it ends (the Add of a MatMul's bias), else None."""
    if node is None:
        return None
    if is_operator(node, "Add"):
        return _matmul_before(node)
    if not is_operator(node, *LAYERS) or len(node.inputs) < 2:
        return None
    weight = constant_array(node.inputs[1])
    if weight is None or weight.dtype.kind != "f" or weight.ndim < 2:
        return None
    if is_operator(node, "Gemm") and node.attributes.get_int("transA", 0) != 0:
        return None
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and constant_array(bias) is None:
        return None
    return Layer(node=node, weight=weight)


def _matmul_before(add: ir.Node) -> Layer | None:
    """Return the MatMul whose result the Add alone reads, adding a constant per channel."""
    for index in (0, 1):
        value, other = add.inputs[index], constant_array(add.inputs[1 - index])
        producer = None if value is None else value.producer()
        if value is None or other is None or not is_operator(producer, "MatMul") or sole_consumer(value) is not add:
            continue
        layer = layer_of(producer)
        if layer is None or other.ndim > layer.weight.ndim or other.size != layer.output_channels:
            continue
        if other.shape[-1:] == (layer.output_channels,):
            return Layer(node=layer.node, weight=layer.weight, bias_node=add)
    return None


def scale_output(layer: Layer, scale: np.ndarray, shift: np.ndarray) -> None:
    """Make the layer compute `scale * y + shift`, in place.

    Args:
        layer: The layer; its output keeps its name.
        scale: Per output channel, or of one element.
        shift: Likewise.

    Raises:
        CannotFoldError: A result would not be finite, or there is no bias to shift.
    """
    old_bias = _bias(layer)
    if layer.node.op_type == "MatMul" and layer.bias_node is None and np.any(shift):
        raise CannotFoldError("a MatMul without bias cannot shift its output")
    weight = layer.weight.astype(np.float64) * _over_outputs(layer, scale)
    bias = None if old_bias is None and not np.any(shift) else (0.0 if old_bias is None else old_bias) * scale + shift
    _store(layer, weight, bias)


def scale_input(layer: Layer, scale: np.ndarray, shift: np.ndarray) -> None:
    """Make the layer compute on `scale * x + shift` what it computed on x, in place.

    Args:
        layer: The layer.
        scale: Per input channel, or of one element.
        shift: Likewise.

    Raises:
        CannotFoldError: A shift meets padding (which would pad with the shift's image instead of zero), a transposed
            convolution (whose border pixels see fewer taps), or no bias; or a result would not be finite.
    """
    weight = layer.weight.astype(np.float64)
    bias = _bias(layer)
    if np.any(shift):
        bias = (0.0 if bias is None else bias) + _response_to(layer, weight, shift)
    _store(layer, weight * _over_inputs(layer, scale), bias)


def _over_outputs(layer: Layer, scale: np.ndarray) -> np.ndarray:
    """Shape a vector over the output channels so that it multiplies the weights."""
    kernel = (1,) * (layer.weight.ndim - 2)
    if scale.size == 1:
        return scale.reshape(())
    if layer.node.op_type == "Conv":
        return scale.reshape(-1, 1, *kernel)
    if layer.node.op_type == "ConvTranspose":
        per_group = scale.reshape(layer.groups, 1, -1)  # [groups, 1, out/groups]
        repeated = np.repeat(per_group, layer.input_channels // layer.groups, axis=1)  # [groups, in/groups, out/groups]
        return repeated.reshape(layer.input_channels, -1, *kernel)
    return scale.reshape(-1, 1) if layer.is_transposed else scale


def _over_inputs(layer: Layer, scale: np.ndarray) -> np.ndarray:
    """Shape a vector over the input channels so that it multiplies the weights."""
    kernel = (1,) * (layer.weight.ndim - 2)
    if scale.size == 1:
        return scale.reshape(())
    if layer.node.op_type == "ConvTranspose":
        return scale.reshape(-1, 1, *kernel)
    if layer.node.op_type == "Conv":
        per_group = scale.reshape(layer.groups, 1, -1)  # [groups, 1, in/groups]
        # [groups, out/groups, in/groups]
        repeated = np.repeat(per_group, layer.output_channels // layer.groups, axis=1)
        return repeated.reshape(layer.output_channels, -1, *kernel)
    return scale if layer.is_transposed else scale.reshape(-1, 1)


def _response_to(layer: Layer, weight: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Return what the layer adds to each output channel when each input channel is shifted."""
    if layer.node.op_type == "ConvTranspose":
        raise CannotFoldError("a shift before a transposed convolution does not reach its border evenly")
    if layer.node.op_type == "MatMul" and (layer.bias_node is None or weight.ndim > 2):
        raise CannotFoldError("the MatMul behind has no bias that could take the shift")
    if layer.node.op_type == "Conv" and _is_padded(layer.node):
        raise CannotFoldError("the convolution behind pads with zeros, which a shift would have to change")
    response = weight * _over_inputs(layer, shift)
    if layer.node.op_type == "Conv":
        return np.asarray(response.sum(axis=tuple(range(1, weight.ndim))))
    summed = response.sum(axis=-1 if layer.is_transposed else -2)
    return np.asarray(summed * layer.node.attributes.get_float("alpha", 1.0))


def _is_padded(node: ir.Node) -> bool:
    automatic = node.attributes.get_string("auto_pad", "NOTSET")
    return automatic.startswith("SAME") or any(node.attributes.get_ints("pads", ()))


def _bias(layer: Layer) -> np.ndarray | None:
    """Return the layer's bias in float64, for a Gemm times beta."""
    node = layer.node
    if layer.bias_node is not None:
        return np.asarray(_added(layer.bias_node), dtype=np.float64)
    array = constant_array(node.inputs[2]) if len(node.inputs) > 2 else None
    if array is None:
        return None
    bias = array.astype(np.float64)
    return bias * node.attributes.get_float("beta", 1.0) if node.op_type == "Gemm" else bias


def _added(add: ir.Node) -> np.ndarray:
    array = constant_array(add.inputs[1])
    other = constant_array(add.inputs[0]) if array is None else array
    if other is None:
        message = f"the Add {add.name!r} has no constant"
        raise ValueError(message)
    return other


def _store(layer: Layer, weight: np.ndarray, bias: np.ndarray | None) -> None:
    """Write weights and bias back, in the weights' type."""
    node, dtype = layer.node, layer.weight.dtype
    with np.errstate(over="ignore"):
        new_weight = weight.astype(dtype)
        new_bias = None if bias is None else _bias_shaped(layer, bias).astype(dtype)
    if not np.isfinite(new_weight).all() or (new_bias is not None and not np.isfinite(new_bias).all()):
        raise CannotFoldError("the folded weights would not be finite")
    replace_constant_input(node, 1, new_weight)
    if new_bias is None:
        return
    if layer.bias_node is not None:
        index = 0 if constant_array(layer.bias_node.inputs[1]) is None else 1
        replace_constant_input(layer.bias_node, index, new_bias)
        return
    if node.op_type == "Gemm":
        node.attributes.pop("beta", None)
    replace_constant_input(node, 2, new_bias, name=_bias_name(node))


def _bias_shaped(layer: Layer, bias: np.ndarray) -> np.ndarray:
    """Give each output channel of a convolution its own bias; elsewhere keep what broadcasts."""
    if layer.is_convolution:
        return np.broadcast_to(bias.reshape(-1), (layer.output_channels,))
    if bias.ndim == 0:
        return np.broadcast_to(bias, (layer.output_channels,))
    return bias


def _bias_name(node: ir.Node) -> str | None:
    """Name a bias like the weights: `conv1.weight` has `conv1.bias`, and `conv1/kernel` has `conv1/bias`."""
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        return None
    weight = node.inputs[1]
    name = (weight.name if weight is not None else None) or f"{node.name}.weight"
    for ending in (".weight", "/kernel"):
        if name.endswith(ending):
            return f"{name.removesuffix(ending)}{ending[0]}bias"
    return f"{name}_bias"
